"""What the triage asks the teacher: prompts of the diagnosis's kind, held-out ones to score on, others to fit repairs to.

The two never share a prompt (`data.prompts`: one in five is held out). Self-written prompts are written once into a file, so that
the pilot trains on its train split and no model has to write them again.
"""

import json
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch

from recoup.config import Diagnose
from recoup.data.prompts import Prompt, Split, fitting, load_prompts
from recoup.models.backends.native import copied
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.repair.rounding import CALIBRATION_TOKENS
from recoup.run_folder import write_text

SELF = "self"
SCORED_PROMPTS = 16  # with 64 tokens each the interval of a token KL is about a tenth of it on either side
ENDS_EARLY = 1.25  # some completions do, and rounding would have the teacher write what is missing then
SELF_PROMPTS = 96  # of which about a fifth is held out
WRITTEN_TEMPERATURE = (
    1.0  # calibration text is drawn as the teacher speaks; what is scored is greedy, as in the diagnosis
)


@dataclass(frozen=True)
class Asked:
    """Prompts with the teacher's completions."""

    held_out: Rollouts
    calibration: Rollouts
    source: str  # of the prompts: a file, or what `load_prompts` understands


def ask(teacher: LanguageModel, asked: Diagnose, seed: int, max_prompt_tokens: int, folder: Path) -> Asked:
    """Prompts and completions, the same whenever they are asked for with the same seed.

    Args:
        teacher: in any type; it writes in bfloat16.
        asked: which prompts the diagnosis took, and how long its completions were.
        seed: decides what is written or chosen.
        max_prompt_tokens: longer prompts are left out.
        folder: gets the self-written prompts.

    Raises:
        DataError: there is no usable prompt of one of the two splits.
        SourceError: the teacher has no chat template.
    """
    writer = replace(teacher, model=copied(teacher.model, torch.bfloat16))
    source = _source(writer, asked.prompts, seed, folder)

    def prompts(split: Split, count: int) -> list[Prompt]:
        return fitting(load_prompts(source, writer, count, seed, split), max_prompt_tokens)

    def completed(chosen: list[Prompt], temperature: float) -> Rollouts:
        return sample(writer, [prompt.ids for prompt in chosen], Sampling(asked.max_tokens, temperature, seed))

    wanted = round(ENDS_EARLY * CALIBRATION_TOKENS)
    others = prompts("train", -(-wanted // asked.max_tokens))
    lengths = accumulate(len(prompt.ids) + asked.max_tokens for prompt in others)
    enough = next((number for number, length in enumerate(lengths, start=1) if length >= wanted), len(others))
    return Asked(
        held_out=completed(prompts("held_out", SCORED_PROMPTS), 0.0),
        calibration=completed(others[:enough], WRITTEN_TEMPERATURE),
        source=source,
    )


def _source(writer: LanguageModel, prompts: str, seed: int, folder: Path) -> str:
    """The prompts as they are, or the file that the teacher's own were written to."""
    if prompts != SELF:
        return prompts
    path = folder / "prompts.jsonl"
    if not path.is_file():
        found = load_prompts(SELF, writer, SELF_PROMPTS, seed)
        lines = [json.dumps({"prompt": prompt.text}, ensure_ascii=False) for prompt in found]
        write_text(path, "\n".join(lines) + "\n")
    return str(path)
