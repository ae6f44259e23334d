import math
import re
from itertools import pairwise

import pytest

from recoup.report.heat import HeatMap, draw

from .reading import ATTACK

SMALL = HeatMap([[0.0, 0.5], [1.0, None]], ("a", "b"), "", "layer", (0.0, 1.0), "unlike")


def opacities(text: str) -> list[float]:
    """Of the cells, without the scale's."""
    return [float(x) for x in re.findall(r'fill-opacity="([^"]*)"><title>', text)]


def test_opacity_follows_the_value():
    # 5% at the lowest so that it is seen, then evenly: 0.05 + 0.95 · 0.5 = 0.525
    assert opacities(draw(SMALL, "t")) == [0.05, 0.525, 1.0]


def test_values_outside_the_scale_are_drawn_at_its_ends():
    heat = HeatMap([[-0.2, 3.0]], ("a",), "", "layer", (0.0, 1.0), "unlike")
    text = draw(heat, "t")
    assert opacities(text) == [0.05, 1.0]
    assert ">≥ 1.00<" in text
    assert "≥" not in draw(SMALL, "t")


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_what_was_not_measured_is_an_empty_cell(nothing: float | None):
    text = draw(HeatMap([[nothing, 1.0]], ("a",), "", "layer", (0.0, 1.0), "unlike"), "t")
    assert text.count('class="missing"') == 1
    assert "<title>a, layer 0: not measured</title>" in text


def test_every_cell_names_its_value():
    text = draw(HeatMap([[0.25, -0.5]], ("7",), "student layer", "teacher layer", (0.0, 1.0), "like", square=True), "t")
    assert "<title>student layer 7, teacher layer 0: 0.250</title>" in text
    assert "<title>student layer 7, teacher layer 1: −0.500</title>" in text


def test_a_scale_without_extent_is_drawn():
    assert opacities(draw(HeatMap([[0.0]], ("a",), "", "layer", (0.0, 0.0), "unlike"), "t")) == [1.0]


@pytest.mark.parametrize("count", [1, 2, 30, 80, 126])
def test_numbers_of_layers_do_not_touch(count: int):
    text = draw(
        HeatMap([[0.5] * count] * count, [str(i) for i in range(count)], "s", "t", (0.0, 1.0), "like", square=True), "t"
    )
    height = float(re.findall(r'viewBox="0 0 360 ([0-9.]*)"', text)[0])
    places = [float(x) for x in re.findall(r'y="([0-9.]*)" text-anchor="end"', text)[:-1]]
    assert all(below - above >= 10 for above, below in pairwise(places))
    assert max(places) < height < 480
    widest = max(float(x) + float(w) for x, w in re.findall(r'<rect x="([0-9.]*)" y="[0-9.]*" width="([0-9.]*)"', text))
    assert widest <= 360


def test_foreign_names_are_inert():
    text = draw(HeatMap([[0.5]], (f"{ATTACK}\x1b[2J",), "", "layer", (0.0, 1.0), "unlike"), '"><b>')
    assert "<script" not in text
    assert "\x1b" not in text
    assert 'aria-label="&#34;&gt;&lt;b&gt;"' in text
