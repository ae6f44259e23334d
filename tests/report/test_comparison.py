"""Several runs on one page."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from recoup.errors import DataError
from recoup.report import write_comparison, write_report
from recoup.report.comparison_grids import difference_grid
from recoup.report.comparison_plots import run_look
from recoup.report.gather import gather
from recoup.report.shared import Compared, shared_tasks
from recoup.results import TaskComparison
from recoup.run_folder import RunFolder, write_json, write_text

from .conftest import (
    PROVENANCE,
    RECOVERY,
    diagnosis,
    evaluation,
    healed,
    injury,
    item_scores,
    not_healed,
    preserved,
    put,
    put_items,
    put_probe,
)
from .reading import ATTACK, Page

Make = Callable[..., RunFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A finished run of a name."""

    def made(name: str, *tasks: TaskComparison, **changes: object) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / name)
        write_text(folder.config, f"name: '{name}'\n")
        write_json(folder.provenance, PROVENANCE)
        put(folder.degrade("quantize"), injury("quantize", "int3"))
        put(folder.diagnose("before"), diagnosis(scale=0.3, kl=0.45))
        put(folder.diagnose("after"), diagnosis(scale=0.1, kl=0.1))
        put(folder.recover, RECOVERY.model_copy(update=changes))
        put(folder.evaluate, evaluation(*tasks))
        return folder

    return made


def compared(*folders: RunFolder) -> tuple[Compared, ...]:
    return tuple(Compared("ABC"[place], gather(folder), None) for place, folder in enumerate(folders))


def page_of(output: Path, *folders: RunFolder) -> Page:
    page = Page(write_comparison(folders, output).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.unscoped == page.unnamed_figures == 0
    return page


def test_two_runs_side_by_side(make: Make, tmp_path: Path):
    ours = make("ours", healed(), not_healed())
    better = healed().model_copy(update={"recovered": healed().reference, "verdict": "healed"})
    theirs = make("theirs", better, not_healed(), preserved(), method="sft", seconds=260.0)
    write_report(ours)
    page = page_of(tmp_path / "comparison" / "index.html", ours, theirs)
    for words in (
        "2 runs, 2 benchmarks in common",
        "A : ours , damaged by quantize (int3); repaired by onpolicy; reference embedded",
        "Equal tokens: all trained on 40,000 completion tokens. Equal time: 4.2 min (A) to 4.3 min (B).",
        # the reference and the damaged model are the same in both
        "hellaswag (acc_norm, n = 500) 0.430 [0.390, 0.470] 0.350 [0.310, 0.390] 0.420 [0.380, 0.460] 0.430 [0.390, 0.470]",
        "hellaswag 88% [61%, 104%]: healed",
        "piqa not scored in A – 0.665 → 0.680, preserved",
        "A: ours 0.412 [0.392, 0.432] 0.0871 [0.0671, 0.107] 0.880",
        # 30 layers, 1 − s (i + 1) / 30: the mean is 1 − s · 15.5 / 30
        "A: ours 0.845 0.700 (layer 29) 0.948 0.900 (layer 29)",
        "B: theirs sft 40,000 40 4.3 min 3.00 GiB exact",
    ):
        assert words in page.text, words
    assert [address for address in page.addresses if not address.startswith(("#", "data:"))] == [
        "../runs/ours/report/index.html"
    ]
    assert page.tags.count("svg") == 2
    assert "C" not in {word for word in page.words if len(word) == 1}


def test_runs_that_were_not_evaluated_or_repaired_are_said(make: Make, tmp_path: Path):
    bare, whole = make("bare"), make("whole", healed())
    (bare.evaluate / "result.json").unlink()
    page = page_of(tmp_path / "c.html", bare, whole)
    assert "2 runs, 1 evaluated, 1 benchmark in common" in page.text
    assert "A was not evaluated." in page.text
    (bare.recover / "result.json").unlink()
    assert "bare , damaged by quantize (int3); not repaired" in page_of(tmp_path / "c.html", bare, whole).text


def test_unequal_budgets_are_said(make: Make, tmp_path: Path):
    longer = make("long", num_tokens=80_000, seconds=900.0)
    free = make("free", steps=0, num_tokens=0, method="none", first_loss_nats=None, last_loss_nats=None)
    write_json(longer.provenance, PROVENANCE | {"device": {"processor": "another"}})
    text = page_of(tmp_path / "c.html", make("short"), longer, free).text
    assert "Nothing was trained in C. Not equal tokens: 40,000 (A) to 80,000 (B) completion tokens" in text
    assert "Not equal time: 4.2 min (A) to 15.0 min (B). The runs were made on different machines" in text
    assert "No benchmark was scored on the same items in all runs." in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"metric": "acc"}, "different metrics"), ({"num_items": 499}, "different items")],
)
def test_benchmarks_scored_otherwise_are_not_compared(make: Make, changes: dict[str, object], reason: str):
    shared = shared_tasks(compared(make("a", healed()), make("b", healed().model_copy(update=changes))))
    assert shared.tasks == ()
    assert reason in shared.others["hellaswag"]


