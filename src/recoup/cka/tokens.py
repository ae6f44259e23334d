"""Which tokens count and how much, and features made ready for products.

A weight w_i ≥ 0 scales with what token i says. Rows become sqrt(w_i) · (x_i − weighted mean), so that a Gram entry is
sqrt(w_i w_j) K_ij, and an entry of one Gram matrix times the same entry of another counts w_i w_j. Because the mean is taken
out first, features with a large mean lose no digits. A mean in float32 is a little off, so row sums of Gram matrices are worked
out from the features as they are, never taken to be what they would be about the true mean.

Features are multiplied in float32 (float64 for float64 features). `bf16` rounds the centred features to 8 bits, and every
later number is of the rounded ones, so that only their rounding is lost.

Shapes: N tokens, D width, L layers.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recoup.errors import DataError, SourceError

Products = Literal["fp32", "bf16"]
MATRIX = 2  # dimensions
MIN_TOKENS = 4  # HSIC_1 divides by n − 3
MIN_TOKENS_BIASED = 2
ROUNDING = 16  # units of the last place: features that vary by less of their size are constant


@dataclass(frozen=True)
class Tokens:
    """The tokens that count; no weight among them is 0."""

    rows_n: Tensor | None  # their numbers; null: all
    weights_n: Float[Tensor, " n"]  # float64, on the CPU, as all sums are
    weighted: bool
    roots_n: Float[Tensor, " n"]  # of the weights, in the type and on the device of products
    shares_n: Float[Tensor, " n"]  # of all weight, likewise

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.weights_n)


@dataclass(frozen=True)
class Features:
    """Features of several layers at the same tokens, centred and scaled by the weights' roots."""

    layers: tuple[Tensor, ...]  # (n, D_l) each
    norms_Ln: Float[Tensor, "L n"]  # squared, float64: w_i K_ii
    rows_Ln: Float[Tensor, "L n"]  # row sums Σ_{j≠i} w_j K_ij, float64


class Space:
    """Memory by name, kept for whoever asks again: fresh pages for every minibatch cost more time than its arithmetic."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this shape that is overwritten by the next one of this name; its values are anything."""
        number = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < number or (kept.dtype, kept.device) != (dtype, device):
            kept = self._kept[name] = torch.empty(number, dtype=dtype, device=device)
        return kept[:number].view(*shape)


def choose(
    layers: Sequence[Tensor], mask_N: Bool[Tensor, " N"] | None, weights_N: Float[Tensor, " N"] | None
) -> Tokens:
    """The tokens of all these layers that the mask keeps and that weigh more than 0.

    Raises:
        DataError: layers are no matrices of the same tokens, the mask or the weights are of another length, or a weight is
            negative, NaN or infinite.
    """
    shapes = {tuple(layer.shape) for layer in layers}
    if {len(shape) for shape in shapes} != {MATRIX} or len({shape[0] for shape in shapes}) != 1:
        raise DataError(f"CKA compares matrices (tokens, width) of the same tokens, got shapes {sorted(shapes)}")
    num_tokens = len(layers[0])
    for what, given in (("mask", mask_N), ("weights", weights_N)):
        if given is not None and given.shape != (num_tokens,):
            raise DataError(f"CKA: {what} of shape {tuple(given.shape)} for {num_tokens} tokens; give one a token")
    dtype = functools.reduce(torch.promote_types, {layer.dtype for layer in layers}, torch.float32)
    if weights_N is None:
        rows_n = None if mask_N is None else mask_N.nonzero()[:, 0]
        weights_n = torch.ones(num_tokens if rows_n is None else len(rows_n), dtype=torch.float64)
        return weigh(rows_n, weights_n, layers[0].new_empty(0, dtype=dtype))
    kept_N = torch.ones_like(weights_N, dtype=torch.bool) if mask_N is None else mask_N
    weights_n = weights_N[kept_N].double()
    if not bool(((weights_n >= 0) & weights_n.isfinite()).all()):
        raise DataError("CKA: a token's weight is negative, NaN or infinite; give weights of 0 or more")
    rows_n = kept_N.nonzero()[:, 0][weights_n > 0]
    return weigh(rows_n, weights_n[weights_n > 0].cpu(), layers[0].new_empty(0, dtype=dtype), weighted=True)


def weigh(rows_n: Tensor | None, weights_n: Float[Tensor, " n"], like: Tensor, weighted: bool = False) -> Tokens:
    """These tokens with these weights (float64), for products of the type and on the device of `like`."""
    return Tokens(rows_n, weights_n, weighted, weights_n.sqrt().to(like), (weights_n / weights_n.sum()).to(like))


