"""The repair, step by step and as a whole."""

from typing import Literal

from recoup.results.base import Estimate, Record, Result


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

    method: str = "onpolicy"  # `method` of the run's config
    note: str | None = None  # what a repair without training chose, and by what; also where one trained on from there
    student: str
    teachers: tuple[str, ...]
    checkpoint: str
    steps: int
    num_tokens: int  # completion tokens trained on
    num_prompts: int
    on_policy_from_step: int | None  # null: never went on-policy
    first_loss_nats: float | None  # null: nothing was trained
    last_loss_nats: float | None
    structure: str  # what was kept, one line
    structure_exact: bool
    num_trained: int | None = None  # numbers that the optimizer moved
    optimizer_bytes: int | None = None  # of the optimizer's state
    teacher_bytes: int | None = None  # of all teachers, beside the student
    micro_batch_size: int | None = None  # at the end: memory may have run out on the way
    roll_backs: int = 0  # times the run went back to a checkpoint
    stopped: str | None = None  # why it ended before its last step, as a look at it said
    best_step: int | None = None  # of the look whose student it ended with; null: the last step's
    num_processes: int = 1
    seconds: float
    peak_memory_bytes: int


class ProbeRecord(Record):
    """The student on a fixed set of held-out prompts during the repair, a line of `probe.jsonl`."""

    step: int  # optimizer steps taken before
    token_kl_nats: Estimate  # KL(teacher ‖ student)
    top1_agreement: Estimate
    linear_cka: tuple[float, ...]  # debiased, sink tokens left out, by block
    groups: dict[str, float]  # token KL of each group of prompts
    tasks: dict[str, float]  # benchmark scores, where asked for
    seconds: float
