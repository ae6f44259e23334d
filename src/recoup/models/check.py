"""Check a saved model against the structure it declares, or that its format implies."""

from dataclasses import replace
from pathlib import Path

from recoup.models.load import load
from recoup.models.source import resolve
from recoup.structure.spec import TENSORS_NAME
from recoup.structure.verify import Verification, verify

WEIGHT_FILES = ("*.safetensors", "*.gguf")


def verify_checkpoint(name: str) -> Verification:
    """Load a model, check every constrained weight bit for bit, and weigh it on disk.

    Raises:
        SourceError: the model cannot be loaded.
        StructureError: its structure files cannot be read.
    """
    model = load(name)
    checked = verify(model.model, model.structure)
    return replace(checked, size_bytes=size_on_disk(name), origin=model.structure_origin)


def size_on_disk(name: str) -> int | None:
    """Bytes of the weights as they are stored; null for a model on the hub."""
    source = resolve(name)
    path = Path(source.location)
    if source.kind == "hub":
        return None
    files = [path] if path.is_file() else [file for kind in WEIGHT_FILES for file in path.glob(kind)]
    return sum(file.stat().st_size for file in files if file.name != TENSORS_NAME)
