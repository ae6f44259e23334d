"""Records of finished runs, made up, as `recoup run` leaves them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from recoup.results import (
    DegradeResult,
    DiagnoseResult,
    Estimate,
    EvaluateResult,
    LayerDamage,
    ModelScores,
    RecoverResult,
    TaskItems,
    TokenDamage,
)
from recoup.results.evaluate import MEAN_LOGP
from recoup.run_folder import RunFolder, result_path, write_json, write_text
from recoup.sweep.expand import PlannedRun

Scores = Mapping[str, Sequence[float]]  # by task


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def tokens(kl: float) -> TokenDamage:
    return TokenDamage(
        num_prompts=2, num_tokens=10, token_kl_nats=exactly(kl), top1_agreement=exactly(0.9), reference_perplexity=2.0,
        student_perplexity=3.0,
    )  # fmt: skip


def write_degrade(folder: RunFolder, step: str, source: str) -> str:
    checkpoint = folder.degrade(step) / "checkpoint"
    checkpoint.mkdir(parents=True)
    result = DegradeResult(
        method=step, summary=step, source=source, checkpoint=str(checkpoint), num_parameters=1, seconds=1.0
    )
    write_text(result_path(folder.degrade(step)), result.model_dump_json())
    return str(checkpoint)


def write_diagnosis(folder: RunFolder, state: str, teacher: str, student: str, ckas: Sequence[float]) -> None:
    layers = tuple(
        LayerDamage(layer=n, linear_cka=cka, linear_cka_all_tokens=cka, relative_drift=None)
        for n, cka in enumerate(ckas)
    )
    result = DiagnoseResult(
        teacher=teacher, student=student, tokens=tokens(0.5), layers=layers, num_cka_tokens=9, seconds=1.0
    )
    write_text(result_path(folder.diagnose(state)), result.model_dump_json())


def write_recovery(folder: RunFolder, method: str, student: str, num_tokens: int = 0, seconds: float = 0.0) -> None:
    trained = num_tokens > 0
    result = RecoverResult(
        method=method, student=student, teachers=(), checkpoint=str(folder.recover / "checkpoint"), steps=int(trained),
        num_tokens=num_tokens, num_prompts=0, on_policy_from_step=None, first_loss_nats=1.0 if trained else None,
        last_loss_nats=0.5 if trained else None, structure="nothing", structure_exact=True, seconds=seconds,
        peak_memory_bytes=2**30,
    )  # fmt: skip
    write_text(result_path(folder.recover), result.model_dump_json())


def write_scores(folder: RunFolder, state: str, model: str, scores: Scores) -> None:
    tasks = tuple(
        TaskItems(
            task=task,
            metric="acc" if min(items) >= 0 else MEAN_LOGP,
            item_ids=tuple(f"{task}/{n}" for n in range(len(items))),
            scores=tuple(items),
            further={"missed": tuple(1 - score for score in items)} if min(items) >= 0 else {},
        )
        for task, items in scores.items()
    )
    for task in tasks:
        write_json(folder.evaluate / state / f"{task.task}.json", {"key": {}, "items": task.model_dump(mode="json")})
    result = ModelScores(model=model, tasks=tasks, seconds=1.0)
    write_text(result_path(folder.evaluate / state), result.model_dump_json())


def write_evaluation(folder: RunFolder, models: Mapping[str, tuple[str, Scores]], kl: float) -> None:
    """`models`: by state, where it lies and what it scores."""
    for state, (model, scores) in models.items():
        write_scores(folder, state, model, scores)
    result = EvaluateResult(
        reference=models["reference"][0], tasks=(), degraded_fidelity=tokens(1.0), recovered_fidelity=tokens(kl),
        generations=(), num_bootstrap=100, seconds=1.0,
    )  # fmt: skip
    write_text(result_path(folder.evaluate), result.model_dump_json())


def write_finished(
    run: PlannedRun, root: Path, reference: Scores, degraded: Scores, recovered: Scores, kl: float = 0.2
) -> RunFolder:
    """A finished run of an injury with one step."""
    folder = RunFolder(root / run.name)
    (step,) = run.config.degrade
    student = write_degrade(folder, step.type, run.config.model)
    for state in ("before", "after"):
        write_diagnosis(folder, state, run.config.model, student, [0.8, 0.9])
    write_recovery(folder, run.method, student, 0 if run.method == "none" else 100 * (1 + run.seed), 60.0)
    models = {
        "reference": (run.config.model, reference),
        "degraded": (student, degraded),
        "recovered": (str(folder.recover / "checkpoint"), recovered),
    }
    write_evaluation(folder, models, kl)
    return folder
