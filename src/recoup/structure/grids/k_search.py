"""The searches for scales behind llama.cpp's K-quants, over all sub-blocks of a weight at once.

Each is a function of one `make_*_quants` of ggml-org/llama.cpp, ggml/src/ggml-quants.c: try some scales near the one that
the extremes give, keep the one with the smallest weighted error. Their results decide which bytes are written, so
operations follow the C code's order in float32, sums over a sub-block run element by element, and nothing is fused. Where
we differ: a quotient beyond 2²² is clamped to the range of codes, where C's trick for rounding returns garbage; and inputs
below 1e-30, which no float16 scale can tell from 0, are taken as 0, and those beyond 1e9 as 1e9, so that nothing overflows.

Shapes: S weights of a sub-block (first, so that sums by element are sums of rows), N sub-blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.structure.grids.gguf_legacy import extreme, quotient

TINY = 1e-30  # below it squares and inverses leave float32's range
GROUP_MAX_EPS = 1e-15  # ggml-quants.c: a group whose largest magnitude is smaller counts as all zero
HUGE = 1e9  # more than any float16 scale reaches: 65504 · 128 · 32; beyond it sums of cubes overflow
CHUNK = 8192  # sub-blocks searched together, so that the working set stays in a core's cache
SYMMETRIC_STEPS = tuple(step for step in range(-9, 10) if step)
REFINEMENTS = 5

SubBlocks = Float[Tensor, "S N"]
PerBlock = Float[Tensor, " N"]
STEP = torch.tensor(0.1)  # float32, as in the C code


@dataclass(frozen=True)
class MinimumSearch:
    """How scale and minimum are searched: one row of the calls to `make_qkx2_quants`.

    Attributes:
        top: the largest code.
        first: what the first try adds to `top` (C: rmin); each next try adds 0.1 more.
        steps: tries after the first (C: nstep).
        absolute: weigh absolute errors, not squared ones (C: use_mad).
    """

    top: int
    first: float
    steps: int
    absolute: bool = False


def in_chunks(function: Callable[[Tensor], Tensor], x_SN: SubBlocks) -> Tensor:
    """`function` on `CHUNK` sub-blocks at a time; results are joined along their last axis."""
    clean_SN = torch.where(x_SN.abs() < TINY, 0.0, x_SN.clamp(-HUGE, HUGE))
    return torch.cat([function(chunk_SN.contiguous()) for chunk_SN in clean_SN.split(CHUNK, dim=1)], dim=-1)


def scale_and_minimum(x_SN: SubBlocks, weight_SN: SubBlocks, search: MinimumSearch) -> tuple[PerBlock, PerBlock]:
    """Scale and minimum (as what is subtracted, at least 0) with the least weighted error (`make_qkx2_quants`).

    For given codes the two come from weighted least squares; a try keeps them where the error falls. A later try starts
    from the best minimum so far.
    """
    high_N, low_N = x_SN.amax(0), x_SN.amin(0).clamp_max(0)
    flat_N = high_N == low_N
    sums = _ordered_sum(weight_SN), _ordered_sum(weight_SN * x_SN)
    inverse_N = quotient(search.top, high_N - low_N)
    scale_N = 1 / inverse_N
    codes_SN = ((x_SN - low_N) * inverse_N).round_().clamp_(0, search.top)
    best_N = _error(x_SN, weight_SN, (scale_N * codes_SN).add_(low_N), search.absolute)
    for step in range(search.steps + 1):
        inverse_N = (search.first + STEP * step + search.top) / (high_N - low_N)
        codes_SN = (x_SN - low_N).mul_(inverse_N).round_().clamp_(0, search.top)
        usable_N, new_scale_N, new_low_N = _least_squares(x_SN, weight_SN, codes_SN, sums)
        error_N = _error(x_SN, weight_SN, codes_SN.mul_(new_scale_N).add_(new_low_N), search.absolute)
        better_N = usable_N & (error_N < best_N)
        best_N = torch.where(better_N, error_N, best_N)
        scale_N = torch.where(better_N, new_scale_N, scale_N)
        low_N = torch.where(better_N, new_low_N, low_N)
    return torch.where(flat_N, 0.0, scale_N), -low_N


def symmetric_scale(x_SN: SubBlocks, top: int) -> PerBlock:
    """Scale, with a sign, of the symmetric codes −top to top − 1 with the least error weighted by x² (`make_qx_quants`)."""
    extreme_N = extreme(x_SN.T)
    zero_N = extreme_N.abs() < GROUP_MAX_EPS
    square_SN = x_SN * x_SN
    cube_SN = square_SN * x_SN

    def sums(inverse_N: PerBlock) -> tuple[PerBlock, PerBlock]:
        codes_SN = (inverse_N * x_SN).round_().clamp_(-top, top - 1)
        return _ordered_sum(cube_SN * codes_SN), _ordered_sum((square_SN * codes_SN).mul_(codes_SN))

    cross_N, power_N = sums(quotient(-top, extreme_N))
    scale_N = torch.where(power_N != 0, cross_N / power_N, 0.0)
    best_N = scale_N * cross_N
    for step in SYMMETRIC_STEPS:
        cross_N, power_N = sums(-(top + STEP * step) / extreme_N)
        better_N = (power_N > 0) & (cross_N * cross_N > best_N * power_N)
        scale_N = torch.where(better_N, cross_N / power_N, scale_N)
        best_N = torch.where(better_N, scale_N * cross_N, best_N)
    return torch.where(zero_N, 0.0, scale_N)


def refined_scale(x_SN: SubBlocks, top: int) -> PerBlock:
    """As `symmetric_scale`, but codes are improved one at a time while the fit gets better (`make_q3_quants`)."""
    extreme_N = extreme(x_SN.T)
    zero_N = extreme_N.abs() < GROUP_MAX_EPS
    square_SN = x_SN * x_SN
    cube_SN = square_SN * x_SN
    codes_SN = (quotient(-top, extreme_N) * x_SN).round_().clamp_(-top, top - 1)
    cross_N, power_N = _ordered_sum(cube_SN * codes_SN), _ordered_sum(square_SN * codes_SN * codes_SN)
    for _ in range(REFINEMENTS):
        for x_N, square_N, cube_N, code_N in zip(x_SN, square_SN, cube_SN, codes_SN, strict=True):
            others_cross_N = cross_N - cube_N * code_N
            others_power_N = power_N - square_N * code_N * code_N
            new_N = (x_N * others_power_N / others_cross_N).round_().clamp_(-top, top - 1)
            new_cross_N = others_cross_N + cube_N * new_N
            new_power_N = others_power_N + square_N * new_N * new_N
            better_N = new_cross_N * new_cross_N * power_N > cross_N * cross_N * new_power_N
            better_N &= (others_cross_N > 0) & (new_power_N > 0) & (new_N != code_N)
            code_N.copy_(torch.where(better_N, new_N, code_N))
            cross_N = torch.where(better_N, new_cross_N, cross_N)
            power_N = torch.where(better_N, new_power_N, power_N)
    return torch.where(zero_N | (power_N <= 0), 0.0, cross_N / power_N)


def _least_squares(
    x_SN: SubBlocks, weight_SN: SubBlocks, codes_SN: SubBlocks, sums: tuple[PerBlock, PerBlock]
) -> tuple[Tensor, PerBlock, PerBlock]:
    """Where the codes differ at all; the scale and the minimum (at most 0) that fit x best given its codes."""
    sum_w_N, sum_x_N = sums
    weighted_SN = weight_SN * codes_SN
    sum_l_N, sum_l2_N = _ordered_sum(weighted_SN), _ordered_sum(weighted_SN * codes_SN)
    sum_xl_N = _ordered_sum(weighted_SN.mul_(x_SN))
    determinant_N = sum_w_N * sum_l2_N - sum_l_N * sum_l_N
    scale_N = (sum_w_N * sum_xl_N - sum_x_N * sum_l_N) / determinant_N
    low_N = (sum_l2_N * sum_x_N - sum_l_N * sum_xl_N) / determinant_N
    scale_N = torch.where(low_N > 0, sum_xl_N / sum_l2_N, scale_N)
    return determinant_N > 0, scale_N, low_N.clamp_max(0)


def _error(x_SN: SubBlocks, weight_SN: SubBlocks, fitted_SN: SubBlocks, absolute: bool) -> PerBlock:
    """Weighted sum of errors; overwrites `fitted_SN`."""
    difference_SN = fitted_SN.sub_(x_SN)
    size_SN = difference_SN.abs_() if absolute else difference_SN.mul_(difference_SN)
    return _ordered_sum(size_SN.mul_(weight_SN))


def _ordered_sum(x_SN: SubBlocks) -> PerBlock:
    """The sum over the elements of each sub-block, added in their order."""
    total_N = x_SN[0].clone()
    for x_N in x_SN[1:]:
        total_N += x_N
    return total_N
