"""Decoders and draws: worked by hand, then against the model's own forward pass."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recoup.models.decoding.base import Decoder, position_ids
from recoup.models.decoding.choose import Workload, decoder_for
from recoup.models.decoding.draw import draw, uniforms
from recoup.models.decoding.layout import read_layout
from recoup.models.decoding.lean import LeanDecoder
from recoup.models.decoding.product import Product, can_pack
from recoup.models.decoding.whole import WholeDecoder
from recoup.models.load import LanguageModel, load
from tests.conftest import save_tiny

LEAN_LAYOUTS = ("llama", "qwen2", "gemma3_text", "qwen3", "mistral")
WORK = Workload(num_rows=4, num_steps=8, longest=32)
LENGTHS = (9, 7, 4, 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, LanguageModel]:
    root = tmp_path_factory.mktemp("lean")
    more = {layout: save_tiny(layout, root / layout) for layout in ("qwen3", "mistral")}
    return {layout: load(str(folder)) for layout, folder in {**tiny_models, **more}.items()}


def test_draw_by_hand() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5]).log().repeat(4, 1)
    # cumulative 0.2, 0.5, 1: 0.1 falls to token 0, 0.25 and 0.49 to token 1, 0.51 to token 2
    tokens, logp = draw(logits, 1.0, torch.tensor([0.1, 0.25, 0.49, 0.51], dtype=torch.float64))
    assert tokens.tolist() == [0, 1, 1, 2]
    assert torch.allclose(logp, torch.tensor([0.2, 0.3, 0.3, 0.5]).log())
    # at temperature 1/2 the weights are squares, 0.04 : 0.09 : 0.25 of 0.38: cumulative 0.105, 0.342, 1
    tokens, logp = draw(logits, 0.5, torch.tensor([0.1, 0.11, 0.34, 0.35], dtype=torch.float64))
    assert tokens.tolist() == [0, 1, 1, 2]
    assert torch.allclose(logp.exp(), torch.tensor([0.04, 0.09, 0.09, 0.25]) / 0.38)


def test_draw_leaves_the_logits_as_they_are() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    draw(logits, 0.5, torch.tensor([0.5], dtype=torch.float64))
    assert logits.tolist() == [[1.0, 2.0]]


def test_draw_at_temperature_zero_is_the_likeliest_token_and_certain() -> None:
    tokens, logp = draw(torch.tensor([[0.0, 2.0, 1.0]]), 0.0, torch.tensor([0.99], dtype=torch.float64))
    assert tokens.tolist() == [1]
    assert logp.tolist() == [0.0]


def test_every_token_of_a_vocabulary_that_fills_no_whole_group_has_its_interval() -> None:
    size = 600  # two groups of 256 and 88 more; token k has the interval k/600 to (k+1)/600
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    tokens, _ = draw(torch.zeros(size, size), 1.0, middles)
    assert tokens.tolist() == list(range(size))


@pytest.mark.parametrize("size", [3, 300])
def test_a_number_just_below_one_draws_the_last_possible_token(size: int) -> None:
    logits = torch.full((1, size), -torch.inf)
    logits[0, 1] = 0.0  # the only possible token; those after it have probability zero
    tokens, logp = draw(logits, 1.0, torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    assert (tokens.tolist(), logp.tolist()) == ([1], [0.0])


@given(st.integers(0, 2**32), st.integers(1, 700), st.floats(0, 1, exclude_max=True), st.floats(0.2, 3))
def test_draw_is_the_inverse_of_the_cumulative_distribution(seed: int, size: int, number: float, heat: float) -> None:
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(seed)) * 3
    (token,), _ = draw(logits, heat, torch.tensor([number], dtype=torch.float64))
    cumulative = torch.softmax(logits[0].double() / heat, -1).cumsum(-1)
    below = 0.0 if token == 0 else cumulative[token - 1]
    assert below - 1e-5 <= number <= cumulative[token] + 1e-5  # float32 probabilities


def test_uniforms_depend_on_seed_and_row_alone() -> None:
    table = uniforms(5, [0, 1, 2, 7], 6)
    assert torch.equal(uniforms(5, [7, 1], 6), table[[3, 1]])
    assert torch.equal(uniforms(5, [7], 3), table[3:, :3])
    assert not torch.equal(uniforms(6, [0], 6), table[:1])
    assert len(table.unique()) == table.numel()


def test_uniforms_are_uniform_along_rows_and_along_tokens() -> None:
    for table in (uniforms(0, range(4000), 1), uniforms(0, [0], 4000).T):
        counts = np.histogram(table, bins=20, range=(0, 1))[0]
        chi_square = float(((counts - 200) ** 2 / 200).sum())
        assert chi_square < 19 + 4 * (2 * 19) ** 0.5  # four standard deviations above the mean of 19 degrees


@pytest.mark.parametrize("biases", [(False, False), (True, True), (True, False)])
def test_a_packed_product_is_the_layers_side_by_side(biases: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(48, size, bias=bias).bfloat16() for size, bias in zip((32, 80), biases, strict=True)]
    if not can_pack(linears[0].weight):
        pytest.skip("this processor does not multiply bf16 from packed weights")
    inputs = torch.randn(5, 3, 48).bfloat16()
    with torch.inference_mode():
        packed = Product(linears, packed=True, num_rows=5)(inputs)
        plain = Product(linears, packed=False, num_rows=5)(inputs)
        exact = torch.cat([linear.float()(inputs.float()) for linear in linears], -1)
    for got in (packed, plain):
        assert torch.allclose(got.float(), exact, atol=2**-7 * float(exact.abs().max()))  # bf16: 8 bits


@pytest.mark.parametrize("layout", LEAN_LAYOUTS)
def test_known_layouts_are_decoded_lean(tiny: dict[str, LanguageModel], layout: str) -> None:
    assert isinstance(decoder_for(tiny[layout].model, WORK), LeanDecoder)


@pytest.mark.parametrize("layout", [*LEAN_LAYOUTS, "gpt2"])
@pytest.mark.parametrize("kind", [LeanDecoder, WholeDecoder])
@torch.inference_mode()
def test_logits_are_those_of_a_forward_pass_without_cache(
    tiny: dict[str, LanguageModel], layout: str, kind: type[Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of unequal lengths, two steps, a row leaves, two more steps."""
    if layout == "gpt2" and kind is LeanDecoder:
        pytest.skip("no lean layout")
    monkeypatch.setattr("recoup.models.decoding.lean.PREFILL_TOKENS", 12)  # so that the prompts take several calls
    model = tiny[layout].model
    decoder = WholeDecoder(model) if kind is WholeDecoder else decoder_for(model, WORK)
    assert type(decoder) is kind
    width = max(LENGTHS)
    rows = torch.randint(256, (len(LENGTHS), width + 4), generator=torch.Generator().manual_seed(1))
    attention = torch.stack([torch.arange(width + 4) >= width - length for length in LENGTHS])
    got = [decoder.prefill(rows[:, :width], attention[:, :width], 4)]
    got += [decoder.step(rows[:, width]), decoder.step(rows[:, width + 1])]
    slots = [0, 3, 2]  # row 1 left, and row 3 took its place
    decoder.keep(slots)
    got += [decoder.step(rows[slots, width + 2]), decoder.step(rows[slots, width + 3])]
    own = model(rows, attention_mask=attention.long(), position_ids=position_ids(attention)).logits[:, width - 1 :]
    expected = [own[:, 0], own[:, 1], own[:, 2], own[slots, 3], own[slots, 4]]
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_longer_text_than_the_sliding_window_is_decoded_whole(tiny: dict[str, LanguageModel]) -> None:
    model = tiny["gemma3_text"].model  # its window is 64 tokens
    assert isinstance(decoder_for(model, Workload(1, 1, 64)), LeanDecoder)
    assert isinstance(decoder_for(model, Workload(1, 1, 65)), WholeDecoder)


