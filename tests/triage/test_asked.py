"""What the teacher is asked: apart, enough, and the same again."""

from pathlib import Path

import pytest
import torch

from recoup.config import Diagnose
from recoup.data import prompts as data
from recoup.errors import DataError
from recoup.models.load import load
from recoup.models.sample import Rollouts
from recoup.triage import asked
from recoup.triage.asked import ask

PROMPTS = [f"say something about the number {i}" for i in range(60)]


@pytest.fixture
def prompts(tmp_path: Path) -> Diagnose:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return Diagnose(prompts=str(path), max_tokens=8)


def texts(teacher, rollouts: Rollouts) -> set[str]:
    shown = rollouts.attention_BT & ~rollouts.completion_BT
    return {teacher.tokenizer.decode(row[mask]) for row, mask in zip(rollouts.tokens_BT, shown, strict=True)}


def test_scored_and_calibration_prompts_are_apart(tiny_model: Path, prompts: Diagnose, tmp_path: Path) -> None:
    teacher = load(str(tiny_model))
    found = ask(teacher, prompts, 0, 256, tmp_path)
    held_out, others = texts(teacher, found.held_out), texts(teacher, found.calibration)
    assert held_out
    assert others
    assert not held_out & others
    assert len(held_out) <= asked.SCORED_PROMPTS
    assert found.source == prompts.prompts
    assert found.held_out.completion_BT.sum(1).max() <= 8


def test_as_many_calibration_tokens_as_are_wanted(
    tiny_model: Path, prompts: Diagnose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt has some 70 bytes with its template, and 8 more for the completion: 200 tokens need three rows."""
    monkeypatch.setattr(asked, "CALIBRATION_TOKENS", 160)  # times 1.25
    found = ask(load(str(tiny_model)), prompts, 0, 256, tmp_path)
    lengths = (found.calibration.attention_BT & ~found.calibration.completion_BT).sum(1) + 8
    assert int(lengths.sum()) >= 200
    assert int(lengths[:-1].sum()) < 200


def test_the_same_again(tiny_model: Path, prompts: Diagnose, tmp_path: Path) -> None:
    one, two = (ask(load(str(tiny_model)), prompts, 0, 256, tmp_path) for _ in range(2))
    assert torch.equal(one.held_out.tokens_BT, two.held_out.tokens_BT)
    assert torch.equal(one.calibration.tokens_BT, two.calibration.tokens_BT)


def test_self_written_prompts_lie_in_a_file(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_writer: object, count: int, _seed: int, _split: object) -> list[data.Prompt]:
        return [data.Prompt(f'{text} — "é"\nand on', (1, 2)) for text in PROMPTS[:count]]

    monkeypatch.setattr(data, "_self_written", write)
    found = ask(load(str(tiny_model)), Diagnose(max_tokens=4), 0, 256, tmp_path)
    assert found.source == str(tmp_path / "prompts.jsonl")
    again = data.load_prompts(found.source, load(str(tiny_model)), 100, 0)
    assert {prompt.text for prompt in again} == {f'{text} — "é"\nand on' for text in PROMPTS}


def test_a_file_without_held_out_prompts_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("tell me about number 0 and what comes after it")
    with pytest.raises(DataError, match=r"holds no (held-out|train) prompt"):
        ask(load(str(tiny_model)), Diagnose(prompts=str(path)), 0, 256, tmp_path)
