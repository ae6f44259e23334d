"""Diagnose: the teacher answers prompts, then student and teacher are compared on its words, and each on its own.

One forward pass of each model gives the tokens' divergences, another the layers' hidden states; everything else (groups,
positions, the tokens that changed most) is taken from those.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from recoup.config import Diagnose, Evaluate
from recoup.data.prompts import Prompt, Split, load_prompts
from recoup.diagnose.behaviour import behaviour, side_by_side
from recoup.diagnose.bounds import cka_bounds
from recoup.diagnose.changed import changed_tokens
from recoup.diagnose.damage import Layers, layer_damage
from recoup.diagnose.groups import group_damage
from recoup.diagnose.positions import position_damage
from recoup.evaluate.compare import compare
from recoup.evaluate.fidelity import TokenValues, teacher_values, token_values
from recoup.evaluate.run import score
from recoup.evaluate.tasks import check_tasks
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.progress import Progress, silent
from recoup.results import BehaviourChange, DiagnoseResult, GroupDamage, TaskComparison
from recoup.run_folder import result_path, write_text

NUM_BOOTSTRAP = (
    2000  # resamples: the 95% bounds of an interval settle to two digits (Efron and Tibshirani 1993, section 13.3)
)
STEPS = ("write completions", "compare tokens", "compare layers", "let both models speak", "score benchmarks")


@dataclass(frozen=True)
class DiagnoseInputs:
    """What is compared."""

    teacher: str  # the earlier checkpoint: folder, hub id, GGUF file, adapter, `embedded`
    student: str  # the damaged model
    seed: int  # decides the prompts and the bootstrap
    chat_template: str | Path | None = None  # as for `load`
    split: Split = "all"  # which prompts of a file
    dtype: torch.dtype = torch.bfloat16  # of the weights in memory


@dataclass(frozen=True)
class _Pair:
    """Both models, and what the teacher says to the prompts."""

    config: Diagnose
    seed: int
    teacher: LanguageModel
    student: LanguageModel
    prompts: list[Prompt]
    rollouts: Rollouts


def run(config: Diagnose, inputs: DiagnoseInputs, folder: Path, progress: Progress = silent) -> DiagnoseResult:
    """Diagnose the student and write `result.json` to `folder`, last and atomically.

    Raises:
        SourceError: a model cannot be loaded, the tokenizers differ, or a hidden state is NaN or infinite.
        DataError: the prompts or a task's data are missing or too few.
        ConfigError: a task is unknown.
        RunFolderError: the folder cannot be written.
    """
    started = time.perf_counter()
    check_tasks(config.tasks, config.data)  # before anything is loaded
    _tell(progress, 0)
    pair = _pair(config, inputs)
    _tell(progress, 1)
    values = token_values(teacher_values(pair.teacher, pair.rollouts), pair.student)
    _tell(progress, 2)
    layers = _layers(pair)
    _tell(progress, 3)
    spoken = _behaviour(pair)
    generations = side_by_side(pair.teacher, pair.student, pair.prompts, pair.rollouts, config.max_tokens)
    _tell(progress, 4)
    result = DiagnoseResult(
        teacher=inputs.teacher,
        student=inputs.student,
        tokens=values.damage(num_bootstrap=NUM_BOOTSTRAP, seed=inputs.seed),
        layers=layers.layers,
        num_cka_tokens=layers.num_tokens,
        num_moved_sinks=layers.num_moved_sinks,
        cka_map=layers.cka_map,
        groups=_groups(pair, values, layers),
        positions=position_damage(pair.rollouts, values.kl_N, layers.states),
        changed_tokens=changed_tokens(pair.prompts, pair.rollouts, values, pair.teacher.tokenizer),
        behaviour=spoken,
        generations=generations,
        tasks=_tasks(pair, progress),
        seconds=time.perf_counter() - started,
    )
    write_text(result_path(folder), result.model_dump_json(indent=2))
    _tell(progress, 5)
    return result


def _tell(progress: Progress, done: int) -> None:
    progress(f"diagnose: {STEPS[min(done, len(STEPS) - 1)]}", done, len(STEPS))


def _pair(config: Diagnose, inputs: DiagnoseInputs) -> _Pair:
    """Both models loaded, and prompts with the teacher's greedy completions."""
    teacher, student = (
        load(name, dtype=inputs.dtype, chat_template=inputs.chat_template) for name in (inputs.teacher, inputs.student)
    )
    prompts = load_prompts(config.prompts, teacher, config.num_prompts, inputs.seed, inputs.split)
    settings = Sampling(max_tokens=config.max_tokens, seed=inputs.seed)
    return _Pair(config, inputs.seed, teacher, student, prompts, sample(teacher, [p.ids for p in prompts], settings))


def _layers(pair: _Pair) -> Layers:
    bounds = cka_bounds(pair.teacher, pair.rollouts, seed=pair.seed)
    return layer_damage(
        pair.teacher, pair.student, pair.rollouts, seed=pair.seed, num_bootstrap=NUM_BOOTSTRAP, bounds=bounds
    )


def _behaviour(pair: _Pair) -> tuple[BehaviourChange, ...]:
    if not pair.config.behaviour:
        return ()
    return behaviour(
        pair.teacher,
        pair.student,
        max_tokens=pair.config.max_tokens,
        num_bootstrap=NUM_BOOTSTRAP,
        seed=pair.seed,
    )


def _groups(pair: _Pair, values: TokenValues, layers: Layers) -> tuple[GroupDamage, ...]:
    attention_BT = pair.rollouts.attention_BT

    def mean_cka(rows: Sequence[int]) -> float | None:
        of_group_B = torch.zeros(len(attention_BT), dtype=torch.bool, device=attention_BT.device)
        of_group_B[list(rows)] = True
        return layers.states.mean_cka(attention_BT & of_group_B[:, None])

    return group_damage(pair.prompts, values, mean_cka, num_bootstrap=NUM_BOOTSTRAP, seed=pair.seed)


def _tasks(pair: _Pair, progress: Progress) -> tuple[TaskComparison, ...]:
    """Benchmarks of both models, paired by item."""
    if not pair.config.tasks:
        return ()
    config = Evaluate(tasks=pair.config.tasks, limit=pair.config.limit, data=pair.config.data, seed=pair.seed)
    reference, damaged = (score(model, config, progress).tasks for model in (pair.teacher, pair.student))
    return compare(reference, damaged, None, num_bootstrap=NUM_BOOTSTRAP, seed=pair.seed)
