"""Sweeps as a config file gives them."""

from typing import Any

from recoup.config.sweep import Sweep
from recoup.config_file import parse

SFT = {"type": "sft", "train_file": "rows.jsonl"}
NF4 = {"type": "quantize", "format": "nf4"}


def tree(**changes: Any) -> dict[str, Any]:
    """Two injuries, the second a compressed expert; two methods; one seed."""
    return {
        "name": "small",
        "base": {"evaluate": {"tasks": ["arc_easy", "piqa", "tooluse"], "num_bootstrap": 200}, "recover": {"steps": 7}},
        "injuries": {
            "tooluse": {"task": "tooluse", "settings": {"degrade": [SFT]}},
            "tooluse-nf4": {"task": "tooluse", "settings": {"degrade": [SFT, NF4]}},
        },
        "methods": ["interpolate", "onpolicy"],
        **changes,
    }


def one_injury(**changes: Any) -> dict[str, Any]:
    """One injury without a task, one step of damage."""
    return tree(**{"injuries": {"nf4": {"settings": {"degrade": [NF4]}}}} | changes)


def sweep(settings: dict[str, Any]) -> Sweep:
    return parse(Sweep, settings, "test")
