"""Prompts: three sources, two splits that never meet, errors that name the row."""

import json
from pathlib import Path

import pytest

from recoup.data.chat import opened_user_turn, prompt_ids
from recoup.data.prompts import Prompt, _reads_like_a_prompt, answered, fitting, load_prompts
from recoup.data.sft import load_examples
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


# --- answers and groups


def rows_file(tmp_path: Path, *rows: dict[str, object]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ASKED = [{"role": "system", "content": "answer in <answer> tags"}, {"role": "user", "content": "say it"}]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"messages": [*ASKED, {"role": "assistant", "content": "it"}]}, "it"),
        ({"prompt": "say it", "completion": "it"}, "it"),
        ({"prompt": "say it", "golden_response": ["it", "and more"]}, "it\nand more"),
        ({"prompt": ASKED, "answer": "B"}, "<answer>\nB\n</answer>"),
    ],
)
def test_answers_are_those_that_fine_tuning_trains_on(
    writer: LanguageModel, tmp_path: Path, row: dict[str, object], answer: str
) -> None:
    path = rows_file(tmp_path, row)
    (prompt,) = load_prompts(path, writer, 5, 0)
    assert prompt.demonstration == answer
    assert prompt.answer is not None
    assert writer.tokenizer.decode(prompt.answer) == f"{answer}<|im_end|>"
    (example,) = load_examples(path, writer.tokenizer, max_tokens=400).rows
    assert (prompt.ids, prompt.answer) == (example.prompt, example.completion)
    assert tuple(prompt_ids(writer.tokenizer, prompt.question)) == prompt.ids


@pytest.mark.parametrize("row", [{"prompt": "say it"}, {"prompt": "say it", "answer": {"value": 3}}, {"text": "say it", "response": ""}])  # fmt: skip
def test_rows_without_an_answer_stay_prompts(writer: LanguageModel, tmp_path: Path, row: dict[str, object]) -> None:
    (prompt,) = load_prompts(rows_file(tmp_path, row), writer, 5, 0)
    assert (prompt.text, prompt.answer, prompt.demonstration) == ("say it", None, None)


def test_only_answered_prompts(writer: LanguageModel, tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "c"})
    prompts = load_prompts(path, writer, 5, 0)
    assert [prompt.text for prompt in answered(prompts, path)] == ["a"]
    with pytest.raises(
        DataError, match="none of 1 prompts has an answer; give rows that end with the assistant"
    ) as caught:
        answered([prompt for prompt in prompts if prompt.text == "c"], path)
    assert "\n" not in str(caught.value)


def test_groups_share_a_file(writer: LanguageModel, tmp_path: Path) -> None:
    path = rows_file(
        tmp_path, {"prompt": "a", "group": "tools"}, {"prompt": "b", "group": 2}, {"prompt": "c"}, {"prompt": "d", "group": "tools"}
    )  # fmt: skip
    assert {p.text for p in load_prompts(path, writer, 9, 0, group="tools")} == {"a", "d"}
    assert [(p.text, p.group) for p in load_prompts(path, writer, 9, 0, group="2")] == [("b", "2")]
    assert len(load_prompts(path, writer, 9, 0)) == 4
    with pytest.raises(DataError, match=r"no row's field `group` says 'science' \(groups there: '2', 'tools'\)"):
        load_prompts(path, writer, 9, 0, group="science")
    with pytest.raises(DataError, match="self-written prompts have no group 'tools'"):
        load_prompts("self", writer, 9, 0, group="tools")


def test_prompts_survive_a_json_line(writer: LanguageModel, tmp_path: Path) -> None:
    path = rows_file(tmp_path, {"prompt": ASKED, "answer": "B", "group": "tools"}, {"prompt": "plain"})
    for prompt in load_prompts(path, writer, 5, 0):
        assert Prompt.from_row(json.loads(json.dumps({"term": 3, **prompt.to_row()}))) == prompt
    assert Prompt.from_row({"term": 0, "text": "a", "ids": [1, 2]}) == Prompt("a", (1, 2))
    assert Prompt("a", (1, 2)).to_row() == {"text": "a", "ids": (1, 2), "question": ()}


def test_an_answer_without_a_question_is_refused(writer: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: 'messages' holds an answer and no question"):
        load_prompts(rows_file(tmp_path, {"messages": [{"role": "assistant", "content": "it"}]}), writer, 5, 0)
