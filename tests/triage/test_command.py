"""Commands are lines that a shell and the command line's own parser take."""

import shlex

import pytest

from recoup.config import Recover, Triage
from recoup.config_file import parse, settings_tree
from recoup.triage.command import next_command
from recoup.triage.decide import Advice
from tests.triage.records import trial

MODELS = ("my base", "hurt/checkpoint")


def words(advice: Advice, plan: Recover | None = None, template: str | None = None, seed: int = 0) -> list[str]:
    command = next_command(advice, MODELS, plan or Recover(), seed, template)
    assert command is not None
    return shlex.split(command)


@pytest.mark.parametrize("verdict", ["nothing significant lost", "not recoverable at this size"])
def test_nothing_to_run(verdict) -> None:
    assert next_command(Advice(verdict, "so"), MODELS, Recover(), 0, None) is None


def test_recover_as_planned() -> None:
    assert words(Advice("recover", "so")) == [
        "recoup", "recover", "--teacher", "my base", "--output", "repaired", "--student", "hurt/checkpoint",
    ]  # fmt: skip
    assert words(Advice("recover", "so"), template="plain", seed=3)[6:10] == ["--chat-template", "plain", "--seed", "3"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 7, "learning_rate": 1e-5, "rollout": {"max_tokens": 9, "backend": "transformers"}},
        {"terms": [{"prompts": "a file.jsonl", "num_prompts": 3}, {"prompts": "self", "teacher": "other"}]},
        {"hidden_states": {"layers": [1, 2]}, "precision": "fp32", "train": {"what": "lora"}},
    ],
)
def test_settings_of_the_plan_come_back(changes: dict) -> None:
    plan = Recover.model_validate(Triage().plan.model_dump() | changes)
    settings = [word for word in words(Advice("recover", "so"), plan) if "=" in word]
    assert parse(Recover, settings_tree(settings), "command") == plan


def test_a_kept_repair_is_proved_or_trained_on() -> None:
    kept = trial("interpolate", 1.0, 0.2, checkpoint="out/repaired")
    assert words(Advice("interpolate with the base", "so", kept)) == [
        "recoup", "evaluate", "--reference", "my base", "--degraded", "hurt/checkpoint", "--output", "proof",
        "--recovered", "out/repaired",
    ]  # fmt: skip
    assert words(Advice("re-quantize better", "so", kept))[-2:] == ["--student", "out/repaired"]


def test_a_repair_that_was_not_kept_is_made_again() -> None:
    found = words(Advice("re-quantize better", "so", trial("rounding", 1.0, 0.2)), template="plain")
    assert found[:2] == ["recoup", "diagnose"]
    assert found[-3:] == ["chat_template=plain", "triage.keep=true", "triage.pilot_steps=0"]
