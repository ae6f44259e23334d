"""Trackers: they get every step's numbers, a continued run goes on in the same record, a missing one is one line."""

import math
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from recoup.config import Recover
from recoup.errors import ConfigError
from recoup.recover import trackers
from recoup.recover.trackers import check_trackers, flat, numbers, open_trackers

CONFIG = {"steps": 4, "rollout": {"server": None, "temperature": 0.8}, "terms": ({"prompts": "self"},)}
FLAT = {"steps": 4, "rollout.server": "None", "rollout.temperature": 0.8, "terms.0.prompts": "self"}


def row(step: int) -> dict[str, object]:
    return {"step": step, "phase": "on_policy", "loss": 1.0 / (step + 1), "num_tokens": 7, "overlap": None}


class Fake(GeneralTracker):
    """Remembers what it was told."""

    name, requires_logging_directory = "fake", False
    made: list["Fake"] = []  # noqa: RUF012  every tracker of a test, which empties it

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.calls: list[Any] = []
        Fake.made.append(self)

    @property
    def tracker(self):
        return self

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.calls.append(values)

    def log(self, values, step=None, **_):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finish")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """All three trackers, as if they were installed."""
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    monkeypatch.setattr(trackers, "LOGGER_TYPE_TO_CLASS", dict.fromkeys(("tensorboard", "wandb", "trackio"), Fake))
    Fake.made.clear()
    return Fake


def test_numbers_and_hyper_parameters() -> None:
    assert numbers({**row(1), "exact": True}) == {"loss": 0.5, "num_tokens": 7.0}
    assert flat(CONFIG) == FLAT
    assert flat({"cap": math.inf}) == {"cap": "inf"}
    whole = flat(Recover().model_dump())
    assert whole["terms.0.loss"] == "distill"
    assert all(isinstance(value, bool | int | float | str) for value in whole.values())


def test_every_tracker_hears_every_step(fake: type[Fake], tmp_path: Path) -> None:
    with open_trackers(("wandb", "trackio"), tmp_path, "demo", CONFIG, 0) as log:
        log(0, row(0))
    logged = (0, {"loss": 1.0, "num_tokens": 7.0})
    assert [tracker.calls for tracker in fake.made] == [["start", FLAT, logged, "finish"]] * 2


def test_a_continued_run_keeps_its_record(fake: type[Fake], tmp_path: Path) -> None:
    names = ("tensorboard", "wandb", "trackio")
    for first in (0, 3):
        with open_trackers(names, tmp_path, "demo", CONFIG, first) as log:
            log(first, row(first))
    with open_trackers(names, tmp_path / "other", "demo", CONFIG, 0):
        pass
    settings = [tracker.settings for tracker in fake.made]
    assert [settings[i]["purge_step"] for i in (0, 3)] == [None, 3]
    assert settings[1] == settings[4]
    assert settings[1]["id"] != settings[7]["id"]
    assert settings[2] == settings[5]
    assert settings[2]["name"] != settings[8]["name"]
    # the hyper-parameters are said once
    assert [FLAT in tracker.calls for tracker in fake.made] == [True] * 3 + [False] * 3 + [True] * 3


def test_trackers_are_closed_when_a_run_fails(fake: type[Fake], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_trackers(("wandb",), tmp_path, "demo", {}, 0):
        raise KeyboardInterrupt
    assert fake.made[0].calls[-1] == "finish"


def test_none_at_all_leaves_no_trace(tmp_path: Path) -> None:
    with open_trackers((), tmp_path, "demo", CONFIG, 0) as log:
        log(0, row(0))
    assert not list(tmp_path.iterdir())


def test_missing_package_and_refusal_are_one_line(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Fake) -> None:
        raise RuntimeError("no API key\nand a page of advice")

    monkeypatch.setattr(fake, "start", refuse)
    with (
        pytest.raises(ConfigError, match=r"wandb does not start \(no API key\)"),
        open_trackers(("wandb",), tmp_path, "a", {}, 0),
    ):
        pass
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="run: pip install trackio"):
        check_trackers(["trackio"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the tracker's own dependencies
def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((0, 3), (2, 4)):  # stopped after step 2, continued from a checkpoint before it
        with open_trackers(("tensorboard",), tmp_path, "demo", CONFIG, first) as log:
            for step in range(first, last):
                log(step, row(step) | {"num_tokens": 10 * first + step})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "num_tokens"}
    # steps 0 and 1 of the first run, 2 and 3 of the second; the first run's step 2 is gone
    assert [(event.step, event.value) for event in events.Scalars("num_tokens")] == [(0, 0), (1, 1), (2, 22), (3, 23)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert len(list(tmp_path.glob("tensorboard/*/hparams.yml"))) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_offline_writes_inside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_trackers(("wandb",), tmp_path, "demo", CONFIG, 0) as log:
        log(0, row(0))
    identity = (tmp_path / "tracker_id").read_text()
    assert list(tmp_path.glob(f"wandb/offline-run-*{identity}/run-{identity}.wandb"))
