"""Load a model, its tokenizer and its structure. Safetensors and GGUF only, `trust_remote_code` off: no file's code is run.

A structure is the one declared in `structure.json` beside the weights; else the grids on which a compressed checkpoint came
(see `foreign`), which is converted once and kept as an ordinary folder in the cache; else the masks that zeros in the weights
imply. `embedded` has none: its file is Q4_1, but it plays the undamaged model. The same file given by its path keeps its
grid.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recoup.errors import SourceError, unknown_name
from recoup.models.foreign import READERS
from recoup.models.foreign.checkpoint import quantization_config
from recoup.models.foreign.convert import converted_folder, converted_gguf, origin_of
from recoup.models.layers import block_linears, is_transposed
from recoup.models.messages import first_line, matrices, one_line_errors, quiet
from recoup.models.source import EMBEDDED, Source, downloaded, resolve
from recoup.structure.infer import LEAST_ZEROS, masks_from_zeros
from recoup.structure.spec import JSON_NAME, Structure, read_structure
from recoup.structure.verify import verify

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SAMPLED_ROW = 8  # every how many rows zeros are counted first: counting them all takes as long as loading
NAMED_MISSING = 3  # missing tensors that an error names


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, ready to use.

    `path` is the folder its weights came from, `structure` what its weights keep: declared beside them, or inferred from the
    format that another tool stored them in, or from their zeros; `structure_origin` says which.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path | None
    structure: Structure = field(default_factory=Structure)
    structure_origin: str = "none declared"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device


def load(name: str, *, dtype: torch.dtype = torch.float32, chat_template: str | Path | None = None) -> LanguageModel:
    """Load what `name` means (see `source.resolve`), in evaluation mode, on the accelerator if there is one.

    Args:
        name: folder, hub id[@revision], GGUF file, PEFT adapter folder, or `embedded`. Compressed checkpoints (GGUF,
            bitsandbytes NF4, compressed-tensors, GPTQ, AWQ) come as float32 weights and the structure they keep.
        dtype: type of the weights in memory.
        chat_template: a Jinja file, or `plain`, for a model that has no chat template of its own.

    Raises:
        SourceError: the model or its tokenizer cannot be found or read.
        StructureError: it declares a structure that cannot be read.
    """
    source = resolve(name)
    with one_line_errors(name), quiet():
        if source.kind == "hub":
            source = downloaded(source)
        folder = _ordinary_folder(source)
        adapted = _adapter(source, dtype) if source.kind == "adapter" else None
        model = adapted.model if adapted else _pretrained(name, folder, dtype)
        tokenizer = load_tokenizer(source if source.kind != "gguf" else Source(name, "folder", str(folder)))
    _set_chat_template(tokenizer, chat_template)
    structure, origin = _structure(name, folder, model, adapted)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LanguageModel(name, model.to(device).eval().requires_grad_(False), tokenizer, folder, structure, origin)


def computing(model: LanguageModel) -> torch.autocast:
    """Models are held in float32, as structures want it, and computed in bfloat16, as the proof does."""
    return torch.autocast(model.device.type, torch.bfloat16)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights, padding on the left, as sampling needs.

    Raises:
        SourceError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SourceError(f"{source.name}: has no tokenizer that can be loaded ({first_line(error)})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _ordinary_folder(source: Source) -> Path:
    """A folder of plain weights: the model's own, or what a compressed one was converted to."""
    path = Path(source.location)
    if source.kind == "gguf":
        return converted_gguf(path)
    method = None if source.kind == "adapter" else (quantization_config(path) or {}).get("quant_method")
    if method is None:
        return path
    if method not in READERS:
        raise SourceError(f"{source.name}: {unknown_name('compression', str(method), READERS)}; dequantize and save it")
    return converted_folder(path, READERS[method])


def _pretrained(name: str, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    if missing:  # the library would make them up at random
        names = ", ".join(missing[:NAMED_MISSING]) + (", …" if len(missing) > NAMED_MISSING else "")
        raise SourceError(f"{name}: {len(missing)} weights are missing ({names}); download or save the model again")
    return model


def _adapter(source: Source, dtype: torch.dtype) -> LanguageModel:
    """Base plus adapter, merged: everything after this sees an ordinary model."""
    from peft import PeftConfig, PeftModel  # noqa: PLC0415  slow to import, rarely needed

    base_name = PeftConfig.from_pretrained(source.location).base_model_name_or_path
    if not base_name:
        raise SourceError(f"{source.name}: the adapter does not say which base model it belongs to")
    base = load(base_name, dtype=dtype)
    PeftModel.from_pretrained(base.model, source.location).merge_and_unload()
    return base


def _structure(name: str, folder: Path, model: PreTrainedModel, adapted: LanguageModel | None) -> tuple[Structure, str]:
    """What the model must keep, and where that is known from."""
    if name == EMBEDDED:
        return Structure(), "none: `embedded` plays the undamaged model"
    if (folder / JSON_NAME).is_file():
        return read_structure(folder), origin_of(folder) or "declared"
    if adapted:
        return _still_kept(model, adapted)
    return _from_zeros(model, origin_of(folder))


def _from_zeros(model: PreTrainedModel, conversion: str | None) -> tuple[Structure, str]:
    """The masks of a model pruned elsewhere; only matrices with zeros in a sample of their rows are looked at in full."""
    linears = {f"{name}.weight": is_transposed(module) for name, module in block_linears(model).items()}
    suspects = {name: transposed for name, transposed in linears.items() if _may_be_pruned(model.get_parameter(name))}
    masks = masks_from_zeros(model, suspects)
    if masks:
        return Structure(masks), f"zeros of the weights ({matrices(len(masks))})"
    return Structure(), conversion or "none declared"


def _may_be_pruned(weight: Tensor) -> bool:
    """Whether an even sample of rows has at least half the share of zeros that tells a pruned matrix."""
    sample = weight.detach()[::SAMPLED_ROW]
    return sample.numel() - int(torch.count_nonzero(sample)) >= LEAST_ZEROS / 2 * sample.numel()


def _still_kept(model: PreTrainedModel, base: LanguageModel) -> tuple[Structure, str]:
    """The base's structure, less the weights that the merged adapter moved off it."""
    moved = set(verify(model, base.structure).violations)
    kept = {name: constraint for name, constraint in base.structure.constraints.items() if name not in moved}
    note = f"; free, moved by the adapter: {matrices(len(moved))}" if moved else ""
    return Structure(kept, base.structure.shapes), f"{base.structure_origin}{note}"


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
