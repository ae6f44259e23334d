"""Rows to tokens: exact text by hand for every accepted form, truncation, and bad lines by number."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from recoup.data.chat import prompt_ids
from recoup.data.sft import end_of_turn, load_examples
from recoup.errors import DataError
from recoup.models.load import PLAIN_TEMPLATE
from tests.conftest import byte_tokenizer

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Answer as <answer>\nA\n</answer>"}


def write(folder: Path, *rows: object) -> str:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(file)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.mark.parametrize(
    ("row", "completion"),
    [
        ({"messages": [USER, {"role": "assistant", "content": "Yo"}]}, "Yo"),
        ({"prompt": "Hi", "completion": "Yo"}, "Yo"),
        ({"prompt": [USER], "response": "Yo"}, "Yo"),
        ({"prompt": "Hi", "golden_response": ["Action: a", "Action: b"]}, "Action: a\nAction: b"),
        ({"prompt": "Hi", "answer": "B"}, "B"),  # nobody asked for tags
        ({"prompt": [SYSTEM, USER], "answer": "B"}, "<answer>\nB\n</answer>"),
        ({"prompt": [SYSTEM, USER], "answer": "Be"}, "Be"),
        ({"prompt": [SYSTEM, USER], "completion": "B"}, "B"),
    ],
)
def test_accepted_forms(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, row: dict, completion: str) -> None:
    (example,) = load_examples(write(tmp_path, row), tokenizer, 200).rows
    assert tokenizer.decode(example.completion) == f"{completion}<|im_end|>"
    messages = [SYSTEM, USER] if row.get("prompt") == [SYSTEM, USER] else [USER]
    assert list(example.prompt) == prompt_ids(tokenizer, messages)


def test_the_turn_ends_where_the_template_ends_it(tokenizer: PreTrainedTokenizerBase) -> None:
    end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
    assert end_of_turn(tokenizer) == [end]  # the line break after <|im_end|> is not the assistant's to write
    tokenizer.chat_template = PLAIN_TEMPLATE
    assert end_of_turn(tokenizer) == [end]
    tokenizer.chat_template = PLAIN_TEMPLATE.replace("{% endfor %}", ".<|im_start|>{% endfor %}")
    assert end_of_turn(tokenizer) == [*tokenizer(".").input_ids, start]


def test_a_long_prompt_loses_its_start_and_a_long_completion_its_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    fits = {"prompt": "Hi", "completion": "abc"}  # 3 bytes and the end of turn: 4 tokens
    file = write(tmp_path, fits, {"prompt": "Hi", "completion": "abcde"}, {"prompt": "Hi", "completion": "abcdef"})
    examples = load_examples(file, tokenizer, 6)
    whole = tuple(prompt_ids(tokenizer, [USER]))
    # 6 tokens leave 2 for the first prompt and nothing for the others, whose completions are 6 and 7 long
    assert [row.prompt for row in examples.rows] == [whole[-2:]]
    assert tokenizer.decode(examples.rows[0].completion) == "abc<|im_end|>"
    assert examples.num_dropped == 2
    with pytest.raises(DataError, match="no completion of 3 rows fits max_tokens 4"):
        load_examples(file, tokenizer, 4)


def test_variables_are_expanded(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"prompt": "Hi", "completion": "Yo"})
    monkeypatch.setenv("ROWS_FOLDER", str(tmp_path))
    assert len(load_examples("$ROWS_FOLDER/rows.jsonl", tokenizer, 200).rows) == 1


def test_num_rows_are_chosen_by_the_seed(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = write(tmp_path, *({"prompt": "Hi", "completion": f"{i}"} for i in range(9)))
    chosen = [load_examples(file, tokenizer, 200, num_rows=4, seed=seed).rows for seed in (0, 0, 1)]
    assert len(set(chosen[0])) == 4
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(load_examples(file, tokenizer, 200, num_rows=40).rows) == 9


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not JSON"),
        ({"prompt": "Hi"}, "no completion; expected one of"),
        ({"prompt": "Hi", "completion": ""}, "no completion"),
        ({"prompt": "Hi", "completion": [1]}, "'completion' is neither text nor a list of texts"),
        ({"completion": "Yo"}, "no prompt"),
        ({"prompt": 3, "completion": "Yo"}, "the prompt is neither text nor a list of messages"),
        ({"prompt": [{"role": "user"}], "completion": "Yo"}, "the prompt is neither text"),
        ({"messages": [USER]}, "no completion; the last"),
        ({"messages": [{"role": "assistant", "content": "Yo"}]}, "no completion; the last"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, bad: object, reason: str) -> None:
    file = write(tmp_path, {"prompt": "Hi", "completion": "Yo"}, "", bad)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 3: {reason}") as raised:
        load_examples(file, tokenizer, 200)
    assert "\n" not in str(raised.value)


def test_missing_and_empty_files_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_examples(str(tmp_path / "none.jsonl"), tokenizer, 200)
    with pytest.raises(DataError, match="holds no rows"):
        load_examples(write(tmp_path), tokenizer, 200)
