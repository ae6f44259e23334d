"""matplotlib figures as SVG that a page can theme: same input, same bytes, and text that stays text.

Figures are drawn in the light colours below. `inline` replaces each by the CSS variable of the same name, so that the page
decides between light and dark; `adaptive` does so in a file that follows the reader's system; `standalone` keeps them on
white, because an image on GitHub follows the system, not the theme that was chosen for the page.
"""

import io
import re
import warnings
from contextlib import AbstractContextManager

from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.figure import Figure

INK = "#1f2328"
FAINT = "#d5d9de"
REFERENCE = "#656d76"
DEGRADED = "#b8500f"
RECOVERED = "#1f6fb2"
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    REFERENCE: "var(--reference)",
    DEGRADED: "var(--degraded)",
    RECOVERED: "var(--recovered)",
}

_FONT = "DejaVu Sans"  # ships with matplotlib, so text is measured alike everywhere; viewers use their own sans-serif
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recoup",
    "text.parse_math": False,  # a dollar sign in a task name is a dollar sign
    "font.family": _FONT,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": REFERENCE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": REFERENCE,
    "ytick.color": REFERENCE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}
_TAG = re.compile(r"<[^>]+>")  # exact here: matplotlib writes `<` and `>` of texts and attributes as entities
_PROLOGUE = re.compile(r"^.*?<svg [^>]*>", re.DOTALL)
_FILE_FONT = "system-ui, sans-serif"
_NAMES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
_THEMES = (  # the colours of style.css
    f"<style>svg {{ --paper: #ffffff; --ink: {INK}; --faint: {FAINT}; --reference: {REFERENCE}; "
    f"--degraded: {DEGRADED}; --recovered: {RECOVERED} }} "
    "@media (prefers-color-scheme: dark) { svg { --paper: #14171b; --ink: #e4e7eb; --faint: #363c44; "
    "--reference: #9aa4af; --degraded: #f0914f; --recovered: #63aeea } }</style>"
)


def drawing() -> AbstractContextManager[None]:
    """The style that figures are drawn and rendered in, whatever the user's matplotlib settings are."""
    return style.context(_STYLE, after_reset=True)


def inline(figure: Figure, name: str, title: str) -> Markup:
    """SVG to stand in an HTML page, in the page's own colours and font.

    Args:
        figure: drawn inside `drawing()`.
        name: unique in the page; prefixes every id.
        title: what the figure shows, for those who do not see it.
    """

    def themed(tag: re.Match[str]) -> str:
        text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", tag[0])
        return _themed(text).replace(f"'{_FONT}'", "inherit")

    return Markup(_open_tag(figure, title) + _TAG.sub(themed, _body(figure)))  # noqa: S704  labels are escaped by matplotlib


def standalone(figure: Figure, title: str) -> str:
    """SVG as a file of its own."""
    body = _TAG.sub(lambda tag: tag[0].replace(f"'{_FONT}'", _FILE_FONT), _body(figure))
    return _open_tag(figure, title, _NAMES) + body


def adaptive(figure: Figure, title: str) -> str:
    """SVG as a file of its own, on its own paper, which is light or dark as the reader's system is."""
    body = _TAG.sub(lambda tag: _themed(tag[0]).replace(f"'{_FONT}'", _FILE_FONT), _body(figure))
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return _open_tag(figure, title, _NAMES) + _THEMES + paper + body


def _themed(tag: str) -> str:
    """A tag with the theme's variables for its colours."""
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, variable)
    return tag


def _open_tag(figure: Figure, title: str, names: str = "") -> str:
    width, height = (72 * inches for inches in figure.get_size_inches())  # SVG units are points, 72 to the inch
    words = escape(title)
    return f'<svg {names}viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{words}"><title>{words}</title>'


def _body(figure: Figure) -> str:
    """What matplotlib writes inside `<svg>`."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The font that measures may lack a glyph of a task's name; the viewer's fonts draw it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _PROLOGUE.sub("", buffer.getvalue(), count=1)
