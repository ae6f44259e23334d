"""What one run made is copied to another where it fits, and only there."""

import json
from pathlib import Path

import pytest

from recoup.results import DegradeResult
from recoup.run_folder import RunFolder, result_path
from recoup.sweep.expand import PlannedRun, expand
from recoup.sweep.share import same_first_injury, share
from tests.sweep.records import write_degrade, write_diagnosis, write_finished, write_scores
from tests.sweep.sweeps import NF4, one_injury, sweep, tree

SCORES = {"arc_easy": [1.0], "piqa": [0.0], "tooluse": [0.0]}


def planned(settings: dict) -> dict[str, PlannedRun]:
    return {run.name: run for run in expand(sweep(settings)).runs}


def test_a_repair_gets_what_its_baseline_made(tmp_path: Path) -> None:
    runs = planned(one_injury(methods=["onpolicy"]))
    first = write_finished(runs["nf4-none-seed0"], tmp_path, SCORES, SCORES, SCORES)
    share(runs["nf4-onpolicy-seed0"], list(runs.values()), tmp_path)
    own = RunFolder(tmp_path / "nf4-onpolicy-seed0")
    damage = DegradeResult.read(result_path(own.degrade("quantize")))
    assert damage.checkpoint == str(first.degrade("quantize") / "checkpoint")  # the weights stay where they are
    copied = sorted(str(path.relative_to(own.root)) for path in own.root.rglob("*") if path.is_file())
    assert copied == [
        "degrade/quantize/result.json",
        "diagnose/before/result.json",
        *(f"evaluate/{state}/{task}.json" for state in ("degraded", "reference") for task in SCORES),
    ]


def test_what_a_run_has_itself_stays(tmp_path: Path) -> None:
    runs = planned(one_injury(methods=["onpolicy"]))
    write_finished(runs["nf4-none-seed0"], tmp_path, SCORES, SCORES, SCORES)
    own = RunFolder(tmp_path / "nf4-onpolicy-seed0")
    checkpoint = write_degrade(own, "quantize", "embedded")
    share(runs["nf4-onpolicy-seed0"], list(runs.values()), tmp_path)
    assert DegradeResult.read(result_path(own.degrade("quantize"))).checkpoint == checkpoint
    assert not result_path(own.diagnose("before")).exists()  # that was of another student
    assert not (own.evaluate / "degraded").exists()
    assert (own.evaluate / "reference" / "piqa.json").is_file()


def test_an_expert_is_damage_here_and_reference_there(tmp_path: Path) -> None:
    runs = planned(tree(methods=["onpolicy"]))
    base, expert = {task: [0.0] for task in SCORES}, {task: [1.0] for task in SCORES}
    first = write_finished(runs["tooluse-none-seed0"], tmp_path, base, expert, expert)
    share(runs["tooluse-nf4-none-seed0"], list(runs.values()), tmp_path)
    own = RunFolder(tmp_path / "tooluse-nf4-none-seed0")
    assert DegradeResult.read(result_path(own.degrade("sft"))).checkpoint == str(first.degrade("sft") / "checkpoint")
    assert not own.degrade("quantize").exists()
    stored = json.loads((own.evaluate / "reference" / "tooluse.json").read_text())
    assert stored["items"]["scores"] == [1.0]  # the expert's, not the base's
    assert not (own.evaluate / "degraded").exists()  # not made yet
    assert not own.diagnose("before").exists()


@pytest.mark.parametrize("other", ["seed", "limit", "chat_template", "model", "settings"])
def test_nothing_is_taken_from_a_run_that_differs(tmp_path: Path, other: str) -> None:
    bits3, bits4 = ({"type": "quantize", "format": "int", "bits": bits, "group_size": 32} for bits in (3, 4))
    differ = {
        "seed": ({"degrade": [NF4]}, {"degrade": [NF4]}),
        "limit": ({"degrade": [NF4], "evaluate": {"limit": 3}}, {"degrade": [NF4], "evaluate": {"limit": 4}}),
        "chat_template": ({"degrade": [NF4], "chat_template": "plain"}, {"degrade": [NF4]}),
        "model": ({"degrade": [NF4]}, {"degrade": [NF4], "model": "another"}),
        "settings": ({"degrade": [bits3]}, {"degrade": [bits4]}),
    }[other]
    injuries = {name: {"settings": settings} for name, settings in zip("ab", differ, strict=True)}
    runs = planned(tree(injuries=injuries, seeds=[0, 1]))
    write_finished(runs["a-none-seed0"], tmp_path, SCORES, SCORES, SCORES)
    taker = runs["b-none-seed1" if other == "seed" else "b-none-seed0"]
    share(taker, list(runs.values()), tmp_path)
    own = RunFolder(tmp_path / taker.name)
    assert own.degrade("quantize").exists() is (other == "limit")
    assert own.diagnose("before").exists() is (other == "limit")
    # the reference is one model for all seeds and injuries, and items do not depend on the run's seed
    assert (own.evaluate / "reference").exists() is (other in ("seed", "settings"))
    assert not (own.evaluate / "degraded").exists()


def test_only_finished_things_and_models_that_are_there(tmp_path: Path) -> None:
    runs = planned(one_injury(methods=["onpolicy"]))
    first, own = RunFolder(tmp_path / "nf4-none-seed0"), RunFolder(tmp_path / "nf4-onpolicy-seed0")
    checkpoint = write_degrade(first, "quantize", "embedded")
    write_diagnosis(first, "before", "embedded", checkpoint, [1.0])
    write_scores(first, "reference", "embedded", SCORES)
    result_path(first.evaluate / "reference").unlink()  # the last task may be missing
    Path(checkpoint).rmdir()
    share(runs["nf4-onpolicy-seed0"], list(runs.values()), tmp_path)
    assert not own.root.exists()
    Path(checkpoint).mkdir()
    share(runs["nf4-onpolicy-seed0"], list(runs.values()), tmp_path)
    assert result_path(own.degrade("quantize")).is_file()
    assert result_path(own.diagnose("before")).is_file()
    assert not own.evaluate.exists()


def test_same_first_injury() -> None:
    runs = planned(tree(seeds=[0, 1]))
    first, compressed, other_seed = (
        runs[name].config for name in ("tooluse-none-seed0", "tooluse-nf4-none-seed0", "tooluse-none-seed1")
    )
    assert same_first_injury(first, compressed)
    assert not same_first_injury(first, other_seed)
