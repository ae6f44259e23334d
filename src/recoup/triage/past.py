"""How wrong predictions were: the pilot's, made anew from the first steps of finished runs, against what came of them.

Runs measured nothing on held-out text after a few steps, so their losses stand in for it (`predict.left_by_losses`): a pilot,
which measures, should do no worse.
"""

from pathlib import Path

from recoup.results import DiagnoseResult, PastPrediction, RecoverStep
from recoup.run_folder import RunFolder, read_jsonl, result_path
from recoup.triage.predict import left_at_end, left_by_losses


def past_predictions(results: Path, num_steps: int) -> tuple[PastPrediction, ...]:
    """One for every finished run under `results` that took more than `num_steps` steps and was diagnosed before and after.

    A run that trained after another repair is left out: its steps do not begin at the damaged student that was diagnosed.

    Args:
        results: folder of run folders; none there, no predictions.
        num_steps: first steps that are predicted from.

    Raises:
        DataError: a record is malformed.
    """
    if not results.is_dir():
        return ()
    found = (_past(root, num_steps) for root in sorted(path for path in results.iterdir() if path.is_dir()))
    return tuple(prediction for prediction in found if prediction is not None)


def _past(root: Path, num_steps: int) -> PastPrediction | None:
    folder = RunFolder(root)
    metrics, states = folder.recover / "metrics.jsonl", [result_path(folder.diagnose(s)) for s in ("before", "after")]
    if not all(path.is_file() for path in (metrics, *states)) or result_path(folder.recover / "start").is_file():
        return None
    steps = [RecoverStep.model_validate(row) for row in read_jsonl(metrics)]
    before, after = (DiagnoseResult.read(path).tokens.token_kl_nats.value for path in states)
    losses = [step.loss if step.kl is None else step.kl for step in steps[:num_steps]]
    if len(steps) <= num_steps or before <= 0 or min(losses) <= 0:
        return None
    rates = [step.learning_rate for step in steps]
    spent, planned = sum(rates[:num_steps]), sum(rates)
    left = left_at_end(left_by_losses(losses, rates[:num_steps]), spent, planned)
    return PastPrediction(run=root.name, predicted=1 - left, actual=1 - after / before)
