"""Token-level fidelity against values taken sequence by sequence, and its bootstrap by hand."""

from pathlib import Path

import pytest
import torch

from recoup.evaluate import fidelity
from recoup.evaluate.fidelity import ratio_estimate, token_damage
from recoup.models.load import LanguageModel, load
from recoup.models.sample import pack
from tests.conftest import LAYOUTS, VOCAB, save_tiny

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
COMPLETIONS = [[20, 21, 22, 23], [24], [25, 26]]
ROLLOUTS = pack(PROMPTS, COMPLETIONS, pad=258)


def logp_alone(model: LanguageModel) -> torch.Tensor:
    """log p at each completion token, each sequence on its own, over the first VOCAB ids, in float64."""
    rows = [
        model.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, :VOCAB]
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    return torch.cat(rows).double().log_softmax(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_sequences_alone(
    tiny_models: dict[str, Path], layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "BATCH_SIZE", 2)
    monkeypatch.setattr(fidelity, "CHUNK_TOKENS", 3)
    changes = {} if layout == "gpt2" else {"vocab_size": VOCAB + 5}  # a head padded to another size
    reference, student = load(str(tiny_models[layout])), load(str(save_tiny(layout, tmp_path, seed=1, **changes)))
    result = token_damage(reference, student, ROLLOUTS, num_bootstrap=50, seed=0)
    p, q = logp_alone(reference), logp_alone(student)
    token = ROLLOUTS.tokens_BT[ROLLOUTS.completion_BT][:, None]
    assert (result.num_prompts, result.num_tokens) == (3, 7)
    assert result.token_kl_nats.value == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), abs=1e-5)
    assert result.top1_agreement.value == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert result.reference_perplexity == pytest.approx(float((-p.gather(1, token).mean()).exp()), rel=1e-5)
    assert result.student_perplexity == pytest.approx(float((-q.gather(1, token).mean()).exp()), rel=1e-5)
    assert result.token_kl_nats.low <= result.token_kl_nats.value <= result.token_kl_nats.high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_against_itself_is_undamaged(tiny_model: Path, dtype: torch.dtype) -> None:
    model = load(str(tiny_model), dtype=dtype)
    result = token_damage(model, model, ROLLOUTS, num_bootstrap=20, seed=0)
    assert (result.token_kl_nats.value, result.token_kl_nats.low, result.token_kl_nats.high) == (0, 0, 0)
    assert (result.top1_agreement.value, result.top1_agreement.low, result.top1_agreement.high) == (1, 1, 1)
    assert result.reference_perplexity == result.student_perplexity


def test_bootstrap_draws_whole_prompts() -> None:
    """Two prompts with sums 0 and 3 over 1 and 3 tokens: value 3/4.

    Draws: both the first (chance 1/4): 0; one each: 3/4; both the second (1/4): 6/6 = 1. So the 2.5% and 97.5% points
    are 0 and 1.
    """
    sums, counts = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 3.0])
    estimate = ratio_estimate(sums, counts, num_bootstrap=2000, seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (0.75, 0, 1)
    assert estimate == ratio_estimate(sums, counts, num_bootstrap=2000, seed=0)


def test_bootstrap_interval_has_the_width_theory_gives() -> None:
    """Mean of 400 standard normals: 1.96 / sqrt(400) = 0.098 on either side."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = ratio_estimate(values, torch.ones_like(values), num_bootstrap=4000, seed=1)
    assert estimate.high - estimate.low == pytest.approx(2 * 0.098 * float(values.std()), rel=0.1)
