"""GGUF files of llama.cpp: transformers dequantizes them, and each matrix then gets the grid of its own tensor type.

transformers maps names and undoes what llama.cpp's converter did to some weights: rows of Llama's query and key projections
are permuted, GPT-2's are transposed. A matrix's grid is attached by finding its stored rows among the loaded ones, so nothing
here depends on the architecture. Types without a grid here (IQ types, …) stay free.

Shapes: O output width, I input width, G blocks along the input.
"""

import io
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import redirect_stderr
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recoup.errors import SourceError
from recoup.models.foreign.checkpoint import Matrix
from recoup.models.layers import is_transposed
from recoup.models.messages import quiet
from recoup.structure.grids.gguf_blocks import BLOCK_GRIDS, from_bytes

FLOATS = ("F32", "F16", "BF16", "F64")


class GGUFFile:
    """A GGUF file, parsed once: parsing its vocabulary takes seconds.

    Raises:
        SourceError: the file has no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader  # noqa: PLC0415  only needed for GGUF files

        self.path = path
        self._reader = GGUFReader(path)
        if "tokenizer.ggml.tokens" not in self._reader.fields:
            raise SourceError(f"{path}: GGUF file without a tokenizer; use one that embeds it, or a model folder")

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        pre = self._reader.fields.get("tokenizer.ggml.pre")
        if pre is not None and pre.contents() == "smollm":  # transformers 5.23 forgets that SmolLM splits digits apart
            splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
        return tokenizer

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A float32 model with the dequantized weights, to be saved (its buffers hold nothing), and its tokenizer."""
        folder, name = self.path.parent, self.path.name
        # the library's bar for GGUF files cannot be switched off
        with quiet(), redirect_stderr(io.StringIO()):
            tokenizer = self._tokenizer()
            quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        # the loaded config says "gguf-quantized", which save_pretrained refuses: the weights move to a plain model
        config = deepcopy(quantized.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = quantized.generation_config
        return model, tokenizer

    def matrices(self, model: PreTrainedModel) -> Iterator[tuple[str, Matrix]]:
        """Each quantized tensor, by the name of the parameter of `model` that holds it, rows in the model's order."""
        names = self._parameter_names(model)
        for tensor in self._reader.tensors:
            name, kind = names.get(tensor.name), tensor.tensor_type.name
            if kind in FLOATS or name is None:
                continue
            weight = model.get_parameter(name).data
            weight_OI = weight.T if is_transposed(model.get_submodule(name.rpartition(".")[0])) else weight
            yield name, _matrix(np.asarray(tensor.data), kind.lower(), weight_OI)

    def _parameter_names(self, model: PreTrainedModel) -> dict[str, str]:
        """The file's name of a tensor → the model's name of the parameter."""
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # noqa: PLC0415  only needed for GGUF files

        named = self._reader.fields["general.architecture"].contents()
        architecture = next(key for key, value in MODEL_ARCH_NAMES.items() if value == named)
        stored_names = get_tensor_name_map(architecture, model.config.num_hidden_layers)
        names = {name: stored_names.get_name(name, try_suffixes=(".weight",)) for name, _ in model.named_parameters()}
        return {stored: name for name, stored in names.items() if stored is not None}


def _matrix(data: np.ndarray, kind: str, weight_OI: Tensor) -> Matrix:
    """The grid of one tensor, for a weight that holds its rows in some order."""
    if kind not in BLOCK_GRIDS or data.ndim != weight_OI.ndim:  # experts are stacked
        return Matrix(weight_OI, free=f"{kind.upper()} has no grid here")
    stored_OI, parameters = from_bytes(kind, data)
    order_O = _row_order(stored_OI, weight_OI)
    if order_O is None:
        return Matrix(weight_OI, free="changed in loading, so that their rows are not those of the file")
    # the stored rows, not the loaded ones: a scale below zero makes −0 of 0, which our grids never hold
    ordered = {key: value[order_O].contiguous() for key, value in parameters.items()}
    return Matrix(stored_OI[order_O].add_(0.0), BLOCK_GRIDS[kind](), ordered)


def _row_order(stored_OI: Tensor, weight_OI: Tensor) -> Tensor | None:
    """Which stored row each row of the weight is; null if they are not the same rows."""
    if stored_OI.shape != weight_OI.shape:
        return None
    if torch.equal(stored_OI, weight_OI):
        return torch.arange(len(stored_OI))
    places: dict[bytes, deque[int]] = defaultdict(deque)
    for place, row in enumerate((stored_OI + 0.0).numpy()):  # −0 becomes 0, on both sides
        places[row.tobytes()].append(place)
    order = []
    for row in (weight_OI + 0.0).contiguous().numpy():
        if not places[row.tobytes()]:
            return None
        order.append(places[row.tobytes()].popleft())
    return torch.tensor(order)
