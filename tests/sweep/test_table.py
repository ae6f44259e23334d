"""Leaderboards for people: order, the best, and why a cell is empty."""

import io
from typing import Any

from rich.console import Console

from recoup.results import Estimate
from recoup.results.sweep import MethodRow, SweepResult
from recoup.sweep.table import HEADER, boards, leaderboard_markdown, show_leaderboard


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def row(method: str, **changes: Any) -> MethodRow:
    known = {
        "injury": "tooluse", "variant": None, "method": method, "num_seeds": 3, "general": exactly(0.5),
        "general_fraction": exactly(0.5), "task": exactly(0.6), "task_fraction": None, "against": exactly(0.1),
        "token_kl_nats": exactly(0.2), "top1_agreement": exactly(0.9), "cka": 0.95, "num_tokens": 1234.0, "minutes": 2.0,
        "peak_memory_bytes": 2.0**31, "structure_exact": True, "runs": ("a",), "newly_damaged": 3,
    }  # fmt: skip
    return MethodRow.model_validate(known | changes)


def result(*rows: MethodRow, **changes: Any) -> SweepResult:
    known = {
        "name": "small", "rows": rows, "skipped": {}, "failed": {}, "reference": {"tooluse": exactly(0.6)},
        "degraded": {"tooluse": exactly(0.4)}, "reference_task": {"tooluse": exactly(0.1)},
        "degraded_task": {"tooluse": exactly(0.6)}, "seconds": 1.0,
    }  # fmt: skip
    return SweepResult.model_validate(known | changes)


def test_to_forget_the_task_is_not_to_win() -> None:
    # back to the base: all general ability, and 50 points of the task lost: 1 − 0.5; ours: 0.9 − 0.01; nothing done: 0
    rows = (
        row("none", general_fraction=exactly(0.0)),
        row("interpolate", general_fraction=exactly(1.0), task=exactly(0.1)),
        row("onpolicy", general_fraction=exactly(0.9), task=exactly(0.59), against=None),
    )
    (board,) = boards(result(*rows))
    assert [cells[0] for cells in board.rows] == ["onpolicy ★", "interpolate", "none"]
    assert board.about.startswith(
        "reference → damaged: general score 0.600 [0.590, 0.610] → 0.400 [0.390, 0.410]; "
        "task score 0.100 [0.090, 0.110] → 0.600 [0.590, 0.610]. In general score onpolicy is "
    )


def test_cells() -> None:
    ((best, _),) = (board.rows for board in boards(result(row("sft"), row("none", general_fraction=exactly(0.0)))))
    assert dict(zip(HEADER, best, strict=True)) == {
        "method": "sft ★", "general score": "0.500 [0.490, 0.510]", "general recovered": "50% [49%, 51%]",
        "task score": "0.600 [0.590, 0.610]", "task recovered": "– (raised by the damage)",
        "onpolicy − this": "0.100 [0.090, 0.110]", "token KL, nats": "0.200 [0.190, 0.210]",
        "top-1 agreement": "0.900 [0.890, 0.910]", "CKA": "0.950", "newly damaged": "3", "tokens": "1,234", "minutes": "2.0",
        "peak GiB": "2.0", "on its structure": "exact", "seeds": "3",
    }  # fmt: skip


def test_what_is_missing_says_why() -> None:
    bare = row(  # of an injury whose damaged model has no scores

        "sft", injury="nf4", variant="both", general=None, general_fraction=None, task=None, against=None, cka=None,
        structure_exact=False,
    )  # fmt: skip
    ((cells,),) = (board.rows for board in boards(result(bare)))
    named = dict(zip(HEADER, cells, strict=True))
    assert named["method"] == "sft (both)"  # one row alone is not the best of anything
    assert named["general score"] == named["general recovered"] == named["onpolicy − this"] == "– (not scored)"
    assert named["CKA"] == "– (not diagnosed)"
    assert named["on its structure"] == "VIOLATED"
    (board,) = boards(result(row("sft", against=None)))
    assert board.rows[0][5] == "– (no finished onpolicy run of these seeds)"
    several = result(row("none", against=None), row("onpolicy", variant="both", against=None))
    assert {cells[0].split()[0]: cells[5] for cells in boards(several)[0].rows} == {
        "none": "– (several variants)",
        "onpolicy": "–",
    }


def test_equals_have_no_best() -> None:
    for board in boards(result(row("sft"), row("onpolicy"))):
        assert [cells[0] for cells in board.rows] == ["sft", "onpolicy"]


def test_damage_that_is_none() -> None:
    same = {"tooluse": exactly(0.4)}
    (board,) = boards(result(row("sft", general_fraction=None), reference=same))
    assert dict(zip(HEADER, board.rows[0], strict=True))["general recovered"] == "– (damage not significant)"


def test_markdown_and_terminal() -> None:
    whole = result(
        row("sft"),
        row("none"),
        failed={"a-sft-seed0": "died | <b>of</b>\nthis"},
        skipped={"b-svd_repair-seed0": "a grid"},
    )
    text = leaderboard_markdown(whole)
    assert "## tooluse" in text
    assert r"- a-sft-seed0: died \| &lt;b&gt;of&lt;/b&gt; this" in text
    assert "## 1 run impossible\n\n- b-svd_repair-seed0: a grid" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count(" | ") for line in table} == {len(HEADER) - 1}
    assert "No run is finished yet." in leaderboard_markdown(result())
    console = Console(width=400, record=True, file=io.StringIO())
    show_leaderboard(console, whole)
    shown = console.export_text()
    assert "50% [49%, 51%]" in shown
    assert "a-sft-seed0: died | <b>of</b> this" in shown
