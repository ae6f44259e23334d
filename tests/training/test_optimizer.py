"""The step: schedule by hand, accumulation equals one batch, state survives, NaN is refused."""

import pytest
import torch
from torch import nn

from recoup.errors import TrainingError
from recoup.structure.guard import Guard
from recoup.structure.spec import Structure
from recoup.training.optimizer import Schedule, Stepper, StepSettings, learning_rate


def test_learning_rate_by_hand() -> None:
    schedule = Schedule(steps=6, warmup_steps=1, learning_rate=1.0, min_learning_rate_fraction=0.5)
    # warm-up 1/2; then progress 0, 1/4, 1/2, 3/4, 1 of the cosine from 1 to 0.5
    expected = [0.5, 1.0, 0.5 + 0.25 * (1 + 0.5**0.5), 0.75, 0.5 + 0.25 * (1 - 0.5**0.5), 0.5]
    assert [learning_rate(schedule, step) for step in range(6)] == pytest.approx(expected)


def test_single_step_schedule_is_at_its_peak() -> None:
    assert learning_rate(Schedule(1, 0, 2.0), 0) == 2.0


def make(seed: int = 0) -> tuple[nn.Linear, Stepper]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model, Stepper(Guard(model, Structure()), StepSettings(precision="fp32"))


def test_first_adamw_step_moves_every_weight_by_the_learning_rate() -> None:
    model, stepper = make()
    before = model.weight.detach().clone()
    stepper.backward(model(torch.ones(1, 3)).sum())
    norm = stepper.step(0.1)
    # gradient is 1 everywhere: norm sqrt(6 weights + 2 biases); Adam's first step is lr · sign(g)
    assert norm == pytest.approx(8**0.5)
    torch.testing.assert_close(model.weight, before - 0.1)


def test_eight_accumulations_equal_a_batch_of_eight() -> None:
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    whole, stepper = make()
    stepper.backward(whole(data).pow(2).sum() / 8)
    stepper.step(0.1)
    parts, stepper = make()
    for row in data:
        stepper.backward(parts(row[None]).pow(2).sum() / 8)
    stepper.step(0.1)
    torch.testing.assert_close(parts.weight, whole.weight)


def test_state_survives() -> None:
    def train(model: nn.Linear, stepper: Stepper, steps: range) -> None:
        for step in steps:
            stepper.backward(model(torch.full((1, 3), float(step + 1))).pow(2).sum())
            stepper.step(0.05)

    whole, stepper = make()
    train(whole, stepper, range(6))
    first, stepper = make()
    train(first, stepper, range(3))
    second, continued = make(seed=9)
    second.load_state_dict(first.state_dict())
    continued.load_state(stepper.state())
    train(second, continued, range(3, 6))
    assert torch.equal(second.weight, whole.weight)


def test_nan_loss_is_refused_before_any_weight_changes() -> None:
    model, stepper = make()
    before = model.weight.detach().clone()
    with pytest.raises(TrainingError, match="loss is nan"):
        stepper.backward(model(torch.full((1, 3), float("nan"))).sum())
    model.weight.grad = torch.full_like(model.weight, float("inf"))
    with pytest.raises(TrainingError, match="gradient norm is inf"):
        stepper.step(0.1)
    assert torch.equal(model.weight, before)
