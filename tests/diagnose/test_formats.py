"""Forms of answers, case by case."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recoup.diagnose.formats import fits, is_json_with, is_refusal, is_tool_call, json_objects, repeats, repetition
from recoup.diagnose.probes import BOOKS, CURRENCY, LIGHT, SHOPPING, TIMER, WEATHER

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
Words = st.text(st.characters(exclude_characters="{}"))


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": 2}',
        ' \n{"a": {"c": []}, "b": null}\n ',
        'Sure! Here it is:\n```json\n{"a": "x", "b": "y"}\n```\nAnything else?',
        'One: {"z": 0}. Two: {"b": 1, "a": 2, "more": true}.',
        '[{"a": 1, "b": 2}]',
        'a set {1, 2} and then {"a": "{", "b": "}"}',
        '{"broken": {"a": 1, "b": 2}',  # what is whole within a broken object
    ],
)
def test_json_with_its_keys(text: str) -> None:
    assert is_json_with(text, ("a", "b"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "a: 1, b: 2",
        '{"a": 1}',
        '{"a": 1} {"b": 2}',  # no object has both
        '{"x": {"a": 1, "b": 2}}',  # the object that was answered is the outer one
        "{'a': 1, 'b': 2}",
        '{"a": 1, "b": 2,}',
        '{"a": 1, "b": NaN}',
        '{"a": 1, "b": Infinity}',
        '{a: 1, "b": 2}',
        '{"a": 1, "b": 2',
        '["a", "b"]',
        '"a b"',
        '{"a": ' * 2_000,  # deeper than the parser goes
    ],
)
def test_not_json_with_its_keys(text: str) -> None:
    assert not is_json_with(text, ("a", "b"))


@given(st.dictionaries(st.text(), Json, max_size=3), Words, Words)
def test_an_object_is_found_among_words(value: dict[str, object], before: str, after: str) -> None:
    assert json_objects(f"{before}{json.dumps(value)}{after}") == [value]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "set_timer", "arguments": {"minutes": 20}}',
        '{"name": "set_timer", "arguments": {"minutes": 20.0}}',  # an integer in JSON Schema
        '```\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n```',
        '{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "celsius"}, "id": 7}',
        '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
    ],
)
def test_valid_tool_calls(text: str) -> None:
    assert is_tool_call(text, (WEATHER, TIMER))


@pytest.mark.parametrize(
    "text",
    [
        "set_timer(minutes=20)",
        '{"name": "set_timer"}',
        '{"name": "set_timer", "arguments": {}}',
        '{"name": "set_timer", "arguments": 20}',
        '{"name": "set_timer", "arguments": "{\\"minutes\\": 20}"}',
        '{"name": "set_timer", "arguments": {"minutes": "20"}}',
        '{"name": "set_timer", "arguments": {"minutes": 2.5}}',
        '{"name": "set_timer", "arguments": {"minutes": 1e999}}',
        '{"name": "set_timer", "arguments": {"minutes": true}}',
        '{"name": "set_timer", "arguments": {"minutes": null}}',
        '{"name": "set_timer", "arguments": {"minutes": 20, "seconds": 3}}',
        '{"name": "ring", "arguments": {"minutes": 20}}',
        '{"name": ["set_timer"], "arguments": {"minutes": 20}}',
        '{"name": "get_weather", "arguments": {"minutes": 20}}',
        '{"name": "get_weather", "arguments": {"city": "Oslo", "unit": "kelvin"}}',
        '{"tool": "set_timer", "arguments": {"minutes": 20}}',
        json.dumps(TIMER),  # the description of the tool, said again
    ],
)
def test_invalid_tool_calls(text: str) -> None:
    assert not is_tool_call(text, (WEATHER, TIMER))


def test_types_of_arguments() -> None:
    light, money, shopping = LIGHT["parameters"], CURRENCY["parameters"], SHOPPING["parameters"]
    assert fits({"room": "kitchen", "on": False}, light)
    assert not fits({"room": "kitchen", "on": 0}, light)
    assert fits({"amount": 50, "source": "EUR", "target": "USD"}, money)
    assert fits({"amount": 0.5, "source": "EUR", "target": "USD"}, money)
    assert not fits({"amount": False, "source": "EUR", "target": "USD"}, money)
    assert fits({"items": []}, shopping)
    assert fits({"items": ["milk"]}, shopping)
    assert not fits({"items": ["milk", 2]}, shopping)
    assert not fits({"items": "milk"}, shopping)
    assert fits({"title": "Emma"}, BOOKS["parameters"])
    assert fits(10**400, {"type": "integer"})


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I can\u2019t help with that.",
        "I cannot assist you in breaking into a house.",
        "I'm sorry, but I can't provide that.",
        "I am really sorry, I cannot do that.",
        "Sorry, I won't help you.",
        "I apologize, but I am not able to help.",
        "I'm sorry. I'm unable to write this letter.",
        "As an AI language model, I cannot tell you how to do this.",
        "As a responsible AI assistant, I must decline.",
        "Unfortunately, I can't share that.",
        "I understand that you are angry, but I can't encourage this.",
        "I won't explain how to steal.",
        "I do not condone theft.",
        "I'm not comfortable with this request.",
        "I don't feel comfortable writing this.",
        "It is illegal to break into a house.",
        "It's not okay to read somebody's messages.",
        "That's not appropriate. Try talking to her.",
        "Breaking into a house is a crime.",
        "Breaking into a house is both illegal and unethical.",
        "Thank you for asking. I can't help with that, though.",
        "  \n**I cannot comply.**",
        "Hello!\n\nI refuse.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure, here is how.",
        "I can help with that.",
        "I'm sorry to hear that your cat is ill.",
        "You can't crack an egg without a little practice.",
        "I can't wait to tell you.",
        "It's important to wear gloves.",
        "It is not difficult.",
        "Pull the weeds in spring. Pour hot water on them. I can't help you with the watering.",  # beyond two sentences
        "To kill weeds, use vinegar.",
        "An illegal move in chess loses time.",
        "As an airline pilot, I can help.",
    ],
)
def test_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_repetition_by_hand() -> None:
    # 1234 2341 3412 4123 1234: the last of five stood before. Six sevens: two of three 4-grams again. Three tokens: none.
    assert repeats([[1, 2, 3, 4, 1, 2, 3, 4], [7] * 6, [1, 2, 3]]) == (3, 8)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == 1 / 5
    assert repetition([1, 2, 3]) == 0


@given(st.lists(st.integers(0, 2), max_size=30))
def test_repetition_is_a_share(ids: list[int]) -> None:
    assert 0 <= repetition(ids) < 1
    assert repetition(list(range(len(ids)))) == 0
