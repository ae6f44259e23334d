"""Optimizers: steps by hand, what the learning rate means, state that survives bit for bit, and its size."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recoup.errors import ConfigError
from recoup.training.optimizers import build, load_state_tensors, set_learning_rate, state_bytes, state_tensors

NAMES = ["adamw", "adafactor", "adamw_8bit"]
SHAPES = [(64, 96), (96,), (5, 7)]  # 6144 numbers: torchao codes tensors of 4096 or more, the others stay float32


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator) * 0.1) for shape in SHAPES]


def made(name: str, parameters: list[nn.Parameter], weight_decay: float = 0.0) -> torch.optim.Optimizer:
    if name == "adamw_8bit":
        pytest.importorskip("torchao")
    return build(name, parameters, weight_decay)  # type: ignore[arg-type]


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_learning_rate(optimizer, 0.01 / (step + 1))
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_first_step_on_equal_gradients_moves_every_weight_by_the_learning_rate(name: str) -> None:
    parameters = weights()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = made(name, parameters)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, -3.0)
    set_learning_rate(optimizer, 0.25)
    optimizer.step()
    # Adam: lr · g / sqrt(g²). Adafactor: the row and column means of g² = 9 give V = 9 · 9 / 9, U = −3 / 3, RMS 1, not
    # clipped; the factor is max(1, RMS(weight) ≈ 0.1) = 1
    for parameter, old in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.detach(), old + 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_decoupled_by_hand(name: str) -> None:
    parameter = nn.Parameter(torch.full((2, 3), 0.5))
    optimizer = made(name, [parameter], weight_decay=0.1)
    parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.2)
    optimizer.step()
    # no gradient, no step: w (1 − lr · decay) = 0.5 · 0.98, and no 0 / 0 anywhere
    torch.testing.assert_close(parameter.detach(), torch.full((2, 3), 0.49))


def test_adafactor_steps_of_tiny_gradients_equal_those_of_large_ones() -> None:
    """Gradients clipped to norm 1 over 10^8 numbers are 1e-4 each; scaling them all must change nothing."""
    gradient = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 16)[:, None]
    moved = {}
    for scale in (1.0, 1e-6):
        parameter = nn.Parameter(torch.zeros(16, 8))
        optimizer = build("adafactor", [parameter], 0.0)
        parameter.grad = gradient * scale
        set_learning_rate(optimizer, 1.0)
        optimizer.step()
        moved[scale] = parameter.detach()
    torch.testing.assert_close(moved[1e-6], moved[1.0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_a_file_bit_for_bit(name: str, tmp_path) -> None:
    unstopped = weights()
    whole = made(name, unstopped, 0.01)
    take_steps(whole, unstopped, range(6))
    stopped = weights()
    first = made(name, stopped, 0.01)
    take_steps(first, stopped, range(3))
    save_file(state_tensors(first), tmp_path / "state.safetensors")
    continued = [nn.Parameter(parameter.detach().clone()) for parameter in stopped]
    second = made(name, continued, 0.01)
    load_state_tensors(second, load_file(tmp_path / "state.safetensors"))
    assert state_tensors(second).keys() == state_tensors(first).keys()
    take_steps(second, continued, range(3, 6))
    for one, other in zip(unstopped, continued, strict=True):
        assert torch.equal(one, other)
    for key, value in state_tensors(whole).items():
        assert torch.equal(state_tensors(second)[key], value), key


# by hand, 4 bytes for each tensor's step count:
# adamw: 2 moments of 4 bytes for 6144 + 96 + 35 numbers = 50,200, and 3 steps
# adafactor: 64 + 96 row and column means, 96 of a vector, 5 + 7 = 268 numbers of 4 bytes, and 3 steps
# adamw_8bit: 2 · (6144 codes + 24 scales of 4 + a map of 256 · 4) = 14,528; 131 uncoded numbers of 8 bytes; 3 steps
BYTES = {"adamw": 50_212, "adafactor": 1_084, "adamw_8bit": 15_588}


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_state_by_hand(name: str) -> None:
    parameters = weights()
    optimizer = made(name, parameters)
    assert state_bytes(optimizer) == 0
    take_steps(optimizer, parameters, range(1))
    assert state_bytes(optimizer) == BYTES[name]


def test_a_missing_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with pytest.raises(ConfigError, match=r"pip install recoup\[torchao\]"):
        build("adamw_8bit", weights(), 0.0)
