"""Rows of made-up records, worked out by hand."""

import shutil
from math import hypot
from pathlib import Path

import pytest

from recoup.errors import DataError
from recoup.results.sweep import Before, MethodRow, SweepResult
from recoup.run_folder import RunFolder, result_path
from recoup.sweep.expand import Plan, expand
from recoup.sweep.leaderboard import Leaderboard
from tests.sweep.records import Scores, write_finished, write_scores
from tests.sweep.sweeps import SFT, sweep, tree

SETTINGS = tree(
    base={"evaluate": {"tasks": ["arc_easy", "piqa", "wikitext2", "tooluse"], "num_bootstrap": 200}},
    injuries={"tooluse": {"task": "tooluse", "settings": {"degrade": [SFT]}}},
    seeds=[0, 1, 2],
)

# 10 items a task. General: arc_easy 10 → 4 of 10 by the damage; piqa 8 → 4; a text: −1.5 → −3.5.
REFERENCE: Scores = {"arc_easy": [1] * 10, "piqa": [1] * 8 + [0] * 2, "wikitext2": [-1.5] * 10, "tooluse": [0] * 10}
DEGRADED: Scores = {
    "arc_easy": [1] * 4 + [0] * 6,
    "piqa": [1] * 3 + [0] * 6 + [1],
    "wikitext2": [-3.5] * 10,
    "tooluse": [1] * 10,
}


def repaired(right: int) -> Scores:
    """arc_easy: so many right, two of those that the damage left lost. piqa: one right for one that only the damage brought."""
    arc = [0.0, 0.0, 1.0, 1.0] + [1.0] * (right - 2) + [0.0] * (8 - right)
    return {
        **DEGRADED,
        "arc_easy": arc,
        "wikitext2": [-2.0] * 10,
        "piqa": [1, 1, 1, 0, 1, 0, 0, 0, 0, 0],
        "tooluse": [1] * 9 + [0],
    }


def written(tmp_path: Path, *, seeds: tuple[int, ...] = (0, 1, 2)) -> tuple[Leaderboard, Plan]:
    whole = sweep(SETTINGS)
    plan = expand(whole)
    for run in plan.runs:
        if run.seed not in seeds:
            continue
        # onpolicy heals to 8, 7, 6 by seed; interpolate to 5 in every one
        scores = {"none": DEGRADED, "onpolicy": repaired(8 - run.seed), "interpolate": repaired(5)}[run.method]
        write_finished(run, tmp_path, REFERENCE, DEGRADED, scores, kl=0.1 * (1 + run.seed))
    return Leaderboard(whole, plan, tmp_path), plan


def values(before: Before | None) -> tuple[float, float]:
    assert before is not None
    return before.reference.value, before.degraded.value


def by_method(result: SweepResult) -> dict[str, MethodRow]:
    return {row.method: row for row in result.rows}


def test_three_seeds(tmp_path: Path) -> None:
    board, _ = written(tmp_path)
    result = board.result({"x": "why"}, 5.0)
    assert (result.name, result.failed, result.seconds) == ("small", {"x": "why"}, 5.0)
    assert [row.method for row in result.rows] == ["none", "interpolate", "onpolicy"]
    # reference (10 + 8) / 20, damaged (4 + 4) / 20; the task 0 and 1
    before = result.before["tooluse"]
    assert values(before.general) == pytest.approx((0.9, 0.4))
    assert values(before.text) == pytest.approx((-1.5, -3.5))
    assert values(before.task) == (0, 1)
    ours = by_method(result)["onpolicy"]
    assert ours.runs == tuple(f"tooluse-onpolicy-seed{seed}" for seed in range(3))
    assert ours.num_seeds == 3
    assert ours.general is not None
    general = ours.general.score
    assert general.value == pytest.approx((0.7 + 0.4) / 2)  # arc_easy 0.8, 0.7, 0.6 by seed
    half = (general.high - general.low) / 2
    # arc_easy moves by 0.1 a seed, the mean of two tasks by 0.05; items come on top
    assert half > 4.3027 * 0.05 / 3**0.5
    assert ours.general.fraction is not None
    assert ours.general.fraction.value == pytest.approx((0.55 - 0.4) / (0.9 - 0.4))
    assert ours.general.against is None
    assert ours.text is not None
    assert ours.text.score.value == pytest.approx(-2)
    assert ours.text.fraction is not None
    assert ours.text.fraction.value == pytest.approx((3.5 - 2) / (3.5 - 1.5))
    assert ours.task is not None
    assert ours.task.score.value == pytest.approx(0.9)
    assert ours.task.fraction is None  # the damaging step taught it: there is nothing to recover
    assert ours.token_kl_nats.value == pytest.approx(0.2)
    # over seeds t_2 · 0.1 / sqrt(3), over prompts 0.01 in each seed
    assert ours.token_kl_nats.high == pytest.approx(0.2 + hypot(4.3027 * 0.1 / 3**0.5, 0.01), rel=1e-4)
    assert ours.cka == pytest.approx(0.85)
    assert (ours.num_tokens, ours.minutes, ours.peak_memory_bytes) == (200, 1, 2**30)  # 100, 200, 300 tokens
    assert ours.structure_exact
    assert ours.newly_damaged == 2


