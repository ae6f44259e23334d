"""Weights between student and base: WiSE-FT (Wortsman et al., 2109.01903, eq. 3), over a sweep.

θ(s) = (1 − s) θ_student + s θ_base for every weight, embeddings and norms included. The paper calls our 1 − s alpha; its
share is of the fine-tuned model. s = 1 is the base itself and no repair. A compressed student is left alone: between two
points of a grid lies none, and rounding anew is `rounding`.
"""

from collections.abc import Iterator

import torch

from recoup.models.load import LanguageModel
from recoup.progress import Progress
from recoup.repair.base import Candidate, Damaged, copied, no_way_back, weights

SHARES = (0.2, 0.4, 0.6, 0.8)  # of the base


def applies(damaged: Damaged) -> str | None:
    """Why it cannot be tried: a structure, other shapes, or nothing between the two."""
    return no_way_back(damaged)


def candidates(damaged: Damaged, progress: Progress) -> Iterator[Candidate]:
    """A student for each share of the base, the smallest first."""
    for done, share in enumerate(SHARES, start=1):
        note = f"every weight goes {share:.0%} of the way back to the teacher's; what the student learnt since fades with it"
        yield Candidate("interpolate", {"share": share}, _between(damaged, share), note)
        progress("repair: interpolate", done, len(SHARES))


@torch.no_grad()
def _between(damaged: Damaged, share: float) -> LanguageModel:
    """(1 − s) θ_student + s θ_base."""
    model, base = copied(damaged.student), weights(damaged.teacher)
    for name, weight in weights(model).items():
        weight.lerp_(base[name].to(weight.dtype), share)
    return model
