"""Norms and biases fitted anew to the teacher's activations: what a compressed student may move without leaving its structure.

- Norms. A norm's output y feeds linear layers. Each channel d gets a factor c_d (and, where the norm has a bias, a shift t_d), so
  that those layers put out what the teacher's do: the least squares of Σ_n ‖W_S (c ∘ y_n + t) − W_T y'_n‖² over the calibration
  tokens, in closed form. So it makes up for what rounding or pruning did to those layers, and leaves scales that AWQ folded
  into a norm. Norm Tweaking (2309.02784) trains the same parameters on means and variances further on.
- Biases. A linear layer with a bias gets what its mean output lacks: bias correction (Nagel et al., 1906.04721, section 4.2),
  with means that are measured instead of derived.

Every norm is fitted on the teacher's own hidden states: y and y' are what the student's and the teacher's norm make of the same
input. On the hidden states of the damaged student, which tell little of the teacher's, least squares shrinks what it cannot
predict: the token KL of SmolLM2-135M at 3 bits rose from 3.10 to 5.29 nats so, where this takes it to 2.82. Layers that were cut
to other shapes have no counterpart, and those whose outputs AWQ rescaled are not asked.

Shapes: N real tokens, D width of a norm, O outputs of the linear layers that it feeds.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from recoup.degrade.cut import weight_OI
from recoup.models.layers import blocks, is_linear
from recoup.progress import Progress
from recoup.repair.base import Candidate, Damaged, copied
from recoup.repair.norm_parts import Norm, Seen, norms, watch
from recoup.repair.twins import twins

RIDGE = 1e-2  # pulls factors towards 1, as a share of what each channel weighs in the sum
ROW_SPREAD = 0.1  # of log ‖row of W_S‖ − log ‖row of W_T‖: rounding to 2 bits leaves 0.06, AWQ's scales mostly more
TINY = 1e-12  # stands for the weight of a channel that is always 0

Pairs = Sequence[tuple[Tensor, Tensor]]  # weights (O, D) of the student's linear layers and of the teacher's


def applies(damaged: Damaged) -> str | None:
    """Why it cannot be tried: nothing was compressed, or the teacher's activations are of another width."""
    student, teacher = damaged.student, damaged.teacher
    if not student.structure.constraints:
        return "no weight of the student is on a grid or under a mask, which norms and biases could make up for"
    if student.model.config.get_text_config().hidden_size != teacher.model.config.get_text_config().hidden_size:
        return "the student's hidden states have another width than the teacher's"
    if len(blocks(student.model)) > len(blocks(teacher.model)):
        return "the student has more blocks than the teacher"
    return None


@torch.no_grad()
def candidates(damaged: Damaged, progress: Progress) -> Iterator[Candidate]:
    """The student with its norms and biases fitted; every other weight stays."""
    model = copied(damaged.student)
    seen = watch(damaged.teacher.model, damaged.rollouts)
    fit = _Fit(model.model, damaged.teacher.model, seen)
    num_norms, num_biases = fit.norms(progress), fit.biases()
    note = f"{num_norms} norms and {num_biases} biases moved; every other weight is the student's"
    yield Candidate("norms", {"calibration_tokens": int(damaged.rollouts.attention_BT.sum())}, model, note)


# --- the maths ---------------------------------------------------------------------------------------------------------


