"""Who answers which prompts at which step: pure functions of (seed, step), and the draw itself."""

from collections.abc import Sequence

import torch

from recoup.data.prompts import Prompt


def prompts_of_step(prompts: Sequence[Prompt], step: int, count: int, seed: int) -> list[Prompt]:
    """The `count` prompts of a step: each pass over the prompts is a fresh shuffle, and no prompt is skipped."""
    chosen = []
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(prompts))
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))
        chosen.append(prompts[int(torch.randperm(len(prompts), generator=generator)[index])])
    return chosen


def shares(count: int, num_terms: int, step: int) -> list[int]:
    """Split `count` rollouts evenly over the terms; what is left over goes round with the step."""
    base, rest = divmod(count, num_terms)
    return [base + ((term - step) % num_terms < rest) for term in range(num_terms)]


def seed_of(*parts: int) -> int:
    """One seed from several numbers; equal inputs give equal seeds on every machine."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % 2**63  # Knuth's MMIX generator
    return mixed
