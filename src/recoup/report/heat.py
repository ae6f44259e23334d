"""Heat maps as SVG in the page's own colours.

matplotlib would write a bitmap, or colours that the dark theme cannot change. Here a cell is the theme's colour, as opaque
as its value is high, and names its value when pointed at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from recoup.report.words import label, number

_WIDTH = 360.0  # user units; about as many pixels on a telephone
_BAR = 26.0  # height of the scale below the map
_FOOT = 34.0  # height of the column numbers and what they count
_CHAR = 6.2  # width of a letter of the row names
_ROW = 15.0  # height of a row that has a name of its own
_TALLEST = 26.0  # of a cell, user units: a model of two layers shall not fill the screen
_MOST_TICKS = 11
_FAINTEST = 0.05  # opacity of the lowest value, which shall still be seen on the paper


@dataclass(frozen=True)
class HeatMap:
    """Values in rows, the first at the top; a null is drawn as an empty cell."""

    values: Sequence[Sequence[float | None]]
    row_names: Sequence[str]
    row_title: str
    column_title: str
    scale: tuple[float, float]  # values drawn faintest and fullest
    theme: str  # CSS class: `like` where a full cell is good, `unlike` where it is bad
    square: bool = False


def draw(heat: HeatMap, title: str) -> Markup:
    """The map with its numbers and its scale.

    Args:
        heat: at least one row; rows of equal length.
        title: what the map shows, for those who do not see it.
    """
    num_rows, num_columns = len(heat.values), len(heat.values[0])
    left = 22 + _CHAR * max(len(label(name)) for name in heat.row_names)
    width = (_WIDTH - left - 2) / num_columns
    width, height = (min(width, _TALLEST),) * 2 if heat.square else (width, _ROW)
    bottom = height * num_rows
    total = bottom + _FOOT + _BAR
    parts = [
        _cells(heat, left, width, height),
        _row_names(heat, left, height),
        *(_text(left + width * (column + 0.5), bottom + 13, str(column)) for column in _ticks(num_columns)),
        _text(left + width * num_columns / 2, bottom + 28, heat.column_title),
        _scale(heat, left, bottom + _FOOT),
    ]
    words = escape(title)
    return Markup(  # noqa: S704  every text went through `escape`, all else is numbers
        f'<svg class="heat {heat.theme}" viewBox="0 0 {_WIDTH:g} {total:.1f}" role="img" aria-label="{words}">'
        f"<title>{words}</title>{''.join(parts)}</svg>\n"
    )


def _cells(heat: HeatMap, left: float, width: float, height: float) -> str:
    parts = []
    for row, values in enumerate(heat.values):
        for column, value in enumerate(values):
            place = f'x="{left + width * column:.2f}" y="{height * row:.2f}" width="{width:.2f}" height="{height:.2f}"'
            words = f"{heat.row_title} {label(heat.row_names[row])}, {heat.column_title} {column}".lstrip()
            opacity = _opacity(value, heat.scale)
            if value is None or opacity is None:
                parts.append(f'<rect class="missing" {place}><title>{escape(words)}: not measured</title></rect>')
            else:
                said = f"{escape(words)}: {number(value)}"
                parts.append(f'<rect {place} fill-opacity="{opacity:.3f}"><title>{said}</title></rect>')
    return "".join(parts)


def _opacity(value: float | None, scale: tuple[float, float]) -> float | None:
    """From the faintest to full over the scale; null for what is not a number."""
    if value is None or math.isnan(value):
        return None
    low, high = scale
    share = (value - low) / (high - low) if high > low else 1.0
    return _FAINTEST + (1 - _FAINTEST) * min(1.0, max(0.0, share))


def _row_names(heat: HeatMap, left: float, height: float) -> str:
    """Every name, but of numbered rows every few; and what they count, turned."""
    count = len(heat.row_names)
    rows = _ticks(count) if heat.square else range(count)
    names = [_text(left - 5, height * (row + 0.5) + 3.5, label(heat.row_names[row]), "end") for row in rows]
    turned = f'<g transform="translate(10 {height * count / 2:.1f}) rotate(-90)">{_text(0, 0, heat.row_title)}</g>'
    return "".join(names) + (turned if heat.row_title else "")


def _scale(heat: HeatMap, left: float, top: float) -> str:
    """A strip from faint to full with its ends named."""
    low, high = heat.scale
    steps = 20
    cells = [
        f'<rect x="{left + 30 + 6 * i:.1f}" y="{top + 6:.1f}" width="6" height="9" '
        f'fill-opacity="{_FAINTEST + (1 - _FAINTEST) * i / (steps - 1):.3f}"/>'
        for i in range(steps)
    ]
    first = _text(left + 25, top + 14.5, number(low, 2), "end")
    beyond = "≥ " if any(value is not None and value > high for row in heat.values for value in row) else ""
    last = _text(left + 35 + 6 * steps, top + 14.5, f"{beyond}{number(high, 2)}", "start")
    return f"{first}{''.join(cells)}{last}"


def _ticks(count: int) -> range:
    """Columns that are named: few enough not to touch."""
    return range(0, count, next(step for step in (1, 2, 5, 10, 20, 50, 100) if count <= step * _MOST_TICKS))


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
