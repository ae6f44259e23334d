"""Numbers and foreign text as a reader sees them; pure functions.

Models can write anything, control characters included. `clean` makes those visible rather than dropping them, because a
damaged model's output is evidence.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from recoup.results import Estimate

DASH = "–"

# C0 without tab and newline, DEL and C1, lone surrogates, bidirectional overrides (they reorder neighbouring text),
# and the two non-characters XML forbids.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_CONTROL_PICTURES = 0x2400  # Unicode block with a printable picture for each C0 character, in order
_NUM_C0 = 0x20
_REPLACEMENT = "\ufffd"

_THREE_DIGITS_END = 999.5  # from here on, three significant digits would need an exponent
_SECONDS_PER_MINUTE = 60
_GIBIBYTE = 2**30
_NEAR_ZERO = 0.001  # the least that three decimals show


def clean(text: str) -> str:
    """Text that can stand in HTML and XML: what cannot be printed becomes a visible sign."""
    return _UNPRINTABLE.sub(_picture, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Text on one line, with nothing left that HTML would act on; Markdown's own signs are its writer's to escape."""
    return " ".join(clean(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(_CONTROL_PICTURES + code) if code < _NUM_C0 else _REPLACEMENT


def label(text: str, max_chars: int = 28) -> str:
    """Text as one short line, for a figure."""
    line = " ".join(clean(text).split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"


def visible(token: str) -> str:
    """A token that can be seen: line ends and tabs as signs, blanks as signs where there is nothing else."""
    text = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥")
    return text if text.strip() else text.replace(" ", "␣") or "(nothing)"


def tail(text: str, max_chars: int = 240) -> str:
    """The end of a text."""
    return text if len(text) <= max_chars else f"…{text[-max_chars:]}"


def number(value: float, digits: int = 3) -> str:
    """A score with a fixed number of decimals and a true minus sign."""
    return _finite(value) or f"{value:.{digits}f}".replace("-", "−")


def significant(value: float) -> str:
    """A quantity whose size is not known beforehand (nats, perplexity): three significant digits."""
    if abs(value) >= _THREE_DIGITS_END:
        return _finite(value) or f"{value:,.0f}".replace("-", "−")
    return _finite(value) or f"{value:#.3g}".rstrip(".").replace("-", "−")


def percent(value: float) -> str:
    """A share in percent."""
    return _finite(value) or f"{100 * value:.0f}%".replace("-", "−")


def probability(value: float) -> str:
    """A probability; what would round to 0 or 1 is said to be near it."""
    if 0 < value < _NEAR_ZERO:
        return f"under {number(_NEAR_ZERO)}"
    if 1 - _NEAR_ZERO < value < 1:
        return f"over {number(1 - _NEAR_ZERO)}"
    return number(value)


def interval(estimate: Estimate) -> str:
    """A score as `0.542 [0.510, 0.575]`."""
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def significant_interval(estimate: Estimate) -> str:
    """As `interval`, for a quantity whose size is not known beforehand."""
    return f"{significant(estimate.value)} [{significant(estimate.low)}, {significant(estimate.high)}]"


def percent_interval(estimate: Estimate) -> str:
    """As `interval`, for a share."""
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def duration(seconds: float) -> str:
    """Minutes, or seconds below one minute."""
    if seconds < _SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    return f"{seconds / _SECONDS_PER_MINUTE:.1f} min"


def gibibytes(value: float) -> str:
    """Bytes as `2.50 GiB`."""
    return f"{value / _GIBIBYTE:.2f} GiB"


def listed(names: Sequence[str], most: int) -> str:
    """`a, b and 3 more`: so many names at most."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def counted(count: int, noun: str) -> str:
    """`1 benchmark`, `3 benchmarks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of dotted names."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: object) -> str:
    words = {None: "unknown", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _finite(value: float) -> str:
    """Words for what is not a finite number, else nothing."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return ""
