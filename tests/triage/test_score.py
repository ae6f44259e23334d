"""Scores and the yardstick, by hand and against the diagnosis's own figures."""

import math
from pathlib import Path

import pytest
import torch

from recoup.evaluate.fidelity import token_damage
from recoup.models.load import load
from recoup.models.sample import pack
from recoup.triage.score import PromptKL, context_free_kl, gain, information, said_by, scored, share_left
from tests.conftest import save_tiny

ROLLOUTS = pack([[5, 6, 7], [8, 9, 10, 11], [13]], [[20, 21, 22], [24], [25, 26]], pad=258)


def test_gain_and_share_left_by_hand() -> None:
    """Sums 2 and 4 over 1 and 3 tokens: 6/4 nats. Repaired 1 and 3: gain (6 − 4)/4, and 4/6 is left."""
    counts = torch.tensor([1, 3])
    before = PromptKL(torch.tensor([2.0, 4.0]), counts)
    after = PromptKL(torch.tensor([1.0, 3.0]), counts)
    assert before.mean(0).value == 1.5
    assert gain(before, after, 0).value == 0.5
    assert share_left(before, after, 0).value == pytest.approx(2 / 3)
    assert gain(before, before, 0).high == 0


def test_a_model_against_itself_scores_nothing(tiny_models: dict[str, Path]) -> None:
    teacher = load(str(tiny_models["llama"]))
    score = scored(said_by(teacher, ROLLOUTS), load(str(tiny_models["llama"])))
    assert score.sums_P.tolist() == [0, 0, 0]
    assert score.counts_P.tolist() == [3, 1, 2]


def test_scores_are_the_diagnosis_in_bfloat16(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    teacher, student = load(str(tiny_models["llama"])), load(str(save_tiny("llama", tmp_path, seed=1)))
    exact = token_damage(teacher, student, ROLLOUTS, num_bootstrap=10, seed=0).token_kl_nats.value
    assert scored(said_by(teacher, ROLLOUTS), student).mean(0).value == pytest.approx(exact, rel=0.05)


def test_information_by_hand() -> None:
    """(3/4, 1/4) and (1/4, 3/4): the mean is even, H = log 2; each has 0.5623 nats. So 0.6931 − 0.5623."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()
    each = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert information(iter([logits])) == pytest.approx(math.log(2) - each)
    assert information(iter(logits.split(1))) == pytest.approx(math.log(2) - each)  # however it is cut


def test_a_context_that_tells_nothing_and_one_that_tells_all() -> None:
    same = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)).expand(5, 7)
    assert information(iter([same])) == pytest.approx(0, abs=1e-12)
    certain = torch.full((4, 4), -50.0).fill_diagonal_(50.0)
    assert information(iter([certain])) == pytest.approx(math.log(4))


def test_no_single_distribution_is_nearer_on_average(tiny_models: dict[str, Path]) -> None:
    """The mean of the teacher's distributions is what minimises mean KL: any one of them, and the even one, are further."""
    teacher = load(str(tiny_models["llama"]))
    said = said_by(teacher, ROLLOUTS)
    least = context_free_kl(said)
    logp = said.head.logits(said.hidden_ND).double().log_softmax(-1)
    for other in (*logp, torch.full_like(logp[0], -math.log(logp.shape[1]))):
        assert float((logp.exp() * (logp - other)).sum(1).mean()) >= least - 1e-9
    assert 0 < least < math.log(len(logp))
