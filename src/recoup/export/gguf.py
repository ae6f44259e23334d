"""Write a GGUF file that llama.cpp answers from, with every weight on its own grid.

The file is what ggml-org/llama.cpp's converter writes (metadata in `gguf_metadata`, tokenizer in `gguf_vocab`), except that a
weight with a grid keeps its values bit for bit (`gguf_weights`), where the converter and its quantizer round everything anew.

Shapes: O output width, I input width, G groups along the input.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from recoup.errors import ExportError, StructureError
from recoup.export.gguf_metadata import Architecture, add_configuration, architecture, rotary_factors, rotary_rows
from recoup.export.gguf_vocab import add_vocabulary, byte_level, tokenizer_json
from recoup.export.gguf_weights import Free, Storage, encode, storage
from recoup.models.load import LanguageModel
from recoup.run_folder import atomic_file
from recoup.structure.spec import Constraint

FILE_TYPES = {  # what a file's name for its most common type is; the others are MOSTLY_ and the type's own name
    Type.F32: LlamaFileType.ALL_F32,
    Type.Q3_K: LlamaFileType.MOSTLY_Q3_K_M,
    Type.Q4_K: LlamaFileType.MOSTLY_Q4_K_M,
    Type.Q5_K: LlamaFileType.MOSTLY_Q5_K_M,
    Type.MXFP4: LlamaFileType.MOSTLY_MXFP4_MOE,
}
POSITIONS = "position_embd.weight"  # llama.cpp wants these in float32


@dataclass(frozen=True)
class GGUFSummary:
    """What a GGUF file holds."""

    num_bytes: int
    types: Mapping[str, int]  # tensor type (`Q4_0`) → number of tensors
    inexact: tuple[str, ...]  # weights on a grid whose values no type holds exactly, by their names in transformers


@dataclass(frozen=True)
class _Weight:
    name: str  # in the file
    value: Tensor  # float32, output × input, rows in llama.cpp's order
    constraint: Constraint | None


class _Writer(GGUFWriter):
    """The library's writer refuses empty arrays; the merges of a tokenizer without any are one."""

    def _pack_val(
        self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        if vtype == GGUFValueType.ARRAY and sub_type is not None and not val:
            return struct.pack("<IIQ" if add_vtype else "<IQ", *([vtype] * add_vtype), sub_type, 0)
        return super()._pack_val(val, vtype, add_vtype, sub_type)


def write_gguf(model: LanguageModel, file: Path, free: Free = "f16") -> GGUFSummary:
    """Write `file`, all or nothing.

    Args:
        model: what to write; weights named in its structure keep their grids.
        file: takes its place only when everything is written.
        free: type of the weights that are on no grid (embeddings, head), and of those on one that no type holds.

    Raises:
        ExportError: llama.cpp cannot run this architecture or tokenizer as transformers does.
        StructureError: a weight is off its grid or mask.
        RunFolderError: the disk is full or the folder is read-only; what stood there is untouched.
    """
    kind = architecture(model.model.config)
    with atomic_file(file) as temporary:
        writer = _Writer(temporary, MODEL_ARCH_NAMES[kind.kind])
        try:
            return _write(writer, model, kind, free)
        finally:
            writer.close()


def _write(writer: GGUFWriter, model: LanguageModel, kind: Architecture, free: Free) -> GGUFSummary:
    """Metadata first, then weight after weight: no second copy of the model is held."""
    planned: dict[str, Storage] = {}
    for source, weight in _weights(model, kind):
        planned[source] = storage(weight.value, weight.constraint, "f32" if weight.name == POSITIONS else free)
        shape = tuple(weight.value.shape)
        num_bytes = planned[source].num_bytes(weight.value.numel())
        writer.add_tensor_info(weight.name, shape, np.dtype(np.float32), num_bytes, planned[source].type)
    _add_metadata(writer, model, planned)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for source, weight in _weights(model, kind):
        writer.write_tensor_data(encode(weight.value, planned[source]))
    constrained = {name for name, constraint in model.structure.constraints.items() if constraint.grid is not None}
    return GGUFSummary(
        num_bytes=sum(stream.tell() for stream in writer.fout or []),
        types=dict(Counter(how.type.name for how in planned.values())),
        inexact=tuple(name for name, how in planned.items() if name in constrained and not how.exact),
    )


def _add_metadata(writer: GGUFWriter, model: LanguageModel, planned: Mapping[str, Storage]) -> None:
    config = model.model.config
    matrices = Counter(how.type for name, how in planned.items() if name in model.structure.constraints)
    common = (matrices or Counter(how.type for how in planned.values() if how.type != Type.F32)).most_common(1)
    type_ = common[0][0] if common else Type.F32
    writer.add_type("model")
    writer.add_name(Path(model.name).name)
    writer.add_file_type(FILE_TYPES[type_] if type_ in FILE_TYPES else LlamaFileType[f"MOSTLY_{type_.name}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_configuration(writer, config)
    inner = tokenizer_json(model.tokenizer)
    added = {token["id"]: token for token in inner["added_tokens"]}
    num_tokens = model.model.get_input_embeddings().weight.shape[0]
    add_vocabulary(writer, byte_level(inner, added, num_tokens), model.tokenizer, config)


def _weights(model: LanguageModel, kind: Architecture) -> Iterator[tuple[str, _Weight]]:
    """Every weight as llama.cpp wants it, by its name in transformers; tied ones once."""
    config = model.model.config
    names = get_tensor_name_map(kind.kind, config.num_hidden_layers)
    for source, parameter in model.model.named_parameters():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ExportError(f"GGUF: {config.model_type} in llama.cpp has no place for {source}")
        yield source, _reordered(_weight(model, source, name, parameter.detach()), source, model, kind)
    factors = rotary_factors(config)
    if factors is not None:
        name = f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight"
        yield name, _Weight(name, factors, None)


def _weight(model: LanguageModel, source: str, name: str, value: Tensor) -> _Weight:
    """Output × input, in float32; where a smaller type held it, the value on the grid that it stood for."""
    constraint = model.structure.constraints.get(source)
    if constraint is not None:
        constraint = constraint.to(value.device)
        projected = constraint.project(value.float())
        if not torch.equal(projected.to(value.dtype), value):
            raise StructureError(f"{source}: off its grid or mask; nothing was written")
        value = projected
    if isinstance(model.model.get_submodule(source.rpartition(".")[0]), Conv1D):
        value = value.T if value.ndim > 1 else value
    cpu = torch.device("cpu")
    return _Weight(name, value.float().to(cpu).contiguous(), None if constraint is None else constraint.to(cpu))


def _reordered(weight: _Weight, source: str, model: LanguageModel, kind: Architecture) -> _Weight:
    """Rows of q and k, and what norms add, as llama.cpp has them; a grid's parameters follow their rows."""
    config = model.model.config
    if kind.norm_shift and source.endswith("norm.weight"):
        return replace(weight, value=weight.value + kind.norm_shift)
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", None)}
    num_heads = heads.get(source.split(".")[-2])
    if not kind.interleaved_rotary or num_heads is None:
        return weight
    rows = rotary_rows(config, num_heads)
    constraint = weight.constraint
    if constraint is not None:
        parameters = {key: value[rows] if value.ndim > 1 else value for key, value in constraint.parameters.items()}
        constraint = replace(constraint, parameters=parameters)
    return replace(weight, value=weight.value[rows], constraint=constraint)
