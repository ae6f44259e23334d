"""The Python API: one function per stage, each on models a user already has, each returning a frozen result.

    import recoup
    result = recoup.recover(student="int3/", teacher="Qwen/Qwen2.5-3B-Instruct", prompts="self", output="repaired/")

Every other setting of a stage (its class in `recoup.config`) is a keyword argument, nested ones as dicts. All functions also
take `seed` (0), `chat_template` (a Jinja file or `plain`, for a model without one) and `progress` (called with a label, how
many are done and how many there are). torch is imported when a function is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recoup.config import Diagnose, Evaluate, Export, History, Recover, RunConfig, Triage
from recoup.config_file import parse
from recoup.progress import Progress, silent

if TYPE_CHECKING:
    from recoup.models.load import LanguageModel
    from recoup.results import (
        DegradeResult,
        DiagnoseResult,
        EvaluateResult,
        ExportResult,
        HistoryResult,
        RecoverResult,
        TriageResult,
    )


@dataclass(frozen=True)
class _Common:
    """Keyword arguments that every stage takes."""

    seed: int = 0
    chat_template: str | Path | None = None
    progress: Progress = silent


def degrade(*, model: str, method: str, output: str | Path, **settings: Any) -> DegradeResult:
    """Damage `model` with `method` (`recoup ls injuries`); the damaged model is in `output/checkpoint`.

    Raises:
        ConfigError: an unknown method or setting.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    # a method is one of a union of configs, which only the run's config knows as a whole
    tree = {"name": "degrade", "degrade": [{"type": method, **settings}]}
    config = parse(RunConfig, tree, f"degrade {method}").degrade[0]
    from recoup.degrade.run import DegradeInputs, run

    return run(config, DegradeInputs(model, common.seed, common.chat_template), Path(output), common.progress)


def diagnose(*, teacher: str, student: str, output: str | Path, **settings: Any) -> DiagnoseResult:
    """Measure what `student` lost against `teacher`, per token and per layer.

    Raises:
        ConfigError: an unknown setting.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    config = parse(Diagnose, settings, "diagnose")
    from recoup.diagnose.run import DiagnoseInputs, run

    inputs = DiagnoseInputs(teacher, student, common.seed, common.chat_template)
    return run(config, inputs, Path(output), common.progress)


def triage(*, teacher: str, student: str, diagnosis: str | Path, output: str | Path, **settings: Any) -> TriageResult:
    """Try repairs without training and the beginning of one with it, and say what to do about the damage.

    Args:
        teacher: the earlier checkpoint.
        student: the damaged model.
        diagnosis: folder that `diagnose` wrote for the two.
        output: folder to write to; the best repair without training is in `output/repaired`.
        settings: of `recoup.config.Triage`, those of every stage, and `asked`: the settings that the diagnosis was made with.

    Raises:
        ConfigError: an unknown setting.
        DataError: there is no diagnosis.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    asked = parse(Diagnose, settings.pop("asked", {}), "triage: asked")
    config = parse(Triage, settings, "triage")
    from recoup.results import DiagnoseResult
    from recoup.run_folder import result_path
    from recoup.triage.run import TriageInputs, run

    found = DiagnoseResult.read(result_path(Path(diagnosis)))
    inputs = TriageInputs(teacher, student, found, common.seed, common.chat_template, asked, Path("results"))
    return run(config, inputs, Path(output), common.progress)


def history(*, student: str, folder: str | Path, output: str | Path, **settings: Any) -> HistoryResult:
    """Score every checkpoint in `folder` on each capability, and choose who should teach what.

    Raises:
        ConfigError: an unknown setting, or no capability is named.
        DataError: the folder holds no checkpoint.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    config = parse(History, settings, "history")
    from recoup.history.run import HistoryInputs, run

    inputs = HistoryInputs(student, Path(folder), common.seed, common.chat_template)
    return run(config, inputs, Path(output), common.progress)


def recover(
    *,
    student: str,
    teacher: str,
    output: str | Path,
    prompts: str = "self",
    method: str = "onpolicy",
    task_file: str | None = None,
    **settings: Any,
) -> RecoverResult:
    """Repair `student` by on-policy self-distillation from `teacher`; the repaired model is in `output/checkpoint`.

    Several teachers: give `terms=[{"prompts": …, "teacher": …, "weight": …}, …]` instead of `prompts`; a term without a
    teacher gets `teacher`.

    Args:
        student: the damaged model.
        teacher: its own earlier checkpoint.
        output: folder to write to.
        prompts: `self`, a JSONL or text file, or `hub:NAME`.
        method: another method of repair (`recoup ls methods`), to compare with.
        task_file: rows with answers, for methods that train on such.
        settings: of `recoup.config.Recover`, and those of every stage.

    Raises:
        ConfigError: an unknown setting, or a method that cannot work here.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    tree = {"name": "recover", "model": teacher, "student": student, "method": method, "task_file": task_file}
    stage = parse(Recover, {"terms": [{"prompts": prompts}], **settings}, "recover")
    run_tree = {**tree, "seed": common.seed, "chat_template": common.chat_template, "recover": stage}
    config = parse(RunConfig, run_tree, "recover")
    from recoup.methods.run import RepairInputs, run

    return run(config, RepairInputs(student, {"model": teacher}), Path(output), common.progress)


def evaluate(
    *, reference: str, degraded: str, output: str | Path, recovered: str | None = None, **settings: Any
) -> EvaluateResult:
    """Compare models on benchmarks and on fidelity to `reference`, with paired statistics.

    Raises:
        ConfigError: an unknown setting or task.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    config = parse(Evaluate, {"seed": common.seed, **settings}, "evaluate")
    from recoup.evaluate.run import EvaluateInputs, run

    inputs = EvaluateInputs(reference, degraded, recovered, common.chat_template)
    return run(config, inputs, Path(output), common.progress)


def export(*, model: str, output: str | Path, to: str = "safetensors", **settings: Any) -> ExportResult:
    """Write `model` to the folder `output` in the format of `to`, read it back with that format's program, and compare.

    Raises:
        ConfigError: an unknown target or setting.
        ExportError: the format does not hold the model, or the files read back as another model; nothing is left behind.
        RecoupError: whatever the stage raises.
    """
    common = _common(settings)
    config = parse(Export, {"to": to, **settings}, "export")
    from recoup.export.run import ExportInputs, run

    return run(config, ExportInputs(model, common.chat_template), Path(output), common.progress)


def load(name: str, *, chat_template: str | Path | None = None) -> LanguageModel:
    """Load a folder, hub id[@revision], GGUF file, PEFT adapter folder, or `embedded`, in float32.

    Raises:
        SourceError: the model or its tokenizer cannot be found or read.
    """
    from recoup.models.load import load as load_model

    return load_model(name, chat_template=chat_template)


def _common(settings: dict[str, Any]) -> _Common:
    """Take the arguments of every stage out of `settings`; what is left are the stage's own."""
    return _Common(**{name: settings.pop(name) for name in _Common.__dataclass_fields__ if name in settings})
