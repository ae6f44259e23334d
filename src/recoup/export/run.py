"""The export stage: load a model, write it in a target's format, have the target's program read it, keep it only if it agrees.

The bound on the mean token KL is 0.01 nats: what is exact reads back with 0, float16 weights with 2e-6, bfloat16 with 5e-5.
llama.cpp rounds activations to 8 bits as it computes, so from exact 4-bit weights it answers 0.003 nats away (measured: see
`llama_cpp`), and its bound is 0.02.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recoup.config import Export
from recoup.errors import ExportError
from recoup.export import llama_cpp, readback
from recoup.export.card import model_card
from recoup.export.compressed_tensors import write_compressed_tensors
from recoup.export.gguf import write_gguf
from recoup.export.gguf_weights import Free
from recoup.export.safetensors import write_safetensors
from recoup.export.target import Written
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts
from recoup.progress import Progress, silent
from recoup.results import ExportResult
from recoup.run_folder import atomic_folder, write_text
from recoup.structure.verify import verify

RECORD, CARD, GGUF_FILE = "export.json", "README.md", "model.gguf"
MAX_KL_NATS, LLAMA_CPP_MAX_KL_NATS = 0.01, 0.02
GGUF_TYPES: dict[str | None, Free] = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "q8_0": "q8_0",
    None: "f16",
}


@dataclass(frozen=True)
class ExportInputs:
    """What is exported."""

    source: str  # folder, hub id[@revision], GGUF file, adapter folder, or `embedded`
    chat_template: str | Path | None = None  # Jinja file or `plain`, for a model that has none


def run(config: Export, inputs: ExportInputs, folder: Path, progress: Progress | None = None) -> ExportResult:
    """Export `inputs.source`; `folder` then holds the model, a card and, as `export.json`, the result.

    Raises:
        SourceError: the model cannot be loaded.
        ExportError: the format does not hold the model, the files read back as another model, or `folder` holds other files.
        StructureError: the model is off the structure it declares.
        RunFolderError: the folder cannot be written; what stood there is untouched.
    """
    started = time.perf_counter()
    _refuse_other_files(folder)
    tell = progress or silent
    tell("export: loading", 0, 3)
    with atomic_folder(folder) as temporary:
        written, structure, probe = _write(config, inputs, temporary, tell)
        tell("export: reading back", 2, 3)
        answer = READERS[config.to](temporary, probe.rollouts)
        difference = readback.compare(probe.logits_NV, answer.logits_NV)
        _refuse_another_model(config, answer, difference)
        result = ExportResult(
            source=inputs.source,
            target=config.to,
            output=str(folder),
            files={file.name: file.stat().st_size for file in sorted(temporary.iterdir())},
            tensor_types=written.tensor_types,
            structure=structure,
            consumer=answer.consumer,
            num_prompts=len(probe.rollouts.tokens_BT),
            num_tokens=len(probe.logits_NV),
            token_kl_nats=difference.token_kl_nats,
            max_logit_difference=difference.max_logit_difference,
            top1_agreement=difference.top1_agreement,
            notes=(*written.notes, *answer.notes),
            seconds=time.perf_counter() - started,
        )
        write_text(temporary / CARD, model_card(result))
        write_text(temporary / RECORD, result.model_dump_json(indent=2) + "\n")
    tell("export: done", 3, 3)
    return result


def _write(config: Export, inputs: ExportInputs, folder: Path, tell: Progress) -> tuple[Written, str, readback.Probe]:
    """What was written, the structure in words, and what the trained model says; the model itself is let go."""
    model = load(inputs.source, chat_template=inputs.chat_template)
    violations = verify(model.model, model.structure).violations
    if violations:
        raise ExportError(
            f"{inputs.source}: {len(violations)} weights are off the structure they declare ({violations[0]}, …); "
            "see `recoup verify`"
        )
    probe = readback.probe(model)
    tell("export: writing", 1, 3)
    return WRITERS[config.to](model, config, folder), model.structure.describe(), probe


def _write_gguf(model: LanguageModel, config: Export, folder: Path) -> Written:
    summary = write_gguf(model, folder / GGUF_FILE, GGUF_TYPES[config.dtype])
    return Written(dict(summary.types), _inexact(summary.inexact))


def _inexact(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"{len(names)} weights are rounded, since no GGUF type holds their grid: {', '.join(names[:3])}",)


WRITERS: dict[str, Callable[[LanguageModel, Export, Path], Written]] = {
    "safetensors": write_safetensors,
    "compressed-tensors": write_compressed_tensors,
    "gguf": _write_gguf,
}
READERS: dict[str, Callable[[Path, Rollouts], readback.Answer]] = {
    "safetensors": readback.by_transformers,
    "compressed-tensors": lambda folder, rollouts: readback.by_transformers(folder, rollouts, ("compressed-tensors",)),
    "gguf": lambda folder, rollouts: readback.by_llama_cpp(folder / GGUF_FILE, rollouts),
}


def _refuse_other_files(folder: Path) -> None:
    """An export takes the place of its folder as a whole, so only an empty folder or an earlier export may stand there."""
    if folder.is_file():
        raise ExportError(f"{folder}: is a file; --output names a folder, which will hold the model and its card")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise ExportError(
            f"{folder}: holds other files, which an export would replace; choose a new folder with --output"
        )


def _refuse_another_model(config: Export, answer: readback.Answer, difference: readback.Difference) -> None:
    by_llama_cpp = config.to == "gguf" and llama_cpp.installed()
    bound = config.max_kl_nats or (LLAMA_CPP_MAX_KL_NATS if by_llama_cpp else MAX_KL_NATS)
    if difference.token_kl_nats > bound:
        raise ExportError(
            f"not exported: read back by {answer.consumer}, the model differs by {difference.token_kl_nats:.3g} nats per token "
            f"from the trained one, more than max_kl_nats {bound:g}; use a wider dtype, another target, or raise the bound"
        )