def test_a_further_score_of_the_task(tmp_path: Path) -> None:
    _, plan = written(tmp_path)
    injury = {"task": "tooluse", "task_score": "missed", "settings": {"degrade": [SFT]}}
    chosen = {**SETTINGS, "injuries": {"tooluse": injury}}
    result = Leaderboard(sweep(chosen), plan, tmp_path).result({}, 0.0)
    assert values(result.before["tooluse"].task) == (1, 0)
    ours = by_method(result)["onpolicy"].task
    assert ours is not None
    assert ours.score.value == pytest.approx(0.1)
    injury["task_score"] = "right_tool"
    with pytest.raises(DataError, match="tooluse has no score 'right_tool'; choose from acc, missed"):
        Leaderboard(sweep(chosen), plan, tmp_path).result({}, 0.0)


def test_against_is_ours_minus_theirs(tmp_path: Path) -> None:
    rows = by_method(written(tmp_path)[0].result({}, 0.0))
    interpolate = rows["interpolate"].general
    assert interpolate is not None
    assert interpolate.against is not None
    assert interpolate.against.value == pytest.approx((0.7 - 0.5) / 2)
    none = rows["none"]
    assert none.general is not None
    assert none.general.against is not None
    assert none.general.against.value == pytest.approx((0.7 - 0.4) / 2)
    assert none.text is not None
    assert none.text.against is not None
    assert none.text.against.value == pytest.approx(-2 + 3.5)
    assert none.general.fraction is not None
    assert (none.general.fraction.value, none.general.fraction.low, none.general.fraction.high) == (0, 0, 0)
    assert (none.num_tokens, none.newly_damaged) == (0, 0)


def test_variants_are_held_against_the_first(tmp_path: Path) -> None:
    whole = sweep({**SETTINGS, "methods": ["onpolicy_interpolated"], "variants": {"a": {}, "b": {}}, "seeds": [0]})
    plan = expand(whole)
    for run in plan.runs:
        scores = DEGRADED if run.variant is None else repaired({"a": 8, "b": 5}[run.variant])
        write_finished(run, tmp_path, REFERENCE, DEGRADED, scores)
    rows = {row.variant: row for row in Leaderboard(whole, plan, tmp_path).result({}, 0.0).rows}
    assert {variant: row.ours for variant, row in rows.items()} == {None: False, "a": True, "b": False}
    general = {variant: row.general for variant, row in rows.items()}
    found = {variant: one.against for variant, one in general.items() if one}
    assert found["a"] is None
    assert {variant: one.value for variant, one in found.items() if one} == pytest.approx({None: 0.2, "b": 0.15})


def test_what_is_done_so_far(tmp_path: Path) -> None:
    board, plan = written(tmp_path, seeds=(0,))
    result_path(RunFolder(tmp_path / "tooluse-onpolicy-seed0").evaluate).unlink()
    rows = by_method(board.result({}, 0.0))
    assert set(rows) == {"none", "interpolate"}
    assert rows["interpolate"].general is not None
    assert rows["interpolate"].general.against is None
    one = rows["interpolate"].token_kl_nats
    assert (one.value, one.low, one.high) == pytest.approx((0.1, 0.09, 0.11))  # the run's own interval
    # a seed more, and ours: the rows are worked out again
    extended, _ = written(tmp_path / "other")
    assert by_method(extended.result({}, 0.0))["interpolate"].num_seeds == 3
    assert Leaderboard(sweep(SETTINGS), plan, tmp_path / "empty").result({}, 0.0).rows == ()


def test_a_baseline_whose_repaired_model_was_not_scored_apart(tmp_path: Path) -> None:
    board, plan = written(tmp_path)
    whole = by_method(board.result({}, 0.0))["none"]
    for seed in range(3):
        shutil.rmtree(tmp_path / f"tooluse-none-seed{seed}" / "evaluate" / "recovered")
    assert by_method(Leaderboard(sweep(SETTINGS), plan, tmp_path).result({}, 0.0))["none"] == whole


def test_seeds_with_other_items_are_refused(tmp_path: Path) -> None:
    board, _ = written(tmp_path)
    folder = RunFolder(tmp_path / "tooluse-none-seed1")
    for state in ("reference", "degraded", "recovered"):
        write_scores(folder, state, "embedded", {task: scores[:-1] for task, scores in DEGRADED.items()})
    with pytest.raises(DataError, match="not scored on the items of"):
        board.result({}, 0.0)
