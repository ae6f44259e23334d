"""Hidden states held: the right tokens of the right models."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recoup.cka import debiased_cka
from recoup.diagnose import layers
from recoup.diagnose.layers import even_rows, thinned, token_states
from recoup.errors import SourceError
from recoup.models.layers import paired_blocks
from recoup.models.load import load
from recoup.models.sample import Rollouts, pack
from tests.conftest import LAYOUTS, save_tiny

LENGTHS = [(3, 9), (7, 4), (1, 12), (5, 5)]


def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (
        [torch.randint(256, (pair[side],), generator=generator).tolist() for pair in LENGTHS] for side in (0, 1)
    )
    return pack(prompts, completions, pad=258)


def test_rows_are_spread_evenly() -> None:
    """Of 6 rows of 10 tokens, 30 tokens hold rows 0, 2 and 4; 20 hold 0 and 3; one row stays whatever the limit."""
    assert even_rows([10] * 6, 60) == [0, 1, 2, 3, 4, 5]
    assert even_rows([10] * 6, 30) == [0, 2, 4]
    assert even_rows([10] * 6, 29) == [0, 3]
    assert even_rows([10] * 6, 5) == [0]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 300))
def test_rows_keep_the_limit(counts: list[int], limit: int) -> None:
    rows = even_rows(counts, limit)
    assert rows == sorted(set(rows))
    assert sum(counts[row] for row in rows) <= limit or rows == [0]
    assert len(rows) == len(counts) or sum(counts) > limit


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_sequences_alone(
    tiny_models: dict[str, Path], layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States, rollouts and places of every token, as each sequence gives them on its own, without pads."""
    monkeypatch.setattr(layers, "BATCH_SIZE", 3)
    teacher, student = load(str(tiny_models[layout])), load(str(save_tiny(layout, tmp_path, seed=1)))
    batch = rollouts()
    states, _ = token_states(teacher, student, batch)
    assert batch.tokens_BT.flatten()[states.place_N].tolist() == batch.tokens_BT[batch.attention_BT].tolist()
    for row, (prompt, completion) in enumerate(LENGTHS):
        mine_N = states.rollout_N == row
        assert states.sink_N[mine_N].tolist() == [True] + [False] * (prompt + completion - 1)
        tokens = batch.tokens_BT[row][batch.attention_BT[row]]
        for model, held in ((teacher, states.teacher), (student, states.student)):
            alone = model.model.base_model(tokens[None], output_hidden_states=True).hidden_states[1][0]
            torch.testing.assert_close(held[0][mine_N], alone, atol=1e-5, rtol=1e-5)


def test_a_limit_holds_whole_rollouts(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    states, _ = token_states(model, model, rollouts(), max_tokens=26)
    assert states.rollout_N.tolist() == [0] * 12 + [2] * 13
    assert all(len(held) == 25 for held in (*states.student, *states.teacher))


def test_mean_cka_of_some_tokens(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts 1 and 3 alone: 11 + 10 tokens, two of them sinks."""
    monkeypatch.setattr(layers, "MIN_TOKENS", 19)
    teacher, student = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))
    states, _ = token_states(teacher, student, rollouts())
    mask_BT = torch.zeros_like(rollouts().attention_BT)
    mask_BT[[1, 3]] = True
    chosen_N = ((states.rollout_N == 1) | (states.rollout_N == 3)) & ~states.sink_N
    values = [debiased_cka(X[chosen_N], Y[chosen_N]) for X, Y in zip(states.student, states.teacher, strict=True)]
    assert states.mean_cka(mask_BT) == pytest.approx(sum(values) / 2, abs=1e-5)
    mask_BT[1, 7] = False  # one fewer than enough
    assert states.mean_cka(mask_BT) is None


def test_blocks_pair_at_the_same_relative_depth() -> None:
    assert paired_blocks(4, 4) == (0, 1, 2, 3)
    assert paired_blocks(2, 4) == (1, 3)
    assert paired_blocks(3, 4) == (1, 2, 3)
    assert paired_blocks(4, 2) == (0, 0, 1, 1)


def test_thinned_tokens_are_even() -> None:
    """Of 5 that count, 3 fit as every second, 2 as every third, 5 as all; the uncounted one stays out."""
    mask_N = torch.tensor([True, True, False, True, True, True])
    assert thinned(mask_N, 3).int().tolist() == [1, 0, 0, 1, 0, 1]
    assert thinned(mask_N, 2).int().tolist() == [1, 0, 0, 0, 1, 0]
    assert torch.equal(thinned(mask_N, 5), mask_N)


def test_partners_of_a_model_cut_in_depth(tiny_model: Path, tmp_path: Path) -> None:
    """Three blocks against two: partners of the student's are the teacher's second and third."""
    deep = load(str(save_tiny("llama", tmp_path, num_hidden_layers=3)))
    states, drifts = token_states(deep, load(str(tiny_model)), rollouts())
    assert len(states.student) == len(drifts) == 2
    assert states.partners[0] is states.teacher[1]
    assert states.partners[1] is states.teacher[2]


def test_a_broken_block_is_named(tiny_model: Path) -> None:
    teacher, student = load(str(tiny_model)), load(str(tiny_model))
    student.model.get_submodule("model.layers.1.mlp.down_proj").weight.data.fill_(float("nan"))
    with pytest.raises(SourceError, match="after block 1"):
        token_states(teacher, student, rollouts())
