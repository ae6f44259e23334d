"""What a repair is worth: token KL to the teacher on held-out prompts, and the gain over the student, paired by prompt.

Models are held in float32, as structures want it, and computed in bfloat16, as the diagnosis does: teacher and students
alike, so a student that is the teacher scores 0.

Shapes: N completion tokens, P prompts, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recoup.evaluate.fidelity import TeacherValues, kl_difference, ratio_estimate, teacher_values, token_values
from recoup.models.load import LanguageModel, computing
from recoup.models.sample import Rollouts
from recoup.results import Estimate

NUM_BOOTSTRAP = 2000  # as the diagnosis takes
CHUNK_TOKENS = 128  # tokens whose distributions are alive at once


@dataclass(frozen=True)
class PromptKL:
    """KL(teacher ‖ student) over each prompt's completion tokens."""

    sums_P: Float[Tensor, " P"]  # nats
    counts_P: Int[Tensor, " P"]

    def mean(self, seed: int) -> Estimate:
        """Nats a token."""
        return ratio_estimate(self.sums_P, self.counts_P.double(), num_bootstrap=NUM_BOOTSTRAP, seed=seed)


def said_by(teacher: LanguageModel, rollouts: Rollouts) -> TeacherValues:
    """What the teacher says of `rollouts`, for any number of students.

    Raises:
        SourceError: it has no output head that recoup knows.
    """
    with computing(teacher):
        return teacher_values(teacher, rollouts)


def scored(said: TeacherValues, student: LanguageModel) -> PromptKL:
    """One forward pass of the student, compared with what the teacher said.

    Raises:
        SourceError: the tokenizers differ, or it has no output head that recoup knows.
    """
    with computing(student):
        values = token_values(said, student)
    return PromptKL(values.sums(values.kl_N), values.counts_P)


def gain(student: PromptKL, repaired: PromptKL, seed: int) -> Estimate:
    """Token KL of the student minus that of the repaired model, nats a token, paired by prompt: above 0 is better."""
    return kl_difference(repaired.sums_P, student.sums_P, student.counts_P, num_bootstrap=NUM_BOOTSTRAP, seed=seed)


def share_left(before: PromptKL, after: PromptKL, seed: int) -> Estimate:
    """KL after over KL before, paired by prompt."""
    return ratio_estimate(after.sums_P, before.sums_P, num_bootstrap=NUM_BOOTSTRAP, seed=seed)


def context_free_kl(said: TeacherValues) -> float:
    """Mean KL from the teacher to the best predictor that does not look at the context, nats.

    That predictor says m, the mean of the teacher's own distributions over these tokens, and mean KL(p_n ‖ m) =
    H(m) − mean H(p_n): what the context tells of the next token (Jensen-Shannon divergence, Lin 1991, eq. 4.1). A student no
    nearer has lost whatever it knew. Over few tokens it reads low: at most log N.
    """
    chunks = (said.head.logits(hidden_CD) for hidden_CD in said.hidden_ND.split(CHUNK_TOKENS))
    return information(chunks)


@torch.no_grad()
def information(chunks_NV: Iterator[Float[Tensor, "_ V"]]) -> float:
    """H(mean of p_n) − mean of H(p_n), nats, of the distributions that rows of logits stand for; sums in float64."""
    total_V, entropy, count = torch.zeros((), dtype=torch.float64), 0.0, 0
    for logits_CV in chunks_NV:
        logp_CV = logits_CV.double().log_softmax(-1)
        total_V = total_V + logp_CV.exp().sum(0)
        entropy += float(torch.special.entr(logp_CV.exp()).sum())
        count += len(logp_CV)
    return float(torch.special.entr(total_V / count).sum()) - entropy / count