def test_equal_numbers_of_other_items_are_not_compared(make: Make):
    a, b = make("a", healed()), make("b", healed())
    put_items(a, "recovered", item_scores("hellaswag", (1, 0), "acc_norm"))
    put_items(b, "recovered", item_scores("hellaswag", (1, 0), "acc_norm"))
    assert shared_tasks(compared(a, b)).tasks == ("hellaswag",)
    other = item_scores("hellaswag", (1, 0), "acc_norm").model_copy(update={"item_ids": ("hellaswag/7", "hellaswag/8")})
    put_items(b, "recovered", other)
    assert "different items" in shared_tasks(compared(a, b)).others["hellaswag"]


def test_differences_are_paired_by_item(make: Make):
    a, b = make("a", healed()), make("b", healed())
    put_items(a, "recovered", item_scores("hellaswag", (0,) * 16, "acc_norm"))
    put_items(b, "recovered", item_scores("hellaswag", (1, 0) * 8, "acc_norm"))
    # differences are 8 ones and 8 zeros: mean 1/2, variance 4/15, half = t(15) · sqrt(4 / 15 / 16) = 2.131 · 0.1291 = 0.275
    assert difference_grid(shared_tasks(compared(a, b))).rows == (("hellaswag", "0.500 [0.225, 0.775]"),)
    put_items(b, "recovered", item_scores("hellaswag", (1,) * 9, "acc_norm"))
    assert difference_grid(shared_tasks(compared(a, a))).rows == (("hellaswag", "0.000 [0.000, 0.000]"),)
    assert difference_grid(shared_tasks(())).rows == ()


def test_probes_stand_beside_each_other(make: Make, tmp_path: Path):
    runs = [make(name, healed()) for name in "xy"]
    for folder in runs:
        put_probe(folder)
    page = page_of(tmp_path / "c.html", *runs)
    assert page.tags.count("svg") == 4
    assert "Does CKA tell of capability?" in page.text
    assert "The correlations" not in page.text  # five looks after the start: too few


def test_hostile_runs_are_inert(make: Make, tmp_path: Path):
    name = f"javascript:alert(1)//{ATTACK}\x1b"
    folder = make("a", healed(ATTACK), method=ATTACK)
    write_json(folder.config.with_suffix(".yaml"), {"name": name})
    odd = folder.root.rename(folder.root.parent / 'javascript:"x')
    write_report(RunFolder(odd))
    html = write_comparison([RunFolder(odd), make("b", healed(ATTACK))], odd.parent / "c.html").read_text(
        encoding="utf-8"
    )
    assert "<script" not in html
    assert 'href="javascript%3A%22x/report/index.html"' in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)


def test_fewer_than_two_runs_is_an_error(make: Make, tmp_path: Path):
    with pytest.raises(DataError, match="two run folders at least"):
        write_comparison([make("a", healed())], tmp_path / "c.html")
    with pytest.raises(DataError, match="no stage of a run is finished"):
        write_comparison([make("a", healed()), RunFolder(tmp_path / "nothing")], tmp_path / "c.html")


def test_same_runs_same_bytes(make: Make, tmp_path: Path):
    runs = [make("a", healed()), make("b", healed())]
    assert write_comparison(runs, tmp_path / "1").read_bytes() == write_comparison(runs, tmp_path / "2").read_bytes()


def test_no_two_of_many_runs_look_alike():
    looks = [(run_look(place).marker, run_look(place).filled) for place in range(24)]
    assert len(set(looks)) == len(looks)
