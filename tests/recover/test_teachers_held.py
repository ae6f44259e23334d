"""Teachers in 8 bits and in main memory: codes by hand, bounds, then whole models."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from recoup import divergence
from recoup.divergence import HiddenTargets
from recoup.models.layers import block_linears
from recoup.models.load import load
from recoup.models.logits import completion_logits
from recoup.models.sample import Sampling, pack, sample
from recoup.recover.teachers.base import bytes_of
from recoup.recover.teachers.frozen import Frozen
from recoup.recover.teachers.held import Int8Linear, held, int8_codes, offload, to_int8
from tests.conftest import LAYOUTS

ROLLOUTS = pack([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], pad=0)


def test_codes_by_hand() -> None:
    weight_OI = torch.tensor([[1.27, -0.644, 0.0], [0.0, 0.0, 0.0], [-254.0, 3.0, 1.0]])
    codes_OI, scale_O = int8_codes(weight_OI)
    # scales 1.27/127 = 0.01, 0, 254/127 = 2; -64.4 rounds to -64; 3/2 = 1.5 and 1/2 = 0.5 round to even, 2 and 0
    torch.testing.assert_close(scale_O, torch.tensor([0.01, 0.0, 2.0]))
    assert codes_OI.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 2, 0]]


def test_layer_by_hand() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[127.0, 3.2], [-254.0, 0.9]])
    linear.bias.data = torch.tensor([10.0, 20.0])
    # scales 1 and 2; codes (127, 3) and (-127, 0): 127 + 6 + 10 = 143 and 2 · (-127) + 20 = -234
    assert Int8Linear(linear)(torch.tensor([[1.0, 2.0]])).tolist() == [[143.0, -234.0]]


def test_layer_tells_its_weight() -> None:
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.data = torch.tensor([[254.0, 3.2]])
    layer = Int8Linear(linear)
    assert layer.weight.tolist() == [[254.0, 4.0]]  # scale 2; 3.2 / 2 = 1.6 rounds to 2
    assert (layer.in_features, layer.out_features) == (2, 1)
    assert layer.bias is None


def test_transposed_layer_is_the_same() -> None:
    torch.manual_seed(0)
    linear, transposed = nn.Linear(6, 4), Conv1D(4, 6)
    transposed.weight.data, transposed.bias.data = linear.weight.data.T.contiguous(), linear.bias.data
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(Int8Linear(transposed)(x), Int8Linear(linear)(x))
    torch.testing.assert_close(Int8Linear(linear)(x), linear(x), atol=0.03, rtol=0)


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 99), size=st.floats(1e-6, 1e4))
def test_a_weight_moves_by_half_a_code_at_most(rows: int, columns: int, seed: int, size: float) -> None:
    weight_OI = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes_OI, scale_O = int8_codes(weight_OI)
    moved_OI = (codes_OI * scale_O[:, None] - weight_OI).abs()
    assert (moved_OI <= 0.5 * scale_O[:, None] * (1 + 1e-5)).all()
    again_OI, _ = int8_codes(codes_OI * scale_O[:, None])
    assert torch.equal(again_OI, codes_OI)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_int8_teacher_is_near_itself(tiny_models: dict[str, Path], layout: str, dtype: torch.dtype) -> None:
    exact = completion_logits(load(str(tiny_models[layout])).model, ROLLOUTS)
    model = load(str(tiny_models[layout]), dtype=dtype)
    linears = [model.model.get_parameter(f"{name}.weight") for name in block_linears(model.model)]
    plain, linear_bytes = Frozen(model, 8).memory_bytes(), bytes_of(linears)
    teacher = Frozen(load(str(tiny_models[layout]), dtype=dtype), 8, "int8")
    targets = teacher.score(ROLLOUTS)
    assert isinstance(targets, HiddenTargets)
    gap = divergence.forward_kl(targets.head.logits(targets.hidden_ND).float(), exact).mean()
    assert 0 < gap < 0.01  # nats; these logits have a standard deviation near 1
    num_weights, num_rows = linear_bytes // dtype.itemsize, sum(max(w.shape) for w in linears)  # a bound on the rows
    assert (
        plain - linear_bytes + num_weights
        < teacher.memory_bytes()
        <= plain - linear_bytes + num_weights + num_rows * dtype.itemsize
    )


def test_int8_teacher_writes(tiny_model: Path) -> None:
    teacher = Frozen(load(str(tiny_model)), 8, "int8")
    with teacher.model() as writer:
        assert len(sample(writer, [[1, 2, 3]], Sampling(max_tokens=4)).completions()[0]) > 0
        linears = block_linears(writer.model)  # hidden states are found by blocks, and blocks by linear layers
        assert len(linears) == 2 * 7
        assert all(isinstance(module, Int8Linear) for module in linears.values())
        assert not any("proj" in name for name, _ in writer.model.named_parameters())


def test_how_a_teacher_is_held_is_part_of_who_it_is(tiny_model: Path) -> None:
    assert Frozen(load(str(tiny_model)), 8, "int8").identity != Frozen(load(str(tiny_model)), 8).identity


@pytest.mark.parametrize("layout", LAYOUTS)
def test_offloaded_blocks_come_back_for_every_pass(tiny_models: dict[str, Path], layout: str) -> None:
    """On a CPU the blocks are fetched from main memory to main memory: the same numbers, and weights that are gone between."""
    model = load(str(tiny_models[layout])).model
    expected = completion_logits(model, ROLLOUTS)
    size = bytes_of(model.parameters())
    offload(model, torch.device("cpu"))
    for _ in range(2):
        with torch.no_grad():
            assert torch.equal(completion_logits(model, ROLLOUTS), expected)
        assert all(module.weight.is_meta for module in block_linears(model).values())
    assert bytes_of(model.parameters()) == size  # counted, wherever they are


def test_nowhere_to_offload_from(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    held(model, "offload")
    assert model.device.type == "cuda" or not any(weight.is_meta for weight in model.parameters())


def test_plain_changes_nothing(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    before = completion_logits(model, ROLLOUTS)
    held(model, "plain")
    assert torch.equal(completion_logits(model, ROLLOUTS), before)
    to_int8(model)
    assert not torch.equal(completion_logits(model, ROLLOUTS), before)


@pytest.mark.gpu
def test_offloaded_teacher_on_an_accelerator(tiny_model: Path) -> None:
    plain, away = Frozen(load(str(tiny_model)), 8), Frozen(load(str(tiny_model)), 8, "offload")
    rollouts = pack([[1, 2, 3], [4]], [[5, 6], [7, 8, 9]], pad=0, device="cuda")
    expected, found = plain.score(rollouts), away.score(rollouts)
    assert isinstance(expected, HiddenTargets)
    assert isinstance(found, HiddenTargets)
    assert torch.equal(found.hidden_ND, expected.hidden_ND)


@pytest.mark.slow
def test_int8_gap_of_the_real_model() -> None:
    """On its 4-bit student's tokens 0.0067 nats were measured: see the module's docstring."""
    model = load("embedded", dtype=torch.bfloat16)
    ids = model.tokenizer(
        "The quick brown fox jumps over the lazy dog. In the beginning the universe was created."
    ).input_ids
    rollouts = pack([ids[:4]], [ids[4:]], pad=0)
    exact = completion_logits(model.model, rollouts)
    to_int8(model.model)
    assert divergence.forward_kl(completion_logits(model.model, rollouts), exact).mean() < 0.02
