"""The whole job on tiny models, through the verbs a user types; and every mistake a user makes is one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import recoup
from recoup.cli import app, main
from recoup.config import RunConfig
from recoup.config_file import parse
from recoup.errors import ConfigError, RunFolderError
from recoup.pipeline import run
from recoup.results import DiagnoseResult, EvaluateResult
from recoup.run_folder import RunFolder
from tests.conftest import save_tiny

TEXTS = [f"please explain topic {i} in a few words" for i in range(60)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Science rows in the papers' format: a task that needs no data package."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"prompt": [{"role": "user", "content": f"Pick a letter: question {i}"}], "answer": "ABCD"[i % 4]}
        for i in range(12)
    ]
    (folder / "science_sdft").mkdir()
    (folder / "science_sdft" / "eval_507_paper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tree(model: Path, prompts: Path, data: Path, degrade: list[dict]) -> dict:
    return {
        "name": "tiny",
        "model": str(model),
        "degrade": degrade,
        "diagnose": {"prompts": str(prompts), "num_prompts": 6, "max_tokens": 6},
        "recover": {
            "terms": [{"prompts": str(prompts), "num_prompts": 16}],
            "steps": 3, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2,
            "rollout": {"max_tokens": 6}, "bootstrap": {"max_steps": 1},
        },
        "evaluate": {
            "tasks": ["science"], "data": str(data), "fidelity_prompts": str(prompts), "num_fidelity_prompts": 6,
            "fidelity_tokens": 6, "num_bootstrap": 100,
        },
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["qwen2", "gemma3_text"])
def test_a_model_the_project_does_not_name(
    tiny_models: dict[str, Path], layout: str, prompts: Path, data: Path, tmp_path: Path
) -> None:
    degrade = [{"type": "magnitude", "sparsity": 0.3}, {"type": "quantize", "bits": 3, "group_size": 16}]
    config = tree(tiny_models[layout], prompts, data, degrade)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    folder = RunFolder(tmp_path / "run")
    shown = CliRunner().invoke(app, ["run", str(path), "--output", str(folder.root)])
    assert shown.exit_code == 0, shown.output
    assert "token KL" in shown.output
    page = folder.report.read_text()
    assert "science" in page
    assert "<script" not in page
    before, after = (DiagnoseResult.read(folder.diagnose(state) / "result.json") for state in ("before", "after"))
    assert len(before.layers) == len(after.layers) == 2
    assert before.teacher == str(folder.degrade("magnitude") / "checkpoint")  # the state before the last injury
    proof = EvaluateResult.read(folder.evaluate / "result.json")
    assert proof.recovered_fidelity is not None
    assert proof.tasks[0].num_items == 12

    # plain transformers reloads the repaired student, and a command says that it is exact
    checkpoint = folder.recover / "checkpoint"
    ids = torch.arange(3, 40)[None]
    ours, plain = recoup.load(str(checkpoint)).model, AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        assert torch.equal(ours(ids).logits, plain(ids).logits)
    verified = CliRunner().invoke(app, ["verify", str(checkpoint)])
    assert verified.exit_code == 0
    assert "exact, bit for bit" in verified.output


def test_a_finished_run_is_not_run_again_and_another_is_refused(
    tiny_model: Path, prompts: Path, data: Path, tmp_path: Path
) -> None:
    settings = tree(tiny_model, prompts, data, [{"type": "quantize", "format": "nf4"}])
    config, folder = parse(RunConfig, settings, "test"), RunFolder(tmp_path / "run")
    first = run(config, folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.root.rglob("result.json")}
    assert run(config, folder) == first
    assert {path: path.stat().st_mtime_ns for path in folder.root.rglob("result.json")} == stamps
    other = parse(RunConfig, settings | {"seed": 1}, "test")
    with pytest.raises(RunFolderError, match="holds a run with another config"):
        run(other, folder)
    shutil.rmtree(folder.evaluate)
    again = run(config, folder)
    assert [task.recovered for task in again.tasks] == [task.recovered for task in first.tasks]


def test_what_nothing_repaired_is_diagnosed_once(tiny_model: Path, prompts: Path, data: Path, tmp_path: Path) -> None:
    settings = tree(tiny_model, prompts, data, [{"type": "quantize", "format": "nf4"}]) | {"method": "none"}
    folder = RunFolder(tmp_path / "run")
    run(parse(RunConfig, settings, "test"), folder)
    before, after = (DiagnoseResult.read(folder.diagnose(state) / "result.json") for state in ("before", "after"))
    assert after == before  # to the seconds it took


def test_a_student_you_have(tiny_model: Path, prompts: Path, data: Path, tmp_path: Path) -> None:
    student = save_tiny("llama", tmp_path / "student", seed=3)
    settings = tree(tiny_model, prompts, data, []) | {"student": str(student)}
    assert (
        run(parse(RunConfig, settings, "test"), RunFolder(tmp_path / "run")).degraded_fidelity.token_kl_nats.value > 0
    )


def test_python_api(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    damaged = recoup.degrade(model=str(tiny_model), method="quantize", output=tmp_path / "int2", bits=2, group_size=16)
    lost = recoup.diagnose(
        teacher=str(tiny_model), student=damaged.checkpoint, output=tmp_path / "d", prompts=str(prompts), max_tokens=6
    )
    assert lost.tokens.token_kl_nats.value > 0
    repaired = recoup.recover(
        student=damaged.checkpoint, teacher=str(tiny_model), prompts=str(prompts), output=tmp_path / "r", steps=2,
        batch_size=4, rollout={"max_tokens": 6},
    )  # fmt: skip
    assert repaired.structure_exact
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        recoup.recover(student="x", teacher="y", output=tmp_path / "z", step=2)


MISTAKES = {
    "missing folder": (["verify", "./nowhere"], "no such model folder"),
    "unknown method": (["degrade", "MODEL", "--method", "quantise", "-o", "OUT"], "quantise"),
    "unknown setting": (["degrade", "MODEL", "--method", "quantize", "-o", "OUT", "bitz=3"], "did you mean 'bits'"),
    "group size": (["degrade", "MODEL", "--method", "quantize", "-o", "OUT", "group_size=7"], "does not divide"),
    "malformed line": (
        ["recover", "--student", "MODEL", "--teacher", "MODEL", "-o", "OUT", "prompts=BAD"],
        "line 2: not JSON",
    ),
    "empty prompts": (
        ["recover", "--student", "MODEL", "--teacher", "MODEL", "-o", "OUT", "prompts=EMPTY"],
        "holds no train prompt",
    ),
    "unequal vocabularies": (
        ["diagnose", "--student", "MODEL", "--teacher", "OTHER", "-o", "OUT", "prompts=GOOD"],
        "tokenizers disagree",
    ),
    "no chat template": (
        ["diagnose", "--student", "BARE", "--teacher", "BARE", "-o", "OUT", "prompts=GOOD"],
        "has no chat template",
    ),
    "gguf without tokenizer": (["verify", "GGUF"], "GGUF file without a tokenizer"),
    "not a gguf": (["verify", "FAKE"], "cannot load this model"),
    "no config": (["run", "nowhere.yaml"], "no such config file"),
    "report of nothing": (["report", "OUT"], "no stage of a run is finished here"),
    "output in a file": (["degrade", "MODEL", "--method", "magnitude", "-o", "GOOD/out"], "cannot create this folder"),
}


@pytest.fixture(scope="module")
def places(tiny_models: dict[str, Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("mistakes")
    (root / "bad.jsonl").write_text('{"prompt": "good"}\n{"prompt": \n')
    (root / "empty.jsonl").write_text("")
    (root / "fake.gguf").write_bytes(b"GGUF but not really")
    bare = save_tiny("llama", root / "bare")
    (bare / "chat_template.jinja").unlink()
    other = save_tiny("llama", root / "other")
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    write_gguf_without_tokenizer(root / "none.gguf")
    names = {"MODEL": tiny_models["llama"], "GOOD": prompts, "BAD": root / "bad.jsonl", "EMPTY": root / "empty.jsonl",
             "BARE": bare, "OTHER": other, "GGUF": root / "none.gguf", "FAKE": root / "fake.gguf"}  # fmt: skip
    return {name: str(path) for name, path in names.items()}


def write_gguf_without_tokenizer(path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_with_exit_code_2_and_nothing_written(
    mistake: str,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, says = MISTAKES[mistake]
    out = tmp_path / "out"
    filled = []
    for argument in arguments:
        for name, path in {**places, "OUT": str(out)}.items():
            argument = argument.replace(name, path) if name in argument.split("=")[-1].split("/") else argument
        filled.append(argument)
    monkeypatch.setattr(sys, "argv", ["recoup", *filled])
    with pytest.raises(SystemExit) as caught:
        main()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2
    assert error.startswith("recoup: ")
    assert says in error
    assert not (out / "result.json").exists()
    assert not (out / "checkpoint").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match="read-only"):
        recoup.degrade(model=str(tiny_model), method="magnitude", output=tmp_path / "fixed")


def test_full_disk_is_one_line_and_keeps_what_was_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recoup.degrade(model=str(tiny_model), method="magnitude", output=tmp_path / "out")
    before = (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes()

    def full(*_arguments: object, **_settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        recoup.degrade(model=str(tiny_model), method="magnitude", output=tmp_path / "out", sparsity=0.9)
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").read_bytes() == before


def test_help_of_every_verb_has_an_example() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert "Example: `recoup" in (command.callback.__doc__ or "")


def test_dry_run_prints_the_resolved_config(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    shown = CliRunner().invoke(
        app, ["run", str(root / "configs" / "nf4.yaml"), "recover.learning_rate=1e-5", "--dry-run"]
    )
    assert shown.exit_code == 0
    assert yaml.safe_load(shown.output)["recover"]["learning_rate"] == 1e-5


def test_plan_tells_memory_and_time_before_anything_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "model": str(tiny_model), "degrade": [{"type": "magnitude"}]}))
    shown = CliRunner().invoke(app, ["plan", str(path), "recover.steps=7"])
    assert shown.exit_code == 0, shown.output
    assert "peak" in shown.output
    assert "7 steps:" in shown.output


@pytest.mark.parametrize(("kind", "names"), [("injuries", "quantize"), ("tasks", "hellaswag"), ("models", "embedded")])
def test_ls(kind: str, names: str) -> None:
    shown = CliRunner().invoke(app, ["ls", kind])
    assert shown.exit_code == 0
    assert names in shown.output


def test_help_answers_without_torch() -> None:
    program = "import sys; from recoup.cli import app; app(['--help'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
