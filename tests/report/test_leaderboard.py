"""A sweep's page and figure."""

import re
from pathlib import Path
from xml.etree import ElementTree

from recoup.report import draw_leaderboard, svg, write_leaderboard
from recoup.report.leaderboard_grids import method_grid, ranked
from recoup.report.leaderboard_plots import leaderboard_figure
from recoup.report.leaderboard_words import said, title
from recoup.results import Estimate
from recoup.results.sweep import Before, BeforeRepair, Measured, MethodRow, SweepResult
from recoup.run_folder import RunFolder, write_text

from .conftest import around
from .reading import ATTACK, Page, curves


def task(score: float) -> Measured:
    return Measured(score=around(score, 0.03), fraction=None, against=None)


def row(method: str, general: float, fraction: float | None, /, **changes: object) -> MethodRow:
    values: dict[str, object] = {
        "injury": "tooluse",
        "variant": None,
        "method": method,
        "ours": method == "onpolicy",
        "num_seeds": 3,
        "general": Measured(
            score=around(general, 0.02),
            fraction=None if fraction is None else around(fraction, 0.2),
            against=None if method == "onpolicy" else around(0.45 - general, 0.02),
        ),
        "text": None,
        "task": task(0.6),
        "token_kl_nats": around(0.1, 0.01),
        "top1_agreement": around(0.9, 0.01),
        "cka": 0.95,
        "num_tokens": 40_000.0,
        "minutes": 5.0,
        "peak_memory_bytes": 2.0 * 2**30,
        "structure_exact": True,
        "runs": tuple(f"tooluse-{method}-seed{seed}" for seed in range(3)),
        "newly_damaged": 4,
        **changes,
    }
    return MethodRow.model_validate(values)


NONE = row("none", 0.35, 0.0, num_tokens=0.0, minutes=0.0)
SFT = row("sft", 0.38, 0.3)
ONPOLICY = row("onpolicy", 0.45, 1.0)
REPLAY = row("replay", 0.44, 0.9)
LORA = row("lora", 0.48, 1.3)


def sweep(*rows: MethodRow, **changes: object) -> SweepResult:
    values: dict[str, object] = {
        "name": "recovery135m",
        "rows": rows,
        "skipped": {"x-lora-seed0": "a grid leaves no room"},
        "failed": {"tooluse-sft-seed2": "out of memory"},
        "before": {
            "tooluse": BeforeRepair(
                general=Before(reference=around(0.45, 0.02), degraded=around(0.35, 0.02)),
                text=None,
                task=Before(reference=around(0.5, 0.03), degraded=around(0.61, 0.03)),
            )
        },
        "seconds": 7200.0,
        **changes,
    }
    return SweepResult.model_validate(values)


WHOLE = sweep(NONE, SFT, ONPOLICY, REPLAY, LORA)


