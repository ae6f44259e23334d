"""A sweep as runs: names, settings and order by hand; what is impossible, and what is wrong."""

from typing import Any

import pytest

from recoup.errors import ConfigError
from recoup.sweep.expand import dry_run, expand
from tests.sweep.sweeps import NF4, SFT, one_injury, sweep, tree


def test_names_and_order() -> None:
    names, skipped = dry_run(sweep(tree(seeds=[0, 1])))
    assert names == [
        "tooluse-none-seed0", "tooluse-nf4-none-seed0",
        "tooluse-interpolate-seed0", "tooluse-onpolicy-seed0", "tooluse-nf4-onpolicy-seed0",
        "tooluse-none-seed1", "tooluse-nf4-none-seed1",
        "tooluse-interpolate-seed1", "tooluse-onpolicy-seed1", "tooluse-nf4-onpolicy-seed1",
    ]  # fmt: skip
    # a compressed student cannot be moved towards its base
    assert list(skipped) == ["tooluse-nf4-interpolate-seed0", "tooluse-nf4-interpolate-seed1"]
    assert "lies on a grid or mask" in skipped["tooluse-nf4-interpolate-seed0"]
    assert "seed0" not in skipped["tooluse-nf4-interpolate-seed0"]  # the reason does not repeat the name


def test_settings_are_laid_over_each_other() -> None:
    settings = one_injury(
        base={"recover": {"steps": 7, "rollout": {"max_tokens": 9}}, "evaluate": {"tasks": ["piqa"]}},
        variants={"base": {}, "both": {"recover": {"rollout": {"max_prompt_tokens": 50}, "terms": [{"teacher": "model"}]}}},
        methods=["onpolicy"],
        seeds=[3],
    )  # fmt: skip
    runs = {run.name: run for run in expand(sweep(settings)).runs}
    assert list(runs) == ["nf4-none-seed3", "nf4-base-onpolicy-seed3", "nf4-both-onpolicy-seed3"]
    both = runs["nf4-both-onpolicy-seed3"]
    assert (both.injury, both.variant, both.method, both.seed) == ("nf4", "both", "onpolicy", 3)
    assert both.baseline == "nf4-none-seed3"
    assert (both.config.name, both.config.method, both.config.seed) == (both.name, "onpolicy", 3)
    rollout = both.config.recover.rollout
    assert (both.config.recover.steps, rollout.max_tokens, rollout.max_prompt_tokens) == (7, 9, 50)
    assert both.config.recover.terms[0].teacher == "model"
    assert runs["nf4-base-onpolicy-seed3"].config.recover.terms[0].teacher is None
    assert runs["nf4-none-seed3"].baseline is None


def test_an_injury_may_name_its_own_methods() -> None:
    settings = tree(
        injuries={
            "tooluse": {"settings": {"degrade": [SFT]}},
            "nf4": {"methods": ["onpolicy_rounded"], "settings": {"degrade": [NF4]}},
        },
        methods=["interpolate", "onpolicy"],
    )
    names, skipped = dry_run(sweep(settings))
    assert names == [
        "tooluse-none-seed0", "nf4-none-seed0", "tooluse-interpolate-seed0", "tooluse-onpolicy-seed0",
        "nf4-onpolicy_rounded-seed0",
    ]  # fmt: skip
    assert not skipped


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key": (tree(base={"recover": {"stepz": 3}}), "tooluse-none-seed0.*did you mean 'steps'"),
    "a key of a variant": (one_injury(variants={"v": {"recover": {"stepz": 3}}}), "nf4-v-interpolate-seed0.*'steps'"),
    "a word of the sweep": (tree(base={"seed": 3}), "'seed' is the sweep's to set; list it in `seeds`"),
    "in an injury": (one_injury(injuries={"a": {"settings": {"method": "sft"}}}), "list it in `methods`"),
    "a variant's proof": (tree(variants={"v": {"evaluate": {}}}), "variants.v sets evaluate"),
    "a method": (tree(methods=["onpolize"]), "methods.0"),
    "twice": (tree(seeds=[1, 1]), "seeds: lists 1, 1; each may stand once"),
    "an injury's twice": (
        one_injury(injuries={"a": {"methods": ["sft", "sft"], "settings": {"degrade": [NF4]}}}),
        "methods: lists sft, sft",
    ),
    "a name": (one_injury(injuries={"a/b": {"settings": {"degrade": [NF4]}}}), "injuries"),
    "no damage": (tree(injuries={"a": {"settings": {}}}), "a-none-seed0.*give exactly one of `degrade`"),
    "an unscored task": (
        tree(injuries={"a": {"task": "science", "settings": {"degrade": [SFT]}}}),
        r"injuries.a.task: 'science' is not scored; add it to evaluate.tasks \(arc_easy, piqa, tooluse\)",
    ),
    "one name for two": (
        tree(
            injuries={"a": {"settings": {"degrade": [NF4]}}, "a-b": {"settings": {"degrade": [NF4]}}},
            variants={"b-c": {}, "c": {}},
        ),
        "two runs would be named a-b-c-",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_found_before_anything_is_run(mistake: str) -> None:
    settings, says = WRONG[mistake]
    with pytest.raises(ConfigError, match=says):
        expand(sweep(settings))
