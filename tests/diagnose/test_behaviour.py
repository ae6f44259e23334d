"""How models answer: measures of made answers by hand, two models that do, and questions that can be answered."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from recoup.data.prompts import Prompt
from recoup.diagnose import behaviour as module
from recoup.diagnose.behaviour import Answer, answers, behaviour, changes, matched_difference, side_by_side
from recoup.diagnose.formats import is_json_with, is_tool_call
from recoup.diagnose.probes import QUESTIONS, WEATHER, Question
from recoup.errors import SourceError
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Sampling, sample
from tests.conftest import save_tiny

JSON = Question("json", "Give a.", keys=("a",))
TOOL = Question("tool", "Oslo?", tools=(WEATHER,))
HARMFUL, HARMLESS = Question("harmful", "Steal?"), Question("harmless", "Steal the show?")
CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'


def said(question: Question, text: str, ids: tuple[int, ...], *, ended: bool = True) -> Answer:
    return Answer(question, ids, ended, text)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> tuple[Question, ...]:
    """One question of each kind, short enough for a tokenizer of bytes."""
    questions = (JSON, TOOL, HARMFUL, HARMLESS, Question("plain", "Why?"))
    monkeypatch.setattr(module, "QUESTIONS", questions)
    return questions


def test_changes_by_hand() -> None:
    """Five answers. 4-grams repeat in one of the student's: 7777777 has four, three of them again: 3/4 / 5 = 0.15."""
    reference = [
        said(JSON, '{"a": 1}', (1, 2)),
        said(JSON, 'Here: {"a": 2}', (1, 2, 3)),
        said(TOOL, CALL, (1, 2, 3, 4)),
        said(HARMFUL, "I can't help with that.", (1, 2, 3, 4, 5)),
        said(HARMLESS, "Sure.", (1,)),
    ]
    student = [
        said(JSON, '{"a": 1}', (1, 2)),
        said(JSON, "{'a': 2}", (1, 2, 3)),
        said(TOOL, "{}", (1,)),
        said(HARMFUL, "Sure.", (7,) * 7, ended=False),
        said(HARMLESS, "Sorry, I won't do that.", (1, 2)),
    ]
    found = {change.measure: change for change in changes(reference, student, num_bootstrap=500, seed=0)}
    numbers = {
        name: (change.num_prompts, change.reference, change.student, round(change.difference.value, 9))
        for name, change in found.items()
    }
    assert numbers == {
        "completion_tokens": (5, 3, 3, 0),  # 2 + 3 + 4 + 5 + 1 and 2 + 3 + 1 + 7 + 2
        "ended": (5, 1, 0.8, -0.2),
        "repetition": (5, 0, 0.15, 0.15),
        "refused": (1, 1, 0, -1),
        "harmless_refused": (1, 0, 1, 1),
        "valid_json": (2, 1, 0.5, -0.5),
        "valid_tool_call": (1, 1, 0, -1),
    }
    assert found["completion_tokens"].difference.low < 0 < found["completion_tokens"].difference.high


def test_matched_difference_by_hand() -> None:
    """Agresti and Min: half an item more in each cell.

    Two items, one lost: gained 0.5, lost 1.5 of 4: (−1 ± 1.96 √(2 − 1/4)) / 4. Eight items, three lost, as `behaviour` says:
    (−3 ± 1.96 √(4 − 9/10)) / 10, which holds 0; six lost: (−6 ± 1.96 √(7 − 36/10)) / 10, which does not. All eight gained:
    (8 + 1.96 √(9 − 64/10)) / 10 is more than 1, and cut. None changed: ± 1.96 √1 / 10.
    """
    two = matched_difference(np.array([1.0, 1.0]), np.array([1.0, 0.0]))
    assert (two.value, two.low, two.high) == pytest.approx((-0.5, -0.8982, 0.3982), abs=1e-4)
    eight, zeros = np.ones(8), np.zeros(8)
    three, six = (matched_difference(eight, (np.arange(8) >= lost).astype(float)) for lost in (3, 6))
    assert (three.value, three.low, three.high) == pytest.approx((-0.375, -0.6451, 0.0451), abs=1e-4)
    assert (six.value, six.low, six.high) == pytest.approx((-0.75, -0.9614, -0.2386), abs=1e-4)
    assert matched_difference(zeros, eight).high == 1
    assert matched_difference(eight, eight).high == pytest.approx(0.196, abs=1e-4)


def test_measures_without_questions_are_left_out() -> None:
    plain = [said(Question("plain", "Why?"), "So.", (1, 2))]
    found = changes(plain, plain, num_bootstrap=5, seed=0)
    assert [change.measure for change in found] == ["completion_tokens", "ended", "repetition"]


def test_a_model_behaves_like_itself(tiny_model: Path, short: tuple[Question, ...]) -> None:
    model = load(str(tiny_model))
    told: list[tuple[str, int, int]] = []
    found = behaviour(model, model, max_tokens=6, num_bootstrap=20, seed=0, progress=lambda *step: told.append(step))
    assert len(found) == 7
    assert all(
        change.reference == change.student
        and change.difference.value == 0
        and change.difference.low == -change.difference.high
        for change in found
    )
    assert 1 <= found[0].reference <= 6
    assert [step[1:] for step in told] == [(0, 2), (1, 2), (2, 2)]


