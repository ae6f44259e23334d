"""Hidden states of every block, on every layout."""

from pathlib import Path

import pytest
import torch

from recoup.models.capture import block_outputs, hidden_states
from recoup.models.layers import blocks
from recoup.models.load import load
from recoup.models.sample import pack
from tests.conftest import LAYOUTS, WIDTH

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
COMPLETIONS = [[20, 21, 22, 23], [24]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_what_the_model_reports_unpadded(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout])).model
    rollouts = pack(PROMPTS, COMPLETIONS, pad=258)
    captured = hidden_states(model, rollouts)
    assert [tuple(states.shape) for states in captured] == [(2, 9, WIDTH)] * 2
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        alone = model.base_model(torch.tensor([prompt + completion]), output_hidden_states=True)
        norm = model.base_model.ln_f if layout == "gpt2" else model.base_model.norm
        first, last = (states[row][rollouts.attention_BT[row]] for states in captured)
        torch.testing.assert_close(first, alone.hidden_states[1][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm(last), alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)


def test_hooks_leave_with_the_context(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    with pytest.raises(RuntimeError), block_outputs(model):
        raise RuntimeError
    assert all(not block._forward_hooks for block in blocks(model))
