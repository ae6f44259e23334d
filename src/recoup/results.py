"""Frozen result records, one per stage, as they lie on disk. Imports no torch: the report is built from these alone.

A record carries `schema_version`; a reader refuses one that is newer than itself. Nats are natural-log units; intervals are
95% paired bootstrap intervals.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from recoup.errors import DataError

SCHEMA_VERSION = 1


class Record(BaseModel):
    """A frozen record."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Result(Record):
    """A stage's result, as `result.json`."""

    schema_version: int = SCHEMA_VERSION

    @field_validator("schema_version")
    @classmethod
    def _is_known(cls, version: int) -> int:
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"written by a newer recoup (schema {version}, this one reads {SCHEMA_VERSION}); upgrade recoup"
            )
        return version

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read one from `path`.

        Raises:
            DataError: the file is missing, malformed, or from a newer recoup.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such result; run that stage first") from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a readable {cls.__name__}: {' '.join(str(error).split())}") from None


class Estimate(Record):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


# --- degrade -----------------------------------------------------------------------------------------------------------


class DegradeResult(Result):
    """One injury."""

    method: str  # `type` of the config
    summary: str  # one line for people: "int3, group 64, symmetric: 210 matrices"
    source: str  # the model that was damaged, as the user named it
    checkpoint: str  # folder of the damaged model
    num_parameters: int
    num_constrained: int = 0  # weights that lie on a grid or under a mask
    sparsity: float = 0.0  # share of zeros among constrained weights
    bits_per_weight: float | None = None  # whole model, embeddings and head included
    seconds: float


# --- diagnose ----------------------------------------------------------------------------------------------------------


class LayerDamage(Record):
    """One block, student against teacher on the same tokens."""

    layer: int
    linear_cka: float  # debiased (HSIC_1), sink token left out
    linear_cka_all_tokens: float  # debiased, sink token included
    relative_drift: float | None  # ‖W_S − W_T‖_F / ‖W_T‖_F over the block's weights; null where shapes differ


class TokenDamage(Record):
    """Token-level fidelity of a student to its reference, on completions the reference wrote."""

    num_prompts: int
    num_tokens: int
    token_kl_nats: Estimate  # mean KL(reference ‖ student)
    top1_agreement: Estimate
    reference_perplexity: float
    student_perplexity: float


class DiagnoseResult(Result):
    """What was lost, where."""

    teacher: str
    student: str
    tokens: TokenDamage
    layers: tuple[LayerDamage, ...]
    num_cka_tokens: int  # n of the estimator, sink token left out
    seconds: float


# --- recover -----------------------------------------------------------------------------------------------------------


class RecoverStep(Record):
    """One optimizer step, a line of `metrics.jsonl`."""

    step: int
    phase: Literal["off_policy", "on_policy"]
    loss: float  # what is minimised: weighted divergences, nats per token, and the hidden-state term
    kl: float | None = None  # mean divergence of the scored tokens, nats, without weights
    term_nats: tuple[float | None, ...] = ()  # the same by term; null where a term had no rollout
    hidden_loss: float | None = None  # the hidden-state term, weighted, where there is one
    grad_norm: float
    learning_rate: float
    num_tokens: int  # completion tokens in this step
    completion_tokens_mean: float
    overlap: float | None = None  # sum_v min(p_T, p_S) on student samples, where measured
    staleness: int | None = (
        None  # optimizer steps between the weights that wrote the rollouts and those that trained on them
    )
    effective_share: float | None = None  # effective sample size of the importance weights, as a share of the tokens
    repetition: float | None = None  # share of 4-grams that repeat within their completion
    entropy_nats: float | None = None  # mean −log p of the drawn tokens
    roll_backs: int = 0  # times the run had gone back to a checkpoint
    seconds_sampling: float
    seconds_teacher: float
    seconds_student: float
    seconds_optimizer: float = 0.0


class RecoverResult(Result):
    """The repair."""

    student: str
    teachers: tuple[str, ...]
    checkpoint: str
    steps: int
    num_tokens: int  # completion tokens trained on
    num_prompts: int
    on_policy_from_step: int | None  # null: never went on-policy
    first_loss_nats: float
    last_loss_nats: float
    structure: str  # what was kept, one line
    structure_exact: bool
    num_trained: int | None = None  # numbers that the optimizer moved
    optimizer_bytes: int | None = None  # of the optimizer's state
    teacher_bytes: int | None = None  # of all teachers, beside the student
    micro_batch_size: int | None = None  # at the end: memory may have run out on the way
    roll_backs: int = 0  # times the run went back to a checkpoint
    num_processes: int = 1
    seconds: float
    peak_memory_bytes: int


# --- evaluate ----------------------------------------------------------------------------------------------------------


class TaskItems(Record):
    """One model on one task; the items pair models with each other."""

    task: str
    metric: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]  # one per item, higher is better
    samples: tuple[dict[str, Any], ...] = ()  # a few, for the report


class ModelScores(Result):
    """One model on every task, and its fidelity to the reference (null for the reference itself)."""

    model: str
    tasks: tuple[TaskItems, ...]
    fidelity: TokenDamage | None = None
    seconds: float


class TaskComparison(Record):
    """Reference, degraded and recovered on one task, paired by item."""

    task: str
    metric: str
    num_items: int
    reference: Estimate
    degraded: Estimate
    recovered: Estimate | None
    damage: Estimate  # degraded − reference
    gain: Estimate | None  # recovered − degraded
    remaining: Estimate | None  # recovered − reference
    recovered_fraction: Estimate | None  # only where the damage is significant
    damage_significant: bool  # Holm-corrected McNemar/bootstrap p < 0.05 over the tasks
    verdict: Literal["healed", "partly healed", "not healed", "preserved", "newly damaged", "damaged", "unharmed"]


class Generation(Record):
    """One prompt and what each model says to it, greedily."""

    prompt: str
    reference: str
    degraded: str
    recovered: str | None


class EvaluateResult(Result):
    """The proof."""

    reference: str
    tasks: tuple[TaskComparison, ...]
    degraded_fidelity: TokenDamage
    recovered_fidelity: TokenDamage | None
    generations: tuple[Generation, ...]
    num_bootstrap: int
    seconds: float


# --- export ------------------------------------------------------------------------------------------------------------


class ExportResult(Result):
    """A model in another program's format, and how far that program's answers are from the trained model's."""

    source: str  # the model that was exported, as the user named it
    target: str  # `to` of the config
    output: str  # folder that holds the files
    files: dict[str, int]  # name → bytes, the card and this record left out
    tensor_types: dict[str, int]  # how a weight is stored → number of weights
    structure: str  # what the trained model keeps, one line
    consumer: str  # the program that read the files back, with its version
    num_prompts: int
    num_tokens: int  # completion tokens compared
    token_kl_nats: float  # mean KL(trained model ‖ exported model)
    max_logit_difference: float
    top1_agreement: float
    notes: tuple[
        str, ...
    ] = ()  # what a user should know: weights not kept exactly, programs that do not take the format
    seconds: float
