"""What turns hidden states into logits, and what a teacher said about them: the values that divergences are worked out from.

Shapes: N tokens, D width, V vocabulary, K likeliest tokens.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """An output head: logits = softcap(scale · (hidden · Wᵀ + bias)).

    `softcap` c means c · tanh(logits / c) (Gemma); `scale` is Cohere's and Granite's factor.
    """

    weight_VD: Float[Tensor, "V D"]
    bias_V: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits in the type of the hidden states; differentiable."""
        logits_NV = torch.nn.functional.linear(hidden_ND, self.weight_VD.to(hidden_ND.dtype), self.bias_V)
        logits_NV = logits_NV if self.scale == 1.0 else logits_NV * self.scale
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)

    def cut(self, num_shared: int | None) -> "Head":
        """The head of the leading `num_shared` vocabulary entries (views); itself when None.

        Raises:
            ValueError: the vocabulary is smaller than that.
        """
        if num_shared is None:
            return self
        if not 0 < num_shared <= self.weight_VD.shape[0]:
            raise ValueError(f"a head of {self.weight_VD.shape[0]} tokens cannot share {num_shared}")
        bias_V = None if self.bias_V is None else self.bias_V[:num_shared]
        return replace(self, weight_VD=self.weight_VD[:num_shared], bias_V=bias_V)


@dataclass(frozen=True)
class HiddenTargets:
    """What a teacher says of N tokens: its last hidden states and its head. Exact."""

    hidden_ND: Float[Tensor, "N D"]
    head: Head


@dataclass(frozen=True)
class TopKTargets:
    """The teacher's K likeliest tokens and their log-probabilities; the rest is one token of the remaining probability."""

    ids_NK: Int[Tensor, "N K"]
    logp_NK: Float[Tensor, "N K"]


Targets = HiddenTargets | TopKTargets
