import numpy as np
import pytest

from recoup.report import diagnosis_plots, svg

from .diagnosed import DIAGNOSIS, HISTORY
from .reading import curves


@pytest.fixture(autouse=True)
def _style():
    with svg.drawing():
        yield


def test_groups_stand_from_the_top_with_their_intervals():
    figure = diagnosis_plots.groups(DIAGNOSIS.groups)
    (axes,) = figure.axes
    ((kl, rows),) = curves(figure).values()
    assert kl == [1.021, 1.733, 1.202]
    assert rows == [0, 1, 2]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    ends = np.asarray(axes.collections[0].get_segments())[:, :, 0]  # type: ignore[attr-defined]
    assert ends[0] == pytest.approx([0.901, 1.141])  # 1.021 ± 0.12


def test_positions_are_bars_from_zero():
    (axes,) = diagnosis_plots.positions(DIAGNOSIS.positions).axes
    assert [bar.get_height() for bar in axes.patches] == [0.611, 1.122, 1.433]  # type: ignore[attr-defined]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0–3", "4–15", "16–63"]
    assert axes.get_ylim()[0] == 0


def test_positions_without_damage_can_be_drawn():
    still = [x.model_copy(update={"token_kl_nats": 0.0}) for x in DIAGNOSIS.positions]
    (axes,) = diagnosis_plots.positions(still).axes
    assert axes.get_ylim()[1] == 1


def test_a_capability_has_its_peak_and_the_student():
    figure = diagnosis_plots.capability(HISTORY, "science")
    drawn = curves(figure)
    orders, scores = drawn["checkpoint"]
    assert orders == [0, 1, 2, 3, 4]
    assert scores == [0.5, 0.58, 0.66, 0.71, 0.64]
    assert drawn["peak"] == ([3.0], [0.71])
    assert drawn["student"][1] == pytest.approx([0.62, 0.62])
    assert [text.get_text() for text in figure.axes[0].texts] == ["sft/checkpoint-400"]
