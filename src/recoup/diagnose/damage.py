"""Layer by layer: what became of the hidden states on the same tokens, of what the parts put out, and of the weights.

The number to read is `linear_cka`: debiased, sink tokens left out. Its ceiling is the teacher in another precision, its floor a
re-initialised model (`bounds`). The others say what it cannot:

- `linear_cka_all_tokens`: what sink tokens hide. Of SmolLM2-135M-Instruct at 3 bits it reads 0.9996 to 0.9999 in blocks 11 to
  28, where `linear_cka` falls from 0.94 to 0.84 (32 conversations, 3,863 tokens).
- `cka_without_massive`: whether the rest is left of a few massive dimensions (`massive`).
- `relative_l2`, `procrustes`, effective ranks: CKA ignores scale, rotation and faint directions.
- drift of what attention, heads and feed-forward parts put out, of the weights: where damage starts; CKA is carried along from
  block to block.

Shapes: N tokens held, D student width, E teacher width, R bootstrap resamples, L student blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recoup.cka import cka_map, cka_pairs, debiased_cka, effective_rank, procrustes_distance, relative_l2
from recoup.diagnose.bounds import Bounds
from recoup.diagnose.drift import relative_drift, weight_matrices
from recoup.diagnose.layers import TokenStates, thinned, token_states
from recoup.diagnose.massive import massive_dims, variance_share
from recoup.diagnose.outputs import PartDrift
from recoup.errors import DataError
from recoup.models.layers import blocks, paired_blocks
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts
from recoup.results import LayerDamage

INTERVAL = (0.025, 0.975)
MAX_DRAWN_TOKENS = (
    1024  # behind an interval: it costs more than all else together, and the number of rollouts decides it
)
Fields = dict[str, Any]  # of a LayerDamage


@dataclass(frozen=True)
class Layers:
    """Damage of every block, and the hidden states it was taken from, for further questions (`states.mean_cka`)."""

    layers: tuple[LayerDamage, ...]
    num_tokens: int  # behind `linear_cka`, sink tokens of either model left out
    num_moved_sinks: int  # tokens that are a sink in one of the models alone
    cka_map: tuple[tuple[float, ...], ...]  # student block by teacher block, debiased, sink tokens left out
    states: TokenStates


def layer_damage(
    teacher: LanguageModel,
    student: LanguageModel,
    rollouts: Rollouts,
    *,
    seed: int,
    num_bootstrap: int,
    bounds: Bounds | None = None,
) -> Layers:
    """Damage of each student block against its teacher block, on the prompts and completions of `rollouts`.

    Args:
        teacher: the model before the damage.
        student: of any depth and width.
        rollouts: same token ids for both.
        seed: of the bootstrap over rollouts.
        num_bootstrap: resamples; 0 leaves the intervals out.
        bounds: of the teacher on these rollouts (`cka_bounds`); null leaves ceiling and floor out.

    Raises:
        SourceError: a hidden state is NaN or infinite.
        DataError: too few tokens for the estimator.
    """
    states, drifts = token_states(teacher, student, rollouts)
    partners = paired_blocks(len(states.student), len(states.teacher))
    map_LM = cka_map(states.student, states.teacher, ~states.sink_N)
    values_L = map_LM[range(len(partners)), partners]
    cka = _cka(states, values_L, seed, num_bootstrap)
    columns = cka, _apart(states, cka), _companions(states), _parts(drifts), _weights(teacher, student)
    layers = [
        LayerDamage(layer=index, teacher_layer=partner, **_bounds(bounds, partner), **_merged(fields))
        for index, (partner, *fields) in enumerate(zip(partners, *columns, strict=True))
    ]
    return Layers(
        layers=tuple(layers),
        num_tokens=int((~states.sink_N).sum()),
        num_moved_sinks=int(states.moved_N.sum()),
        cka_map=tuple(map(tuple, map_LM.tolist())),
        states=states,
    )


# --- the fields of every block, a column a function --------------------------------------------------------------------


def _cka(states: TokenStates, values_L: Tensor, seed: int, num_bootstrap: int) -> list[Fields]:
    everywhere_L = cka_pairs(states.student, states.partners).value_L
    intervals = _intervals(states, values_L, seed, num_bootstrap) if num_bootstrap else [None] * len(values_L)
    return [
        {"linear_cka": value, "linear_cka_all_tokens": whole, "cka_interval": interval}
        for value, whole, interval in zip(values_L.tolist(), everywhere_L.tolist(), intervals, strict=True)
    ]


def _intervals(
    states: TokenStates, values_L: Tensor, seed: int, num_bootstrap: int
) -> Sequence[tuple[float, float] | None]:
    """Percentile intervals over rollouts, moved so that the draws' mean lies on the value.

    A draw holds some rollouts twice, so that pairs of tokens of one rollout weigh more in it than in the value, which moves all
    draws to one side. Some tokens of every rollout say nearly as much about rollouts as all of them.

    Null where there are too few rollouts, or too short ones, to draw from.
    """
    drawing: dict[str, Any] = {"clusters_N": states.rollout_N, "num_bootstrap": num_bootstrap, "seed": seed}
    try:
        draws_RL = cka_pairs(
            states.student, states.partners, thinned(~states.sink_N, MAX_DRAWN_TOKENS), **drawing
        ).draws_RL
    except DataError:  # the value, of the same tokens, is defined
        return [None] * len(values_L)
    assert draws_RL is not None
    bounds_2L = (draws_RL - draws_RL.mean(0) + values_L).quantile(draws_RL.new_tensor(INTERVAL), dim=0)
    return [(low, high) for low, high in bounds_2L.T.tolist()]


def _apart(states: TokenStates, cka: Sequence[Fields]) -> list[Fields]:
    """The teacher's massive dimensions, and CKA without them in either model."""
    return [
        {
            "massive_dims": (dims := massive_dims(Y_NE)),
            "student_massive_dims": massive_dims(X_ND),
            "massive_share": variance_share(Y_NE, dims),
            "cka_without_massive": _without(X_ND, Y_NE, dims, ~states.sink_N) if dims else fields["linear_cka"],
        }
        for X_ND, Y_NE, fields in zip(states.student, states.partners, cka, strict=True)
    ]


