"""Hidden states of student and teacher at the same tokens, held in memory, from one forward pass of each model.

Held are whole sequences, evenly spread over the rollouts, of at most `MAX_TOKENS` tokens together, in the type the models
compute in (SmolLM2-135M in bfloat16: 30 blocks × 2 models × 3,072 tokens × 576 × 2 bytes = 212 MB). Everything CKA is asked (with
and without sink tokens, without some dimensions, every block against every block, by prompt group, by position) is then a matter
of masks. Pads are never held. What attention and feed-forward parts put out is compared batch by batch and not held.

Shapes: B rollouts, T padded tokens, N tokens held, D student width, E teacher width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recoup.cka import cka_pairs
from recoup.diagnose.massive import sink_tokens
from recoup.diagnose.outputs import PartDrift, part_drift, square_sums
from recoup.errors import SourceError
from recoup.models.capture import states_and_parts
from recoup.models.layers import blocks, paired_blocks
from recoup.models.load import LanguageModel
from recoup.models.logits import batches
from recoup.models.sample import Rollouts

MAX_TOKENS = 3072
MIN_TOKENS = 64  # with fewer, early blocks hang on a few tokens: see `recover.hidden_term`
BATCH_SIZE = 8  # rollouts in one forward pass


@dataclass(frozen=True)
class TokenStates:
    """Hidden states after each block of both models at the tokens held."""

    student: tuple[Float[Tensor, "N D"], ...]
    teacher: tuple[Float[Tensor, "N E"], ...]
    sink_N: Bool[Tensor, " N"]  # in either model
    moved_N: Bool[Tensor, " N"]  # a sink in one of them alone
    rollout_N: Int[Tensor, " N"]  # that the token belongs to
    place_N: Int[Tensor, " N"]  # of the token in the flattened (B, T) of the rollouts

    @property
    def partners(self) -> tuple[Float[Tensor, "N E"], ...]:
        """For each block of the student, the states after its partner."""
        return tuple(self.teacher[index] for index in paired_blocks(len(self.student), len(self.teacher)))

    def mean_cka(self, mask_BT: Bool[Tensor, "B T"]) -> float | None:
        """Debiased CKA of some of the tokens held, mean over the student's blocks; sink tokens are left out.

        Args:
            mask_BT: laid out like the rollouts; true at tokens that count.

        Returns:
            Null where that leaves fewer than `MIN_TOKENS`.

        Raises:
            DataError: the hidden states of these tokens do not vary.
        """
        mask_N = mask_BT.flatten()[self.place_N] & ~self.sink_N
        if int(mask_N.sum()) < MIN_TOKENS:
            return None
        return float(cka_pairs(self.student, self.partners, mask_N).value_L.mean())


def token_states(
    teacher: LanguageModel, student: LanguageModel, rollouts: Rollouts, max_tokens: int = MAX_TOKENS
) -> tuple[TokenStates, tuple[PartDrift, ...]]:
    """Run both models on prompts and completions; returns their hidden states, and how far each block's parts drifted.

    Args:
        teacher: of any depth and width.
        student: the same.
        rollouts: same token ids for both.
        max_tokens: held at most, but for one sequence that is longer.

    Raises:
        SourceError: a hidden state is NaN or infinite.
        StructureError: a model has no blocks that can be found.
    """
    rows = even_rows(rollouts.attention_BT.sum(1).tolist(), max_tokens)
    chosen = Rollouts(rollouts.tokens_BT[rows], rollouts.attention_BT[rows], rollouts.completion_BT[rows])
    partners = paired_blocks(len(blocks(student.model)), len(blocks(teacher.model)))
    own, theirs, sinks, moved, sums = [], [], [], [], []
    for batch in batches(chosen, BATCH_SIZE):
        states, teacher_parts = states_and_parts(teacher.model, batch)
        theirs.append(_real_tokens(states, batch, teacher.name))
        theirs_BT = sink_tokens(states, batch.attention_BT)
        states, student_parts = states_and_parts(student.model, batch)
        own.append(_real_tokens(states, batch, student.name))
        own_BT = sink_tokens(states, batch.attention_BT)
        sinks.append((own_BT | theirs_BT)[batch.attention_BT])
        moved.append((own_BT ^ theirs_BT)[batch.attention_BT])
        counts_N = (batch.attention_BT & ~own_BT & ~theirs_BT).flatten()
        sums.append(square_sums(student_parts, teacher_parts, partners, counts_N))
    row_N, column_N = chosen.attention_BT.nonzero().unbind(1)
    rollout_N = torch.tensor(rows, device=row_N.device)[row_N]
    place_N = rollout_N * rollouts.tokens_BT.shape[1] + column_N
    held = TokenStates(_joined(own), _joined(theirs), torch.cat(sinks), torch.cat(moved), rollout_N, place_N)
    return held, part_drift(sums, len(partners))


def even_rows(counts: Sequence[int], limit: int) -> list[int]:
    """Rows spread evenly, as many as have at most `limit` tokens together; one at least.

    Args:
        counts: tokens of each row.
        limit: tokens.
    """
    for kept in range(len(counts), 1, -1):
        rows = [index * len(counts) // kept for index in range(kept)]
        if sum(counts[row] for row in rows) <= limit:
            return rows
    return [0]


def thinned(mask_N: Bool[Tensor, " N"], limit: int) -> Bool[Tensor, " N"]:
    """At most `limit` of the tokens that count: every second, third, … of them."""
    places = mask_N.nonzero()[:, 0]
    kept_N = torch.zeros_like(mask_N)
    kept_N[places[:: -(-len(places) // limit)]] = True
    return kept_N


def _real_tokens(states: Sequence[Tensor], batch: Rollouts, name: str) -> list[Tensor]:
    """Each block's states without pads, row by row."""
    kept = [states_BTD[batch.attention_BT] for states_BTD in states]
    for index, states_ND in enumerate(kept):
        if not states_ND.isfinite().all():
            raise SourceError(
                f"{name}: NaN or infinity in the hidden states after block {index}, so CKA is undefined; the model is "
                "broken there"
            )
    return kept


def _joined(batches_of_layers: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """Each block's states of all batches; those of single batches are let go block by block."""
    num_layers = len(batches_of_layers[0])
    return tuple(torch.cat([layers.pop(0) for layers in batches_of_layers]) for _ in range(num_layers))