def test_other_models_are_decoded_whole(tiny: dict[str, LanguageModel], tiny_model: Path) -> None:
    assert isinstance(decoder_for(tiny["gpt2"].model, WORK), WholeDecoder)
    watched = load(str(tiny_model)).model
    handle = watched.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert isinstance(decoder_for(watched, WORK), WholeDecoder)
    handle.remove()
    assert isinstance(decoder_for(watched, WORK), LeanDecoder)


def test_an_adapter_is_decoded_whole(tiny_model: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load(str(tiny_model)).model
    assert read_layout(model) is not None
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), model)
    assert read_layout(model) is None


def test_rotary_angles_that_change_with_length_are_decoded_whole(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = load(str(save_tiny("llama", tmp_path / "dynamic", rope_parameters=rope))).model
    assert read_layout(model) is None


def test_logits_that_are_not_the_models_own_are_found_out(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(str(tiny_model)).model
    forward = model.forward
    model.forward = lambda *a, **k: SimpleNamespace(logits=forward(*a, **k).logits * 1.01)
    with caplog.at_level(logging.WARNING):
        assert isinstance(decoder_for(model, WORK), WholeDecoder)
        assert isinstance(decoder_for(model, WORK), WholeDecoder)
    assert len(caplog.records) == 1  # measured once
    # a hundredth of the logits; their mean is not quite zero, so a hundredth of their spread only nearly
    assert 0.009 < float(caplog.text.split("off by ")[1].split()[0]) < 0.011
