"""Model cards: what they say of a run, and that nothing foreign acts in them."""

from pathlib import Path

import pytest
import yaml

from recoup.export.card import model_card, plain, run_of
from recoup.results import ExportResult
from recoup.run_folder import RunFolder
from tests.report.conftest import RECOVERY, evaluation, healed, injury, put


def exported(source: str, **changes: object) -> ExportResult:
    values: dict[str, object] = {
        "source": source,
        "target": "gguf",
        "output": "out",
        "files": {"model.gguf": 3 * 2**20, "export.txt": 2**20},
        "tensor_types": {"Q4_0": 210, "F16": 1},
        "structure": "int4, groups of 64, symmetric: 210 weight matrices",
        "consumer": "llama.cpp (llama-cpp-python 0.3.36)",
        "num_prompts": 8,
        "num_tokens": 256,
        "token_kl_nats": 0.00123,
        "max_logit_difference": 0.25,
        "top1_agreement": 0.996,
        "seconds": 3.0,
        **changes,
    }
    return ExportResult.model_validate(values)


def header(card: str) -> dict:
    tree: dict = yaml.safe_load(card.split("---")[1])
    return tree


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """RUN/recover/checkpoint of a finished run."""
    folder = RunFolder(tmp_path / "a_run")
    put(folder.degrade("quantize"), injury("quantize", "int3, group 64, symmetric: 210 matrices"))
    put(folder.recover, RECOVERY)
    put(folder.evaluate, evaluation(healed()))
    path = folder.recover / "checkpoint"
    path.mkdir()
    return path


def test_a_card_tells_the_run_it_comes_from(checkpoint: Path) -> None:
    card = model_card(exported(str(checkpoint)))
    assert "# a\\_run, repaired by recoup" in card
    assert (
        "Damaged by quantize: token KL to the reference fell from 0.412 to 0.0871 nats; of 1 significantly damaged"
        in card
    )
    assert "- int3, group 64, symmetric: 210 matrices" in card
    assert "| hellaswag (acc_norm, n = 500) | 0.430 [0.390, 0.470] |" in card
    assert "from embedded: 40 steps, 40,000 tokens of 256 prompts, 4.2 min, peak memory 3.0 GiB" in card
    assert "kept bit for bit: int3 grid, 210 matrices" in card
    assert "mean KL from the trained model 0.00123 nats per token, top-1 agreement 0.9960" in card
    assert "gguf, 4.0 MiB; weights: 210 × Q4\\_0, 1 × F16" in card


def test_an_exact_export_is_called_exact(checkpoint: Path) -> None:
    card = model_card(exported(str(checkpoint), token_kl_nats=0.0, max_logit_difference=0.0, top1_agreement=1.0))
    assert "on 256 tokens: every logit equals the trained model's, bit for bit." in card


def test_the_header_is_what_the_hub_reads(checkpoint: Path) -> None:
    assert header(model_card(exported(str(checkpoint)))) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",  # the embedded one
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["recoup", "gguf"],
    }


def test_a_model_outside_a_run_gets_a_short_card(tmp_path: Path) -> None:
    card = model_card(exported(str(tmp_path / "model"), target="safetensors", notes=("weights are <b>rounded</b>",)))
    assert "repaired" not in card
    assert "# model, exported by recoup" in card
    assert "base_model" not in header(card)  # a folder is no model on the hub
    assert header(card)["library_name"] == "transformers"
    assert "- weights are &lt;b&gt;rounded&lt;/b&gt;" in card


@pytest.mark.parametrize(
    ("source", "expected"),
    [("Qwen/Qwen2.5-3B-Instruct@main", "Qwen/Qwen2.5-3B-Instruct"), ("embedded", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("../x", None)],
)  # fmt: skip
def test_the_base_model_is_a_name_on_the_hub_or_nothing(source: str, expected: str | None) -> None:
    assert header(model_card(exported(source))).get("base_model") == expected


def test_a_repair_outside_a_run_is_found_beside_its_checkpoint(tmp_path: Path) -> None:
    put(tmp_path / "repaired", RECOVERY)
    path = tmp_path / "repaired" / "checkpoint"
    path.mkdir()
    found = run_of(str(path))
    assert found is not None
    assert found.name == "repaired"
    assert "Repaired by on-policy self-distillation from embedded" in model_card(exported(str(path)))


def test_an_unrelated_folder_inside_a_run_is_not_its_checkpoint(checkpoint: Path) -> None:
    other = checkpoint.parents[1] / "recover" / "other"
    other.mkdir()
    assert run_of(str(other)) is None or run_of(str(other)).name != "a_run"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[click](http://x)", "\\[click\\](http://x)"),
        ("a | b\n# title", "a \\| b \\# title"),
        ("`code` *bold* _it_ \\", "\\`code\\` \\*bold\\* \\_it\\_ \\\\"),
        ("&amp;", "&amp;amp;"),
    ],
)
def test_foreign_text_does_nothing(text: str, safe: str) -> None:
    assert plain(text) == safe


def test_a_name_cannot_break_the_header(tmp_path: Path) -> None:
    card = model_card(exported("x---\nlicense: stolen", consumer="<img src=x>"))
    assert "license" not in header(card)
    assert "<img" not in card
