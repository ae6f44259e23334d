"""The degrade stage: load a model, injure it, save it with what it must keep, say what was done."""

import time
from dataclasses import dataclass
from pathlib import Path

from recoup.config import Degrade
from recoup.degrade import METHODS, Context
from recoup.models.load import load
from recoup.models.save import save
from recoup.progress import Progress, silent
from recoup.results import DegradeResult
from recoup.run_folder import result_path, write_text
from recoup.structure.spec import Structure


@dataclass(frozen=True)
class DegradeInputs:
    """What is injured."""

    source: str  # folder, hub id[@revision], GGUF file, adapter folder, or `embedded`
    seed: int
    chat_template: str | Path | None = None  # Jinja file or `plain`, for a model that has none


def run(config: Degrade, inputs: DegradeInputs, folder: Path, progress: Progress | None = None) -> DegradeResult:
    """Injure `inputs.source`; write `checkpoint/` and, last, `result.json` to `folder`.

    The source's own structure is kept: fine-tuning a pruned model leaves its zeros zero.

    Raises:
        SourceError: the model cannot be loaded.
        DataError: the training or calibration file is missing, malformed or empty.
        StructureError: the injury does not fit the model or the structure it keeps.
        TrainingError: fine-tuning met NaN or infinity.
        RunFolderError: the folder cannot be written.
    """
    started = time.perf_counter()
    model = load(inputs.source, chat_template=inputs.chat_template)
    notes: list[str] = []
    context = Context(inputs.seed, progress or silent, notes.append)
    after = METHODS[config.type].apply(model, model.structure, config, context)
    checkpoint = folder / "checkpoint"
    checked = save(model, after, checkpoint)
    result = DegradeResult(
        method=config.type,
        summary="; ".join([*notes, after.describe()] if after != Structure() else notes),
        source=inputs.source,
        checkpoint=str(checkpoint),
        num_parameters=checked.num_parameters,
        num_constrained=checked.num_constrained,
        sparsity=checked.sparsity,
        bits_per_weight=checked.bits_per_weight,
        seconds=time.perf_counter() - started,
    )
    write_text(result_path(folder), result.model_dump_json(indent=2) + "\n")
    return result
