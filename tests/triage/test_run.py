"""The stage on tiny models: what it writes, what it does not do again, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.config import Diagnose, Quantize, Triage
from recoup.data import prompts as data
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.diagnose.run import DiagnoseInputs
from recoup.diagnose.run import run as diagnose
from recoup.errors import DataError, RunFolderError, StructureError
from recoup.models.load import load
from recoup.models.save import save
from recoup.progress import Progress
from recoup.recover.record import Record
from recoup.repair import Candidate
from recoup.results import RecoverStep, TriageResult
from recoup.run_folder import read_jsonl, result_path
from recoup.structure.spec import Structure
from recoup.structure.verify import verify
from recoup.training.optimizer import Schedule, learning_rate
from recoup.triage import pilot, trials
from recoup.triage.run import TriageInputs, run
from tests.triage.records import diagnosis

PROMPTS = [f"tell me about number {i} and what comes after it" for i in range(40)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return str(path)


@pytest.fixture(scope="module")
def rounded(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny Llama on a 2-bit grid."""
    config = Quantize(bits=2, group_size=16, symmetric=False)
    return degrade(config, DegradeInputs(str(tiny_models["llama"]), 0), tmp_path_factory.mktemp("rounded")).checkpoint


def settings(prompts: str, **changes: Any) -> Triage:
    plan = {
        "terms": [{"prompts": prompts, "num_prompts": 20}], "steps": 10, "batch_size": 4, "micro_batch_size": 4,
        "learning_rate": 1e-2, "warmup_steps": 0, "precision": "fp32", "rollout": {"max_tokens": 6}, "bootstrap": {"max_steps": 0},
    }  # fmt: skip
    return Triage.model_validate({"repairs": ["norms"], "pilot_steps": 3, "plan": plan} | changes)


def inputs(teacher: Path | str, student: Path | str, prompts: str, **more: Any) -> TriageInputs:
    asked = Diagnose(prompts=prompts, num_prompts=8, max_tokens=8, behaviour=False)
    return TriageInputs(str(teacher), str(student), **({"diagnosis": diagnosis(1.0), "asked": asked} | more))


def test_an_undamaged_student_is_sent_home_unread(tmp_path: Path) -> None:
    """No model of these names exists."""
    result = run(Triage(), TriageInputs("no-base", "no-student", diagnosis(0.001)), tmp_path)
    assert result.verdict == "nothing significant lost"
    assert (result.repairs, result.pilot, result.command) == ((), None, None)
    assert TriageResult.read(result_path(tmp_path)) == result


