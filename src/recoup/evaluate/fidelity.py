"""Token-level fidelity: how far a student's next-token distributions are from its reference's, on the same completions.

KL(reference ‖ student) is `forward_kl` of METHOD section 4, over the whole shared vocabulary, in float32. Heads padded to
different sizes are cut to the ids that mean the same token in both, and renormalised there. Intervals are percentile
bootstraps over prompts, since tokens of one completion are not independent: sums and counts of whole prompts are drawn
together, and their ratio is the mean over tokens.

Shapes: N completion tokens, P prompts (one completion each), R resamples, V shared vocabulary, M metrics.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.divergence import forward_kl
from recoup.models.load import LanguageModel
from recoup.models.logits import batches, completion_logits, completion_rows, completion_tokens, shared_vocabulary
from recoup.models.sample import Rollouts
from recoup.results import Estimate, TokenDamage

BATCH_SIZE = 8  # rollouts in one forward pass
CHUNK_TOKENS = 128  # tokens scored at once: bounds the float32 copies of the logits
CONFIDENCE = 0.95


def token_damage(
    reference: LanguageModel, student: LanguageModel, rollouts: Rollouts, *, num_bootstrap: int, seed: int
) -> TokenDamage:
    """Mean token KL, top-1 agreement and perplexities over the completion tokens of `rollouts`, one rollout a prompt.

    Raises:
        SourceError: the tokenizers differ, or a model has no output head.
    """
    vocabulary = shared_vocabulary(reference, student)
    sums_PM = torch.cat(
        [_prompt_sums(reference, student, batch, vocabulary) for batch in batches(rollouts, BATCH_SIZE)]
    )
    counts_P = rollouts.completion_BT.sum(1).cpu()
    kl_P, agree_P, reference_nll_P, student_nll_P = sums_PM.cpu().unbind(1)
    num_tokens = int(counts_P.sum())
    return TokenDamage(
        num_prompts=len(counts_P),
        num_tokens=num_tokens,
        token_kl_nats=ratio_estimate(kl_P, counts_P.double(), num_bootstrap=num_bootstrap, seed=seed),
        top1_agreement=ratio_estimate(agree_P, counts_P.double(), num_bootstrap=num_bootstrap, seed=seed),
        reference_perplexity=float((reference_nll_P.sum() / num_tokens).exp()),
        student_perplexity=float((student_nll_P.sum() / num_tokens).exp()),
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


@torch.inference_mode()
def _prompt_sums(
    reference: LanguageModel, student: LanguageModel, batch: Rollouts, vocabulary: int
) -> Float[Tensor, "P 4"]:
    """Sums over each prompt's tokens of KL, agreement, and both models' negative log-likelihoods."""
    reference_NV = completion_logits(reference.model, batch)[:, :vocabulary]
    student_NV = completion_logits(student.model, batch)[:, :vocabulary]
    chunks = zip(
        reference_NV.split(CHUNK_TOKENS),
        student_NV.split(CHUNK_TOKENS),
        completion_tokens(batch).split(CHUNK_TOKENS),
        strict=True,
    )
    values_NM = torch.cat([_token_values(*chunk) for chunk in chunks])
    return values_NM.new_zeros(len(batch.tokens_BT), 4).index_add(0, completion_rows(batch), values_NM)


def _token_values(reference_NV: Tensor, student_NV: Tensor, tokens_N: Tensor) -> Float[Tensor, "N 4"]:
    reference_NV, student_NV = reference_NV.float(), student_NV.float()
    values = (
        forward_kl(student_NV, reference_NV),
        reference_NV.argmax(-1) == student_NV.argmax(-1),
        torch.nn.functional.cross_entropy(reference_NV, tokens_N, reduction="none"),
        torch.nn.functional.cross_entropy(student_NV, tokens_N, reduction="none"),
    )
    return torch.stack([value.double() for value in values], dim=1)
