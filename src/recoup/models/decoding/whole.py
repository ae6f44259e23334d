"""The decoder for every architecture: the model's own forward pass over transformers' growing cache.

Shapes: B rows, T padded tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from recoup.models.decoding.base import position_ids


class WholeDecoder:
    """See `base.Decoder`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def prefill(
        self, tokens_BT: Int[Tensor, "B T"], attention_BT: Bool[Tensor, "B T"], room: int
    ) -> Float[Tensor, "B V"]:
        """Fill the cache through the backbone alone, all but the last token.

        The head over a prompt is work, and `logits_to_keep` on a CPU copies the whole head once per row.
        """
        del room  # this cache grows by itself
        self._cache = DynamicCache(config=self._model.config)
        self._attention_BT = attention_BT[:, :-1]
        if tokens_BT.shape[1] > 1:
            self._model.base_model(
                tokens_BT[:, :-1],
                attention_mask=self._attention_BT.long(),
                position_ids=position_ids(self._attention_BT),
                past_key_values=self._cache,
                use_cache=True,
            )
        return self.step(tokens_BT[:, -1])

    def step(self, tokens_B: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """See `base.Decoder`."""
        self._attention_BT = torch.cat([self._attention_BT, self._attention_BT.new_ones(len(tokens_B), 1)], dim=1)
        output = self._model(
            tokens_B[:, None],
            attention_mask=self._attention_BT.long(),
            position_ids=position_ids(self._attention_BT)[:, -1:],
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def keep(self, slots: Sequence[int]) -> None:
        """See `base.Decoder`."""
        chosen = torch.tensor(slots, device=self._attention_BT.device)
        self._cache.batch_select_indices(chosen)
        self._attention_BT = self._attention_BT[chosen]
