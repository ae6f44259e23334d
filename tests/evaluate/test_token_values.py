"""Values a token: slices and sums by hand, one pass of the reference for several students, differences paired by prompt."""

from pathlib import Path

import pytest
import torch

from recoup.divergence import forward_kl
from recoup.evaluate.fidelity import (
    TokenValues,
    kl_difference,
    teacher_values,
    token_damage,
    token_values,
)
from recoup.models.load import load
from recoup.models.logits import completion_logits
from recoup.models.sample import pack
from tests.conftest import LAYOUTS, save_tiny

ROLLOUTS = pack([[5, 6, 7], [8, 9, 10, 11, 12], [13]], [[20, 21, 22, 23], [24], [25, 26]], pad=258)
ROWS = [0, 0, 0, 0, 1, 2, 2]


def by_hand() -> TokenValues:
    n = torch.arange(7, dtype=torch.float64)
    return TokenValues(3, torch.tensor(ROWS), n, n > 3, n + 10, n + 20, torch.arange(7) + 30)


def test_prompts_positions_and_sums_by_hand() -> None:
    values = by_hand()
    assert values.counts_P.tolist() == [4, 1, 2]
    assert values.position_N.tolist() == [0, 1, 2, 3, 0, 0, 1]
    assert values.sums(values.kl_N).tolist() == [0 + 1 + 2 + 3, 4, 5 + 6]


def test_some_prompts_by_hand() -> None:
    some = by_hand().of([2, 1])  # in their order of the whole
    assert (some.num_prompts, some.row_N.tolist(), some.position_N.tolist()) == (2, [0, 1, 1], [0, 0, 1])
    assert some.kl_N.tolist() == [4, 5, 6]
    assert some.agrees_N.tolist() == [True, True, True]
    assert (some.reference_nll_N - some.kl_N).tolist() == [10] * 3
    assert (some.student_nll_N - some.kl_N).tolist() == [20] * 3
    assert some.student_token_N.tolist() == [34, 35, 36]


def test_a_prompt_without_tokens_keeps_its_place() -> None:
    n = torch.arange(2, dtype=torch.float64)
    values = TokenValues(3, torch.tensor([0, 2]), n, n > 0, n, n, torch.arange(2))
    assert values.counts_P.tolist() == [1, 0, 1]
    assert values.position_N.tolist() == [0, 0]
    assert values.sums(n).tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_to_the_models_own_logits(
    tiny_models: dict[str, Path], layout: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    reference = load(str(tiny_models[layout]), dtype=dtype)
    student = load(str(save_tiny(layout, tmp_path, seed=1)), dtype=dtype)
    values = token_values(teacher_values(reference, ROLLOUTS), student)
    reference_NV, student_NV = (completion_logits(m.model, ROLLOUTS).float() for m in (reference, student))
    tokens_N = ROLLOUTS.tokens_BT[ROLLOUTS.completion_BT]
    torch.testing.assert_close(values.kl_N.float(), forward_kl(student_NV, reference_NV), atol=1e-5, rtol=1e-5)
    assert values.row_N.tolist() == ROWS
    assert values.student_token_N.tolist() == student_NV.argmax(-1).tolist()
    assert values.agrees_N.tolist() == (student_NV.argmax(-1) == reference_NV.argmax(-1)).tolist()
    for nll_N, logits_NV in ((values.reference_nll_N, reference_NV), (values.student_nll_N, student_NV)):
        expected_N = -logits_NV.log_softmax(-1).gather(1, tokens_N[:, None])[:, 0]
        torch.testing.assert_close(nll_N.float(), expected_N, atol=1e-5, rtol=1e-5)


def test_one_pass_of_the_reference_serves_all_students(tiny_model: Path, tmp_path: Path) -> None:
    reference, student = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))
    teacher = teacher_values(reference, ROLLOUTS)
    passes: list[object] = []
    hook = reference.model.register_forward_hook(lambda *_: passes.append(None))
    damage = token_values(teacher, student).damage(num_bootstrap=20, seed=3)
    hook.remove()
    assert not passes
    assert damage == token_damage(reference, student, ROLLOUTS, num_bootstrap=20, seed=3)
    assert token_values(teacher, reference).kl_N.tolist() == [0] * 7


def test_difference_by_hand() -> None:
    """Sums 4, 6 before and 1, 1 after, over 1 and 3 tokens: (2 − 10) / 4 = −2.

    The first prompt alone: −3 / 1; the second alone: −5 / 3. Each is drawn twice with chance 1/4: the bounds.
    """
    before, after = torch.tensor([4.0, 6.0]), torch.tensor([1.0, 1.0])
    found = kl_difference(before, after, torch.tensor([1, 3]), num_bootstrap=2000, seed=0)
    assert (found.value, found.low) == (-2, -3)
    assert found.high == pytest.approx(-5 / 3)
