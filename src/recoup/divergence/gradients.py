"""Sum the gradients of the hidden states and of the output head over chunks of tokens.

The head's gradient (V, D) is the largest tensor of a step. It is kept in the head's own type. Where that type has 16 bits and
several chunks are added, a remainder of the same type holds what rounding took away, so that sum + remainder carries 16 bits
of mantissa through any number of chunks: the memory of a float32 sum, but without a conversion at the end, and none of it
where one chunk holds all tokens. Each chunk's product is summed in float32 inside the kernel.

A token's weight and the head's scale multiply the hidden states' D columns, not the slopes' V.

Shapes: C tokens of a chunk, N tokens, D width, V vocabulary that is compared.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.divergence.chunks import slope_rows, tiles
from recoup.divergence.formulas import wide
from recoup.divergence.head import Head
from recoup.divergence.products import slope_type, through_head


class HeadGradient:
    """d loss / d W in the type of W, over the first `vocabulary` rows; rows that are not compared stay zero."""

    def __init__(self, weight_VD: Tensor, vocabulary: int) -> None:
        self._whole_VD = torch.empty_like(weight_VD)
        self._whole_VD[vocabulary:] = 0
        self._sum_VD = self._whole_VD[:vocabulary]
        self._rest_VD: Tensor | None = None  # once there is a second chunk
        self._empty = True

    def add(self, slope_CV: Float[Tensor, "C V"], hidden_CD: Float[Tensor, "C D"]) -> None:
        """Add slopeᵀ · hidden, both of one type."""
        first, self._empty = self._empty, False
        if self._sum_VD.dtype == slope_CV.dtype and (first or slope_CV.dtype != torch.bfloat16):
            for tile in tiles(self._sum_VD):
                kept = 0 if first else 1  # beta 0 ignores what an empty sum holds
                torch.addmm(self._sum_VD[tile], slope_CV[:, tile].T, hidden_CD, beta=kept, out=self._sum_VD[tile])
            return
        if first:
            self._sum_VD.zero_()
        if self._rest_VD is None:
            self._rest_VD = torch.zeros_like(self._sum_VD)
        for tile in tiles(self._sum_VD):
            self._round(tile, slope_CV[:, tile].T @ hidden_CD)

    def result(self) -> Tensor:
        """The sum, in the shape of W."""
        return self._whole_VD.zero_() if self._empty else self._whole_VD

    def _round(self, tile: slice, part_TD: Tensor) -> None:
        assert self._rest_VD is not None, "made by `add`"
        sum_TD, rest_TD = self._sum_VD[tile], self._rest_VD[tile]
        total_TD = sum_TD.float().add_(rest_TD).add_(part_TD)
        sum_TD.copy_(total_TD)
        rest_TD.copy_(total_TD.sub_(sum_TD))


class Gradients:
    """The gradients that are asked for: hidden states (N, D), head weight (V, D), head bias (V)."""

    def __init__(self, hidden_ND: Tensor, head: Head, vocabulary: int, needed: tuple[bool, bool, bool]) -> None:
        self._input_ND, self._weight_VD, self._scale = hidden_ND, head.weight_VD[:vocabulary], head.scale
        self.kept = slope_type(hidden_ND, head.weight_VD)
        self.rows = slope_rows(hidden_ND, vocabulary, self.kept)
        self._hidden_ND = torch.empty_like(hidden_ND) if needed[0] else None
        self._weight = HeadGradient(head.weight_VD, vocabulary) if needed[1] else None
        self._bias_V: Tensor | None = None
        if needed[2]:
            assert head.bias_V is not None, "no gradient is asked of a bias that is not there"
            self._bias_V, self._bias_type = torch.zeros_like(head.bias_V, dtype=wide(self.kept)), head.bias_V.dtype

    @torch.no_grad()
    def add(self, slope_CV: Float[Tensor, "C V"], tokens: slice, weights_C: Float[Tensor, " C"]) -> None:
        """Add the part of `tokens`, whose d divergence / d logits (before the head's scale) is `slope_CV`."""
        factor_C1 = (weights_C * self._scale)[:, None].to(wide(self.kept))
        if self._hidden_ND is not None:
            self._hidden_ND[tokens] = through_head(slope_CV, self._weight_VD) * factor_C1
        if self._weight is not None:
            self._weight.add(slope_CV, (self._input_ND[tokens] * factor_C1).to(self.kept))
        if self._bias_V is not None:
            for tile in tiles(self._weight_VD):
                self._bias_V[tile] += (slope_CV[:, tile] * factor_C1).sum(0)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The sums, each in the type and shape of its input; None where it was not asked for."""
        weight_VD = None if self._weight is None else self._weight.result()
        bias_V = None if self._bias_V is None else self._bias_V.to(self._bias_type)
        return self._hidden_ND, weight_VD, bias_V
