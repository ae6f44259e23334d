"""A budget ends a repair, and the learning rate decays with what is spent of it."""

from pathlib import Path

import pytest

from recoup.config import Budget, Recover
from recoup.config_file import parse
from recoup.errors import ConfigError
from recoup.recover.budget import Spent
from recoup.recover.record import Record
from recoup.recover.run import RecoverInputs, run
from recoup.training.optimizer import Schedule, learning_rate


def test_shares_by_hand() -> None:
    spent = Spent().after(300, 10.0).after(100, 20.0)
    assert spent == Spent(400, 30.0)
    assert spent.share(None) == 0
    assert spent.share(Budget(tokens=1600)) == 0.25
    assert spent.share(Budget(seconds=40)) == 0.75
    assert spent.share(Budget(tokens=1600, seconds=40)) == 0.75  # what is further spent decides
    assert Spent.from_dict(spent.to_dict()) == spent


def test_the_rate_follows_whichever_is_further() -> None:
    schedule = Schedule(steps=101, warmup_steps=0, learning_rate=2.0, min_learning_rate_fraction=0.0)
    assert learning_rate(schedule, 1, spent=0.5) == pytest.approx(1.0)  # half of a cosine: half of the peak
    assert learning_rate(schedule, 50, spent=0.1) == pytest.approx(1.0)
    assert learning_rate(schedule, 1, spent=1.2) == pytest.approx(0.0)


def test_tokens_end_a_repair(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    # four rollouts of eight tokens at most are 32 a step: 100 tokens are spent in the fourth step at the earliest
    config = Recover.model_validate({**short.model_dump(), "steps": 50, "budget": {"tokens": 100}})
    result = run(config, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path)
    steps = Record(tmp_path).steps()
    assert 4 <= result.steps < 50
    assert result.num_tokens == sum(step.num_tokens for step in steps) >= 100
    assert sum(step.num_tokens for step in steps[:-1]) < 100
    rates = [step.learning_rate for step in steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] / 2


def test_seconds_end_a_repair(tiny_model: Path, damaged: Path, short: Recover, tmp_path: Path) -> None:
    config = Recover.model_validate({**short.model_dump(), "steps": 50, "budget": {"seconds": 1e-3}})
    assert run(config, RecoverInputs(str(damaged), (str(tiny_model),), 0), tmp_path).steps == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": {}}, "tokens, seconds or both"),
        ({"budget": {"tokens": 9}, "rollout": {"start_tokens": 8}}, "a budget does not know"),
        ({"budget": {"tokens": 9}, "terms": [{"final_weight": 0.0}]}, "a budget does not know"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(Recover, settings, "recover")
