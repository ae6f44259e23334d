"""Prompts: three sources, two splits that never meet, errors that name the row."""

from pathlib import Path

import pytest

from recoup.data.chat import opened_user_turn, prompt_ids
from recoup.data.prompts import Prompt, _reads_like_a_prompt, fitting, load_prompts
from recoup.errors import DataError, SourceError
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, pack

TEXTS = [f"question number {i} about things" for i in range(60)]


@pytest.fixture(scope="module")
def writer(tiny_models: dict[str, Path]) -> LanguageModel:
    return load(str(tiny_models["llama"]))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


def test_prompt_is_the_template_up_to_the_answer(writer: LanguageModel) -> None:
    text = writer.tokenizer.decode(prompt_ids(writer.tokenizer, [{"role": "user", "content": "hi"}]))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert writer.tokenizer.decode(opened_user_turn(writer.tokenizer)) == "<|im_start|>user\n"


def test_splits_never_meet_and_are_everything(writer: LanguageModel, file: Path) -> None:
    parts = {
        split: {p.text for p in load_prompts(str(file), writer, 99, 0, split)} for split in ("train", "held_out", "all")
    }
    assert parts["train"] | parts["held_out"] == parts["all"] == set(TEXTS)
    assert not parts["train"] & parts["held_out"]
    assert 3 <= len(parts["held_out"]) <= 24  # a fifth of 60 is 12
    again = {p.text for p in load_prompts(str(file), writer, 99, seed=7, split="held_out")}
    assert again == parts["held_out"]  # the seed orders, it does not move prompts between splits


def test_the_seed_chooses(writer: LanguageModel, file: Path) -> None:
    first, same, other = (load_prompts(str(file), writer, 5, seed) for seed in (0, 0, 1))
    assert len(first) == 5
    assert first == same != other


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ('{"prompt": "say it"}', "say it"),
        ('{"text": "say it"}', "say it"),
        ('{"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it"}]}', "say it"),
        ('{"prompt": [{"role": "system", "content": "be"}, {"role": "user", "content": "say it"}]}', "say it"),
    ],
)
def test_rows_of_every_form(writer: LanguageModel, tmp_path: Path, row: str, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n")
    (prompt,) = load_prompts(str(path), writer, 5, 0)
    assert prompt.text == text
    assert writer.tokenizer.decode(prompt.ids).endswith("say it<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\n{"x": 1}\n', "row 2: no prompt; expected one of the fields"),
        ('{"prompt": 3}\n', "neither text nor a list of messages"),
        ('{"prompt": "a"}\n{oops\n', "line 2: not JSON"),
        ("", "holds no all prompt"),
    ],
)
def test_bad_rows_are_one_line(writer: LanguageModel, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        load_prompts(str(path), writer, 5, 0)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unset_variable(writer: LanguageModel) -> None:
    with pytest.raises(DataError, match="no such prompt file"):
        load_prompts("nowhere.txt", writer, 1, 0)
    with pytest.raises(DataError, match="environment variable in this path is not set"):
        load_prompts("$NOT_SET_ANYWHERE/x.jsonl", writer, 1, 0)


def test_no_chat_template_says_what_to_do(tiny_model: Path, file: Path) -> None:
    writer = load(str(tiny_model))
    writer.tokenizer.chat_template = None
    with pytest.raises(SourceError, match="has no chat template; set `chat_template` to a Jinja file, or to `plain`"):
        load_prompts(str(file), writer, 1, 0)


def test_long_prompts_are_left_out_not_cut() -> None:
    prompts = [Prompt("a", (1,)), Prompt("b", (1, 2, 3))]
    assert fitting(prompts, 2) == prompts[:1]
    with pytest.raises(DataError, match="none of 2 prompts fits 0 tokens"):
        fitting(prompts, 0)


@pytest.mark.parametrize(
    ("text", "reads"),
    [("How do I bake bread?", True), ("1 + 1 = 2, 3 + 4 = 7, 5", False), ("Why?", False), ("ab\x00cd is what", False)],
)
def test_filter_by_hand(text: str, reads: bool) -> None:
    assert _reads_like_a_prompt(text) is reads


def test_self_written_prompts_are_filtered_and_distinct(writer: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ["How do I bake bread?", "how do I bake BREAD", "x", "Name three rivers of Asia", "Never ends" * 20]

    def scripted(model: LanguageModel, prompts: list[list[int]], settings: Sampling) -> Rollouts:
        answers = [model.tokenizer(text).input_ids[: settings.max_tokens] for text in written]
        return pack([prompts[0]] * len(answers), answers, 0)

    monkeypatch.setattr("recoup.data.prompts.sample", scripted)
    assert [p.text for p in load_prompts("self", writer, 9, 0)] == ["How do I bake bread?", "Name three rivers of Asia"]
