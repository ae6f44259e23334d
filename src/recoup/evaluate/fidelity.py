"""Token-level fidelity: how far a student's next-token distributions are from its reference's, on the same completions.

KL(reference ‖ student) is `forward_kl` of METHOD section 4, over the whole shared vocabulary, in float32. Heads padded to
different sizes are cut to the ids that mean the same token in both, and renormalised there. Intervals are percentile
bootstraps over prompts, since tokens of one completion are not independent: sums and counts of whole prompts are drawn
together, and their ratio is the mean over tokens.

One forward pass of each model gives a value a token (`TokenValues`); means over all prompts or over some, by position, and the
tokens that changed most are taken from those. Several students share the reference's pass (`TeacherValues`): what enters its
head is kept, D numbers a token, and the logits are made again a chunk at a time.

Shapes: N completion tokens (row by row), C tokens of a chunk, D reference width, E student width, P prompts (one completion
each), R resamples, V shared vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recoup.divergence import Head, forward_kl
from recoup.models.hidden import completion_hidden, head_of
from recoup.models.load import LanguageModel
from recoup.models.logits import batches, completion_rows, completion_tokens, shared_vocabulary
from recoup.models.sample import Rollouts
from recoup.results import Estimate, TokenDamage

BATCH_SIZE = 8  # rollouts in one forward pass
CHUNK_TOKENS = 128  # tokens scored at once: bounds the float32 copies of the logits
CONFIDENCE = 0.95


@dataclass(frozen=True)
class TeacherValues:
    """What a reference says of the completion tokens of `rollouts`, for any number of students."""

    reference: LanguageModel
    rollouts: Rollouts
    hidden_ND: Float[Tensor, "N D"]  # what enters its head before each completion token
    head: Head


@dataclass(frozen=True)
class TokenValues:
    """A student against its reference at every completion token of P prompts; on the CPU."""

    num_prompts: int
    row_N: Int[Tensor, " N"]  # the prompt that a token answers, ascending
    kl_N: Float[Tensor, " N"]  # KL(reference ‖ student), nats
    agrees_N: Bool[Tensor, " N"]  # whether both find the same token likeliest
    reference_nll_N: Float[Tensor, " N"]  # −log p of the token that stands there, nats
    student_nll_N: Float[Tensor, " N"]
    student_token_N: Int[Tensor, " N"]  # the student's likeliest

    @property
    def counts_P(self) -> Int[Tensor, " P"]:
        """Completion tokens of each prompt."""
        return torch.bincount(self.row_N, minlength=self.num_prompts)

    @property
    def position_N(self) -> Int[Tensor, " N"]:
        """Each token's number within its completion, from 0."""
        counts_P = self.counts_P
        starts_P = counts_P.cumsum(0) - counts_P
        return torch.arange(len(self.row_N)) - starts_P[self.row_N]

    def sums(self, values_N: Float[Tensor, " N"]) -> Float[Tensor, " P"]:
        """Sums over each prompt's tokens."""
        return values_N.new_zeros(self.num_prompts).index_add(0, self.row_N, values_N)

    def of(self, prompts: Sequence[int]) -> "TokenValues":
        """The tokens of these prompts alone, in their order here; the prompts are numbered anew."""
        wanted = sorted(set(prompts))
        number_P = torch.full((self.num_prompts,), -1)
        number_P[wanted] = torch.arange(len(wanted))
        row_N = number_P[self.row_N]
        kept_N = row_N >= 0
        return TokenValues(
            num_prompts=len(wanted),
            row_N=row_N[kept_N],
            kl_N=self.kl_N[kept_N],
            agrees_N=self.agrees_N[kept_N],
            reference_nll_N=self.reference_nll_N[kept_N],
            student_nll_N=self.student_nll_N[kept_N],
            student_token_N=self.student_token_N[kept_N],
        )

    def damage(self, *, num_bootstrap: int, seed: int) -> TokenDamage:
        """Mean token KL and top-1 agreement with intervals over prompts, and both perplexities.

        One prompt alone cannot be resampled: its intervals have no width.
        """
        counts_P = self.counts_P.double()
        kl_P, agrees_P = self.sums(self.kl_N), self.sums(self.agrees_N.double())
        return TokenDamage(
            num_prompts=self.num_prompts,
            num_tokens=len(self.row_N),
            token_kl_nats=ratio_estimate(kl_P, counts_P, num_bootstrap=num_bootstrap, seed=seed),
            top1_agreement=ratio_estimate(agrees_P, counts_P, num_bootstrap=num_bootstrap, seed=seed),
            reference_perplexity=float(self.reference_nll_N.mean().exp()),
            student_perplexity=float(self.student_nll_N.mean().exp()),
        )