def test_a_rounded_student(
    tiny_model: Path, rounded: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixing does not apply; GPTQ on the same grid is better than rounding, lies on it exactly, and is what is kept."""
    monkeypatch.setattr("recoup.repair.rounding.CALIBRATION_TOKENS", 64)  # a random model writes no prompts
    config = settings(prompts, repairs=["interpolate", "rounding"])
    result = run(config, inputs(tiny_model, rounded, prompts), tmp_path)
    skipped = next(t for t in result.repairs if t.repair == "interpolate")
    assert skipped.note is not None
    assert skipped.note.startswith("not tried: the student is compressed")
    assert (skipped.gain.value, skipped.checkpoint) == (0, None)
    for trial in result.repairs:
        assert trial.token_kl_nats.value + trial.gain.value == pytest.approx(skipped.token_kl_nats.value)
    kept = result.repairs[0]
    assert (kept.repair, kept.checkpoint) == ("rounding", str(tmp_path / "repaired"))
    assert kept.gain.low > 0
    saved = load(str(kept.checkpoint))
    assert saved.structure.describe() == load(rounded).structure.describe() == kept.structure
    assert verify(saved.model, saved.structure).exact
    assert result.pilot is not None
    assert (result.pilot.steps, result.pilot.planned_steps) == (3, 10)
    assert result.pilot.kl_before.value == pytest.approx(skipped.token_kl_nats.value)
    assert result.pilot.planned_memory_bytes > 0
    assert TriageResult.read(result_path(tmp_path)) == result


def test_the_pilot_is_the_beginning_of_the_plan(tiny_model: Path, rounded: str, prompts: str, tmp_path: Path) -> None:
    """Three steps on the learning rates of ten, and tokens by proportion."""
    config = settings(prompts, repairs=[])
    result = run(config, inputs(tiny_model, rounded, prompts), tmp_path)
    steps = Record(tmp_path / "pilot").steps()
    schedule = Schedule(10, 0, 1e-2, config.plan.min_learning_rate_fraction)
    assert [step.learning_rate for step in steps] == [learning_rate(schedule, step) for step in range(3)]
    assert result.pilot is not None
    assert result.pilot.num_tokens == sum(step.num_tokens for step in steps)
    assert result.pilot.planned_tokens == round(result.pilot.num_tokens / 3 * 10)
    assert result.pilot.kl_after.value < result.pilot.kl_before.value
    assert 0 < result.pilot.recovered_fraction.value < 1
    assert result.pilot.planned_seconds == pytest.approx(10 * pilot.step_seconds(steps, config.plan))
    trained = {row["prompt"] for row in read_jsonl(tmp_path / "pilot" / "rollouts.jsonl")}
    asked = {row["text"] for row in read_jsonl(tmp_path / "pilot" / "prompts.jsonl")}
    assert len(asked) == 12  # no more than three steps of four answer
    assert trained


def test_what_is_finished_is_not_done_again(
    tiny_model: Path, rounded: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, given = settings(prompts), inputs(tiny_model, rounded, prompts)
    first = run(config, given, tmp_path)

    def never(*_args: object, **_more: object) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(trials, "candidates", never)
    monkeypatch.setattr(pilot, "first_steps", never)
    result_path(tmp_path).unlink()
    again = run(config, given, tmp_path)
    assert again.model_copy(update={"seconds": first.seconds}) == first
    monkeypatch.setattr("recoup.triage.run.load", never)
    assert run(config, given, tmp_path) == again  # the result itself


def test_another_triage_is_refused(tiny_model: Path, rounded: str, prompts: str, tmp_path: Path) -> None:
    run(settings(prompts, repairs=[], pilot_steps=0), inputs(tiny_model, rounded, prompts), tmp_path)
    for config, given in (
        (settings(prompts, repairs=[], pilot_steps=1), inputs(tiny_model, rounded, prompts)),
        (settings(prompts, repairs=[], pilot_steps=0), inputs(tiny_model, tiny_model, prompts)),
        (settings(prompts, repairs=[], pilot_steps=0), inputs(tiny_model, rounded, prompts, diagnosis=diagnosis(2.0))),
    ):
        with pytest.raises(RunFolderError, match="holds the triage of other models or settings"):
            run(config, given, tmp_path)


def test_a_broken_part_is_named(tiny_model: Path, rounded: str, prompts: str, tmp_path: Path) -> None:
    config, given = settings(prompts, repairs=["norms"], pilot_steps=0), inputs(tiny_model, rounded, prompts)
    run(config, given, tmp_path)
    result_path(tmp_path).unlink()
    (tmp_path / "repairs" / "norms.json").write_text("[{]")
    with pytest.raises(DataError, match=r"norms\.json"):
        run(config, given, tmp_path)


def test_the_best_mix_is_kept_and_a_failing_repair_is_a_note(
    tiny_model: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is the base and noise, so more of the base is better: 0.4 is the most that is not mostly base."""
    hurt = load(str(tiny_model))
    generator = torch.Generator().manual_seed(1)
    for weight in hurt.model.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    save(hurt, Structure(), tmp_path / "student")
    real = trials.candidates

    def breaks(name: Any, *rest: Any):
        if name == "svd_repair":
            raise StructureError("no such thing")
        return real(name, *rest)

    monkeypatch.setattr(trials, "candidates", breaks)
    monkeypatch.setattr("recoup.triage.run.context_free_kl", lambda _said: 9.0)  # a random model's context tells little
    config = settings(prompts, repairs=["interpolate", "svd_repair"], pilot_steps=0)
    result = run(config, inputs(tiny_model, tmp_path / "student", prompts), tmp_path / "out")
    assert [trial.settings.get("share") for trial in result.repairs] == [0.8, 0.6, 0.4, 0.2, None]
    assert result.repairs[-1].note == "not tried: no such thing"
    assert [trial.checkpoint for trial in result.repairs] == [
        None,
        None,
        str(tmp_path / "out" / "repaired"),
        None,
        None,
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    mixed, mine, base = (
        load(str(model)).model.get_parameter(name)
        for model in (result.repairs[2].checkpoint, tmp_path / "student", tiny_model)
    )
    assert (mixed - (0.6 * mine + 0.4 * base)).abs().max() < 1e-6
    assert result.verdict == "interpolate with the base"
    assert result.command is not None
    assert result.command.startswith("recoup evaluate")


def test_nothing_is_kept_where_nobody_asks(tiny_model: Path, rounded: str, prompts: str, tmp_path: Path) -> None:
    result = run(settings(prompts, keep=False, pilot_steps=0), inputs(tiny_model, rounded, prompts), tmp_path)
    assert not (tmp_path / "repaired").exists()
    assert all(trial.checkpoint is None for trial in result.repairs)


def test_self_written_prompts_are_written_once(
    tiny_model: Path, rounded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(_writer: object, count: int, _seed: int, _split: object) -> list[data.Prompt]:
        written.append(count)
        return [data.Prompt(text, tuple(text.encode())) for text in PROMPTS]

    monkeypatch.setattr(data, "_self_written", write)
    config = settings("self", repairs=[], pilot_steps=2)
    result = run(config, inputs(tiny_model, rounded, "self"), tmp_path)
    assert len(written) == 1
    trained = {row["text"] for row in read_jsonl(tmp_path / "pilot" / "prompts.jsonl")}
    assert trained < set(PROMPTS)
    assert result.pilot is not None


def test_candidates_come_one_at_a_time(
    tiny_model: Path, rounded: str, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate is scored before the next is made."""
    order: list[str] = []
    real_candidates, real_scored = trials.candidates, trials.scored

    def making(name: Any, damaged: Any, progress: Progress):
        for number in range(2):
            order.append(f"made {number}")
            (candidate,) = real_candidates(name, damaged, progress)
            yield Candidate("norms", {"number": number}, candidate.model)

    def scoring(*args: Any):
        order.append("scored")
        return real_scored(*args)

    monkeypatch.setattr(trials, "candidates", making)
    monkeypatch.setattr(trials, "scored", scoring)
    run(settings(prompts, pilot_steps=0), inputs(tiny_model, rounded, prompts), tmp_path)
    assert order == ["made 0", "scored", "made 1", "scored"]


def test_after_a_real_diagnosis(tiny_model: Path, rounded: str, prompts: str, tmp_path: Path) -> None:
    """The two stages as they follow each other."""
    asked = Diagnose(prompts=prompts, num_prompts=8, max_tokens=8, behaviour=False)
    found = diagnose(asked, DiagnoseInputs(str(tiny_model), rounded, 0), tmp_path)
    given = inputs(tiny_model, rounded, prompts, diagnosis=found)
    result = run(settings(prompts, pilot_steps=0), given, tmp_path / "triage")
    assert result.verdict in ("recover", "not recoverable at this size")
    assert result.evidence


def test_a_pilot_that_breaks_down_is_evidence(tiny_model: Path, rounded: str, prompts: str, tmp_path: Path) -> None:
    plan = settings(prompts).plan.model_dump() | {"learning_rate": 1e30}
    result = run(settings(prompts, repairs=[], plan=plan), inputs(tiny_model, rounded, prompts), tmp_path)
    assert result.pilot is None
    assert result.verdict == "not recoverable at this size"
    assert any(sentence.startswith("The pilot broke down: step ") for sentence in result.evidence)


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (1, 2.0 + 1.0 + 1.0 + 1.0),  # median of the sampling after the first step
        (4, 14.0 / 8 + 3.0),  # six steps need two draws of four: 14 seconds for 8 steps
    ],
)
def test_seconds_of_a_step_by_hand(at_once: int, expected: float) -> None:
    sampling = (4.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    steps = [
        RecoverStep(
            step=n, phase="on_policy", loss=1, grad_norm=1, learning_rate=1, num_tokens=1, completion_tokens_mean=1,
            seconds_sampling=s, seconds_teacher=9.0 if n == 0 else 1.0, seconds_student=1.0, seconds_optimizer=1.0,
        )
        for n, s in enumerate(sampling)
    ]  # fmt: skip
    plan = Triage().plan.model_copy(update={"rollout": Triage().plan.rollout.model_copy(update={"ahead": at_once})})
    assert pilot.step_seconds(steps, plan) == pytest.approx(expected)
