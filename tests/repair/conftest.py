"""Two models and a text; how far they are apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recoup.config import Degrade
from recoup.degrade import METHODS, Context
from recoup.divergence import forward_kl
from recoup.models.load import LanguageModel, load
from recoup.models.logits import completion_logits
from recoup.models.sample import Rollouts, pack
from recoup.progress import silent
from recoup.repair import Damaged
from recoup.structure.spec import Constraint, Structure

HELD = Structure({"lm_head.weight": Constraint()})  # a structure that leaves every weight where it is


def text(seed: int = 0, rows: int = 24) -> Rollouts:
    """Random bytes: prompts of 4 to 9 tokens, completions of 12."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (rows, 21), generator=generator).tolist()
    return pack([row[: 4 + number % 6] for number, row in enumerate(ids)], [row[9:] for row in ids], 0)


def pair(folder: Path, structure: Structure | None = None) -> Damaged:
    """The same model twice, the student with `structure`, to be damaged by the test."""
    student = load(str(folder))
    return Damaged(load(str(folder)), replace(student, structure=structure or Structure()), text())


def injured(folder: Path, config: Degrade) -> Damaged:
    """A model, and what an injury makes of it."""
    student = load(str(folder))
    after = METHODS[config.type].apply(student, Structure(), config, Context(0, silent, lambda line: None))
    return Damaged(load(str(folder)), replace(student, structure=after), text())


@torch.no_grad()
def kl(teacher: LanguageModel, student: LanguageModel, rollouts: Rollouts) -> float:
    """Mean token KL, nats."""
    values_N = forward_kl(completion_logits(student.model, rollouts), completion_logits(teacher.model, rollouts))
    return float(values_N.mean())


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text to calibrate an injury on."""
    file = tmp_path / "text.txt"
    file.write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    return file