def page_of(result: SweepResult, output: Path) -> Page:
    page = Page(write_leaderboard(result, output).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.unscoped == page.unnamed_figures == 0
    return page


def test_the_best_stands_first():
    assert [found.method for found in ranked(WHOLE, "tooluse")] == ["lora", "onpolicy", "replay", "sft", "none"]
    # without fractions points over the damaged model count: general 0.03, task −0.01; 0.02, 0.03
    first = row("sft", 0.38, None)
    second = row("lora", 0.37, None, task=task(0.64))
    assert [found.method for found in ranked(sweep(first, second), "tooluse")] == ["lora", "sft"]


def test_a_row_says_what_was_measured():
    grid = method_grid(WHOLE, "tooluse")
    assert grid.columns[:4] == ("Method", "Seeds", "General score", "General fraction")
    assert "Task fraction" not in grid.columns  # nothing of the task was lost
    assert grid.rows[0][:3] == ("reference", "–", "0.450 [0.430, 0.470]")
    assert grid.rows[1][:3] == ("damaged", "–", "0.350 [0.330, 0.370]")
    assert grid.rows[2] == (
        "lora", "3", "▲ 0.480 [0.460, 0.500]", "▲ 130% [110%, 150%]", "−0.030 [−0.050, −0.010]", "▲ 0.600 [0.570, 0.630]",
        "0.100 [0.0900, 0.110]", "0.900 [0.890, 0.910]", "0.950", "4", "40,000", "5.0 min", "2.00 GiB", "exact",
    )  # fmt: skip


def test_sentences_claim_what_intervals_tell():
    # onpolicy minus it: none 0.10, sft 0.07, replay 0.01, lora −0.03, each ± 0.02
    assert said(WHOLE, "tooluse") == [
        "In general score onpolicy is above none, sft; below lora; not told apart from replay.",
        "Equal tokens and time: methods that train took 40,000 tokens and 5.0 min.",
    ]
    unequal = sweep(row("onpolicy", 0.4, 1.0, num_seeds=1), row("sft", 0.4, 1.0, num_tokens=9e4, general=task(0.4)))
    assert said(unequal, "tooluse") == [
        "onpolicy: with one seed, so their intervals are over items and say nothing of another seed.",
        "Equal time: methods that train took 40,000 to 90,000 tokens and 5.0 min.",
    ]
    assert title(WHOLE) == "recovery135m: 5 methods on 1 injury"


def test_the_page(tmp_path: Path):
    page = page_of(WHOLE, tmp_path / "index.html")
    for words in (
        "15 runs in 120.0 min; 1 run failed.",
        "tooluse-sft-seed2 out of memory",
        "x-lora-seed0 a grid leaves no room",
        "onpolicy 3 0.450 [0.430, 0.470]",
    ):
        assert words in page.text, words
    assert page.tags.count("svg") == 1
    assert all(address.startswith(("#", "data:")) for address in page.addresses)


def test_variants_and_missing_parts(tmp_path: Path):
    rows = [
        row("onpolicy", 0.45, 1.0, variant="both", injury="int3", task=None, cka=None),
        row("sft", 0.40, 0.5, variant="both", injury="int3", task=None, cka=None, structure_exact=False),
        row("none", 0.35, 0.0, injury="int3", general=None, task=None, cka=None),
    ]
    page = page_of(sweep(*rows, failed={}, skipped={}), tmp_path / "index.html")
    assert "onpolicy (both) is above sft (both)." in page.text
    assert "NOT exact" in page.text
    assert "Not in the tables" not in page.text
    assert "Mean CKA" not in page.text


def test_nothing_finished(tmp_path: Path):
    empty = sweep(before={})
    assert "No run of this sweep is finished." in page_of(empty, tmp_path / "index.html").text
    assert draw_leaderboard(empty, tmp_path / "figure.svg").is_file()


def test_the_figure_shows_scores_between_reference_and_damage():
    with svg.drawing():
        figure = leaderboard_figure(WHOLE, ["tooluse"])
    drawn = curves(figure)
    assert drawn["on-policy"] == ([0.45], [1.0])
    assert drawn["baseline"] == ([0.48, 0.44, 0.38], [0.0, 2.0, 3.0])
    assert drawn["no repair"] == ([0.35], [4.0])
    assert drawn["reference"][0] == [0.45, 0.45]
    assert len(figure.axes) == 2


def test_a_figure_without_task_scores_is_one_column():
    with svg.drawing():
        assert len(leaderboard_figure(sweep(row("sft", 0.4, None, task=None)), ["tooluse"]).axes) == 1


def test_the_figure_as_a_file(tmp_path: Path):
    other = row("sft", 0.38, 0.3, injury="int3")
    path = draw_leaderboard(sweep(NONE, ONPOLICY, other), tmp_path / "figure.svg")
    texts = [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]
    assert {"tooluse", "int3", "onpolicy", "none", "sft"} <= set(texts)
    first = path.read_bytes()
    assert draw_leaderboard(sweep(NONE, ONPOLICY, other), path).read_bytes() == first


def test_runs_that_lie_beside_it_are_linked(tmp_path: Path):
    write_text(RunFolder(tmp_path / "tooluse-sft-seed1").report, "a page")
    page = page_of(WHOLE, tmp_path / "leaderboard.html")
    assert [address for address in page.addresses if "report" in address] == ["tooluse-sft-seed1/report/index.html"]
    assert "The runs tooluse-sft-seed1" in page.text


def test_hostile_names_are_inert(tmp_path: Path):
    hostile = row(ATTACK, 0.4, None, injury=f"\x07{ATTACK}", variant=f"\x1b{ATTACK}")
    page = write_leaderboard(sweep(hostile, name=f"\x1b{ATTACK}", failed={ATTACK: ATTACK}), tmp_path / "index.html")
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
    text = draw_leaderboard(sweep(hostile, name=f"\x1b{ATTACK}"), tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "<script" not in text


def test_what_is_not_a_number_is_best_of_nothing():
    nowhere = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
    nothing = Measured(score=nowhere, fraction=None, against=None)
    grid = method_grid(sweep(row("sft", 0.4, None, general=nothing), row("lora", 0.4, None)), "tooluse")
    assert not any(cell.startswith("▲") for line in grid.rows for cell in line[2:3])