def factors(pairs: Pairs, student_ND: Float[Tensor, "N D"], teacher_ND: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """The c that makes Σ_n ‖W_S (c ∘ y_n) − W_T y'_n‖², summed over the pairs, least, in float64.

    With Y = Σ y yᵀ and M = Σ y y'ᵀ the normal equations are [(W_SᵀW_S) ∘ Y] c = [(W_SᵀW_T) ∘ M] 1.

    Args:
        pairs: the weights that are given y (W_S) and y' (W_T).
        student_ND: y.
        teacher_ND: y'.
    """
    gram_DD, cross_DD = _grams(pairs)
    student_ND, teacher_ND = student_ND.double(), teacher_ND.double()
    system_DD = gram_DD * (student_ND.T @ student_ND)
    target_D = (cross_DD * (student_ND.T @ teacher_ND)).sum(1)
    ridge_D = (RIDGE * system_DD.diagonal()).clamp_min(TINY)
    return 1 + torch.linalg.solve(system_DD + ridge_D.diag(), target_D - system_DD.sum(1))


def shift(pairs: Pairs, student_D: Float[Tensor, " D"], teacher_D: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """The t that makes ‖W_S (y + t) − W_T y'‖², summed over the pairs, least for mean activations y and y', in float64."""
    gram_DD, cross_DD = _grams(pairs)
    ridge_D = (RIDGE * gram_DD.diagonal()).clamp_min(TINY)
    return torch.linalg.solve(gram_DD + ridge_D.diag(), cross_DD @ teacher_D.double() - gram_DD @ student_D.double())


def rescaled_rows(student_OD: Float[Tensor, "O D"], teacher_OD: Float[Tensor, "O D"]) -> bool:
    """Whether outputs are meant to differ: AWQ divides rows by scales that what follows makes up for."""
    norms_SO = torch.stack([weight_OD.norm(dim=1).clamp_min(TINY) for weight_OD in (student_OD, teacher_OD)])
    return bool((norms_SO[0] / norms_SO[1]).log().std() > ROW_SPREAD)


def _grams(pairs: Pairs) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D D"]]:
    """Σ W_SᵀW_S and Σ W_SᵀW_T."""
    gram_DD = torch.stack([student_OD.T @ student_OD for student_OD, _ in pairs]).sum(0)
    cross_DD = torch.stack([student_OD.T @ teacher_OD for student_OD, teacher_OD in pairs]).sum(0)
    return gram_DD.double(), cross_DD.double()


# --- the model ---------------------------------------------------------------------------------------------------------


class _Fit:
    """A student whose norms and biases are fitted to what passed through its teacher."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, seen: Seen) -> None:
        self._student, self._teacher, self._seen = student, teacher, seen
        twin_of = twins(student, teacher)
        linears = {name: twin for name, twin in twin_of.items() if is_linear(student.get_submodule(name))}
        self._pairs = {twin: self._pair(name, twin) for name, twin in linears.items() if self._comparable(name, twin)}
        self._own = {twin: name for name, twin in linears.items() if twin in self._pairs}
        self._norms = {twin_of[name]: norm for name, norm in norms(student).items() if name in twin_of}
        self._means: dict[str, Tensor] = {}  # of what the teacher's linear layers are given, had it the student's norms

    def norms(self, progress: Progress) -> int:
        """Fit the norms, in place; returns how many."""
        theirs = norms(self._teacher)
        found = {
            twin: [self._pairs[r] for r in readers if r in self._pairs] for twin, readers in self._seen.readers.items()
        }
        fitted = [twin for twin, pairs in found.items() if pairs and twin in self._norms]
        for done, twin in enumerate(fitted, start=1):
            norm, inputs_ND = self._norms[twin], self._seen.inputs_ND[twin]
            fit_norm(norm, found[twin], norm.module(inputs_ND).float(), theirs[twin].module(inputs_ND).float())
            self._means.update(dict.fromkeys(self._seen.readers[twin], norm.module(inputs_ND).float().mean(0)))
            progress("repair: norms", done, len(fitted))
        return len(fitted)

    def biases(self) -> int:
        """Fit the biases of linear layers, in place, after the norms; returns how many.

        b_S = b_T + W_T x' − W_S x for mean inputs x' and x, which differ only behind a norm.
        """
        fitted = [twin for twin in self._seen.means_I if twin in self._own]
        for twin in fitted:
            (own_OI, their_OI), mean_I = self._pairs[twin], self._seen.means_I[twin]
            bias_O = self._teacher.get_parameter(f"{twin}.bias").float() + their_OI @ mean_I
            self._student.get_parameter(f"{self._own[twin]}.bias").copy_(
                bias_O - own_OI @ self._means.get(twin, mean_I)
            )
        return len(fitted)

    def _pair(self, name: str, twin: str) -> tuple[Tensor, Tensor]:
        return weight_OI(self._student, name).float(), weight_OI(self._teacher, twin).float()

    def _comparable(self, name: str, twin: str) -> bool:
        own_OD, their_OD = self._pair(name, twin)
        return own_OD.shape == their_OD.shape and not rescaled_rows(own_OD, their_OD)


def fit_norm(norm: Norm, pairs: Pairs, student_ND: Float[Tensor, "N D"], teacher_ND: Float[Tensor, "N D"]) -> None:
    """Rescale the student's norm, in place, given what it and the teacher's put out."""
    if getattr(norm.module, "bias", None) is None:
        scale_D = factors(pairs, student_ND, teacher_ND)
        shift_D = torch.zeros_like(scale_D)
    else:
        mean_D, teacher_D = student_ND.mean(0), teacher_ND.mean(0)
        scale_D = factors(pairs, student_ND - mean_D, teacher_ND - teacher_D)
        shift_D = shift(pairs, scale_D * mean_D, teacher_D)
    norm.rescale(scale_D, shift_D)
