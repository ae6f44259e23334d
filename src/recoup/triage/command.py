"""What to run next, as a line for a shell."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recoup.config import Recover
from recoup.triage.decide import Advice

REPAIRED = "repaired"  # the output folder of the command


def next_command(
    advice: Advice, models: tuple[str, str], plan: Recover, seed: int, chat_template: str | Path | None
) -> str | None:
    """The command that follows the verdict; null where there is nothing to run.

    A kept repair is proved against the teacher, and after better rounding trained on from; one that was not kept has no
    checkpoint to name, so it is made again with `triage.keep=true`.

    Args:
        advice: the verdict, and the repair that it recommends.
        models: teacher and student, as they are loaded.
        plan: the repair with training.
        seed: of the triage.
        chat_template: as for `load`.
    """
    teacher, student = models
    template = [] if chat_template is None else ["--chat-template", str(chat_template)]
    common = [*template, *(["--seed", str(seed)] if seed else [])]
    recover = ["recoup", "recover", "--teacher", teacher, "--output", REPAIRED, *common, *_settings(plan)]
    if advice.verdict == "recover":
        return shlex.join([*recover, "--student", student])
    if advice.repair is None:
        return None
    if advice.repair.checkpoint is None:
        again = ["recoup", "diagnose", "--teacher", teacher, "--student", student, "--output", "diagnosis"]
        named = [] if chat_template is None else [f"chat_template={chat_template}"]
        return shlex.join([*again, *named, "triage.keep=true", "triage.pilot_steps=0"])
    if advice.verdict == "re-quantize better":
        return shlex.join([*recover, "--student", advice.repair.checkpoint])
    proof = ["recoup", "evaluate", "--reference", teacher, "--degraded", student, "--output", "proof"]
    return shlex.join([*proof, "--recovered", advice.repair.checkpoint])


def _settings(plan: Recover) -> list[str]:
    """What differs from the defaults, as `key=value`."""
    default, own = Recover().model_dump(mode="json"), plan.model_dump(mode="json")
    return [f"{key}={value}" for key, value in _differing("", default, own)]


def _differing(path: str, default: Any, own: Any) -> Iterator[tuple[str, str]]:
    if isinstance(default, dict) and isinstance(own, dict):
        for key in own:
            yield from _differing(f"{path}.{key}" if path else key, default.get(key), own[key])
    elif own != default:
        yield path, own if isinstance(own, str) else json.dumps(own)
