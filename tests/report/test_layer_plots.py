import math

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection

from recoup.report import layer_plots, svg
from recoup.report.layer_plots import repair_states, student_state

from .conftest import NUM_LAYERS, diagnosis
from .diagnosed import DIAGNOSIS
from .reading import curves


@pytest.fixture(autouse=True)
def _style():
    with svg.drawing():
        yield


def test_cka_draws_both_measures_of_both_states():
    drawn = curves(layer_plots.layer_cka(repair_states(diagnosis(0.3, 0.4), diagnosis(0.1, 0.1))))
    # the last of 30 layers: 1 − 0.3 · 30/30 without the sink, 1 − 0.3 · 30/30 / 4 with it
    assert drawn["before repair"][1][-1] == pytest.approx(0.7)
    assert drawn["before repair, sink included"][1][-1] == pytest.approx(0.925)
    assert drawn["after repair"][1][-1] == pytest.approx(0.9)
    assert len(drawn["after repair, sink included"][1]) == NUM_LAYERS
    assert "ceiling" not in drawn


def test_cka_draws_interval_ceiling_and_floor():
    figure = layer_plots.layer_cka(student_state(DIAGNOSIS))
    drawn = curves(figure)
    assert drawn["ceiling"][1] == [0.9995] * 30
    assert drawn["floor"][1][-1] == pytest.approx(0.11 + 0.002 * 29)
    (band,) = (x for x in figure.axes[0].collections if isinstance(x, FillBetweenPolyCollection))
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    # lowest at the last layer: 0.71 − 0.01 − 0.029; highest at the first: 0.997 + 0.01
    assert heights.min() == pytest.approx(0.671)
    assert heights.max() == pytest.approx(1.007)


def test_an_interval_may_be_missing_at_a_layer():
    layers = tuple(x.model_copy(update={"cka_interval": None}) if x.layer == 7 else x for x in DIAGNOSIS.layers)
    figure = layer_plots.layer_cka(student_state(DIAGNOSIS.model_copy(update={"layers": layers})))
    (band,) = (x for x in figure.axes[0].collections if isinstance(x, FillBetweenPolyCollection))
    assert len(band.get_paths()) == 2


def test_drift_has_a_gap_where_shapes_differ():
    _, drift = curves(layer_plots.layer_drift(repair_states(None, diagnosis(0.1, 0.1))))["after repair"]
    assert [i for i, value in enumerate(drift) if math.isnan(value)] == [4]


def test_companions_are_drawn():
    distance = curves(layer_plots.layer_distance(DIAGNOSIS.layers))
    assert distance["relative L2"][1][5] == pytest.approx(0.3)
    assert distance["Procrustes"][1][5] == pytest.approx(0.15)
    rank = curves(layer_plots.layer_rank(DIAGNOSIS.layers))
    assert rank["teacher"][1][0] == 120
    assert rank["student"][1][10] == 86


def test_no_two_curves_differ_by_colour_alone():
    for figure in (
        layer_plots.layer_cka(repair_states(DIAGNOSIS, DIAGNOSIS)),
        layer_plots.layer_distance(DIAGNOSIS.layers),
        layer_plots.layer_rank(DIAGNOSIS.layers),
    ):
        lines = [line for line in figure.axes[0].get_lines() if not str(line.get_label()).startswith("_")]
        shown = [line for line in lines if "sink included" not in str(line.get_label())]
        looks = {(line.get_marker(), line.get_linestyle()) for line in shown}
        assert len(looks) == len(shown) > 1


def test_bounds_are_explained_where_they_are_drawn():
    assert layer_plots.bounds_sentence(repair_states(diagnosis(0.3, 0.4), None)) == ""
    sentence = layer_plots.bounds_sentence(repair_states(diagnosis(0.3, 0.4), DIAGNOSIS))
    assert [word for word in ("Bands", "Ceiling", "Floor") if word in sentence] == ["Bands", "Ceiling", "Floor"]