def _without(X_ND: Tensor, Y_NE: Tensor, dims: Sequence[int], mask_N: Tensor) -> float | None:
    if X_ND.shape != Y_NE.shape:
        return None
    kept = [dim for dim in range(Y_NE.shape[1]) if dim not in dims]
    return debiased_cka(X_ND[:, kept], Y_NE[:, kept], mask_N)


def _companions(states: TokenStates) -> list[Fields]:
    """What CKA does not see, or says otherwise."""
    kept_N = ~states.sink_N
    pairs = [(X_ND[kept_N], Y_NE[kept_N]) for X_ND, Y_NE in zip(states.student, states.partners, strict=True)]
    return [
        {
            "relative_l2": relative_l2(X_ND, Y_NE) if X_ND.shape == Y_NE.shape else None,
            "procrustes": procrustes_distance(X_ND, Y_NE),
            "teacher_rank": effective_rank(Y_NE),
            "student_rank": effective_rank(X_ND),
        }
        for X_ND, Y_NE in pairs
    ]


def _parts(drifts: Sequence[PartDrift]) -> list[Fields]:
    return [{"attention_drift": part.attention, "ffn_drift": part.ffn, "head_drift": part.heads} for part in drifts]


def _weights(teacher: LanguageModel, student: LanguageModel) -> list[Fields]:
    own, theirs = blocks(student.model), blocks(teacher.model)
    partners = paired_blocks(len(own), len(theirs))
    return [
        {"relative_drift": relative_drift(weight_matrices(block), weight_matrices(theirs[partner]))}
        for block, partner in zip(own, partners, strict=True)
    ]


def _bounds(bounds: Bounds | None, partner: int) -> Fields:
    return {} if bounds is None else {"ceiling": bounds.ceiling[partner], "floor": bounds.floor[partner]}


def _merged(columns: Sequence[Fields]) -> Fields:
    return {name: value for fields in columns for name, value in fields.items()}
