"""A model's configuration as GGUF metadata, under the keys and with the conventions of llama.cpp's own converter.

Source: ggml-org/llama.cpp, convert_hf_to_gguf.py and conversion/{base,llama,qwen,gemma,gpt2}.py; what each key means to the
reader, src/models/*.cpp. We differ in refusing what llama.cpp would compute otherwise than transformers does (another
activation, another scale of attention, unknown rotary scaling), where the converter writes a file that answers wrongly.

Shapes: O output width, H head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PretrainedConfig

from recoup.errors import ExportError, unknown_name

GEMMA3_PATTERN = 6  # every sixth layer sees everything, the others a window; fixed in llama.cpp's src/models/gemma3.cpp
ROTARY_SETTINGS = {  # what is written for each kind of scaling, or read by `rotary_factors`
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow"},
}
YARN_BETA_FAST, YARN_BETA_SLOW = 32.0, 1.0  # transformers' defaults (modeling_rope_utils.py)
GEMMA3_27B_LAYERS = 62  # by which llama.cpp knows the one size that scales attention by width / heads


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a kind of model, and what it computes without being told."""

    kind: MODEL_ARCH
    activation: str  # of the feed-forward
    interleaved_rotary: bool = False  # q and k rows lie as pairs, where transformers has halves
    norm_shift: float = 0.0  # what transformers adds to norm weights when it runs, and llama.cpp when it converts


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, "silu", interleaved_rotary=True),
    "mistral": Architecture(MODEL_ARCH.LLAMA, "silu", interleaved_rotary=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, "silu"),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, "silu"),
    "gemma3_text": Architecture(MODEL_ARCH.GEMMA3, "gelu_pytorch_tanh", norm_shift=1.0),
    "gpt2": Architecture(MODEL_ARCH.GPT2, "gelu_new"),
}


def architecture(config: PretrainedConfig) -> Architecture:
    """The architecture of a model.

    Raises:
        ExportError: llama.cpp has none that computes the same, or recoup does not write it.
    """
    if config.model_type not in ARCHITECTURES:
        raise ExportError(f"GGUF: {unknown_name('model type', config.model_type, ARCHITECTURES)}")
    found = ARCHITECTURES[config.model_type]
    activations = [getattr(config, name, None) for name in ("hidden_activation", "hidden_act", "activation_function")]
    activation = next(filter(None, activations), None)
    if activation != found.activation:
        raise ExportError(f"GGUF: llama.cpp runs {config.model_type} with {found.activation}, not {activation}")
    if found.kind == MODEL_ARCH.GEMMA3:
        _check_gemma3(config)
    return found


def head_width(config: PretrainedConfig) -> int:
    """Numbers per attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_rows(config: PretrainedConfig, num_heads: int) -> Tensor:
    """Which row of q or k (O), as transformers lays them out, comes at each place in llama.cpp.

    transformers turns the first half of a head against the second, ggml neighbours: row 2i is taken from i, row 2i + 1 from
    i + H/2 (`LlamaModel.permute` of the converter).
    """
    half = head_width(config) // 2
    return torch.arange(num_heads * 2 * half).reshape(num_heads, 2, half).swapaxes(1, 2).flatten()


def add_configuration(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Sizes, heads, norms and rotary embedding.

    Raises:
        ExportError: a rotary scaling that llama.cpp's file format has no keys for.
    """
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_rope_dimension_count(head_width(config))
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    _add_rotary(writer, rotary(config))


def rotary(config: PretrainedConfig) -> dict[str, Any]:
    """Settings of the rotary embedding; of the layers that see everything, where there are two kinds."""
    settings: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return settings.get("full_attention", settings)


def rotary_factors(config: PretrainedConfig) -> Tensor | None:
    """What llama.cpp divides each of the H/2 rotary frequencies by; null where frequencies are not scaled one by one.

    Llama 3's rule: long wavelengths are stretched by `factor`, short ones stay, those between are blended (transformers,
    modeling_rope_utils.py, `_compute_llama3_parameters`).
    """
    settings = rotary(config)
    if settings.get("rope_type") != "llama3":
        return None
    width = head_width(config)
    frequencies = settings["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    turns = settings["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - kept) / settings["factor"] + kept)


def _add_rotary(writer: GGUFWriter, settings: dict[str, Any]) -> None:
    kind = settings.get("rope_type", "default")
    if kind not in ROTARY_SETTINGS:
        raise ExportError(f"GGUF: cannot express rotary scaling {kind!r}; known: {', '.join(ROTARY_SETTINGS)}")
    given = {key for key, value in settings.items() if value is not None} - {"rope_type", "rope_theta"}
    if settings.get("partial_rotary_factor") == 1:
        given -= {"partial_rotary_factor"}
    if given - ROTARY_SETTINGS[kind]:
        names = ", ".join(sorted(given - ROTARY_SETTINGS[kind]))
        raise ExportError(f"GGUF: recoup does not write these settings of {kind!r} rotary embeddings: {names}")
    writer.add_rope_freq_base(settings["rope_theta"])
    if kind in {"linear", "yarn"}:  # llama3's factors are a tensor
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(settings["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(settings.get("beta_fast") or YARN_BETA_FAST)
        writer.add_rope_scaling_yarn_beta_slow(settings.get("beta_slow") or YARN_BETA_SLOW)


def _context(config: PretrainedConfig) -> int:
    """Positions that llama.cpp may use: it knows gemma3's window, but would let the others look further back than theirs."""
    window = None if config.model_type == "gemma3_text" else getattr(config, "sliding_window", None)
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _check_gemma3(config: PretrainedConfig) -> None:
    """Refuse what llama.cpp's gemma3 does not read from the file."""
    is_27b = config.num_hidden_layers == GEMMA3_27B_LAYERS
    scale = config.hidden_size // config.num_attention_heads if is_27b else config.head_dim
    if config.query_pre_attn_scalar != scale:
        raise ExportError(
            f"GGUF: llama.cpp scales this model's attention by {scale}, not {config.query_pre_attn_scalar}"
        )
    pattern = [
        "sliding_attention" if (layer + 1) % GEMMA3_PATTERN else "full_attention"
        for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != pattern:
        raise ExportError("GGUF: llama.cpp runs gemma3 with every sixth layer global, and this model has another order")
    if config.final_logit_softcapping or config.attn_logit_softcapping:
        raise ExportError("GGUF: recoup does not write gemma3 with soft-capped logits")
