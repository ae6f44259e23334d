import math
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from recoup.report import plots, svg
from recoup.results import Estimate, TaskComparison

from .conftest import SWITCH, around, healed, preserved, probe, steps
from .reading import curves


@pytest.fixture(autouse=True)
def _style():
    with svg.drawing():
        yield


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


def test_a_diagnosis_scores_a_pair():
    figure = plots.scores([healed("first"), preserved("second")], plots.PAIR)
    drawn = curves(figure)
    assert set(drawn) & {"teacher", "student", "recovered"} == {"teacher", "student"}
    # two models, 0.22 rows apart around the middle of the row
    assert drawn["student"][1] == pytest.approx([0.11, 1.11])


def nats(task: str, metric: str = "logp_per_token") -> TaskComparison:
    values = {"reference": around(-2.5, 0.1), "degraded": around(-3.5, 0.1), "recovered": around(-2.6, 0.1)}
    return healed(task).model_copy(update={"metric": metric, **values})


def test_log_probabilities_stand_on_an_axis_of_their_own():
    figure = plots.scores([nats("wikitext2"), healed("first"), nats("c4"), nats("odd", "bits")])
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "score, with 95% interval", "log p per token, nats, with 95% interval", "bits, with 95% interval",
    ]  # fmt: skip
    assert [len(axes.get_yticks()) for axes in figure.axes] == [1, 2, 1]
    assert figure.axes[0].get_xlim()[0] > 0
    svg.inline(figure, "a", "t")


def test_a_file_that_follows_the_readers_theme():
    text = svg.adaptive(plots.scores([healed()]), "t")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.findall(r"(?:fill|stroke): #", text)
    style = (Path(svg.__file__).parent / "style.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"(--[a-z]+): (#[0-9a-f]{6})", part)) for part in style.split("@media")[:2])
    found = [
        dict(re.findall(r"(--[a-z]+): (#[0-9a-f]{6})", part)) for part in text[: text.index("</style>")].split("@media")
    ]
    assert set(found[0]) == set(found[1]) == {"--paper", *(name[4:-1] for name in svg.VARIABLES.values())}
    assert found[0].items() <= light.items()
    assert found[1].items() <= dark.items()


def test_the_probe_shows_every_look():
    steps_looked_at, kl = curves(plots.probe_kl(probe()))["student"]
    assert steps_looked_at == [0, 20, 40, 60, 80, 100]
    assert kl[:2] == pytest.approx([1.2, 0.84])
    # k = 1: layers 0.91 and 0.73, whose mean is 0.82
    drawn = curves(plots.probe_cka(probe()))
    assert drawn["mean of the layers"][1][1] == pytest.approx(0.82)
    assert drawn["lowest layer"][1][1] == pytest.approx(0.73)


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
        plots.scores([healed()], plots.PAIR),
        plots.loss(steps()),
        plots.probe_cka(probe()),
    ):
        lines = [line for line in figure.axes[0].get_lines() if not str(line.get_label()).startswith("_")]
        looks = [(line.get_marker(), line.get_linestyle()) for line in lines]
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
