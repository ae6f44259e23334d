import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from recoup.report import plots, svg
from recoup.results import Estimate

from .conftest import NUM_LAYERS, SWITCH, diagnosis, healed, preserved, steps


@pytest.fixture(autouse=True)
def _style():
    with svg.drawing():
        yield


def curves(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of each labelled line."""
    lines = figure.axes[0].get_lines()
    points = {str(line.get_label()): np.asarray(line.get_xydata()) for line in lines}
    return {label: (xy[:, 0].tolist(), xy[:, 1].tolist()) for label, xy in points.items()}


def test_scores_stand_in_rows_from_the_top():
    figure = plots.scores([healed("first"), preserved("second")])
    values, rows = curves(figure)["recovered"]
    assert values == [0.42, 0.68]
    assert rows == [0.22, 1.22]
    low, high = sorted(figure.axes[0].get_ylim())
    assert figure.axes[0].get_ylim() == (high, low)


def test_scores_without_a_repair_leave_it_out():
    unrepaired = healed().model_copy(update={"recovered": None})
    assert curves(plots.scores([unrepaired, preserved()]))["recovered"][0] == [0.68]


def test_cka_draws_both_measures_of_both_states():
    drawn = curves(plots.layer_cka(diagnosis(0.3, 0.4), diagnosis(0.1, 0.1)))
    # the last of 30 layers: 1 − 0.3 · 30/30 without the sink, 1 − 0.3 · 30/30 / 4 with it
    assert drawn["before repair"][1][-1] == pytest.approx(0.7)
    assert drawn["before repair, sink included"][1][-1] == pytest.approx(0.925)
    assert drawn["after repair"][1][-1] == pytest.approx(0.9)
    assert len(drawn["after repair, sink included"][1]) == NUM_LAYERS


def test_drift_has_a_gap_where_shapes_differ():
    _, drift = curves(plots.layer_drift(None, diagnosis(0.1, 0.1)))["after repair"]
    assert [i for i, value in enumerate(drift) if math.isnan(value)] == [4]


def test_loss_is_split_at_the_switch():
    drawn = curves(plots.loss(steps()))
    assert drawn["off-policy (teacher writes)"][0] == list(range(15))
    assert drawn["on-policy (student writes)"][0] == list(range(15, 40))


def test_overlap_shows_measured_steps_only():
    drawn = curves(plots.overlap(steps()))
    steps_measured, values = drawn["off-policy (teacher writes)"]
    assert steps_measured == [0, 5, 10]
    assert values == pytest.approx([0.5, 0.55, 0.6])


def test_switch_needs_both_phases():
    assert plots.on_policy_from(steps()) == SWITCH
    assert plots.on_policy_from(steps()[:SWITCH]) is None
    assert plots.on_policy_from(steps()[SWITCH:]) is None


def test_no_two_curves_differ_by_colour_alone():
    for figure in (
        plots.scores([healed()]),
        plots.layer_cka(diagnosis(0.3, 0.4), diagnosis(0.1, 0.1)),
        plots.loss(steps()),
    ):
        lines = [line for line in figure.axes[0].get_lines() if not str(line.get_label()).startswith("_")]
        looks = [
            (line.get_marker(), line.get_linestyle()) for line in lines if "sink included" not in str(line.get_label())
        ]
        assert len(set(looks)) == len(looks) > 1


def test_not_a_number_is_drawn_as_a_gap():
    nowhere = Estimate(value=math.nan, low=math.nan, high=math.nan)
    odd = healed().model_copy(update={"degraded": nowhere})
    broken = [step.model_copy(update={"loss": math.inf}) for step in steps()]
    for figure in (plots.scores([odd]), plots.loss(broken)):
        assert svg.inline(figure, "x", "t").endswith("</svg>\n")


def test_inline_svg_uses_the_pages_colours_and_own_ids():
    text = svg.inline(plots.scores([healed()]), "mine", "what it shows")
    assert not re.findall(r"(?:fill|stroke): #", text), "a colour that the dark theme cannot change"
    assert "var(--recovered)" in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert all(name.startswith("mine-") for name in ids)
    assert {name for pair in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text) for name in pair if name} <= set(ids)
    assert 'aria-label="what it shows"' in text


def test_foreign_text_in_a_figure_is_inert():
    text = svg.inline(
        plots.scores([healed("<script>alert(1)</script>"), healed("$x^{$ 中\x1b #1f2328")]), "a", '"><script>'
    )
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "$x^{$ 中␛ #1f2328" in text
    assert "<title>&#34;&gt;&lt;script&gt;</title>" in text


def test_same_input_same_bytes_whatever_the_users_settings():
    first = svg.inline(plots.loss(steps()), "loss", "t")
    with mpl.rc_context({"xtick.direction": "in", "axes.facecolor": "black"}), svg.drawing():
        assert svg.inline(plots.loss(steps()), "loss", "t") == first


def test_standalone_is_a_document():
    root = ElementTree.fromstring(svg.standalone(plots.scores([healed("a & b\x00")]), "t <1>"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root[0].text == "t <1>"
