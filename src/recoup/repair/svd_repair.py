"""A singular-value repair of W_student − W_base: the leading directions of what fine-tuning changed stay, the rest goes back.

What a task needs of the change of a weight matrix lies in few of its singular directions (Task Singular Vectors, 2412.00081,
section 3: a tenth of them keeps 99% of the accuracy); that leaving out small ones can improve a model is LASER's finding
(2312.13558), made on the weights themselves instead of their change. So each linear layer of the blocks becomes
W_base + U_r Σ_r V_rᵀ, of rank r. What is no such matrix (embeddings, norms, biases) goes back to the base; the authors of
2412.00081 average it, which with one model is to keep it. The random sketch is of Halko et al. (0909.4061, algorithms 4.4 and
5.1), for an exact decomposition costs as much as training on small machines.

Shapes: O output and I input width (or the other way round: it does not matter here), R rank, Q columns of the sketch.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.models.layers import block_linears
from recoup.models.load import LanguageModel
from recoup.progress import Progress
from recoup.repair.base import Candidate, Damaged, no_way_back, rebased, weights

SHARES = (1 / 8, 1 / 32)  # ranks kept, of a matrix's smaller side: 72 and 18 of 576
OVERSAMPLING = 8  # columns beyond the rank (0909.4061, section 1.3 takes 5 to 10)
POWER_STEPS = 2  # sharpen a spectrum that decays slowly (0909.4061, section 1.6)
SEED = 0
TINY = 1e-30  # stands for the energy of matrices that did not change


@dataclass(frozen=True)
class Truncated:
    """The leading part of a matrix, directions in order: left_OR @ right_RI."""

    left_OR: Tensor  # orthonormal columns
    right_RI: Tensor  # orthogonal rows, whose norms are the singular values

    def product(self, rank: int) -> Float[Tensor, "O I"]:
        """The matrix of the first `rank` directions."""
        return self.left_OR[:, :rank] @ self.right_RI[:rank]

    def energy(self, rank: int) -> float:
        """Σ σ² of the first `rank` directions."""
        return float(self.right_RI[:rank].double().square().sum())


def leading(delta_OI: Float[Tensor, "O I"], rank: int) -> Truncated:
    """The `rank` leading singular directions of a matrix: exact where it has no more than that and the oversampling."""
    generator = torch.Generator().manual_seed(SEED)
    columns = min(rank + OVERSAMPLING, *delta_OI.shape)
    sketch_OQ = delta_OI @ torch.randn(delta_OI.shape[1], columns, generator=generator).to(delta_OI)
    basis_OQ = torch.linalg.qr(sketch_OQ).Q
    for _ in range(POWER_STEPS):
        basis_IQ = torch.linalg.qr(delta_OI.T @ basis_OQ).Q
        basis_OQ = torch.linalg.qr(delta_OI @ basis_IQ).Q
    turn_QQ, values_Q, right_QI = torch.linalg.svd(basis_OQ.T @ delta_OI, full_matrices=False)
    return Truncated((basis_OQ @ turn_QQ)[:, :rank], (values_Q[:, None] * right_QI)[:rank])


def applies(damaged: Damaged) -> str | None:
    """Why it cannot be tried: a structure, other shapes, or no change to keep a part of."""
    return no_way_back(damaged)


@torch.no_grad()
def candidates(damaged: Damaged, progress: Progress) -> Iterator[Candidate]:
    """A student for each share of the ranks, the largest first; between them the leading directions are held in memory."""
    base, student = weights(damaged.teacher), weights(damaged.student)
    names = [f"{layer}.weight" for layer in block_linears(damaged.student.model)]
    changes: dict[str, Truncated] = {}
    energy = TINY
    for done, name in enumerate(names, start=1):
        delta_OI = student[name].float() - base[name].float()
        changes[name] = leading(delta_OI, _rank(delta_OI, max(SHARES)))
        energy += float(delta_OI.double().square().sum())
        progress("repair: singular values", done, len(names))
    for share in SHARES:
        ranks = {name: _rank(base[name], share) for name in names}
        kept = sum(changes[name].energy(rank) for name, rank in ranks.items()) / energy
        note = (
            f"keeps the {_words(ranks.values())} leading directions of each matrix's change ({kept:.0%} by energy); "
            "the rest, and embeddings, norms and biases, are the teacher's again"
        )
        yield Candidate("svd_repair", {"rank_share": share}, _moved(damaged, changes, ranks), note)


def _moved(damaged: Damaged, changes: Mapping[str, Truncated], ranks: Mapping[str, int]) -> LanguageModel:
    """The base, with so many leading directions of each change."""
    model = rebased(damaged)
    repaired = weights(model)
    for name, rank in ranks.items():
        repaired[name].add_(changes[name].product(rank).to(repaired[name].dtype))
    return model


def _rank(matrix: Tensor, share: float) -> int:
    return max(1, round(share * min(matrix.shape)))


def _words(ranks: Collection[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"
