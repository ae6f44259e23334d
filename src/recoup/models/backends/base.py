"""What every sampling backend offers, and what they share.

A backend holds weights of its own or has them on a server: `follow` takes the student's present ones over, `sample` writes
with them. Between two calls of `follow` the student may train on.

Shapes: B rollouts, T tokens.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch

from recoup.errors import SourceError
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts, Sampling, pack, pad_id

SEED_LIMIT = 2**63  # seeds are non-negative 64-bit integers in torch and in vLLM


@dataclass(frozen=True)
class Setup:
    """What a backend is built from."""

    student: LanguageModel  # whose weights are followed
    dtype: torch.dtype  # that it samples in
    folder: Path  # of the run; a server without a faster way reads weights from here
    server: str | None = None  # address, of `vllm_server` alone
    snapshot: bool = False  # the student trains while the backend samples, so they share no weights


@runtime_checkable
class Backend(Protocol):
    """Who writes rollouts."""

    def follow(self) -> None:
        """Take over the student's present weights. Call it when no `sample` is under way."""

    def sample(self, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
        """Complete every prompt with the weights last taken over; in the order of `prompts`, on the student's device."""


@dataclass(frozen=True)
class Completion:
    """The tokens of one completion, the end of turn included, and the log-probability each was drawn with."""

    tokens: list[int]
    logp: list[float] | None = None


def laid_out(
    prompts: Sequence[Sequence[int]], completions: Sequence[Completion], model: LanguageModel, *, logp: bool
) -> Rollouts:
    """Lay completions out as rollouts, with their log-probabilities where `logp` asks for them."""
    logps = [completion.logp or [] for completion in completions] if logp else None
    return pack(prompts, [completion.tokens for completion in completions], pad_id(model), model.device, logps)


def row_numbers(settings: Sampling, count: int) -> Sequence[int]:
    """The number of each prompt, by which it draws."""
    return range(count) if settings.rows is None else settings.rows


def row_seeds(settings: Sampling, count: int) -> list[int]:
    """One seed per prompt, from (seed, number of the prompt): a split over processes or batches changes no completion.

    One seed for a whole batch would draw every row with the same random numbers.
    """
    mixed = settings.seed * 6364136223846793005 + 1442695040888963407  # Knuth's MMIX generator
    return [(mixed + row) % SEED_LIMIT for row in row_numbers(settings, count)]


def required(name: str, backend: str) -> ModuleType:
    """A module of vLLM.

    Raises:
        SourceError: vLLM is not installed, or is too old to have the module.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SourceError(f"backend {backend} needs {name} ({error}); pip install 'vllm>=0.28'") from None
