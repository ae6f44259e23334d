"""The decoder of Llama-like layouts: the model's weights and modules, a fixed cache, and few operations a token.

Against transformers' forward pass: the cache has its room from the start, so a token is written and nothing is copied; a
row that leaves is overwritten by one that stays; query, key and value are one product, and so are gate and up; products
use packed weights where that is faster (`product`); masks and rotary angles are worked out once a batch. Norms,
activations, embeddings and angles are the model's own modules.

Memory beside the model: the cache, 2 · blocks · key/value heads · head width · (prompt + room) numbers a row; the packed
weights, as many bytes as the products' own, while the decoder lives.

Shapes: B rows, T tokens of a call, C columns of the cache, H query heads, G key/value heads, K head width, D width,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from recoup.models.decoding.base import position_ids
from recoup.models.decoding.layout import Block, Layout
from recoup.models.decoding.product import Product

PREFILL_TOKENS = (
    512  # of one call: activations stay in a CPU core's cache, and rows of near length share little padding
)

Angles = dict[str | None, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Place:
    """Which rows and columns of the cache a call writes, and the first column that it reads."""

    rows: slice
    columns: slice
    read_from: int
    mask: Tensor | None  # added to attention scores


class LeanDecoder:
    """See `base.Decoder`."""

    def __init__(self, model: PreTrainedModel, layout: Layout, *, packed: bool, num_rows: int) -> None:
        """Take the model's present weights.

        Args:
            model: for its type and device.
            layout: its parts.
            packed: hold packed copies of the weights (see `product`).
            num_rows: rows of a usual step.
        """
        self._layout, self._dtype, self._device = layout, model.dtype, model.device

        def product(*linears: torch.nn.Linear) -> Product:
            return Product(linears, packed=packed, num_rows=num_rows)

        self._products = [
            (product(*block.qkv), product(block.output), product(*block.up), product(block.down))
            for block in layout.blocks
        ]
        self._head = product(layout.head)
        self._cache: list[tuple[Tensor, Tensor]] = []
        self._mask_B11C: Tensor | None = None

    def prefill(
        self, tokens_BT: Int[Tensor, "B T"], attention_BT: Bool[Tensor, "B T"], room: int
    ) -> Float[Tensor, "B V"]:
        """See `base.Decoder`. Prompts that come longest first share little padding."""
        num_rows, width = tokens_BT.shape
        self._begin(attention_BT, room)
        positions_BT = position_ids(attention_BT)
        last = []
        start = 0
        while start < num_rows:
            pads = int((~attention_BT[start:]).sum(-1).min())
            rows = slice(start, start + max(1, PREFILL_TOKENS // (width - pads)))
            for keys, values in self._cache:  # a pad's weight is 0, and 0 times what memory happens to hold may be NaN
                keys[rows, :, :pads], values[rows, :, :pads] = 0, 0
            place = Place(rows, slice(pads, width), pads, _causal_mask(attention_BT[rows, pads:], self._dtype))
            hidden_BTD = self._blocks(tokens_BT[rows, pads:], positions_BT[rows, pads:], place)
            last.append(hidden_BTD[:, -1])
            start = rows.stop
        self._column, self._positions_B = width, positions_BT[:, -1] + 1
        return self._logits(torch.cat(last))

    def step(self, tokens_B: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """See `base.Decoder`."""
        end = self._column + 1
        mask = None if self._mask_B11C is None else self._mask_B11C[:, :, :, :end]
        place = Place(slice(0, len(tokens_B)), slice(self._column, end), 0, mask)
        hidden_B1D = self._blocks(tokens_B[:, None], self._positions_B[:, None], place)
        self._column, self._positions_B = end, self._positions_B + 1
        return self._logits(hidden_B1D[:, 0])

    def keep(self, slots: Sequence[int]) -> None:
        """See `base.Decoder`."""
        num_kept = len(slots)
        into = [place for place, slot in enumerate(slots) if place != slot]
        out_of = [slots[place] for place in into]
        for keys, values in self._cache:
            keys[into, :, : self._column] = keys[out_of, :, : self._column]
            values[into, :, : self._column] = values[out_of, :, : self._column]
        self._cache = [(keys[:num_kept], values[:num_kept]) for keys, values in self._cache]
        self._positions_B = self._positions_B[slots]
        self._mask_B11C = None if self._mask_B11C is None else self._mask_B11C[slots]

    def _begin(self, attention_BT: Bool[Tensor, "B T"], room: int) -> None:
        """Make the cache, the mask of the pads and the rotary angles of a batch."""
        num_rows, width = attention_BT.shape

        def empty(block: Block) -> Tensor:
            shape = (num_rows, block.num_heads[1], width + room, block.head_dim)
            return torch.empty(shape, dtype=self._dtype, device=self._device)

        self._cache = [(empty(block), empty(block)) for block in self._layout.blocks]
        self._mask_B11C = None
        if not attention_BT.all():
            self._mask_B11C = torch.zeros(num_rows, 1, 1, width + room, dtype=self._dtype, device=self._device)
            self._mask_B11C[:, 0, 0, :width].masked_fill_(~attention_BT, -torch.inf)
        self._angles = _angles(self._layout, width + room, torch.empty(0, dtype=self._dtype, device=self._device))

    def _blocks(
        self, tokens_BT: Int[Tensor, "B T"], positions_BT: Int[Tensor, "B T"], place: Place
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the last block; keys and values go to the cache."""
        hidden_BTD = self._layout.embedding(tokens_BT)
        angles = {
            kind: (cosine_CK[positions_BT][:, :, None], sine_CK[positions_BT][:, :, None])
            for kind, (cosine_CK, sine_CK) in self._angles.items()
        }
        for block, products, cache in zip(self._layout.blocks, self._products, self._cache, strict=True):
            qkv, output, up, down = products
            mixed_BTD = _attend(block, qkv(block.attention_norm(hidden_BTD)), cache, angles[block.kind], place)
            part_BTD = output(mixed_BTD)
            hidden_BTD = hidden_BTD + (part_BTD if block.attention_after is None else block.attention_after(part_BTD))
            gate_BTF, up_BTF = up(block.ffn_norm(hidden_BTD)).chunk(2, dim=-1)
            part_BTD = down(block.activation(gate_BTF) * up_BTF)
            hidden_BTD = hidden_BTD + (part_BTD if block.ffn_after is None else block.ffn_after(part_BTD))
        return hidden_BTD

    def _logits(self, hidden_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        logits_BV = self._head(self._layout.norm(hidden_BD))
        cap = self._layout.softcap
        return logits_BV if cap is None else torch.tanh(logits_BV / cap) * cap


def _attend(
    block: Block, qkv_BTP: Tensor, cache: tuple[Tensor, Tensor], angles: tuple[Tensor, Tensor], place: Place
) -> Float[Tensor, "B T P"]:
    """Write keys and values to the cache, then attend over what is there."""
    num_queries, num_groups = block.num_heads
    heads_BTNK = qkv_BTP.unflatten(-1, (-1, block.head_dim))
    rotated_BTNK, value_BTGK = heads_BTNK[:, :, :-num_groups], heads_BTNK[:, :, -num_groups:]
    if block.head_norms is not None:
        query_norm, key_norm = block.head_norms
        parts = (query_norm(rotated_BTNK[:, :, :num_queries]), key_norm(rotated_BTNK[:, :, num_queries:]))
        rotated_BTNK = torch.cat(parts, dim=2)
    cosine_BT1K, sine_BT1K = angles
    rolled_BTNK = rotated_BTNK.roll(block.head_dim // 2, -1)
    rotated_BTNK = torch.addcmul(rotated_BTNK * cosine_BT1K, rolled_BTNK, sine_BT1K)
    keys_BGCK, values_BGCK = cache
    keys_BGCK[place.rows, :, place.columns] = rotated_BTNK[:, :, num_queries:].transpose(1, 2)
    values_BGCK[place.rows, :, place.columns] = value_BTGK.transpose(1, 2)
    read = slice(place.read_from, place.columns.stop)
    mixed_BHTK = torch.nn.functional.scaled_dot_product_attention(
        rotated_BTNK[:, :, :num_queries].transpose(1, 2),
        keys_BGCK[place.rows, :, read],
        values_BGCK[place.rows, :, read],
        attn_mask=place.mask,
        scale=block.scale,
        enable_gqa=num_queries != num_groups,
    )
    return mixed_BHTK.transpose(1, 2).flatten(2)


def _angles(layout: Layout, num_positions: int, like: Tensor) -> Angles:
    """Cosine and signed sine of every position, (C, K) each, by kind of layer.

    transformers rotates as x · cos + (−x₂, x₁) · sin; with the sign in the sine it is a roll by half the head.
    """
    positions_1C = torch.arange(num_positions, device=like.device)[None]
    tables: Angles = {}
    for kind in {block.kind for block in layout.blocks}:
        arguments = (like, positions_1C, kind) if layout.rotary_by_kind else (like, positions_1C)
        cosine_1CK, sine_1CK = layout.rotary(*arguments)
        first_1CK, second_1CK = sine_1CK.chunk(2, dim=-1)
        tables[kind] = cosine_1CK[0], torch.cat([-first_1CK, second_1CK], dim=-1)[0]
    return tables


def _causal_mask(attention_BT: Bool[Tensor, "B T"], dtype: torch.dtype) -> Float[Tensor, "B 1 T T"]:
    """What is added to scores: −inf at later tokens and pads. A pad sees itself, as a row of −inf alone would be NaN."""
    square_TT = torch.ones(attention_BT.shape[1], attention_BT.shape[1], dtype=torch.bool, device=attention_BT.device)
    seen_BTT = square_TT.tril() & attention_BT[:, None] | torch.eye(
        len(square_TT), dtype=torch.bool, device=square_TT.device
    )
    return torch.zeros_like(seen_BTT, dtype=dtype).masked_fill_(~seen_BTT, -torch.inf)[:, None]
