"""The terms of the objective, ready to use: prompts, who teaches, and what the teacher is shown."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recoup.config import Recover, Term
from recoup.data.prompts import Prompt, answered, fitting, load_prompts
from recoup.progress import Progress
from recoup.recover.demonstration import demonstration_prompts
from recoup.recover.rollout import prompts_of_step, seed_of, shares
from recoup.recover.teachers import Teacher
from recoup.run_folder import read_jsonl, write_text


@dataclass(frozen=True)
class TermData:
    """One term. `shown` maps a prompt's ids to what the teacher sees instead, where that is something else."""

    config: Term
    prompts: list[Prompt]
    teacher: Teacher
    shown: dict[tuple[int, ...], tuple[int, ...]]
    seed: int

    def to_teacher(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt as the teacher sees it."""
        return self.shown.get(prompt.ids, prompt.ids)


def prompts_for(terms: Sequence[TermData], batch_size: int, step: int) -> list[list[Prompt]]:
    """The prompts of a step by term: rollouts are split evenly over the terms, and sorted by length to waste few pads."""
    counts = shares(batch_size, len(terms), step)
    chosen = [prompts_of_step(term.prompts, step, n, term.seed) for term, n in zip(terms, counts, strict=True)]
    return [sorted(prompts, key=lambda prompt: len(prompt.ids)) for prompts in chosen]


def write_prompts(config: Recover, teachers: Sequence[Teacher], seed: int, folder: Path, progress: Progress) -> None:
    """Save what the terms train on, once; a continued run keeps it.

    Raises:
        DataError: a term has no usable prompt.
        RunFolderError: the folder cannot be written.
    """
    path = _path(folder)
    if path.is_file():
        return
    rows: list[dict[str, object]] = []
    for index, (term, teacher) in enumerate(zip(config.terms, teachers, strict=True)):
        progress(f"prompts: {term.prompts}", index, len(config.terms))
        with teacher.model() as writer:
            found = load_prompts(term.prompts, writer, term.num_prompts, seed, "train", term.group)
        if term.demonstration or term.completions == "file":
            found = answered(found, term.prompts)
        rows += [{"term": index} | prompt.to_row() for prompt in fitting(found, config.rollout.max_prompt_tokens)]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_terms(
    config: Recover, teachers: Sequence[Teacher], seed: int, folder: Path, progress: Progress
) -> list[TermData]:
    """The terms on the prompts that were saved.

    Raises:
        DataError: a question leaves its teacher's prompt no room for a demonstration.
    """
    rows = read_jsonl(_path(folder))
    terms = []
    for index, (term, teacher) in enumerate(zip(config.terms, teachers, strict=True)):
        prompts = [Prompt.from_row(row) for row in rows if row["term"] == index]
        shown = _shown(term, teacher, prompts, progress) if term.demonstration else {}
        terms.append(TermData(term, prompts, teacher, shown, seed_of(seed, index)))
    return terms


def _shown(
    term: Term, teacher: Teacher, prompts: list[Prompt], progress: Progress
) -> dict[tuple[int, ...], tuple[int, ...]]:
    with teacher.model() as model:
        made = demonstration_prompts(model.tokenizer, prompts, term.demonstration_tokens)
    progress(f"demonstrations: {made.num_cut} of {len(prompts)} shortened at their end", 1, 1)
    return {prompt.ids: ids for prompt, ids in zip(prompts, made.ids, strict=True)}


def _path(folder: Path) -> Path:
    return folder / "prompts.jsonl"
