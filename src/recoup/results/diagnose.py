"""What was lost, where. Fields with a default came later: older records read as before."""

from typing import Literal

from recoup.results.base import Estimate, Record, Result
from recoup.results.evaluate import Generation, TaskComparison
from recoup.results.fidelity import TokenDamage


class LayerDamage(Record):
    """One block, student against teacher on the same tokens.

    Sink tokens of either model (`diagnose.massive`) are left out of everything but `linear_cka_all_tokens`.
    """

    layer: int
    linear_cka: float  # debiased (HSIC_1)
    linear_cka_all_tokens: float  # debiased, sink tokens included
    relative_drift: float | None  # ‖W_S − W_T‖_F / ‖W_T‖_F over the block's weights; null where shapes differ
    teacher_layer: int | None = None  # its partner
    cka_interval: tuple[float, float] | None = None  # 95% bootstrap over prompts
    cka_without_massive: float | None = None  # massive-activation dimensions left out as well
    massive_dims: tuple[int, ...] = ()  # the teacher's
    student_massive_dims: tuple[int, ...] = ()  # no CKA shows that they moved
    massive_share: float | None = None  # of the teacher's variance over all tokens that lies in them
    ceiling: float | None = None  # CKA of the teacher with itself in another precision
    floor: float | None = None  # CKA of the teacher with a re-initialised model
    relative_l2: float | None = None  # ‖H_S − H_T‖_F / ‖H_T‖_F; null where widths differ
    procrustes: float | None = None  # 0: equal up to rotation and scale, 1: unrelated
    teacher_rank: float | None = None  # effective rank of the hidden states
    student_rank: float | None = None
    attention_drift: float | None = None  # relative L2 of what the attention part puts out
    ffn_drift: float | None = None  # the same of the feed-forward part
    head_drift: tuple[float, ...] = ()  # the same of each query head; empty where heads differ or cannot be told apart


class GroupDamage(Record):
    """One group of prompts."""

    group: str
    tokens: TokenDamage
    mean_cka: float | None  # over the blocks; null where the group has too few tokens


class PositionDamage(Record):
    """Completion tokens number `start` to `end` (the last not among them)."""

    start: int
    end: int
    num_tokens: int
    token_kl_nats: float
    mean_cka: float | None


class ChangedToken(Record):
    """A token of the reference's completion where the student's distribution moved most."""

    prompt: str
    before: str  # the completion just before it
    token: str  # that the reference wrote
    student_token: str  # the student's likeliest
    kl_nats: float
    reference_p: float  # of `token`
    student_p: float


class BehaviourChange(Record):
    """One way of answering, as a mean over answers that each model wrote itself, greedily."""

    measure: Literal[
        "completion_tokens", "ended", "repetition", "refused", "harmless_refused", "valid_json", "valid_tool_call"
    ]
    num_prompts: int
    reference: float
    student: float
    difference: Estimate  # student − reference, paired by prompt


class DiagnoseResult(Result):
    """What was lost, where."""

    teacher: str
    student: str
    tokens: TokenDamage
    layers: tuple[LayerDamage, ...]
    num_cka_tokens: int  # n of the estimator, sink tokens left out
    seconds: float
    num_moved_sinks: int | None = None  # tokens that attention settles on in one of the models alone
    groups: tuple[GroupDamage, ...] = ()
    positions: tuple[PositionDamage, ...] = ()
    cka_map: tuple[tuple[float, ...], ...] = ()  # student block by teacher block, debiased, sink tokens left out
    changed_tokens: tuple[ChangedToken, ...] = ()  # most changed first
    behaviour: tuple[BehaviourChange, ...] = ()
    generations: tuple[Generation, ...] = ()
    tasks: tuple[TaskComparison, ...] = ()  # benchmarks of both models
