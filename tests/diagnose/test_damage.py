"""Layerwise damage: same tokens through both models, pads and sinks treated apart."""

from pathlib import Path

import pytest
import torch

from recoup.cka import debiased_cka
from recoup.diagnose import damage
from recoup.diagnose.damage import layer_damage, pair_blocks
from recoup.errors import SourceError
from recoup.models.layers import blocks
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, pack
from tests.conftest import LAYOUTS, save_tiny

LENGTHS = [(3, 9), (7, 4), (1, 12), (5, 5)]
NUM_TOKENS = sum(prompt + completion for prompt, completion in LENGTHS)


def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(256, (n,), generator=generator).tolist()

    return pack([draw(p) for p, _ in LENGTHS], [draw(c) for _, c in LENGTHS], pad=258)


def sequences_alone(model: LanguageModel, index: int) -> list[torch.Tensor]:
    """Hidden states after block `index`, each sequence on its own without pads."""
    batch = rollouts()
    states: list[torch.Tensor] = []
    hook = blocks(model.model)[index].register_forward_hook(
        lambda _m, _i, output: states.append((output[0] if isinstance(output, tuple) else output)[0])
    )
    for tokens, attention in zip(batch.tokens_BT, batch.attention_BT, strict=True):
        model.model(tokens[attention][None])
    hook.remove()
    return states


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_sequences_alone(
    tiny_models: dict[str, Path], layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(damage, "BATCH_SIZE", 3)
    teacher, student = load(str(tiny_models[layout])), load(str(save_tiny(layout, tmp_path, seed=1)))
    layers, num_cka_tokens = layer_damage(teacher, student, rollouts())
    assert num_cka_tokens == NUM_TOKENS - len(LENGTHS)
    for index, layer in enumerate(layers):
        X, Y = sequences_alone(student, index), sequences_alone(teacher, index)
        without_first = debiased_cka(torch.cat([x[1:] for x in X]), torch.cat([y[1:] for y in Y]))
        assert layer.layer == index
        assert layer.linear_cka == pytest.approx(without_first, abs=1e-4)
        assert layer.linear_cka_all_tokens == pytest.approx(debiased_cka(torch.cat(X), torch.cat(Y)), abs=1e-4)
        assert layer.linear_cka < 0.99


def test_a_model_against_itself(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype=torch.bfloat16)
    for layer in layer_damage(model, model, rollouts())[0]:
        assert layer.linear_cka == pytest.approx(1, abs=1e-9)
        assert layer.linear_cka_all_tokens == pytest.approx(1, abs=1e-9)
        assert layer.relative_drift == 0


def test_sinks_hide_damage_only_from_the_number_that_keeps_them(tiny_model: Path, tmp_path: Path) -> None:
    """Both models push the first token far out in one direction; their other tokens are unrelated."""
    teacher, student = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))
    for model in (teacher, student):
        blocks(model.model)[1].register_forward_hook(_far_first_tokens)
    last = layer_damage(teacher, student, rollouts())[0][1]
    assert last.linear_cka_all_tokens > 0.99
    assert last.linear_cka < 0.9


def _far_first_tokens(_block: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    output = output.clone()
    starts = torch.tensor([7 - prompt for prompt, _ in LENGTHS])
    output[torch.arange(len(starts)), starts, 3] += 10_000
    return output


def test_pruned_width_and_depth(tiny_model: Path, tmp_path: Path) -> None:
    teacher = load(str(tiny_model))
    narrow = load(str(save_tiny("llama", tmp_path / "narrow", intermediate_size=40)))
    deep = load(str(save_tiny("llama", tmp_path / "deep", num_hidden_layers=3, hidden_size=64)))
    layers, _ = layer_damage(teacher, narrow, rollouts())
    assert [layer.relative_drift for layer in layers] == [None, None]
    assert len(layer_damage(deep, teacher, rollouts())[0]) == 2
    assert len(layer_damage(teacher, deep, rollouts())[0]) == 3


def test_blocks_pair_at_the_same_relative_depth() -> None:
    assert pair_blocks(4, 4) == (0, 1, 2, 3)
    assert pair_blocks(2, 4) == (1, 3)
    assert pair_blocks(3, 4) == (1, 2, 3)
    assert pair_blocks(4, 2) == (0, 0, 1, 1)


def test_a_broken_block_is_named(tiny_model: Path) -> None:
    teacher, student = load(str(tiny_model)), load(str(tiny_model))
    student.model.get_submodule("model.layers.1.mlp.down_proj").weight.data.fill_(float("nan"))
    with pytest.raises(SourceError, match="block 1"):
        layer_damage(teacher, student, rollouts())
