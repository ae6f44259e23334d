"""The weights of a model that nobody has loaded: its config alone is read, and its modules are made on torch's meta device.

What the backward pass keeps is counted, not guessed: the meta model runs a forward pass, and every tensor that
autograd saves is added up, at three lengths, which gives bytes for each token and for each pair of tokens. SmolLM2-135M in
bf16 with plain attention, 8 × 103 tokens: 31,806 bytes for each token and block counted so, 31,845 in the real model.

Shapes: B rollouts, T tokens, O output width, I input width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from recoup.config.degrade import AttentionHeads, Degrade, Depth, FFNWidth
from recoup.models.layers import block_linears, blocks, head_counts, intermediate_field, intermediate_size
from recoup.models.messages import one_line_errors, quiet
from recoup.models.source import resolve

PROBE_TOKENS = 16  # of the shortest of the three counted forward passes


@dataclass(frozen=True)
class Weight:
    """One parameter; a vector has one column."""

    name: str
    rows: int
    columns: int
    is_vector: bool
    is_linear: bool  # a linear layer inside a block
    block: int | None

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Activations:
    """Bytes that one rollout's backward pass keeps: a · T + b · T², all blocks together; `narrow` are a block's inputs."""

    per_token: float
    per_pair: float  # 0 under fused attention, which keeps no scores
    narrow_per_token: float


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on; tied weights are counted once."""

    weights: tuple[Weight, ...]
    num_blocks: int
    vocabulary: int
    width: int
    kv_width: int  # numbers of a token in one block's KV cache, keys and values
    attention_width: int  # query heads × their width

    @property
    def num_parameters(self) -> int:
        """Numbers in the model."""
        return sum(weight.size for weight in self.weights)

    @property
    def num_in_blocks(self) -> int:
        """Numbers that every token is multiplied by: the linear layers of the blocks (of every expert, where there are)."""
        return sum(weight.size for weight in self.weights if weight.block is not None)

    @property
    def largest(self) -> int:
        """Numbers in the largest parameter."""
        return max(weight.size for weight in self.weights)


@cache
def read_config(name: str) -> PretrainedConfig:
    """The config of a model, as a user names it; of one on a hub, that file alone is fetched.

    Raises:
        SourceError: there is no such model, or its config cannot be read.
    """
    source = resolve(name)
    path = Path(source.location)
    if source.kind == "adapter":
        return read_config(json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"])
    with one_line_errors(name), quiet():
        if source.kind == "gguf":
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return AutoConfig.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)


def meta_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model without any memory for its weights; quantized ones as they train, in `dtype`."""
    plain = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(plain, dtype=dtype, attn_implementation="eager").eval()


def damaged_config(config: PretrainedConfig, injuries: Sequence[Degrade]) -> PretrainedConfig:
    """The config after injuries that change shapes (feed-forward width, heads, depth), as `degrade` will write it.

    Raises:
        StructureError: an injury that does not fit this architecture.
    """
    for injury in injuries:
        if isinstance(injury, FFNWidth | AttentionHeads | Depth):
            changes = _shape_changes(meta_model(config, torch.float32), injury)
            fields = config.to_dict() | changes
            if isinstance(injury, Depth):  # the kind of each block; which ones go is not known before
                fields |= {key: value[: changes["num_hidden_layers"]] for key, value in _per_block(config).items()}
            config = type(config).from_dict(fields)
    return config


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Count a model's weights; on the meta device, that takes no memory.

    Raises:
        StructureError: the model has no blocks that can be found.
    """
    block_of = {id(weight): i for i, block in enumerate(blocks(model)) for weight in block.parameters()}
    linears = {id(module.weight) for module in block_linears(model).values()}
    weights = []
    for name, weight in model.named_parameters():
        rows, columns = weight.numel() // weight.shape[-1], weight.shape[-1]
        place = block_of.get(id(weight))
        if weight.ndim == 1:
            rows, columns = columns, 1
        weights.append(Weight(name, rows, columns, weight.ndim == 1, id(weight) in linears, place))
    heads = head_counts(model)
    head: Tensor = model.get_output_embeddings().weight
    return ModelShape(
        weights=tuple(weights),
        num_blocks=len(blocks(model)),
        vocabulary=head.shape[0],
        width=head.shape[1],
        kv_width=2 * heads.group * heads.dim,
        attention_width=heads.query * heads.dim,
    )


def activations_of(model: PreTrainedModel, *, plain_attention: bool) -> Activations:
    """What the backward pass of one rollout keeps, counted on a meta model.

    Fused attention is taken as plain attention less what it keeps for each pair of tokens.
    """
    once, twice, thrice = (saved_bytes(model, times * PROBE_TOKENS) for times in (1, 2, 3))
    # kept(T) = k + a T + b T² at L, 2 L, 3 L; k, of vectors worked out from weights, is nothing beside the rest
    per_pair = (thrice - 2 * twice + once) / (2 * PROBE_TOKENS**2)
    per_token = (twice - once) / PROBE_TOKENS - 3 * per_pair * PROBE_TOKENS
    narrow = len(blocks(model)) * head_width(model) * model.dtype.itemsize
    return Activations(per_token, per_pair if plain_attention else 0.0, narrow)


def saved_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes that autograd keeps of one rollout of `length` tokens, from embedding to last hidden state; weights left out."""
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    positions_BT = torch.zeros(1, length, dtype=torch.long, device="meta")
    # a mask of four dimensions is used as it is; others are looked into, which a meta tensor cannot bear
    mask_B1TT = torch.zeros(1, 1, length, length, dtype=model.dtype, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(positions_BT, attention_mask=mask_B1TT, position_ids=positions_BT, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


def head_width(model: PreTrainedModel) -> int:
    """Width D of what enters the output head."""
    head: Tensor = model.get_output_embeddings().weight
    return head.shape[1]


def _shape_changes(model: PreTrainedModel, injury: FFNWidth | AttentionHeads | Depth) -> dict[str, int]:
    """Config fields that the injury changes; K = total − round(total · fraction), as `degrade.cut` has it."""
    if isinstance(injury, Depth):
        return {"num_hidden_layers": len(blocks(model)) - injury.num_blocks}
    if isinstance(injury, FFNWidth):
        return {intermediate_field(model): _left(intermediate_size(model), injury.fraction)}
    heads = head_counts(model)
    ratio = heads.query // heads.group
    if injury.unit == "group":
        group = _left(heads.group, injury.fraction)
        return {"num_key_value_heads": group, "num_attention_heads": ratio * group, "head_dim": heads.dim}
    return {"num_attention_heads": heads.group * _left(ratio, injury.fraction), "head_dim": heads.dim}


def _left(total: int, fraction: float) -> int:
    return total - round(total * fraction)


def _per_block(config: PretrainedConfig) -> Mapping[str, list[object]]:
    """Fields that hold one value for each block."""
    count = config.num_hidden_layers
    return {k: v for k, v in config.to_dict().items() if isinstance(v, list) and len(v) == count}
