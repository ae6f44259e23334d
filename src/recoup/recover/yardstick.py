"""What a student is measured by while it trains: held-out prompts with a teacher's answers, and what the teacher says of them.

The teacher's side is worked out once and kept: what enters its head, and the hidden states after its blocks, both in the type
it computes in (SmolLM2-135M, 16 prompts of 80 tokens: 45 MB). A look is then one forward pass of the student. The
figures are those of a diagnosis (`evaluate.fidelity`, `diagnose.layers`) on these prompts: token KL over the whole shared
vocabulary, and debiased linear CKA by block over all tokens but the sink tokens of either model.

Shapes: B rollouts of a batch, T padded tokens, N completion tokens, C of a chunk, M tokens that CKA is taken over, P prompts, D
student width, E teacher width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.cka import cka_pairs
from recoup.diagnose.massive import sink_tokens
from recoup.divergence import Head, forward_kl
from recoup.evaluate.fidelity import BATCH_SIZE, CHUNK_TOKENS
from recoup.models.capture import block_outputs
from recoup.models.hidden import completion_hidden
from recoup.models.layers import paired_blocks
from recoup.models.logits import batches, completion_logits, completion_rows
from recoup.models.sample import Rollouts
from recoup.recover.teachers import Teacher

Forward = Callable[[PreTrainedModel, Rollouts], Tensor]


@dataclass(frozen=True)
class Part:
    """Prompts of one forward pass."""

    rollouts: Rollouts
    kept_BT: Bool[Tensor, "B T"]  # tokens that are no sinks of the teacher
    teacher_NE: Float[Tensor, "N E"]  # what enters the teacher's head before each completion token


@dataclass(frozen=True)
class Yardstick:
    """Prompts, answers, and what the teacher says of them."""

    parts: tuple[Part, ...]
    head: Head  # the teacher's
    num_shared: int  # leading vocabulary entries that teacher and student share
    states: tuple[Float[Tensor, "M E"], ...]  # after each block of the teacher, at `kept_BT`


@dataclass(frozen=True)
class Seen:
    """One look: sums over each prompt's completion tokens, on the CPU, and CKA of each block of the student."""

    counts_P: Float[Tensor, " P"]
    kl_P: Float[Tensor, " P"]  # KL(teacher ‖ student), nats
    agrees_P: Float[Tensor, " P"]  # tokens that both find likeliest
    linear_cka: tuple[float, ...]

    @property
    def token_kl(self) -> float:
        """Mean over all tokens, nats."""
        return float(self.kl_P.sum() / self.counts_P.sum())


@torch.no_grad()
def take(teacher: Teacher, rollouts: Rollouts) -> Yardstick:
    """What `teacher`, as it now is, says of `rollouts`, one rollout a prompt.

    Raises:
        StructureError: the teacher has no blocks that can be found.
    """
    parts, states = [], []
    with teacher.model() as speaker:
        for batch in batches(rollouts, BATCH_SIZE):
            hidden_NE, states_BTE = _with_states(completion_hidden, speaker.model, batch)
            kept_BT = batch.attention_BT & ~sink_tokens(states_BTE, batch.attention_BT)
            parts.append(Part(batch, kept_BT, hidden_NE))
            states.append([block_BTE[kept_BT] for block_BTE in states_BTE])
    head = teacher.head()
    if teacher.identity is None:  # it moves, in place
        head = replace(head, weight_VD=head.weight_VD.clone())
    return Yardstick(tuple(parts), head, teacher.num_shared, _joined(states))


@torch.no_grad()
def look(student: PreTrainedModel, by: Yardstick) -> Seen:
    """Measure the student; it is left as it was.

    Its logits are its own forward pass's, so a head that something was wrapped around (an adapter) counts as it computes.

    Raises:
        SourceError: a hidden state is NaN or infinite.
        DataError: too few tokens for the estimator.
        StructureError: the student has no blocks that can be found.
    """
    sums, states, kept = [], [], []
    with evaluating(student):
        for part in by.parts:
            student_NV, states_BTD = _with_states(completion_logits, student, part.rollouts)
            sums.append(_sums(student_NV, by.head.logits(part.teacher_NE), part.rollouts, by.num_shared))
            states.append([block_BTD[part.kept_BT] for block_BTD in states_BTD])
            kept.append(~sink_tokens(states_BTD, part.rollouts.attention_BT)[part.kept_BT])
    own = _joined(states)
    partners = [by.states[index] for index in paired_blocks(len(own), len(by.states))]
    counts_P, kl_P, agrees_P = torch.cat(sums).cpu().unbind(1)
    return Seen(counts_P, kl_P, agrees_P, tuple(cka_pairs(own, partners, torch.cat(kept)).value_L.tolist()))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the model is in evaluation mode; then in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _with_states(run: Forward, model: PreTrainedModel, batch: Rollouts) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `run` gives of completion tokens, and the states (B, T, D) after each block, from one forward pass.

    `run` leaves the last column out, which predicts nothing: behind a column of pads more, that one is left out instead.
    """
    padded = Rollouts(
        *(nn.functional.pad(mask, (0, 1)) for mask in (batch.tokens_BT, batch.attention_BT, batch.completion_BT))
    )
    with block_outputs(model) as outputs:
        found = run(model, padded)
    return found, tuple(outputs[index] for index in range(len(outputs)))


def _sums(student_NV: Tensor, teacher_NV: Tensor, rollouts: Rollouts, num_shared: int) -> Float[Tensor, "P 3"]:
    """Number of tokens, KL and agreements, summed over each prompt's tokens, in float64."""
    chunks = zip(
        student_NV[:, :num_shared].split(CHUNK_TOKENS), teacher_NV[:, :num_shared].split(CHUNK_TOKENS), strict=True
    )
    values_N3 = torch.cat([_compared(student_CV.float(), teacher_CV.float()) for student_CV, teacher_CV in chunks])
    sums_P3 = values_N3.new_zeros(len(rollouts.tokens_BT), values_N3.shape[1])
    return sums_P3.index_add(0, completion_rows(rollouts), values_N3)


def _compared(student_CV: Tensor, teacher_CV: Tensor) -> Tensor:
    agrees_C = student_CV.argmax(-1) == teacher_CV.argmax(-1)
    kl_C = forward_kl(student_CV, teacher_CV)
    return torch.stack([torch.ones_like(kl_C), kl_C, agrees_C], dim=1).double()


def _joined(states: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Each block's states of all parts."""
    return tuple(torch.cat(block) for block in zip(*states, strict=True))
