"""How the pages are rendered: jinja2 escapes all that models and data wrote, after control characters were made visible."""

import os
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recoup.report.words import clean, number, probability, significant, tail, visible


def render(template: str, **values: object) -> str:
    """A page as HTML.

    Args:
        template: name of a file beside this one.
        values: what it prints; a name that it needs and that is missing is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    environment.filters |= {show.__name__: show for show in (number, probability, significant, tail, visible)}
    return environment.get_template(template).render(**values)


def address(page: Path, beside: Path) -> str | None:
    """Where `page` is, for a link in the page `beside`; null where there is no such page."""
    if not page.is_file():
        return None
    way = os.path.relpath(page.resolve(), beside.parent.resolve())
    return quote(Path(way).as_posix())  # a colon too, so that no folder's name is taken for a scheme


def _clean(value: object) -> object:
    """Applied to every value a template prints, before it is escaped."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
