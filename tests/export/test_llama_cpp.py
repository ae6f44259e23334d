"""llama.cpp itself, in its own process, on what we export."""

from pathlib import Path

import pytest

import recoup
from recoup.errors import ExportError
from recoup.export import llama_cpp
from recoup.export.run import GGUF_FILE
from recoup.models.load import load
from recoup.models.sample import Sampling, sample
from recoup.structure.grids import IntegerGrid
from tests.conftest import save_tiny
from tests.export.conftest import save_on_grids

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", ["llama", "qwen2"])
def test_float32_weights_answer_alike(layout: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """What is left is the float16 cache of keys and values."""
    result = recoup.export(model=str(tiny_models[layout]), to="gguf", output=tmp_path / "out", dtype="float32")
    assert result.consumer.startswith("llama.cpp")
    assert result.notes == ()
    assert result.token_kl_nats < 1e-5


def test_exact_int4_weights_stay_below_the_default_bound(wide_model: Path, tmp_path: Path) -> None:
    checkpoint = save_on_grids(wide_model, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path / "int4")
    result = recoup.export(model=str(checkpoint), to="gguf", output=tmp_path / "out")
    assert result.tensor_types["Q4_0"] == 14
    assert 0 < result.token_kl_nats < 0.02


def test_greedy_completions_are_those_of_transformers(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", eos_token_id=None)
    recoup.export(model=str(folder), to="gguf", output=tmp_path / "out", dtype="float32")
    model = load(str(folder))
    prompts = [[65, 66, 67], [70, 71]]
    ours = sample(model, prompts, Sampling(max_tokens=8)).completions()
    theirs = llama_cpp.greedy(tmp_path / "out" / GGUF_FILE, prompts, max_tokens=8)
    assert [row[: len(mine)] for row, mine in zip(theirs, ours, strict=True)] == ours


def test_a_file_that_llama_cpp_cannot_load_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ExportError, match=r"llama\.cpp cannot run broken\.gguf") as caught:
        llama_cpp.completion_logits(file, [([1, 2, 3], 1)])
    assert "\n" not in str(caught.value)
