"""Looks during a repair: they change nothing in it, survive a stop, and end it where they should."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recoup.config import Recover, Term
from recoup.errors import ConfigError
from recoup.models.load import load
from recoup.recover import probe
from recoup.recover import run as stage
from recoup.recover.held_out import kept
from recoup.recover.probe import Prober, judge, rows_of_groups
from recoup.recover.run import RecoverInputs, first_steps, run
from recoup.recover.teachers.frozen import Frozen
from recoup.recover.teachers.start import Start
from recoup.recover.yardstick import Seen, look, take
from recoup.results import ProbeRecord, TaskItems
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from tests.conftest import VOCAB
from tests.launching import ROOT, finish, launch
from tests.recover.test_recover import changed, poison, weights

GROUPS = ("numbers", "letters")


@pytest.fixture(scope="module")
def held_out_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty prompts in two groups, of which about sixteen are held out."""
    path = tmp_path_factory.mktemp("held_out") / "prompts.jsonl"
    rows = [{"prompt": f"what does {i} mean to you", "group": GROUPS[i % 2]} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def watched(short: Recover, held_out_file: Path) -> Recover:
    """Six steps, looked at after every second."""
    return changed(
        short, probe={"every": 2, "prompts": str(held_out_file), "max_tokens": 8, "num_prompts": 12, "keep_best": False}
    )


@pytest.fixture
def inputs(tiny_model: Path, damaged: Path) -> RecoverInputs:
    return RecoverInputs(str(damaged), (str(tiny_model),), 0)


def lines(folder: Path) -> list[ProbeRecord]:
    return [ProbeRecord.model_validate_json(line) for line in (folder / "probe.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[ProbeRecord]:
    return [line.model_copy(update={"seconds": 0.0}) for line in lines(folder)]


def with_probe(config: Recover, **changes: object) -> Recover:
    assert config.probe is not None
    return changed(config, probe=config.probe.model_dump() | changes)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def script(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Multiply what the looks at these steps see of token KL."""
    steps: list[int] = []
    real_look, real_seen = Prober._look, probe.look

    def noted(self: Prober, student: Any, looks: Any, step: int) -> Any:
        steps.append(step)
        return real_look(self, student, looks, step)

    def seen(*arguments: Any) -> Seen:
        found = real_seen(*arguments)
        return replace(found, kl_P=found.kl_P * factors.get(steps[-1], 1.0))

    monkeypatch.setattr(Prober, "_look", noted)
    monkeypatch.setattr(probe, "look", seen)


def test_looks_change_nothing(watched: Recover, short: Recover, inputs: RecoverInputs, tmp_path: Path) -> None:
    run(short, inputs, tmp_path / "alone")
    run(watched, inputs, tmp_path / "watched")
    assert_same(weights(tmp_path / "alone"), weights(tmp_path / "watched"))
    records = lines(tmp_path / "watched")
    assert [record.step for record in records] == [0, 2, 4, 6]
    assert not (tmp_path / "watched" / "best").exists()
    for record in records:
        assert set(record.groups) == set(GROUPS)
        assert min(record.groups.values()) <= record.token_kl_nats.value <= max(record.groups.values())
        assert record.token_kl_nats.low <= record.token_kl_nats.value <= record.token_kl_nats.high
        assert len(record.linear_cka) == 2
    assert records[0].token_kl_nats.value != records[-1].token_kl_nats.value


def test_looks_change_nothing_in_bf16_under_checkpointing(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path
) -> None:
    settings = {"precision": "bf16", "memory": {"gradient_checkpointing": True}, "steps": 3}
    run(changed(watched, **settings), inputs, tmp_path / "watched")
    run(changed(watched, **settings, probe=None), inputs, tmp_path / "alone")
    assert_same(weights(tmp_path / "alone"), weights(tmp_path / "watched"))


def test_the_last_look_is_at_what_is_saved(
    watched: Recover, inputs: RecoverInputs, tiny_model: Path, tmp_path: Path
) -> None:
    result = run(watched, inputs, tmp_path)
    teacher = Frozen(load(str(tiny_model)), VOCAB)
    assert watched.probe is not None
    held_out = kept(tmp_path / "probe_prompts.jsonl", watched.probe, teacher, 0, 256)
    assert not {p.text for p in held_out.prompts} & {
        json.loads(line)["text"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()
    }
    seen = look(load(result.checkpoint).model, take(teacher, held_out.rollouts(teacher)))
    last = lines(tmp_path)[-1]
    assert last.token_kl_nats.value == pytest.approx(seen.token_kl, rel=1e-5)
    assert last.linear_cka == pytest.approx(seen.linear_cka, abs=1e-5)
    for group, rows in rows_of_groups([p.group for p in held_out.prompts]).items():
        assert last.groups[group] == pytest.approx(float(seen.kl_P[rows].sum() / seen.counts_P[rows].sum()), rel=1e-5)


def test_a_stopped_run_looks_as_the_unstopped_one(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {0: 10.0, 2: 1.0, 4: 2.0, 6: 3.0})
    config = changed(with_probe(watched, keep_best=True), checkpoint_every=3)
    run(config, inputs, tmp_path / "whole")
    for stop in (1, 4, 6):  # after the first look; after one that was not the best; at the end

        def interrupt(label: str, done: int, total: int, at: int = stop) -> None:
            if label.startswith("recover:") and (done, total) == (at, 6):
                raise KeyboardInterrupt

        folder = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(config, inputs, folder, interrupt)
        run(config, inputs, folder)
        assert_same(weights(tmp_path / "whole"), weights(folder))
        assert timeless(folder) == timeless(tmp_path / "whole")


def test_it_ends_with_the_best_student(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {0: 10.0, 2: 1.0, 4: 2.0, 6: 3.0})
    said: list[str] = []
    config = with_probe(watched, keep_best=True)
    result = run(config, inputs, tmp_path / "whole", lambda label, *_: said.append(label))
    assert said[-1] == "probe: ends with the student of step 2, the best that was seen"
    assert (result.steps, result.structure_exact) == (6, True)
    two = first_steps(config, inputs, tmp_path / "two", 2)
    assert_same(weights(tmp_path / "whole"), {name: w.detach() for name, w in two.student.model.named_parameters()
                                              if name in weights(tmp_path / "whole")})  # fmt: skip
    # killed after the last step, before the best was marked and before the end: it ends the same
    (tmp_path / "whole" / "result.json").unlink()
    run(config, inputs, tmp_path / "whole")
    assert verify(load(result.checkpoint).model, read_structure(Path(result.checkpoint))).exact


def test_training_that_only_harms_ends_where_it_began(
    watched: Recover, inputs: RecoverInputs, damaged: Path, tmp_path: Path
) -> None:
    config = changed(with_probe(watched, keep_best=True), learning_rate=0.5, guards={"min_entropy": 0, "min_length": 0})
    run(config, inputs, tmp_path)
    kls = [line.token_kl_nats.value for line in lines(tmp_path)]
    assert min(kls) == kls[0]
    assert_same(weights(tmp_path), load_file(damaged / "model.safetensors"))


def test_a_run_killed_before_its_best_was_marked_marks_it(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {0: 10.0, 2: 1.0, 4: 2.0, 6: 3.0})
    config = with_probe(watched, keep_best=True)
    run(config, inputs, tmp_path / "whole")
    killed = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(stage.RunState, "_mark_if_best", _killed_at(2, stage.RunState._mark_if_best))
        with pytest.raises(KeyboardInterrupt):
            run(config, inputs, killed)
    assert json.loads((killed / "best" / "position.json").read_text())["position"]["step"] == 0
    run(config, inputs, killed)
    assert_same(weights(tmp_path / "whole"), weights(killed))


def _killed_at(step: int, mark: Callable[[Any], None]) -> Callable[[Any], None]:
    def marked(state: Any) -> None:
        if state._trainer.position.step == step:
            raise KeyboardInterrupt
        mark(state)

    return marked


def test_it_stops_once_recovered(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {0: 10.0})
    config = with_probe(watched, recovered_at=0.5)
    said: list[str] = []
    result = run(config, inputs, tmp_path, lambda label, *_: said.append(label))
    assert result.steps == 2
    assert said[-1].startswith("probe: recovered at step 2: token KL ")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    before = weights(tmp_path)
    (tmp_path / "result.json").unlink()
    assert run(config, inputs, tmp_path).steps == 2  # it has stopped for good
    assert_same(before, weights(tmp_path))
    assert [line.step for line in lines(tmp_path)] == [0, 2]


def test_it_stops_when_newly_damaged(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # twelve prompts in two groups are too few for either to be significant, so these are one
    script(monkeypatch, {0: 0.1})
    monkeypatch.setattr(probe, "rows_of_groups", lambda groups: {})
    result = run(with_probe(watched, patience=2), inputs, tmp_path)
    assert (result.steps, [line.step for line in lines(tmp_path)]) == (4, [0, 2, 4])


def test_a_benchmark_may_stop_it(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([1.0, 1.0, 0.0])

    def score(model: Any, name: str, config: Any) -> TaskItems:
        assert not model.model.training
        assert config.limit == 7
        right = next(answers)
        return TaskItems(task=name, metric="acc", item_ids=tuple("abcdefgh"), scores=(right,) * 8)

    monkeypatch.setattr(probe, "score_task", score)
    monkeypatch.setattr(stage, "check_tasks", lambda names, data: None)
    result = run(with_probe(watched, tasks=["quiz"], limit=7, patience=1), inputs, tmp_path)
    assert result.steps == 4
    assert [line.tasks for line in lines(tmp_path)] == [{"quiz": 1.0}, {"quiz": 1.0}, {"quiz": 0.0}]


def test_a_collapse_goes_back_to_the_best(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {0: 10.0, 2: 1.0, 4: 2.0, 6: 0.5})
    poison(monkeypatch, range(10, 11))  # two micro-batches a step: the sixth step, once
    result = run(with_probe(watched, keep_best=True), inputs, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # checkpoints lie at 2 and 4; the best was 2, and from there steps are taken again
    assert [row["roll_backs"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert result.roll_backs == 1
    assert [line.step for line in lines(tmp_path)] == [0, 2, 4, 6]


def test_a_collapse_in_the_first_steps_goes_back_to_the_start(
    watched: Recover, inputs: RecoverInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, range(2, 3))  # the second step
    result = run(with_probe(watched, keep_best=True), inputs, tmp_path)
    assert (result.roll_backs, result.steps) == (1, 6)


def test_there_must_be_something_to_come_close_to(
    watched: Recover, damaged: Path, held_out_file: Path, tmp_path: Path
) -> None:
    own = RecoverInputs(str(damaged), ("start",), 0)
    for changes in ({"keep_best": True}, {"recovered_at": 0.5}):
        with pytest.raises(ConfigError, match="set keep_best: false and recovered_at: 0"):
            run(with_probe(watched, **changes), own, tmp_path / "refused")
    rows = [{"prompt": f"say {i}", "completion": "something else"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lesson = {"loss": "cross_entropy", "completions": "file", "prompts": str(tmp_path / "rows.jsonl")}
    config = with_probe(changed(watched, terms=[lesson]), patience=1)
    assert run(config, own, tmp_path / "out").steps == 6  # moving away from its start is no damage
    kls = [line.token_kl_nats.value for line in lines(tmp_path / "out")]
    assert kls[0] == pytest.approx(0, abs=1e-6)
    assert kls[-1] > 1e-3


def test_who_judges(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    frozen, start = Frozen(model, VOCAB), Start(model, ())
    terms: Sequence[Term] = (Term(), Term())
    assert judge(terms, (start, frozen)) == (frozen, True)
    assert judge(terms[:1], (start,)) == (start, False)
    shown = Term(prompts="file.jsonl", demonstration=True)
    answers = Term(prompts="file.jsonl", loss="cross_entropy", completions="file")
    assert judge((answers, shown), (frozen, frozen)) == (frozen, False)


def test_first_steps_are_those_of_the_whole(short: Recover, inputs: RecoverInputs, tmp_path: Path) -> None:
    run(short, inputs, tmp_path / "whole")
    pilot = first_steps(short, inputs, tmp_path / "pilot", 3)
    assert not (tmp_path / "pilot" / "result.json").exists()
    assert pilot.trainer.position.step == 3
    rows = [
        [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "pilot" / "metrics.jsonl")
    ]
    assert rows[0][:3] == rows[1]
    run(short, inputs, tmp_path / "pilot")  # goes on
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "pilot"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_look_as_one(watched: Recover, inputs: RecoverInputs, tmp_path: Path, how: str) -> None:
    # the learning rate is so high that the first look stays the best: the end goes back to it
    config = changed(with_probe(watched, keep_best=True), learning_rate=0.5, steps=4)
    run(config, inputs, tmp_path / "alone")
    job = {"student": inputs.student, "teachers": inputs.teachers, "config": config.model_dump()}
    (tmp_path / "jobs.json").write_text(json.dumps({"exact": job}))
    worker = str(ROOT / "tests" / ("processes_worker.py" if how == "ddp" else "sharded_worker.py"))
    finish(launch(worker, str(tmp_path / "jobs.json"), str(tmp_path), config=how))
    assert_same(weights(tmp_path / "alone"), weights(tmp_path / "exact"))
    ours, theirs = timeless(tmp_path / "alone"), timeless(tmp_path / "exact")
    assert [line.step for line in theirs] == [0, 2, 4]
    for mine, other in zip(ours, theirs, strict=True):
        assert other.token_kl_nats.value == pytest.approx(mine.token_kl_nats.value, rel=1e-3)
