import math

import pytest

from recoup.report import words
from recoup.results import Estimate


def test_clean_shows_control_characters_instead_of_sending_them():
    # ESC is U+001B and its picture U+241B; NUL's is U+2400; C1, surrogates and reordering marks become U+FFFD.
    assert words.clean("\x1b[31mred\x00") == "\u241b[31mred\u2400"
    assert words.clean("a\x9bb\ud800c\u202ed") == "a\ufffdb\ufffdc\ufffdd"


def test_clean_keeps_lines_tabs_and_letters():
    assert words.clean("a\tb\nc\r\nd é 中 👩‍🔬") == "a\tb\nc\nd é 中 👩‍🔬"


@pytest.mark.parametrize(
    ("token", "expected"),
    [(" the", " the"), ("\n\n", "⏎⏎"), ("  ", "␣␣"), ("", "(nothing)"), ("a\r\n\tb", "a⏎⇥b"), ("\u3000", "\u3000")],
)
def test_tokens_can_be_seen(token: str, expected: str):
    assert words.visible(token) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.000"),
        (5.7e-5, "under 0.001"),
        (0.001, "0.001"),
        (0.5, "0.500"),
        (0.99997, "over 0.999"),
        (1.0, "1.000"),
    ],
)
def test_probabilities_near_the_ends(value: float, expected: str):
    assert words.probability(value) == expected


def test_tail_keeps_the_end():
    assert words.tail("abcdef", 3) == "…def"
    assert words.tail("abc", 3) == "abc"


def test_label_is_one_short_line():
    assert words.label("a\n b\tc") == "a b c"
    assert words.label("x" * 40, max_chars=10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.00"),
        (0.4123, "0.412"),
        (0.08714, "0.0871"),
        (2.75, "2.75"),
        (123.4, "123"),
        (999.7, "1,000"),
        (54321.0, "54,321"),
        (-0.5, "−0.500"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_significant(value: float, expected: str):
    assert words.significant(value) == expected


def test_intervals():
    estimate = Estimate(value=0.875, low=-0.06, high=1.041)
    assert words.interval(estimate) == "0.875 [−0.060, 1.041]"
    assert words.percent_interval(estimate) == "88% [−6%, 104%]"
    assert words.significant_interval(estimate) == "0.875 [−0.0600, 1.04]"


def test_duration_and_counted():
    assert words.duration(21) == "21.0 s"
    assert words.duration(252) == "4.2 min"  # 252 / 60
    assert words.counted(1, "benchmark") == "1 benchmark"
    assert words.counted(1200, "benchmark") == "1,200 benchmarks"


def test_sizes_and_lists():
    assert words.gibibytes(2.5 * 2**30) == "2.50 GiB"
    assert words.listed(["a", "b", "c"], 3) == "a, b, c"
    assert words.listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
