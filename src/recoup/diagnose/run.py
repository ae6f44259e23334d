"""Diagnose: the teacher answers prompts, then student and teacher are compared on its words, by token and by layer."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from recoup.config import Diagnose
from recoup.data.prompts import Split, load_prompts
from recoup.diagnose.damage import layer_damage
from recoup.evaluate.fidelity import token_damage
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.progress import Progress, silent
from recoup.results import DiagnoseResult
from recoup.run_folder import result_path, write_text

NUM_BOOTSTRAP = (
    2000  # resamples: the 95% bounds of an interval settle to two digits (Efron and Tibshirani 1993, section 13.3)
)
STEPS = ("diagnose: write completions", "diagnose: compare tokens", "diagnose: compare layers")


@dataclass(frozen=True)
class DiagnoseInputs:
    """What is compared."""

    teacher: str  # the earlier checkpoint: folder, hub id, GGUF file, adapter, `embedded`
    student: str  # the damaged model
    seed: int  # decides the prompts and the bootstrap
    chat_template: str | Path | None = None  # as for `load`
    split: Split = "all"  # which prompts of a file
    dtype: torch.dtype = torch.bfloat16  # of the weights in memory


def run(config: Diagnose, inputs: DiagnoseInputs, folder: Path, progress: Progress = silent) -> DiagnoseResult:
    """Diagnose the student and write `result.json` to `folder`, last and atomically.

    Raises:
        SourceError: a model cannot be loaded, the tokenizers differ, or a hidden state is NaN or infinite.
        DataError: the prompts are missing or too few.
        RunFolderError: the folder cannot be written.
    """
    started = time.perf_counter()
    teacher, student = (
        load(name, dtype=inputs.dtype, chat_template=inputs.chat_template) for name in (inputs.teacher, inputs.student)
    )
    progress(STEPS[0], 0, len(STEPS))
    rollouts = _completed(teacher, config, inputs)
    progress(STEPS[1], 1, len(STEPS))
    tokens = token_damage(teacher, student, rollouts, num_bootstrap=NUM_BOOTSTRAP, seed=inputs.seed)
    progress(STEPS[2], 2, len(STEPS))
    layers, num_cka_tokens = layer_damage(teacher, student, rollouts)
    result = DiagnoseResult(
        teacher=inputs.teacher,
        student=inputs.student,
        tokens=tokens,
        layers=layers,
        num_cka_tokens=num_cka_tokens,
        seconds=time.perf_counter() - started,
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))
    progress(STEPS[2], 3, len(STEPS))
    return result


def _completed(teacher: LanguageModel, config: Diagnose, inputs: DiagnoseInputs) -> Rollouts:
    """Prompts with the teacher's greedy completions."""
    prompts = load_prompts(config.prompts, teacher, config.num_prompts, inputs.seed, inputs.split)
    settings = Sampling(max_tokens=config.max_tokens, seed=inputs.seed)
    return sample(teacher, [prompt.ids for prompt in prompts], settings)
