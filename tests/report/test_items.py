from recoup.report import write_report
from recoup.report.gather import gather
from recoup.report.items import further_grid, items_of, partition_grid, samples
from recoup.run_folder import RunFolder

from .conftest import item_scores, put_all_items, put_items, sample
from .reading import ATTACK, Page


def test_items_are_read_only_of_a_finished_evaluation(finished: RunFolder):
    put_all_items(finished)
    assert set(gather(finished).scores) == {"reference", "degraded", "recovered"}
    (finished.evaluate / "result.json").unlink()
    assert gather(finished).scores == {}


def test_parts_in_a_row(finished: RunFolder):
    put_all_items(finished)
    grid = partition_grid(items_of(gather(finished)))
    assert grid.columns[2:6] == ("Preserved", "Healed", "Not healed", "Newly damaged")
    # one of one damaged item healed: Wilson's interval of 1 of 1 is 1 / (1 + z²) = 0.207 to 1
    assert grid.rows == (("tooluse", "4", "1", "1", "0", "1", "0", "0", "0", "1", "100% [21%, 100%]"),)


def test_without_a_models_items_there_are_no_parts(finished: RunFolder):
    put_all_items(finished)
    put_items(finished, "recovered", item_scores("tooluse", (1, 1), "exact"))
    assert items_of(gather(finished)) == ()
    (finished.evaluate / "recovered" / "result.json").unlink()
    assert items_of(gather(finished)) == ()
    assert "What became of each item" not in Page(write_report(finished).read_text(encoding="utf-8")).text


def test_further_scores_with_their_ceilings(finished: RunFolder):
    put_all_items(finished)
    grid = further_grid(gather(finished).scores)
    assert grid is not None
    assert grid.rows == (
        ("tooluse: exact", "0.750", "0.500", "0.500", "0.900"),
        ("tooluse: valid_json", "1.000", "0.750", "0.750", "–"),
    )
    assert further_grid({}) is None


def test_samples_are_folded_under_an_address_that_the_scores_link(finished: RunFolder):
    put_all_items(finished)
    found = samples(gather(finished))["tooluse"][0]
    assert (found.part, found.gold) == ("preserved", "weather()")
    assert [(answer.model, answer.scores, answer.text) for answer in found.answers][1] == (
        "degraded", "exact 1", "wether(",
    )  # fmt: skip
    page = Page(write_report(finished).read_text(encoding="utf-8"))
    assert "1 samples of" not in page.text
    assert "1 sample of tooluse" in page.text
    assert page.open == []


def test_what_was_weighed_is_shown_with_its_log_p(finished: RunFolder):
    weighed = {
        "item": "a/0",
        "prompt": "2 + 2 =",
        "answers": [[" 4", "-0.1"], [" 5", "-3.0"]],
        "gold": "4",
        "failure": "none",
    }
    for state in ("reference", "degraded", "recovered"):
        put_items(finished, state, item_scores("a", (1,), samples=(weighed,)))
    [found] = samples(gather(finished))["a"]
    assert found.answers[0].text == " 4 | -0.1\n 5 | -3.0\nfailure: none"


def test_hostile_samples_are_inert(finished: RunFolder):
    hostile = sample(f"</pre>{ATTACK}\x1b[2J", 1) | {"item": ATTACK, "prompt": ATTACK, "gold": ATTACK, ATTACK: ATTACK}
    for state in ("reference", "degraded", "recovered"):
        put_items(finished, state, item_scores(ATTACK, (1, 0), samples=(hostile,), further={ATTACK: (0, 1)}))
    html = write_report(finished).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "</pre>&lt;" not in html
    assert "\x1b" not in html
