from pathlib import Path
from xml.etree import ElementTree

import pytest

from recoup.errors import DataError
from recoup.report import write_readme_figure
from recoup.run_folder import RunFolder

from .conftest import diagnosis, put


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]


def test_scores_and_layers_side_by_side_on_white(finished: RunFolder, tmp_path: Path):
    write_readme_figure(finished, tmp_path / "figure.svg")
    shown = texts(tmp_path / "figure.svg")
    assert {"hellaswag", "acc_norm, n = 500", "reference", "degraded", "recovered"} <= set(shown)
    # the last of 30 layers: 1 − 0.3 and 1 − 0.1
    assert "before repair: lowest CKA 0.700 at layer 29" in shown
    assert "after repair: lowest CKA 0.900 at layer 29" in shown
    svg = (tmp_path / "figure.svg").read_text()
    assert svg.index("fill: #ffffff") < svg.index("<text")
    assert "var(" not in svg


def test_missing_stages_leave_a_sentence(empty: RunFolder, tmp_path: Path):
    put(empty.diagnose("before"), diagnosis(scale=0.3, kl=0.45))
    write_readme_figure(empty, tmp_path / "figure.svg")
    shown = texts(tmp_path / "figure.svg")
    assert {"No benchmark was evaluated.", "Not diagnosed after repair."} <= set(shown)


def test_same_run_same_bytes(finished: RunFolder, tmp_path: Path):
    for name in ("a.svg", "b.svg"):
        write_readme_figure(finished, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_no_results_is_an_error(empty: RunFolder, tmp_path: Path):
    with pytest.raises(DataError, match="no stage of a run is finished"):
        write_readme_figure(empty, tmp_path / "figure.svg")
    assert not (tmp_path / "figure.svg").exists()
