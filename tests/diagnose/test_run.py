"""The whole diagnosis, on disk."""

from pathlib import Path

import pytest

from recoup.config import Diagnose
from recoup.diagnose.run import STEPS, DiagnoseInputs, run
from recoup.errors import DataError
from recoup.results import DiagnoseResult
from recoup.run_folder import result_path
from tests.conftest import save_tiny

PROMPTS = [
    "How do bees fly?",
    "Write a short poem.",
    "What is a prime number?",
    "Explain tides.",
    "Why is the sky blue?",
]


def test_result_is_written_last_and_reads_back(tiny_model: Path, tmp_path: Path) -> None:
    student = save_tiny("llama", tmp_path / "student", seed=1)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    config = Diagnose(prompts=str(prompts), num_prompts=5, max_tokens=6)
    told: list[tuple[str, int, int]] = []

    def tell(label: str, done: int, total: int) -> None:
        assert (tmp_path / "out" / "result.json").exists() == (done == total)
        told.append((label, done, total))

    result = run(config, DiagnoseInputs(str(tiny_model), str(student), seed=0), tmp_path / "out", tell)
    assert DiagnoseResult.read(result_path(tmp_path / "out")) == result
    assert [done for _, done, _ in told] == [0, 1, 2, 3, 4, 5]
    assert {label.removeprefix("diagnose: ") for label, _, _ in told} == set(STEPS)
    assert result.tokens.num_prompts == 5
    assert 5 <= result.tokens.num_tokens <= 30
    assert result.num_cka_tokens > result.tokens.num_tokens
    assert [layer.layer for layer in result.layers] == [0, 1]
    assert result.tokens.token_kl_nats.low > 0


def test_missing_prompts_write_nothing(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such prompt file"):
        run(Diagnose(prompts="nowhere.txt"), DiagnoseInputs(str(tiny_model), str(tiny_model), 0), tmp_path / "out")
    assert not (tmp_path / "out").exists()
