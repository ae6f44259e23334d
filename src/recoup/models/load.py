"""Load a model, its tokenizer and its structure. Safetensors only, `trust_remote_code` off.

A GGUF file is dequantized once and kept as safetensors in the user's cache (`RECOUP_CACHE`, else ~/.cache/recoup), keyed by
the file's hash: dequantizing takes ten times as long as loading.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from recoup.errors import SourceError
from recoup.models.source import Source, resolve
from recoup.run_folder import atomic_folder, make_folder
from recoup.structure.spec import Structure, read_structure

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, ready to use.

    `path` is the folder its weights came from, `structure` what its weights keep: declared beside them, or inferred from the
    format that another tool stored them in.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path | None
    structure: Structure = field(default_factory=Structure)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device


def load(name: str, *, dtype: torch.dtype = torch.float32, chat_template: str | Path | None = None) -> LanguageModel:
    """Load what `name` means (see `source.resolve`), in evaluation mode, on the accelerator if there is one.

    Args:
        name: folder, hub id[@revision], GGUF file, PEFT adapter folder, or `embedded`.
        dtype: type of the weights in memory.
        chat_template: a Jinja file, or `plain`, for a model that has no chat template of its own.

    Raises:
        SourceError: the model or its tokenizer cannot be found or read.
        StructureError: it declares a structure that cannot be read.
    """
    source = resolve(name)
    if source.kind == "gguf":
        source = Source(name, "folder", str(_converted(Path(source.location))))
    with _one_line_errors(name), quiet():
        model = (
            _adapter(source, dtype)
            if source.kind == "adapter"
            else _pretrained(source.location, source.revision, dtype)
        )
        tokenizer = load_tokenizer(source)
    _set_chat_template(tokenizer, chat_template)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = None if source.kind == "hub" else Path(source.location)
    structure = read_structure(path) if path else Structure()
    return LanguageModel(name, model.to(device).eval().requires_grad_(False), tokenizer, path, structure)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, padding on the left, as sampling needs.

    Raises:
        SourceError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(f"{source.name}: has no tokenizer that can be loaded ({_first_line(error)})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def cache_folder() -> Path:
    """Where converted models are kept.

    Raises:
        RunFolderError: it cannot be written.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "recoup"
    return make_folder(Path(os.environ.get("RECOUP_CACHE", default)).expanduser())


def _pretrained(location: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        location, revision=revision, dtype=dtype, trust_remote_code=False, use_safetensors=True
    )


def _adapter(source: Source, dtype: torch.dtype) -> PreTrainedModel:
    """Base plus adapter, merged: everything after this sees an ordinary model."""
    from peft import PeftConfig, PeftModel  # noqa: PLC0415  slow to import, rarely needed

    base_name = PeftConfig.from_pretrained(source.location).base_model_name_or_path
    if not base_name:
        raise SourceError(f"{source.name}: the adapter does not say which base model it belongs to")
    base = load(base_name, dtype=dtype).model
    return PeftModel.from_pretrained(base, source.location).merge_and_unload()


def _converted(file: Path) -> Path:
    """Folder of safetensors with the dequantized weights of a GGUF file."""
    folder = cache_folder() / "converted" / _sha256(file)[:16]
    if (folder / "config.json").is_file():
        return folder
    # the library's bar for GGUF files cannot be switched off
    with _one_line_errors(str(file)), quiet(), redirect_stderr(io.StringIO()):
        tokenizer = _gguf_tokenizer(file)
        quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        # the loaded config says "gguf-quantized", which save_pretrained refuses: the weights move to a plain model
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        model.tie_weights()
        model.generation_config = quantized.generation_config
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def _gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    from gguf import GGUFReader  # noqa: PLC0415  only needed for GGUF files

    if "tokenizer.ggml.tokens" not in GGUFReader(file).fields:
        raise SourceError(f"{file}: GGUF file without a tokenizer; use one that embeds it, or a model folder")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | Path | None) -> None:
    if chat_template is None:
        return
    if str(chat_template) == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
        return
    path = Path(chat_template)
    if not path.is_file():
        raise SourceError(f"{path}: no such chat template file; give a Jinja file, or `plain`")
    tokenizer.chat_template = path.read_text(encoding="utf-8")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Libraries answer bad files with pages of text; the user gets the first line."""
    try:
        yield
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, IndexError) as error:
        raise SourceError(f"{name}: cannot load this model ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars of the library would tear recoup's own progress display."""
    enabled: Any = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