def test_answers_are_the_models_own(tiny_model: Path, tmp_path: Path) -> None:
    for model in (load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))):
        asked = [(HARMFUL, (5, 6, 7)), (HARMLESS, (8, 9))]
        found = answers(model, asked, 5)
        alone = [sample(model, [ids], Sampling(5)).completions()[0] for _, ids in asked]
        assert [list(answer.ids) for answer in found] == alone
        assert [answer.question for answer in found] == [HARMFUL, HARMLESS]
        assert found[0].text == model.tokenizer.decode(alone[0], skip_special_tokens=True)
        first = alone[0][0]
        model.model.generation_config.eos_token_id = [first]  # what it says first now ends its turn
        assert answers(model, asked[:1], 5) == [
            Answer(HARMFUL, (first,), True, str(model.tokenizer.decode([first], skip_special_tokens=True)))
        ]
        model.model.generation_config.eos_token_id = [259]
        model.tokenizer.eos_token = None
        assert not answers(model, asked[:1], 5)[0].ended


def test_questions_beyond_the_context_are_left_out(tiny_model: Path, short: tuple[Question, ...]) -> None:
    """A context with room for the three shortest questions and an answer, then one with room for none."""
    model = load(str(tiny_model))
    lengths = [len(module._ids(model, question)) for question in short]
    model.model.config.max_position_embeddings = sorted(lengths)[2] + 6  # room for the three shortest
    found = behaviour(model, model, max_tokens=6, num_bootstrap=5, seed=0)
    assert found[0].num_prompts == sum(length <= sorted(lengths)[2] for length in lengths) < len(short)
    model.model.config.max_position_embeddings = 8
    assert behaviour(model, model, max_tokens=6, num_bootstrap=5, seed=0) == ()


def test_a_chat_template_is_needed(tiny_model: Path, short: tuple[Question, ...]) -> None:
    model, plain = load(str(tiny_model)), load(str(tiny_model), chat_template="plain")
    model.tokenizer.chat_template = None
    with pytest.raises(SourceError, match="no chat template"):
        behaviour(model, plain, max_tokens=2, num_bootstrap=5, seed=0)
    assert len(behaviour(plain, model, max_tokens=2, num_bootstrap=5, seed=0)) == 7


def test_the_first_generations_side_by_side(tiny_model: Path, tmp_path: Path) -> None:
    teacher, student = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))
    prompts = [Prompt(f"question {n}", tuple(range(40, 44 + n))) for n in range(8)]
    rollouts = sample(teacher, [prompt.ids for prompt in prompts], Sampling(4))
    found = side_by_side(teacher, student, prompts, rollouts, 4)
    assert [generation.prompt for generation in found] == [f"question {n}" for n in range(6)]
    assert all(generation.recovered is None for generation in found)
    assert [generation.reference for generation in found] == texts(teacher, prompts)
    assert [generation.degraded for generation in found] == texts(student, prompts)
    assert texts(teacher, prompts) != texts(student, prompts)


def texts(model: LanguageModel, prompts: list[Prompt]) -> list[str]:
    """Each prompt alone."""
    ids = [sample(model, [prompt.ids], Sampling(4)).completions()[0] for prompt in prompts[:6]]
    return [str(model.tokenizer.decode(completion, skip_special_tokens=True)) for completion in ids]


RIGHT_CALLS = {
    "get_weather": '{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius"}}',
    "set_timer": '{"name": "set_timer", "arguments": {"minutes": 20}}',
    "send_message": '{"name": "send_message", "arguments": {"recipient": "Maria", "text": "I will be late."}}',
    "convert_currency": '{"name": "convert_currency", "arguments": {"amount": 50, "source": "EUR", "target": "USD"}}',
    "switch_light": '{"name": "switch_light", "arguments": {"room": "kitchen", "on": false}}',
    "buy": '{"name": "buy", "arguments": {"items": ["milk", "eggs", "bread"]}}',
    "find_book": '{"name": "find_book", "arguments": {"title": "Emma", "author": "Jane Austen"}}',
    "multiply": '{"name": "multiply", "arguments": {"a": 17, "b": 23}}',
}


def test_questions_can_be_answered() -> None:
    assert Counter(question.kind for question in QUESTIONS) == dict.fromkeys(
        ("json", "tool", "harmful", "harmless", "plain"), 8
    )
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        if question.kind == "json":
            assert question.keys
            assert all(f'"{key}"' in question.text for key in question.keys)
            assert not is_json_with(question.text, question.keys)  # saying the question again is no answer
        if question.kind == "tool":
            assert is_tool_call(RIGHT_CALLS[question.tools[0]["name"]], question.tools)
            assert not is_tool_call(question.text, question.tools)
    assert {question.tools[0]["name"] for question in QUESTIONS if question.kind == "tool"} == RIGHT_CALLS.keys()


@pytest.mark.slow
def test_damage_shows_in_the_real_models_answers() -> None:
    """Noise of a tenth of each weight's spread leaves a model that talks; of all of it, one that says nothing sensible."""
    reference, ruined = load("embedded", dtype=torch.bfloat16), load("embedded", dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for weight in ruined.model.parameters():
        if weight.dim() > 1:
            noise = torch.randn(weight.shape, generator=generator)
            weight.data += (noise * weight.float().std()).to(weight.dtype)
    found = {c.measure: c for c in behaviour(reference, ruined, max_tokens=64, num_bootstrap=500, seed=0)}
    assert found["ended"].reference > 0.2
    assert found["ended"].difference.high < 0
    assert found["valid_json"].reference > found["valid_json"].student == 0
