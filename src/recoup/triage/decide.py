"""The verdict: a pure function of the evidence. What each verdict tells a user, in the order in which they are tried.

1. *Nothing significant lost*: use the student. Token KL is at most 0.01 nats with its whole interval, for all prompts and
   for each group, and no benchmark is significantly damaged. 0.01 is what recoup lets an exported file differ from the model it
   was made of, and above what rounding to 8 bits costs (0.005 nats, `results/structures/int8_channel.json`). Layerwise CKA is
   told and has no vote: no one acts on hidden states that put out the same words.
2. *Re-quantize better*: the loss is the compression's. The same format or sparsity, chosen anew from the teacher's weights
   (GPTQ, AWQ, SparseGPT), gets at least a third of the KL back, in a minute and without training. Nothing is traded away
   for it, so it comes first even where training promises more, and training goes on from there. Of a pruned model it means:
   prune better at the same budget. (GPTQ takes about half of what rounding to 3 or to 4 bits loses.)
3. *Interpolate with the base*: an unstructured student (a fine-tuned one), and a mix that is at most half base, or the leading
   directions of the fine-tuning, gets at least half of the KL back. It gives up some of what was learnt since, which only
   task scores can tell. Not where the student is no better than a predictor without context: there the mix is the base
   with noise; and not where the pilot's whole interval promises more.
4. *Not recoverable at this size*: the student is no better than a predictor that ignores the context, and the planned repair is
   predicted to leave at least half of what the context tells untold; or the planned repair is predicted to bring less than a
   tenth back, or its first steps broke down.
5. *Recover*: otherwise.
"""

import math
from dataclasses import dataclass

from recoup.results import DiagnoseResult, Estimate, PastPrediction, Pilot, RepairTrial, Verdict

NEGLIGIBLE_NATS = 0.01  # token KL; see 1 above
WORTH_REDOING = 1 / 3  # of the lost token KL, for a repair that costs a minute and gives nothing up
MOST = 0.5  # of it, for one that gives something up: what is then left to win is less than what is won
LARGEST_BASE_SHARE = (
    0.5  # beyond it a mix is more base than student; WiSE-FT (2109.01903) advises 0.5 where none can be chosen
)
UNTOLD = 0.5  # of what the context tells: such a model is nearer to one that reads nothing than to its teacher
LITTLE = 0.1  # recovered fraction: no more than predictions err by (`predict.TYPICAL_ERROR`)
MIXES = ("interpolate", "svd_repair")


@dataclass(frozen=True)
class Evidence:
    """What is known of the damage."""

    diagnosis: DiagnoseResult
    student_kl: Estimate  # on the prompts that repairs are scored on, nats a token
    context_free_kl: float = math.inf  # of a predictor that ignores the context, on the same prompts
    repairs: tuple[RepairTrial, ...] = ()
    pilot: Pilot | None = None
    broke_down: str | None = None  # why the pilot did
    past: tuple[PastPrediction, ...] = ()

    @property
    def lost_everything(self) -> bool:
        """Whether the student predicts no better than without the context."""
        return self.student_kl.value >= self.context_free_kl

    @property
    def predicted_kl(self) -> float | None:
        """Token KL after the planned repair, nats; null without a pilot."""
        if self.pilot is None:
            return None
        return (1 - self.pilot.recovered_fraction.value) * self.student_kl.value


@dataclass(frozen=True)
class Advice:
    """The verdict, why, and the repair that it recommends, if any."""

    verdict: Verdict
    reason: str
    repair: RepairTrial | None = None


def nothing_lost(diagnosis: DiagnoseResult) -> bool:
    """Whether the diagnosis alone settles it: repairs and pilot need not be tried."""
    whole = diagnosis.tokens.token_kl_nats.high <= NEGLIGIBLE_NATS
    groups = any(group.tokens.token_kl_nats.low > NEGLIGIBLE_NATS for group in diagnosis.groups)
    return whole and not groups and not any(task.damage_significant for task in diagnosis.tasks)


