"""Write a model stored by another tool as an ordinary folder: float32 safetensors, and the structure that its format implies.

The folder is kept in the user's cache (`RECOUP_CACHE`, else ~/.cache/recoup), by the hash of the files it came from:
dequantizing takes ten times as long as loading. A matrix is constrained only where projecting its weight onto its grid gives
it back bit for bit; the others stay free, and `conversion.json` says why.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from recoup.errors import SourceError
from recoup.models.foreign.checkpoint import GPTQ_CONFIG, Checkpoint, Matrix, Reader
from recoup.models.foreign.gguf import GGUFFile
from recoup.models.layers import is_transposed
from recoup.models.messages import matrices
from recoup.run_folder import atomic_folder, make_folder, write_json
from recoup.structure.spec import JSON_NAME, Constraint, Structure, write_structure

CONVERTER_VERSION = 3  # raise it when converted folders change, so that none made before is used again
CONVERSION_NAME = "conversion.json"
COPIED = {".json", ".jinja", ".txt", ".model"}  # configs, tokenizer, chat template
NOT_COPIED = {"config.json", GPTQ_CONFIG, JSON_NAME, "model.safetensors.index.json"}


def cache_folder() -> Path:
    """Where converted models are kept.

    Raises:
        RunFolderError: it cannot be written.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "recoup"
    return make_folder(Path(os.environ.get("RECOUP_CACHE", default)).expanduser())


def converted_gguf(file: Path) -> Path:
    """The folder that a GGUF file was converted to, now or before.

    Raises:
        SourceError: it has no tokenizer.
    """
    folder = _place([file])
    if not folder.is_dir():
        source = GGUFFile(file)
        model, tokenizer = source.load()
        found = Found("GGUF", model)
        for name, matrix in source.matrices(model):
            weight = model.get_parameter(name)
            weight.data.copy_(found.add(name, matrix))
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            found.write(temporary)
    return folder


def converted_folder(folder: Path, reader: Reader) -> Path:
    """The folder that a compressed checkpoint was converted to, now or before.

    Raises:
        SourceError: a format that is not read here, or a missing tensor.
        SafetensorError: a truncated file.
    """
    copied = [path for path in sorted(folder.iterdir()) if path.suffix in COPIED and path.name not in NOT_COPIED]
    deciding = [folder / name for name in ("config.json", GPTQ_CONFIG) if (folder / name).is_file()]
    place = _place([*deciding, *sorted(folder.glob("*.safetensors")), *copied])
    if place.is_dir():
        return place
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name in ("quantization_config", "compression_config"):
        if hasattr(config, name):
            delattr(config, name)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    checkpoint, found = Checkpoint(folder), Found(reader.label, model)
    modules = reader.modules(checkpoint)
    used = {module + part for module in modules for part in reader.parts}
    others = [name for name in checkpoint.names if name not in used and not name.endswith(reader.serving)]
    tensors = {name: checkpoint.get(name) for name in others}
    for module in modules:
        tensors[f"{module}.weight"] = found.add(f"{module}.weight", reader.read(checkpoint, module)).contiguous()
    with atomic_folder(place) as temporary:
        config.save_pretrained(temporary)
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        for path in copied:
            shutil.copyfile(path, temporary / path.name)
        found.write(temporary)
    return place


def origin_of(folder: Path) -> str | None:
    """Where the structure of a converted folder came from; null for a folder that was not converted."""
    path = folder / CONVERSION_NAME
    return str(json.loads(path.read_text(encoding="utf-8"))["origin"]) if path.is_file() else None


class Found:
    """The structure of a model stored by another tool, gathered matrix by matrix.

    Args:
        label: the tool's name.
        model: the model that the matrices belong to; its weights are not looked at.
    """

    def __init__(self, label: str, model: PreTrainedModel) -> None:
        self._label = label
        self._parameters = {name for name, _ in model.named_parameters()}
        self._transposed = {f"{name}.weight" for name, module in model.named_modules() if is_transposed(module)}
        self._prefix = f"{model.base_model_prefix}."
        self._constraints: dict[str, Constraint] = {}
        self._free: Counter[str] = Counter()

    def add(self, name: str, matrix: Matrix) -> Tensor:
        """Note one matrix, by the name it has in the checkpoint; gives its weight, laid out as the model's.

        Raises:
            SourceError: it holds NaN or infinity.
        """
        if not torch.isfinite(matrix.weight_OI).all():
            raise SourceError(f"{name} of the {self._label} checkpoint holds NaN or infinity; download it again")
        if self._prefix + name in self._parameters:  # checkpoints of a backbone alone leave its prefix out
            name = self._prefix + name
        constraint = Constraint(matrix.grid, matrix.parameters, transposed=name in self._transposed, refit=False)
        weight = constraint.view_OI(matrix.weight_OI)
        free = matrix.free
        if free is None and name not in self._parameters:
            free = "not a matrix of the loaded model (tied, or merged with others)"
        elif free is None and not _confirmed(constraint, weight):
            free = "projecting onto the grid does not give the weight back bit for bit"
        if free is None:
            self._constraints[name] = constraint
        else:
            self._free[free] += 1
        return weight

    def origin(self) -> str:
        """One line: `read from GGUF: Q4_1 of llama.cpp, blocks of 32 (211 matrices); 2 stay free: F16 …`."""
        kinds = _counted(constraint.describe() for constraint in self._constraints.values())
        free = [f"{count} stay free: {why}" for why, count in self._free.items()]
        return "; ".join([f"read from {self._label}: {kinds or 'no grid'}", *free])

    def write(self, folder: Path) -> None:
        """Write the structure, and where it came from, beside the weights."""
        write_structure(Structure(self._constraints), folder)
        write_json(folder / CONVERSION_NAME, {"version": CONVERTER_VERSION, "origin": self.origin()})


def _counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{kind} ({matrices(count)})" for kind, count in Counter(kinds).items())


def _confirmed(constraint: Constraint, weight: Tensor) -> bool:
    """Whether the weight is where its grid says, bit for bit."""
    return torch.equal(constraint.project(weight), weight)


def _place(files: list[Path]) -> Path:
    """Where in the cache the conversion of these files belongs."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(f"{path.suffix}:".encode() + hashlib.file_digest(stream, "sha256").digest())
    return cache_folder() / "converted" / f"{digest.hexdigest()[:16]}-{CONVERTER_VERSION}"
