"""The teacher's prompt holds question and demonstration; the student's completions follow it unchanged."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from recoup.data.chat import prompt_ids
from recoup.data.prompts import Prompt
from recoup.errors import DataError
from recoup.models.load import load
from recoup.models.logits import completion_logits, completion_tokens
from recoup.models.sample import pack
from recoup.recover.demonstration import demonstration_prompts, with_prompts
from tests.conftest import byte_tokenizer

QUESTION = "How many legs has a spider?"
OVERHEAD = len(
    "<user\n\n\nThis is an example for a response to the question:\n\n\n"
    "Now answer with a response of your own, including the thinking process.>\n<assistant\n"
)  # one token a byte, and one for each of the three marks of the template


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


def asked(text: str = QUESTION, demonstration: str | None = "Eight.", system: str | None = None) -> Prompt:
    before = () if system is None else ({"role": "system", "content": system},)
    question = (*before, {"role": "user", "content": text})
    return Prompt(text, tuple(prompt_ids(byte_tokenizer(), question)), question, demonstration)


def test_wording(tokenizer: PreTrainedTokenizerBase) -> None:
    made = demonstration_prompts(tokenizer, [asked(system="Be brief.")], 400)
    assert tokenizer.decode(made.ids[0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many legs has a spider?\n\n"
        "This is an example for a response to the question:\nEight.\n\n"
        "Now answer with a response of your own, including the thinking process.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert made.num_cut == 0


def test_a_long_demonstration_loses_its_end_and_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    room = OVERHEAD + len(QUESTION)
    made = demonstration_prompts(tokenizer, [asked(), asked(demonstration="0123456789" * 50)], room + 12)
    assert made.num_cut == 1
    assert f"{QUESTION}\n\nThis is" in tokenizer.decode(made.ids[1])
    assert "question:\n012345678901\n\nNow answer" in tokenizer.decode(made.ids[1])  # exactly 12 fit
    assert len(made.ids[1]) == room + 12


def test_no_character_is_cut_in_half(tokenizer: PreTrainedTokenizerBase) -> None:
    made = demonstration_prompts(tokenizer, [asked(demonstration="ééé")], OVERHEAD + len(QUESTION) + 5)
    assert ":\néé\n" in tokenizer.decode(made.ids[0])  # two bytes each: five hold two and a half


@pytest.mark.parametrize("room", [-5, 0])
def test_a_question_without_room_is_refused(tokenizer: PreTrainedTokenizerBase, room: int) -> None:
    alone = OVERHEAD + len(QUESTION)
    says = f"takes {alone} of the teacher's {alone + room} prompt tokens, which leaves no room for a demonstration"
    with pytest.raises(DataError, match=says) as caught:
        demonstration_prompts(tokenizer, [asked()], alone + room)
    assert "\n" not in str(caught.value)
    assert QUESTION in str(caught.value)


def test_a_prompt_without_an_answer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="has no answer to demonstrate"):
        demonstration_prompts(tokenizer, [asked(demonstration=None)], 400)


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60), st.integers(1, 80))
def test_the_question_stays_whole_inside_any_budget(question: str, demonstration: str, room: int) -> None:
    tokenizer = byte_tokenizer()
    budget = OVERHEAD + len(question.encode()) + room
    try:
        made = demonstration_prompts(tokenizer, [asked(question, demonstration)], budget)
    except DataError:
        assert room < 4  # no whole character fits
        return
    assert len(made.ids[0]) <= budget
    opened = prompt_ids(tokenizer, [{"role": "user", "content": question}])
    shared = opened[: opened.index(tokenizer.eos_token_id)]
    assert list(made.ids[0][: len(shared)]) == shared
    assert made.num_cut == (len(demonstration.encode()) > room)


def test_completions_keep_their_order_after_other_prompts(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model
    rollouts = pack([[1, 2], [3], [9, 9, 9]], [[4, 5, 6], [7], [8, 2]], pad=0)
    teacher = with_prompts(rollouts, [[5] * 7, [6, 6, 6, 6], [7]])
    assert torch.equal(completion_tokens(teacher), completion_tokens(rollouts))
    assert teacher.completions() == rollouts.completions()
    assert teacher.attention_BT.sum(-1).tolist() == [7 + 3, 4 + 1, 1 + 2]
    back = with_prompts(teacher, [[1, 2], [3], [9, 9, 9]])
    with torch.inference_mode():
        same_NV, original_NV = completion_logits(model, back), completion_logits(model, rollouts)
        seen_NV = completion_logits(model, teacher)
        alone_NV = completion_logits(model, pack([[6, 6, 6, 6]], [[7]], pad=0))
    assert torch.equal(same_NV, original_NV)
    torch.testing.assert_close(seen_NV[3:4], alone_NV)  # row 3 of N is rollout 1's one token, after its own new prompt
    assert not torch.allclose(seen_NV, original_NV, atol=1e-2)
