"""Packed codes and scales as vLLM, SGLang and transformers read them, written with the `compressed-tensors` library.

A grid becomes a scheme of its format (`schemes.py`), every weight is packed by the library's own compressor, unpacked again
and compared bit for bit before it is written. Weights on no grid are written in `dtype`, float32 if not said, so that the model
that is loaded is the trained one exactly. Scales are kept in a type that holds them. Zeros under a mask stay zeros, but are
stored as any other weight: the library dropped its 2:4 format in 0.15.

Shapes: O output width, I input width, G groups along the input.
"""

import copy
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from recoup.config import Export
from recoup.errors import ExportError
from recoup.export.schemes import Scheme, qparams, scheme_notes, scheme_of, unpacked_on_load
from recoup.export.target import DTYPES, Written, count_types
from recoup.models.load import LanguageModel
from recoup.models.messages import quiet
from recoup.run_folder import write_json
from recoup.structure.spec import Constraint

PACKAGE = "compressed-tensors"
INSTALL = "pip install compressed-tensors==0.20.0"
TIED_OR_EMBEDDED = (
    "{count} weights on a grid are no plain linear layers and are written as {dtype}, value for value: {names}"
)
ROUNDED_AT_RUN = (
    "scales are exact in the file, but a program that computes in bfloat16 rounds them to 8 bits; run it in float16"
)


def write_compressed_tensors(model: LanguageModel, config: Export, folder: Path) -> Written:
    """Write packed weights, a config that says how they are packed, and the tokenizer into `folder`.

    Args:
        model: what to write.
        config: its `dtype` is the type of weights on no grid; null: float32.
        folder: exists.

    Raises:
        ExportError: the library is missing, no weight is on a grid that the format holds, or a weight does not come back.
    """
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ExportError(f"{PACKAGE} is not installed; run: {INSTALL}") from None
    dtype = config.dtype or "float32"
    on_grid = {name: c for name, c in model.structure.constraints.items() if c.grid is not None}
    schemes = {name: scheme_of(name, c.grid) for name, c in on_grid.items() if c.grid is not None}
    linear = {f"{name}.weight" for name, module in model.model.named_modules() if isinstance(module, nn.Linear)}
    packed = {name: scheme for name, scheme in schemes.items() if name in linear}
    if not packed:
        raise ExportError(
            f"{model.name}: no linear layer lies on a quantization grid, so there is nothing to compress; "
            "use to: safetensors"
        )
    tensors = _tensors(model.model, packed, on_grid, DTYPES[dtype])
    with quiet():
        save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
        _save_configs(model, packed, DTYPES[dtype], folder)
    types = count_types(tensors[name] for name in model.model.state_dict() if name in tensors and name not in packed)
    for name in packed:
        types[on_grid[name].describe()] += 1
    return Written(dict(types), (*scheme_notes(packed.values()), *_notes(schemes, packed, dtype)))


def _tensors(
    model: PreTrainedModel, packed: Mapping[str, Scheme], on_grid: Mapping[str, Constraint], dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the file holds: a tied weight once, a packed one as the library names its parts."""
    once = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name in packed:
            parts = _packed(name, value, on_grid[name], packed[name], dtype)
            tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
        elif name not in again:
            tensors[name] = value.to(dtype) if value.is_floating_point() else value
    return tensors


def _packed(
    name: str, weight_OI: Tensor, constraint: Constraint, scheme: Scheme, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The library's parts of one weight.

    Raises:
        ExportError: unpacking them does not give the weight back.
    """
    from compressed_tensors.compressors import BaseCompressor  # noqa: PLC0415  optional

    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    settings = _settings(scheme, [])
    parts = compressor.compress({"weight": weight_OI.float().cpu(), **qparams(constraint)}, settings)
    unpacked_OI = compressor.decompress(parts, settings)["weight"]
    # FP4 formats are unpacked to bfloat16, which holds MXFP4's values exactly and rounds those of NVFP4
    if not torch.equal(unpacked_OI + 0.0, weight_OI.cpu().to(unpacked_OI.dtype)):
        raise ExportError(f"{name}: {PACKAGE} does not give this weight back bit for bit; use to: safetensors")
    if "weight_scale" in parts and parts["weight_scale"].dtype == torch.float32:
        parts["weight_scale"] = _narrow(parts["weight_scale"], dtype)
    return {part: tensor.clone(memory_format=torch.contiguous_format) for part, tensor in parts.items()}  # no views


def _narrow(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales in `dtype` where it holds them exactly."""
    narrow = scale.to(dtype)
    return narrow if torch.equal(narrow.float(), scale) else scale


def _settings(scheme: Scheme, targets: list[str]) -> Any:
    """The library's own record of a scheme."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: PLC0415  optional

    return QuantizationScheme(targets=targets, weights=QuantizationArgs(**dict(scheme.args)), format=scheme.format)


def _save_configs(model: LanguageModel, packed: Mapping[str, Scheme], dtype: torch.dtype, folder: Path) -> None:
    """The model's configs, its tokenizer, and in `config.json` how weights are packed."""
    from compressed_tensors.compressors import ModelCompressor  # noqa: PLC0415  optional
    from compressed_tensors.quantization import QuantizationConfig  # noqa: PLC0415  optional

    config = copy.deepcopy(model.model.config)
    config.architectures, config.dtype = [type(model.model).__name__], dtype
    config.save_pretrained(folder)
    if model.model.generation_config is not None:
        model.model.generation_config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    formats = sorted({scheme.format for scheme in packed.values()})
    declared = QuantizationConfig(
        config_groups={f"group_{i}": _settings(s, t) for i, (s, t) in enumerate(_targets(packed).items())},
        format=formats[0] if len(formats) == 1 else "mixed-precision",
        quantization_status="compressed",
        ignore=[
            name
            for name, module in model.model.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.weight" not in packed
        ],
    )
    ModelCompressor(quantization_config=declared).update_config(str(folder))
    if unpacked_on_load(packed.values()):
        written = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        written["quantization_config"]["dequantize"] = True  # read by transformers alone
        write_json(folder / CONFIG_NAME, written)


def _targets(packed: Mapping[str, Scheme]) -> dict[Scheme, list[str]]:
    """The layers of each scheme: one scheme is for every linear layer not ignored; several name theirs."""
    schemes = dict.fromkeys(packed.values())
    if len(schemes) == 1:
        return {scheme: ["Linear"] for scheme in schemes}
    return {
        scheme: [name.removesuffix(".weight") for name, other in packed.items() if other == scheme]
        for scheme in schemes
    }


def _notes(schemes: Mapping[str, Scheme], packed: Mapping[str, Scheme], dtype: str) -> tuple[str, ...]:
    notes = []
    dense = sorted(schemes.keys() - packed.keys())
    if dense:
        notes.append(TIED_OR_EMBEDDED.format(count=len(dense), dtype=dtype, names=", ".join(dense[:3])))
    if dtype == "bfloat16" and any(scheme.format == "pack-quantized" for scheme in packed.values()):
        notes.append(ROUNDED_AT_RUN)
    return tuple(notes)
