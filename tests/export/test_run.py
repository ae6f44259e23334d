"""The export verb: what is kept, what is refused, and that a refusal leaves everything as it was."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import recoup
from recoup import cli
from recoup.config import Export
from recoup.config_file import parse
from recoup.errors import ConfigError, ExportError
from recoup.export import llama_cpp, readback
from recoup.export.run import CARD, GGUF_FILE, READERS, RECORD
from recoup.models.load import load
from recoup.results import ExportResult
from recoup.structure.grids import IntegerGrid
from recoup.structure.verify import verify
from tests.export.conftest import save_on_grids


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, wide_model: Path) -> Path:
    """A tiny Llama on the int4 grid in groups of 32."""
    return save_on_grids(
        wide_model, lambda _: IntegerGrid(4, 32, symmetric=True), tmp_path_factory.mktemp("int4") / "model"
    )


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_safetensors_read_back_as_the_same_model(layout: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    result = recoup.export(model=str(tiny_models[layout]), output=tmp_path / "out")
    assert (result.token_kl_nats, result.max_logit_difference, result.top1_agreement) == (0, 0, 1)
    assert result.consumer.startswith("transformers 5")
    assert ExportResult.read(tmp_path / "out" / RECORD) == result
    assert (tmp_path / "out" / CARD).read_text().startswith("---\n")
    assert result.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_safetensors_in_float32_keep_the_structure(checkpoint: Path, tmp_path: Path) -> None:
    recoup.export(model=str(checkpoint), output=tmp_path / "out")
    assert load(str(tmp_path / "out")).structure.describe() == "int4, groups of 32, symmetric: 14 weight matrices"
    assert recoup.export(model=str(tmp_path / "out"), output=tmp_path / "again").token_kl_nats == 0


def test_safetensors_in_sixteen_bits_declare_no_grid_that_they_left(checkpoint: Path, tmp_path: Path) -> None:
    result = recoup.export(model=str(checkpoint), output=tmp_path / "out", dtype="bfloat16")
    assert result.token_kl_nats > 0
    assert result.tensor_types == {"bfloat16": 20}  # 14 linear layers, the embeddings and 5 norms
    assert "14 weights are rounded: bfloat16 does not hold their grids" in result.notes[0]
    assert not (tmp_path / "out" / "structure.json").exists()


def test_a_mask_is_kept_in_sixteen_bits(wide_model: Path, tmp_path: Path) -> None:
    recoup.degrade(model=str(wide_model), method="magnitude", output=tmp_path / "pruned", sparsity=0.5)
    result = recoup.export(model=str(tmp_path / "pruned/checkpoint"), output=tmp_path / "out", dtype="bfloat16")
    assert result.notes == ()
    exported = load(str(tmp_path / "out"))
    assert exported.structure.describe() == "50.0% zeros: 14 weight matrices"
    assert verify(exported.model, exported.structure).exact


def test_gguf_without_llama_cpp_is_read_back_by_transformers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    result = recoup.export(model=str(checkpoint), to="gguf", output=tmp_path / "out", dtype="float32")
    assert result.token_kl_nats < 1e-6
    assert result.tensor_types["Q4_0"] == 14
    assert result.consumer.startswith("transformers 5")
    assert "gguf" in result.consumer
    assert "llama.cpp itself has not read this file" in result.notes[-1]
    assert (tmp_path / "out" / GGUF_FILE).stat().st_size == result.files[GGUF_FILE]


def test_compressed_tensors_read_back_as_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    result = recoup.export(model=str(checkpoint), to="compressed-tensors", output=tmp_path / "out")
    assert (result.token_kl_nats, result.max_logit_difference, result.top1_agreement) == (0, 0, 1)
    assert "compressed-tensors 0" in result.consumer
    # a linear weight takes 4 bits and a 32nd of a float32 scale, 5 bits, where float32 takes 32
    assert result.tensor_types == {"float32": 6, "int4, groups of 32, symmetric": 14}
    assert result.files["model.safetensors"] < (checkpoint / "model.safetensors").stat().st_size / 2


def test_beyond_the_bound_nothing_is_left_behind(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="more than max_kl_nats 1e-12"):
        recoup.export(model=str(checkpoint), output=tmp_path / "out", dtype="bfloat16", max_kl_nats=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_beyond_the_bound_an_earlier_export_stays(checkpoint: Path, tmp_path: Path) -> None:
    recoup.export(model=str(checkpoint), output=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ExportError, match="not exported"):
        recoup.export(model=str(checkpoint), output=tmp_path / "out", dtype="bfloat16", max_kl_nats=1e-12)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    recoup.export(model=str(checkpoint), output=tmp_path / "out", dtype="bfloat16")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_files_are_never_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds other files"):
        recoup.export(model=str(checkpoint), output=tmp_path)
    with pytest.raises(ExportError, match="is a file"):
        recoup.export(model=str(checkpoint), output=tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_broken_writer_is_caught_by_reading_back(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's answers decide, not the writer's word."""
    read = readback.by_transformers

    def another_model(folder: Path, rollouts: object, *rest: object) -> readback.Answer:
        answer = read(folder, rollouts)  # type: ignore[arg-type]
        return readback.Answer(answer.logits_NV.roll(1, dims=1), answer.consumer)

    monkeypatch.setitem(READERS, "safetensors", another_model)
    with pytest.raises(ExportError, match=r"nats per token from the trained one, more than max_kl_nats 0\.01"):
        recoup.export(model=str(checkpoint), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_off_its_grid_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"1 weights are off the structure they declare .*up_proj"):
        recoup.export(model=str(broken), output=tmp_path / "out")


def test_impossible_settings_fail_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="q8_0 is a GGUF type"):
        parse(Export, {"to": "safetensors", "dtype": "q8_0"}, "export")
    with pytest.raises(ConfigError, match="to"):
        recoup.export(model="embedded", to="onnx", output="out")


def test_the_command_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    output = tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["export", str(checkpoint), "--to", "safetensors", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "token KL 0 nats, top-1 agreement 1.0000" in done.output
    assert json.loads((output / RECORD).read_text())["target"] == "safetensors"
    wrong = [
        "recoup",
        "export",
        str(checkpoint),
        "--to",
        "safetensors",
        "-o",
        str(tmp_path / "no"),
        "dtype=bfloat16",
        "max_kl_nats=1e-12",
    ]
    monkeypatch.setattr("sys.argv", wrong)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "not exported" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
