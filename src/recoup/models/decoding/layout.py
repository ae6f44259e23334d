"""Read the parts of a Llama-like model off its modules, or say that it is none.

A layout is accepted when its family is known and every part is what the family's own code is made of: plain `nn.Linear`
layers under their usual names and nothing beside them. An adapter, a merged projection, a hook or an expert makes it
another model, which `whole` decodes. Whether the parts are put together rightly is not judged here: `choose` checks the logits.

Attribute names are transformers' (models/llama/modeling_llama.py and kin).
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

FAMILIES = {"llama", "qwen2", "qwen3", "mistral", "gemma3_text"}
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
FFN = {"gate_proj", "up_proj", "down_proj"}
BLOCK = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
SANDWICH = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}  # Gemma3 norms what a part puts out, too
LENGTH_DEPENDENT = {"dynamic", "longrope"}  # rotary frequencies that change with the length of the text


@dataclass(frozen=True)
class Block:
    """One block: modules in the order in which they run."""

    attention_norm: nn.Module
    qkv: tuple[nn.Linear, nn.Linear, nn.Linear]
    head_norms: tuple[nn.Module, nn.Module] | None  # of queries and keys, over a head's width
    output: nn.Linear
    attention_after: nn.Module | None
    ffn_norm: nn.Module
    up: tuple[nn.Linear, nn.Linear]  # gate, up
    activation: nn.Module
    down: nn.Linear
    ffn_after: nn.Module | None
    num_heads: tuple[int, int]  # query heads; key/value heads
    head_dim: int
    scale: float  # of attention scores
    kind: str | None  # which rotary angles


@dataclass(frozen=True)
class Layout:
    """A model's parts. `longest` is the length in tokens up to which every layer sees everything before it."""

    embedding: nn.Module
    rotary: nn.Module
    rotary_by_kind: bool
    blocks: tuple[Block, ...]
    norm: nn.Module
    head: nn.Linear
    softcap: float | None
    longest: int | None


def read_layout(model: PreTrainedModel) -> Layout | None:
    """The parts of `model`, or None when it is not one of the layouts known here."""
    config, backbone, head = model.config, model.base_model, model.get_output_embeddings()
    rotary = getattr(backbone, "rotary_emb", None)
    if config.model_type not in FAMILIES or rotary is None or not _plain(head) or _hooked(model):
        return None
    kinds = rotary.rope_type.values() if isinstance(rotary.rope_type, dict) else [rotary.rope_type]
    if LENGTH_DEPENDENT & set(kinds):
        return None
    blocks = tuple(_block(layer) for layer in backbone.layers)
    if None in blocks:
        return None
    windows = [getattr(layer.self_attn, "sliding_window", config_window(config)) for layer in backbone.layers]
    return Layout(
        embedding=backbone.embed_tokens,
        rotary=rotary,
        rotary_by_kind="layer_type" in inspect.signature(rotary.forward).parameters,
        blocks=tuple(block for block in blocks if block is not None),
        norm=backbone.norm,
        head=head,
        softcap=getattr(config, "final_logit_softcapping", None),
        longest=min((window for window in windows if window is not None), default=None),
    )


def config_window(config: Any) -> int | None:
    """The sliding window of a family whose layers do not name their own (Mistral)."""
    return getattr(config, "sliding_window", None)


def _block(layer: nn.Module) -> Block | None:
    """One block's parts, or None when there is something else in it."""
    names = _children(layer)
    if names not in (BLOCK, BLOCK | SANDWICH):
        return None
    part: Any = layer  # its attributes are modules, which no type checker can know
    attention, ffn, sandwich = part.self_attn, part.mlp, names > BLOCK
    if _children(attention) not in (LINEARS, LINEARS | HEAD_NORMS) or _children(ffn) - {"act_fn"} != FFN:
        return None
    linears = [*(getattr(attention, name) for name in sorted(LINEARS)), *(getattr(ffn, name) for name in sorted(FFN))]
    if not all(map(_plain, linears)) or getattr(attention, "attn_logit_softcapping", None) is not None:
        return None
    dim = attention.head_dim
    return Block(
        attention_norm=part.input_layernorm,
        qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        output=attention.o_proj,
        attention_after=part.post_attention_layernorm if sandwich else None,
        ffn_norm=part.pre_feedforward_layernorm if sandwich else part.post_attention_layernorm,
        up=(ffn.gate_proj, ffn.up_proj),
        activation=ffn.act_fn,
        down=ffn.down_proj,
        ffn_after=part.post_feedforward_layernorm if sandwich else None,
        num_heads=(len(attention.q_proj.weight) // dim, len(attention.k_proj.weight) // dim),
        head_dim=dim,
        scale=attention.scaling,
        kind=getattr(attention, "layer_type", None),
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _plain(module: nn.Module | Tensor | None) -> bool:
    """Whether this is `nn.Linear` itself: adapters and parametrized layers are subclasses or wrappers."""
    return type(module) is nn.Linear


def _hooked(model: PreTrainedModel) -> bool:
    """Whether anything watches or changes what modules compute (torch keeps no public list of hooks)."""
    modules: Iterable[nn.Module] = model.modules()
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
