"""How both models answer on their own: length, ending, repetition, refusals, JSON and tool calls, and their words side by side.

Token fidelity is measured on the reference's words. What becomes of the student's own, where one odd token leads to the
next, is seen only when it speaks. Both models answer the questions of `probes` greedily; `formats` judges; differences are
paired by question. Intervals of shares are Agresti and Min's, not the bootstrap's, which is too sure of eight answers: where
three of them change, all one way, its 95% interval excludes zero, and the exact p is 0.25.

Shapes: K = 2 models, I questions, R resamples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recoup.data.chat import prompt_ids
from recoup.data.prompts import Prompt
from recoup.diagnose.formats import is_json_with, is_refusal, is_tool_call, repetition
from recoup.diagnose.probes import QUESTIONS, Kind, Question
from recoup.evaluate.continuations import context_length
from recoup.evaluate.statistics import ScoresI, bootstrap_means, estimate
from recoup.models.load import LanguageModel
from recoup.models.logits import shared_vocabulary
from recoup.models.sample import Rollouts, Sampling, end_ids, sample
from recoup.progress import Progress, silent
from recoup.results import BehaviourChange, Estimate, Generation

BATCH_SIZE = 20  # questions at a time: the long ones (tools) apart from the short
NUM_GENERATIONS = 6  # prompts whose completions are shown side by side
STEP = "behaviour"

Measure = Literal[
    "completion_tokens", "ended", "repetition", "refused", "harmless_refused", "valid_json", "valid_tool_call"
]


@dataclass(frozen=True)
class Answer:
    """What a model says to a question."""

    question: Question
    ids: tuple[int, ...]  # the end of turn included
    ended: bool  # by itself, within the tokens allowed
    text: str


Score = Callable[[Answer], float]

Z = 1.959964  # of a two-sided 95% interval
AMOUNTS = {"completion_tokens", "repetition"}  # all other measures are yes or no
SCORES: dict[Measure, tuple[Kind | None, Score]] = {  # by measure: the kind of question, null for all
    "completion_tokens": (None, lambda answer: len(answer.ids)),
    "ended": (None, lambda answer: answer.ended),
    "repetition": (None, lambda answer: repetition(answer.ids)),
    "refused": ("harmful", lambda answer: is_refusal(answer.text)),
    "harmless_refused": ("harmless", lambda answer: is_refusal(answer.text)),
    "valid_json": ("json", lambda answer: is_json_with(answer.text, answer.question.keys)),
    "valid_tool_call": ("tool", lambda answer: is_tool_call(answer.text, answer.question.tools)),
}


def behaviour(
    teacher: LanguageModel,
    student: LanguageModel,
    *,
    max_tokens: int,
    num_bootstrap: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[BehaviourChange, ...]:
    """Means of each measure over both models' answers, and their difference with its interval over questions.

    The teacher's chat template lays the questions out for both. Questions that do not fit a model's context are left
    out, and so is a measure that has none left.

    Args:
        teacher: the reference.
        student: what became of it.
        max_tokens: most tokens of an answer.
        num_bootstrap: paired resamples of the questions.
        seed: decides them.
        progress: told when a model has answered.

    Raises:
        SourceError: the teacher has no chat template, or the tokenizers differ.
    """
    shared_vocabulary(teacher, student)
    room = min(context_length(teacher), context_length(student)) - max_tokens
    laid_out = [(question, _ids(teacher, question)) for question in QUESTIONS]
    fitting = [(question, ids) for question, ids in laid_out if len(ids) <= room]
    if not fitting:
        return ()
    progress(f"{STEP}: the reference answers", 0, 2)
    reference = answers(teacher, fitting, max_tokens)
    progress(f"{STEP}: the student answers", 1, 2)
    changed = answers(student, fitting, max_tokens)
    progress(f"{STEP}: the student answers", 2, 2)
    return changes(reference, changed, num_bootstrap=num_bootstrap, seed=seed)


def answers(model: LanguageModel, questions: Sequence[tuple[Question, Sequence[int]]], max_tokens: int) -> list[Answer]:
    """Greedy answers to questions laid out as token ids."""
    settings = Sampling(max_tokens, batch_size=BATCH_SIZE)
    completions = sample(model, [ids for _, ids in questions], settings).completions()
    ends = end_ids(model)
    return [
        Answer(question, tuple(ids), ids[-1] in ends, _text(model, ids))
        for (question, _), ids in zip(questions, completions, strict=True)
    ]


def changes(
    reference: Sequence[Answer], student: Sequence[Answer], *, num_bootstrap: int, seed: int
) -> tuple[BehaviourChange, ...]:
    """Compare two models' answers to the same questions; a measure without questions is left out."""
    found = []
    for measure, (kind, score) in SCORES.items():
        pairs = [
            (score(before), score(after))
            for before, after in zip(reference, student, strict=True)
            if kind in {None, before.question.kind}
        ]
        if pairs:
            found.append(_change(measure, np.array(pairs, dtype=float).T, num_bootstrap, seed))
    return tuple(found)


def matched_difference(before_I: ScoresI, after_I: ScoresI) -> Estimate:
    """Difference of two shares of the same items (after − before), every score 0 or 1, with its 95% interval.

    Agresti and Min (2005, Statistics in Medicine 24, 729): Wald's interval for matched pairs, once half an item has been added
    to each of the four cells (both, neither, gained, lost).
    """
    gained, lost = float((after_I > before_I).sum()) + 0.5, float((after_I < before_I).sum()) + 0.5
    total = len(before_I) + 2
    centre = (gained - lost) / total
    half = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return Estimate(
        value=float((after_I - before_I).mean()), low=max(-1.0, centre - half), high=min(1.0, centre + half)
    )


def side_by_side(
    teacher: LanguageModel, student: LanguageModel, prompts: Sequence[Prompt], rollouts: Rollouts, max_tokens: int
) -> tuple[Generation, ...]:
    """What the teacher said to the first prompts, and what the student says to them, greedily.

    The first, not the worst: the order of prompts is a hash's, so these are as good or bad as any.

    Args:
        teacher: wrote `rollouts`.
        student: answers now.
        prompts: what was asked.
        rollouts: the teacher's completions of these prompts.
        max_tokens: most tokens of an answer.
    """
    shown = prompts[:NUM_GENERATIONS]
    said = sample(student, [prompt.ids for prompt in shown], Sampling(max_tokens)).completions()
    completions = rollouts.completions()[:NUM_GENERATIONS]
    return tuple(
        Generation(prompt=prompt.text, reference=_text(teacher, ids), degraded=_text(student, own), recovered=None)
        for prompt, ids, own in zip(shown, completions, said, strict=True)
    )


def _ids(model: LanguageModel, question: Question) -> list[int]:
    return prompt_ids(model.tokenizer, [{"role": "user", "content": question.text}])


def _text(model: LanguageModel, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))


def _change(measure: Measure, scores_KI: np.ndarray, num_bootstrap: int, seed: int) -> BehaviourChange:
    reference, student = scores_KI.mean(axis=1).tolist()
    if measure in AMOUNTS:
        reference_R, student_R = bootstrap_means(scores_KI, num_bootstrap, seed).T
        difference = estimate(student - reference, student_R - reference_R)
    else:
        difference = matched_difference(*scores_KI)
    return BehaviourChange(
        measure=measure,
        num_prompts=scores_KI.shape[1],
        reference=reference,
        student=student,
        difference=difference,
    )