def check_enough(tokens: Tokens, debiased: bool = True) -> None:
    """Refuse what CKA is undefined for.

    Raises:
        DataError: fewer than 4 tokens (biased: 2), or, debiased, one that has half of all weight.
    """
    least = MIN_TOKENS if debiased else MIN_TOKENS_BIASED
    if tokens.number < least:
        kind = "debiased CKA" if debiased else "CKA"
        raise DataError(f"{kind} needs at least {least} tokens, got {tokens.number}; give more prompts")
    if debiased and tokens.weighted and bool(2 * tokens.weights_n.max() >= tokens.weights_n.sum()):
        raise DataError(
            "debiased CKA: one token has half of all weight, so no pairs are left to compare; spread weights"
        )


def prepare(layers: Sequence[Tensor], tokens: Tokens, side: str, products: Products, space: Space) -> Features:
    """Copies of the features, ready for products.

    Args:
        layers: (N, D_l) each.
        tokens: of the N that count.
        side: whose features, for errors.
        products: the type to round to.
        space: where the copies go.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: a layer's features are all equal, or their squares overflow.
    """
    names = [f"layer {index} of {side}" for index in range(len(layers))]
    return _ready(
        [_centred(layer, tokens, name, products, space) for layer, name in zip(layers, names, strict=True)],
        tokens,
        names,
    )


def centred(X_ND: Float[Tensor, "N D"], tokens: Tokens, name: str) -> Features:
    """One layer's features as `prepare` makes them."""
    return _ready([_centred(X_ND, tokens, name, "fp32", Space())], tokens, [name])


def _centred(
    X_ND: Tensor, tokens: Tokens, name: str, products: Products, space: Space
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features about their mean; their norms, products with their own sum, and the mean's square: few and small operations."""
    kept_nD = X_ND.detach() if tokens.rows_n is None else X_ND.detach()[tokens.rows_n]
    wide_nD = kept_nD.to(tokens.roots_n.dtype)
    mean_D = tokens.shares_n @ wide_nD
    out_nD = space.take(name if products == "fp32" else "before rounding", wide_nD.shape, wide_nD.dtype, X_ND.device)
    X_nD = torch.sub(wide_nD, mean_D, out=out_nD)
    if tokens.weighted:
        X_nD *= tokens.roots_n[:, None]
    ready_nD = X_nD
    if products == "bf16":
        ready_nD = space.take(name, X_nD.shape, torch.bfloat16, X_ND.device).copy_(X_nD)
        X_nD.copy_(ready_nD)  # so that all that follows is of the rounded features
    norms_n = torch.linalg.vector_norm(X_nD, dim=1)
    return ready_nD, norms_n, X_nD @ (tokens.roots_n @ X_nD), mean_D @ mean_D


def _ready(parts: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], tokens: Tokens, names: Sequence[str]) -> Features:
    """What the layers' parts come to in float64.

    Raises:
        SourceError: a feature is NaN or infinite.
        DataError: a layer's features are all equal, or their squares overflow.
    """
    layers, norms, products, means = zip(*parts, strict=True)
    norms_Ln = torch.stack(norms).double().square().cpu()
    size_L, eps = norms_Ln.sum(1), torch.finfo(tokens.roots_n.dtype).eps
    for layer in (~size_L.isfinite()).nonzero()[:, 0].tolist():
        if bool(layers[layer].isfinite().all()):
            raise DataError(
                f"CKA is undefined: squares of the features of {names[layer]} overflow; divide them by their size"
            )
        raise SourceError(
            f"{names[layer]}: NaN or infinity in the hidden states, so CKA is undefined; the model is broken there"
        )
    flat_L = ~(size_L > (ROUNDING * eps) ** 2 * tokens.weights_n.sum() * torch.stack(means).double().cpu())
    if bool(flat_L.any()):
        raise DataError(f"CKA is undefined: the features of {names[int(flat_L.nonzero()[0])]} do not vary")
    return Features(tuple(layers), norms_Ln, torch.stack(products).double().cpu() / tokens.weights_n.sqrt() - norms_Ln)


def mean(X_ND: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """The rows' mean in float64; of no rows 0."""
    return X_ND.sum(0, dtype=torch.float64) / max(1, len(X_ND))


def square_norms(X_ND: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """‖x_i‖² in float64."""
    return torch.linalg.vector_norm(X_ND, dim=1, dtype=torch.float64).square()
