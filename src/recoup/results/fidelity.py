"""How far a student's words are from its reference's."""

from recoup.results.base import Estimate, Record


class TokenDamage(Record):
    """Token-level fidelity of a student to its reference, on completions the reference wrote."""

    num_prompts: int
    num_tokens: int
    token_kl_nats: Estimate  # mean KL(reference ‖ student)
    top1_agreement: Estimate
    reference_perplexity: float
    student_perplexity: float
