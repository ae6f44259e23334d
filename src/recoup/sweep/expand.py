"""A sweep's config as the runs it stands for, all of them checked before any is started.

A run's settings are `base`, over it its injury's, over that its variant's; groups of keys are merged, lists and values
replaced. A method that cannot work for an injury is left out with the reason; any other mistake is an error that names the run.

Seed by seed, so that a sweep which is stopped early has all of its first seeds. Runs without repair go first in each: they make
the damage and score the models that all others are compared with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from recoup.config import RunConfig
from recoup.config.methods import Method
from recoup.config.sweep import Sweep
from recoup.config_file import parse
from recoup.errors import ConfigError

NONE: Method = "none"
PLAIN: Method = "onpolicy"  # takes the settings as they are; names of the other on-policy ones begin so

Tree = dict[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    injury: str
    variant: str | None
    method: Method
    seed: int
    config: RunConfig
    baseline: str | None = None  # the run without repair of the same injury and seed; null: this is one


@dataclass(frozen=True)
class Plan:
    """Every run of a sweep, in the order they are started."""

    runs: tuple[PlannedRun, ...]
    skipped: dict[str, str]  # run name → why that method is impossible there


def expand(sweep: Sweep) -> Plan:
    """The runs of a sweep.

    Raises:
        ConfigError: the settings of a run are wrong, two runs have the same name, or an injury's task is not scored.
    """
    runs: list[PlannedRun] = []
    skipped: dict[str, str] = {}
    for seed in sweep.seeds:
        baselines = [_baseline(sweep, injury, seed) for injury in sweep.injuries]
        runs += baselines
        for baseline in baselines:
            runs += _repairs(sweep, baseline, skipped)
    _check_names(sweep, [*skipped, *(run.name for run in runs)])
    return Plan(tuple(runs), skipped)


def dry_run(sweep: Sweep) -> tuple[list[str], dict[str, str]]:
    """Names of the runs in their order, and of those left out with the reason; nothing is run.

    Raises:
        ConfigError: as `expand`.
    """
    plan = expand(sweep)
    return [run.name for run in plan.runs], plan.skipped


def methods_of(sweep: Sweep, injury: str) -> Sequence[Method]:
    """What repairs an injury, as listed."""
    return sweep.injuries[injury].methods or sweep.methods


def _repairs(sweep: Sweep, baseline: PlannedRun, skipped: dict[str, str]) -> Iterator[PlannedRun]:
    """The repairs of one damaged model; those that are impossible go to `skipped`."""
    injury, seed = baseline.injury, baseline.seed
    for variant, method in product(sweep.variants or (None,), methods_of(sweep, injury)):
        if method == NONE:
            continue
        tree, name = _tree(sweep, injury, variant), _name(injury, variant, method, seed)
        config = _config(tree, name, PLAIN, seed)  # what is wrong here is wrong with the settings, not with the method
        try:
            config = _config(tree, name, method, seed)
        except ConfigError as error:
            skipped[name] = str(error).removeprefix(f"{name}: ")
        else:
            yield PlannedRun(name, injury, variant, method, seed, config, baseline.name)


def _baseline(sweep: Sweep, injury: str, seed: int) -> PlannedRun:
    name = _name(injury, None, NONE, seed)
    config = _config(_tree(sweep, injury, None), name, NONE, seed)
    task = sweep.injuries[injury].task
    if task is not None and task not in config.evaluate.tasks:
        scored = ", ".join(config.evaluate.tasks)
        raise ConfigError(f"injuries.{injury}.task: {task!r} is not scored; add it to evaluate.tasks ({scored})")
    return PlannedRun(name, injury, None, NONE, seed, config)


def _check_names(sweep: Sweep, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{sweep.name}: two runs would be named {twice[0]}; rename an injury or a variant")


def _name(injury: str, variant: str | None, method: Method, seed: int) -> str:
    return "-".join([injury, *([variant] if variant else []), method, f"seed{seed}"])


def _config(tree: Tree, name: str, method: Method, seed: int) -> RunConfig:
    return parse(RunConfig, {**tree, "name": name, "method": method, "seed": seed}, name)


def _tree(sweep: Sweep, injury: str, variant: str | None) -> Tree:
    tree = _merged(sweep.base, sweep.injuries[injury].settings)
    return tree if variant is None else _merged(tree, sweep.variants[variant])


def _merged(under: Tree, over: Tree) -> Tree:
    """`over` laid over `under`."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both
