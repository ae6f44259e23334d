"""The evaluation stage: reference, degraded and recovered on every task, fidelity, generations, verdicts.

At most two models are in memory: the reference, which fidelity needs, and one student. Scores are written per model and
task as `<state>/<task>.json`, so a stopped evaluation goes on; `result.json` is written last.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from recoup.config import Evaluate
from recoup.data.prompts import Prompt, Split, fitting, load_prompts
from recoup.evaluate.compare import compare
from recoup.evaluate.completion import complete
from recoup.evaluate.fidelity import TeacherValues, teacher_values, token_values
from recoup.evaluate.items import Report, silent
from recoup.evaluate.stored import fingerprint, score_key, stored_or_scored
from recoup.evaluate.tasks import check_tasks, score_task
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.progress import Progress
from recoup.results import EvaluateResult, Generation, ModelScores, TaskItems
from recoup.run_folder import result_path, write_text

NUM_GENERATIONS = 6  # prompts whose completions the report shows side by side
MAX_PROMPT_TOKENS = 1024  # held-out prompts longer than this are left out


@dataclass(frozen=True)
class EvaluateInputs:
    """The models (see `models.source.resolve`), and what decides their scores besides the config."""

    reference: str
    degraded: str
    recovered: str | None = None
    chat_template: str | Path | None = None
    split: Split = "held_out"
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class _HeldOut:
    """Held-out prompts with what the reference says to them, greedily."""

    prompts: list[Prompt]
    said: TeacherValues


def run(config: Evaluate, inputs: EvaluateInputs, folder: Path, progress: Progress | None = None) -> EvaluateResult:
    """Evaluate the models of `inputs` and write everything under `folder`.

    Raises:
        ConfigError: a task is unknown.
        DataError: a task's data or the held-out prompts cannot be had.
        SourceError: a model cannot be loaded.
        RunFolderError: `folder` cannot be written.
    """
    started = time.perf_counter()
    students = {"degraded": inputs.degraded} | ({"recovered": inputs.recovered} if inputs.recovered else {})
    check_tasks(config.tasks, config.data, allow_code=config.allow_code)
    for name in (inputs.reference, *students.values()):
        fingerprint(name)  # a model that is not there is found before hours of scoring
    stage = _Stage(config, inputs, folder, progress)
    reference = stage.load(inputs.reference)
    held_out = stage.held_out(reference)
    scores = {"reference": stage.score("reference", reference, None)}
    texts = {"reference": _decoded(reference, held_out.said.rollouts)}
    for state, name in students.items():
        if state == "recovered" and name == inputs.degraded:  # nothing was repaired
            scores[state], texts[state] = stage.again(state, scores["degraded"]), texts["degraded"]
            continue
        model = stage.load(name)
        scores[state] = stage.score(state, model, held_out)
        texts[state] = stage.generations(model, held_out)
        del model  # before the next one is loaded
    return stage.finish(scores, _side_by_side(held_out.prompts, texts), time.perf_counter() - started)


def score(model: str | LanguageModel, config: Evaluate, progress: Progress | None = None) -> ModelScores:
    """One model alone on the tasks of `config`; nothing is compared and nothing written.

    Raises:
        ConfigError: a task is unknown.
        DataError: a task's data cannot be had.
        SourceError: the model cannot be loaded.
    """
    started = time.perf_counter()
    check_tasks(config.tasks, config.data, allow_code=config.allow_code)
    loaded = load(model, dtype=torch.bfloat16) if isinstance(model, str) else model
    tasks = tuple(score_task(loaded, task, config, _report(progress, task)) for task in config.tasks)
    return ModelScores(model=loaded.name, tasks=tasks, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _Stage:
    """One evaluation and where it writes."""

    config: Evaluate
    inputs: EvaluateInputs
    folder: Path
    progress: Progress | None

    def load(self, name: str) -> LanguageModel:
        return load(name, dtype=self.inputs.dtype, chat_template=self.inputs.chat_template)

    def held_out(self, reference: LanguageModel) -> _HeldOut:
        count = self.config.num_fidelity_prompts
        found = load_prompts(self.config.fidelity_prompts, reference, count, self.config.seed, self.inputs.split)
        prompts = fitting(found, MAX_PROMPT_TOKENS)
        longest = max(len(prompt.ids) for prompt in prompts) + self.config.fidelity_tokens
        settings = Sampling(self.config.fidelity_tokens, batch_size=max(1, self.config.batch_tokens // longest))
        rollouts = sample(reference, [prompt.ids for prompt in prompts], settings)
        return _HeldOut(prompts, teacher_values(reference, rollouts))

    def score(self, state: str, model: LanguageModel, held_out: _HeldOut | None) -> ModelScores:
        """Score and write one model; fidelity is measured where there are held-out rollouts of a reference."""
        started = time.perf_counter()
        tasks = tuple(self._task(state, model, task) for task in self.config.tasks)
        bootstrap = {"num_bootstrap": self.config.num_bootstrap, "seed": self.config.seed}
        fidelity = held_out and token_values(held_out.said, model).damage(**bootstrap)
        scores = ModelScores(model=model.name, tasks=tasks, fidelity=fidelity, seconds=time.perf_counter() - started)
        write_text(result_path(self.folder / state), scores.model_dump_json(indent=2) + "\n")
        return scores

    def again(self, state: str, scores: ModelScores) -> ModelScores:
        """Write the scores of another state, which is the same model."""
        write_text(result_path(self.folder / state), scores.model_dump_json(indent=2) + "\n")
        return scores

    def _task(self, state: str, model: LanguageModel, task: str) -> TaskItems:
        key = score_key(model.name, self.config, self.inputs.dtype, self.inputs.chat_template)
        report = _report(self.progress, f"{state}: {task}")
        score_now = partial(score_task, model, task, self.config, report)
        return stored_or_scored(self.folder / state / f"{task}.json", {**key, "task": task}, score_now)

    def generations(self, model: LanguageModel, held_out: _HeldOut) -> list[str]:
        prompts = [prompt.ids for prompt in held_out.prompts[:NUM_GENERATIONS]]
        return complete(model, prompts, Sampling(self.config.fidelity_tokens), self.config.batch_tokens)

    def finish(
        self, scores: Mapping[str, ModelScores], generations: tuple[Generation, ...], seconds: float
    ) -> EvaluateResult:
        """Compare the models and write the result."""
        recovered = scores.get("recovered")
        degraded_fidelity = scores["degraded"].fidelity
        assert degraded_fidelity is not None
        result = EvaluateResult(
            reference=self.inputs.reference,
            tasks=compare(
                scores["reference"].tasks,
                scores["degraded"].tasks,
                None if recovered is None else recovered.tasks,
                num_bootstrap=self.config.num_bootstrap,
                seed=self.config.seed,
            ),
            degraded_fidelity=degraded_fidelity,
            recovered_fidelity=recovered and recovered.fidelity,
            generations=generations,
            num_bootstrap=self.config.num_bootstrap,
            seconds=seconds,
        )
        write_text(result_path(self.folder), result.model_dump_json(indent=2) + "\n")
        return result


def _report(progress: Progress | None, task: str) -> Report:
    return partial(progress, task) if progress else silent


def _decoded(reference: LanguageModel, rollouts: Rollouts) -> list[str]:
    ids = rollouts.completions()[:NUM_GENERATIONS]
    return [str(reference.tokenizer.decode(completion, skip_special_tokens=True)) for completion in ids]


def _side_by_side(prompts: Sequence[Prompt], texts: Mapping[str, list[str]]) -> tuple[Generation, ...]:
    shown = prompts[:NUM_GENERATIONS]
    recovered: Sequence[str | None] = texts.get("recovered") or [None] * len(shown)
    columns = zip(shown, texts["reference"], texts["degraded"], recovered, strict=True)
    return tuple(Generation(prompt=p.text, reference=r, degraded=d, recovered=h) for p, r, d, h in columns)