def decide(evidence: Evidence) -> Advice:
    """The verdict on a student, as the module says."""
    if nothing_lost(evidence.diagnosis):
        return Advice("nothing significant lost", _words_of_nothing(evidence.diagnosis))
    rounding = _regaining(evidence, ("rounding",), WORTH_REDOING)
    mix = _regaining(evidence, MIXES, MOST)
    if rounding is not None:
        method = rounding.settings.get("method", rounding.repair)
        reason = (
            f"the teacher compressed anew by {method}, to the same format or sparsity, gets {regained(rounding):.0%} of the lost "
            "token KL back without training"
        )
        return Advice("re-quantize better", reason, rounding)
    if mix is not None and not evidence.lost_everything and not _training_is_better(evidence.pilot, mix):
        reason = (
            f"moving part of the way back to the base gets {regained(mix):.0%} of the lost token KL back without training, at "
            "the price of some of what the student learnt since"
        )
        return Advice("interpolate with the base", reason, mix)
    hopeless = _hopeless(evidence)
    if hopeless is not None:
        return Advice("not recoverable at this size", hopeless)
    return Advice("recover", _words_of_recovery(evidence.pilot))


def is_answer(trial: RepairTrial) -> bool:
    """Whether a repair helped, significantly, and is no mere return to the base."""
    share = trial.settings.get("share", 0.0) if trial.repair == "interpolate" else 0.0
    return trial.gain.low > 0 and share <= LARGEST_BASE_SHARE


def best(repairs: tuple[RepairTrial, ...]) -> RepairTrial | None:
    """The one that can be an answer with the lowest token KL; null: none helped."""
    return min(
        (trial for trial in repairs if is_answer(trial)), key=lambda trial: trial.token_kl_nats.value, default=None
    )


def regained(trial: RepairTrial) -> float:
    """Share of the student's token KL that a repair takes away."""
    before = trial.token_kl_nats.value + trial.gain.value
    return trial.gain.value / before if before > 0 else 0.0


def _regaining(evidence: Evidence, names: tuple[str, ...], share: float) -> RepairTrial | None:
    """The best of these repairs, where it gets that share of the loss back."""
    trial = best(tuple(trial for trial in evidence.repairs if trial.repair in names))
    return trial if trial is not None and regained(trial) >= share else None


def _training_is_better(pilot: Pilot | None, trial: RepairTrial) -> bool:
    left = trial.token_kl_nats.low > NEGLIGIBLE_NATS
    return left and pilot is not None and pilot.recovered_fraction.low > regained(trial)


def _hopeless(evidence: Evidence) -> str | None:
    """Why training is not worth its cost; null: it is, or nobody tried."""
    predicted, pilot = evidence.predicted_kl, evidence.pilot
    if evidence.lost_everything and (predicted is None or predicted >= UNTOLD * evidence.context_free_kl):
        after = "" if predicted is None else f", and the planned repair would leave {predicted:.2f} nats"
        return (
            f"the student predicts no better than a model that ignores its context ({evidence.student_kl.value:.2f} against "
            f"{evidence.context_free_kl:.2f} nats){after}"
        )
    if evidence.broke_down is not None:
        return (
            f"the first steps of the planned repair broke down ({evidence.broke_down}); with a lower learning rate it may be "
            "worth trying"
        )
    if pilot is not None and pilot.recovered_fraction.value < LITTLE:
        return (
            f"the planned repair of {pilot.planned_steps} steps is predicted to bring back "
            f"{max(0.0, pilot.recovered_fraction.value):.0%} of the lost token KL; with another learning rate it may be more"
        )
    return None


def _words_of_nothing(diagnosis: DiagnoseResult) -> str:
    kl = diagnosis.tokens.token_kl_nats
    return (
        f"the student is {kl.value:.2g} nats a token from its teacher, at most {kl.high:.2g} within the interval, and up to "
        f"{NEGLIGIBLE_NATS} is what 8-bit rounding or a change of file format may cost"
    )


def _words_of_recovery(pilot: Pilot | None) -> str:
    if pilot is None:
        return "no repair without training gets most of the loss back; what training brings was not tried (no pilot)"
    fraction = pilot.recovered_fraction
    return (
        f"no repair without training gets most of the loss back, and {pilot.planned_steps} steps of training are predicted to "
        f"bring back {fraction.value:.0%} of it ({max(0.0, fraction.low):.0%} to {fraction.high:.0%})"
    )
