"""Leaderboards for people: order, the best, and why a cell is empty."""

import io
from typing import Any

from rich.console import Console

from recoup.results import Estimate
from recoup.results.sweep import Before, BeforeRepair, Measured, MethodRow, SweepResult
from recoup.sweep.table import HEADER, boards, leaderboard_markdown, show_leaderboard


def exactly(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def measured(score: float, fraction: float | None = 0.5, against: float | None = 0.1) -> Measured:
    return Measured(
        score=exactly(score),
        fraction=None if fraction is None else exactly(fraction),
        against=None if against is None else exactly(against),
    )


def before(reference: float, degraded: float) -> Before:
    return Before(reference=exactly(reference), degraded=exactly(degraded))


def row(method: str, **changes: Any) -> MethodRow:
    known = {
        "injury": "tooluse", "variant": None, "method": method, "ours": method == "onpolicy", "num_seeds": 3, "general": measured(0.5), "text": None,
        "task": measured(0.6, None),
        "token_kl_nats": exactly(0.2), "top1_agreement": exactly(0.9), "cka": 0.95, "num_tokens": 1234.0, "minutes": 2.0,
        "peak_memory_bytes": 2.0**31, "structure_exact": True, "runs": ("a",), "newly_damaged": 3,
    }  # fmt: skip
    return MethodRow.model_validate(known | changes)


def result(*rows: MethodRow, **changes: Any) -> SweepResult:
    known = {
        "name": "small", "rows": rows, "skipped": {}, "failed": {}, "seconds": 1.0,
        "before": {"tooluse": BeforeRepair(general=before(0.6, 0.4), text=None, task=before(0.1, 0.6))},
    }  # fmt: skip
    return SweepResult.model_validate(known | changes)


def test_to_forget_the_task_is_not_to_win() -> None:
    # back to the base: all general ability, and 50 points of the task lost: 1 − 0.5; ours: 0.9 − 0.01; nothing done: 0
    rows = (
        row("none", general=measured(0.4, 0.0)),
        row("interpolate", general=measured(0.6, 1.0), task=measured(0.1, None)),
        row("onpolicy", general=measured(0.58, 0.9, None), task=measured(0.59, None, None)),
    )
    (board,) = boards(result(*rows))
    assert [cells[0] for cells in board.rows] == ["onpolicy ★", "interpolate", "none"]
    assert board.about.startswith(
        "reference → damaged: general score 0.600 [0.590, 0.610] → 0.400 [0.390, 0.410]; "
        "task score 0.100 [0.090, 0.110] → 0.600 [0.590, 0.610]. In general score onpolicy is "
    )


def test_cells() -> None:
    ((best, _),) = (board.rows for board in boards(result(row("sft"), row("none", general=measured(0.4, 0.0)))))
    assert dict(zip(HEADER, best, strict=True)) == {
        "method": "sft ★", "general score": "0.500 [0.490, 0.510]", "general recovered": "50% [49%, 51%]",
        "ours − this, general": "0.100 [0.090, 0.110]", "text, log p": "– (not scored)",
        "text recovered": "– (not scored)", "ours − this, text": "– (not scored)", "task score": "0.600 [0.590, 0.610]",
        "task recovered": "– (raised by the damage)", "ours − this, task": "0.100 [0.090, 0.110]", "token KL, nats": "0.200 [0.190, 0.210]",
        "top-1 agreement": "0.900 [0.890, 0.910]", "CKA": "0.950", "newly damaged": "3", "tokens": "1,234", "minutes": "2.0",
        "peak GiB": "2.0", "on its structure": "exact", "seeds": "3",
    }  # fmt: skip


def test_what_is_missing_says_why() -> None:
    bare = row(  # of an injury whose damaged model has no scores

        "sft", injury="nf4", variant="both", general=None, task=None, cka=None, structure_exact=False,
    )  # fmt: skip
    ((cells,),) = (board.rows for board in boards(result(bare)))
    named = dict(zip(HEADER, cells, strict=True))
    assert named["method"] == "sft (both)"  # one row alone is not the best of anything
    assert named["general score"] == named["general recovered"] == named["ours − this, general"] == "– (not scored)"
    assert named["CKA"] == "– (not diagnosed)"
    assert named["on its structure"] == "VIOLATED"
    alone = measured(0.5, against=None)
    (board,) = boards(result(row("sft", general=alone)))
    assert board.rows[0][3] == "– (ours has no finished run of these seeds)"
    (board,) = boards(result(row("onpolicy", variant="both", general=alone)))
    assert board.rows[0][3] == "–"


def test_equals_have_no_best() -> None:
    for board in boards(result(row("sft"), row("onpolicy"))):
        assert [cells[0] for cells in board.rows] == ["sft", "onpolicy"]


def test_damage_that_is_none() -> None:
    same = {"tooluse": BeforeRepair(general=before(0.4, 0.4), text=before(-2.0, -2.5), task=None)}
    rows = (
        row("sft", general=measured(0.45, None), text=measured(-2.4, 0.2)),
        row("onpolicy", general=measured(0.44, None, None), text=measured(-2.1, 0.8, None)),
    )
    (board,) = boards(result(*rows, before=same))
    first, second = (dict(zip(HEADER, cells, strict=True)) for cells in board.rows)
    assert first["general recovered"] == "– (damage not significant)"
    assert (first["method"], first["text recovered"]) == (
        "onpolicy ★",
        "80% [79%, 81%]",
    )  # then texts say who stands where
    assert second["text, log p"] == "−2.400 [−2.410, −2.390]"
    assert "In log p of text onpolicy is above sft." in board.about


def test_markdown_and_terminal() -> None:
    whole = result(
        row("sft", text=measured(-2.0)),
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