def token_damage(
    reference: LanguageModel, student: LanguageModel, rollouts: Rollouts, *, num_bootstrap: int, seed: int
) -> TokenDamage:
    """Mean token KL, top-1 agreement and perplexities over the completion tokens of `rollouts`, one rollout a prompt.

    Raises:
        SourceError: the tokenizers differ, or a model has no output head that recoup knows.
    """
    values = token_values(teacher_values(reference, rollouts), student)
    return values.damage(num_bootstrap=num_bootstrap, seed=seed)


def teacher_values(reference: LanguageModel, rollouts: Rollouts) -> TeacherValues:
    """One forward pass of the reference over `rollouts`.

    Raises:
        SourceError: it has no output head, or its logits are another function of what the head puts out.
    """
    return TeacherValues(reference, rollouts, _hidden(reference, rollouts), head_of(reference.model))


@torch.inference_mode()
def token_values(teacher: TeacherValues, student: LanguageModel) -> TokenValues:
    """One forward pass of the student over the same rollouts, compared token by token.

    Both models' hidden states go through their heads in the same chunks, so that a model differs from itself by nothing.

    Raises:
        SourceError: as for `token_damage`.
    """
    vocabulary = shared_vocabulary(teacher.reference, student)
    hidden_ND, head = _hidden(student, teacher.rollouts), head_of(student.model).cut(vocabulary)
    reference_head = teacher.head.cut(vocabulary)
    chunks = zip(
        teacher.hidden_ND.split(CHUNK_TOKENS),
        hidden_ND.split(CHUNK_TOKENS),
        completion_tokens(teacher.rollouts).split(CHUNK_TOKENS),
        strict=True,
    )
    scored = [_compare(reference_head.logits(r_CD), head.logits(s_CE), tokens_C) for r_CD, s_CE, tokens_C in chunks]
    kl_N, agrees_N, reference_nll_N, student_nll_N, student_token_N = (
        torch.cat(parts).cpu() for parts in zip(*scored, strict=True)
    )
    return TokenValues(
        num_prompts=len(teacher.rollouts.tokens_BT),
        row_N=completion_rows(teacher.rollouts).cpu(),
        kl_N=kl_N,
        agrees_N=agrees_N,
        reference_nll_N=reference_nll_N,
        student_nll_N=student_nll_N,
        student_token_N=student_token_N,
    )


def ratio_estimate(
    numerator_P: Float[Tensor, " P"], denominator_P: Float[Tensor, " P"], *, num_bootstrap: int, seed: int
) -> Estimate:
    """sum(numerator) / sum(denominator) with its 95% interval, resampling prompts with replacement."""
    generator = torch.Generator().manual_seed(seed)
    num_prompts = len(numerator_P)
    drawn_RP = torch.randint(num_prompts, (num_bootstrap, num_prompts), generator=generator)
    ratios_R = numerator_P[drawn_RP].sum(1) / denominator_P[drawn_RP].sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = ratios_R.quantile(torch.tensor([tail, 1 - tail], dtype=ratios_R.dtype)).tolist()
    return Estimate(value=float(numerator_P.sum() / denominator_P.sum()), low=low, high=high)


def kl_difference(
    before_P: Float[Tensor, " P"],
    after_P: Float[Tensor, " P"],
    counts_P: Int[Tensor, " P"],
    *,
    num_bootstrap: int,
    seed: int,
) -> Estimate:
    """Mean token KL of one student minus that of another on the same rollouts (after − before), paired by prompt.

    Both ratios have the same denominator in every resample, so their difference is the ratio of the differences.

    Args:
        before_P: sums of KL over each prompt's tokens (`TokenValues.sums`), nats.
        after_P: the same of the other student.
        counts_P: tokens of each prompt.
        num_bootstrap: resamples.
        seed: decides them.
    """
    return ratio_estimate(after_P - before_P, counts_P.double(), num_bootstrap=num_bootstrap, seed=seed)


@torch.inference_mode()
def _hidden(model: LanguageModel, rollouts: Rollouts) -> Float[Tensor, "N D"]:
    return torch.cat([completion_hidden(model.model, batch) for batch in batches(rollouts, BATCH_SIZE)])


def _compare(
    reference_CV: Tensor, student_CV: Tensor, tokens_C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """KL, agreement, both negative log-likelihoods and the student's likeliest token, for one chunk; nats in float64."""
    reference_CV, student_CV = reference_CV.float(), student_CV.float()
    likeliest_C = student_CV.argmax(-1)
    return (
        forward_kl(student_CV, reference_CV).double(),
        reference_CV.argmax(-1) == likeliest_C,
        torch.nn.functional.cross_entropy(reference_CV, tokens_C, reduction="none").double(),
        torch.nn.functional.cross_entropy(student_CV, tokens_C, reduction="none").double(),
        likeliest_C,
    )
