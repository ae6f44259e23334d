"""How the pages are rendered: jinja2 escapes all that models and data wrote, after control characters were made visible."""

from pathlib import Path

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


def _clean(value: object) -> object:
    """Applied to every value a template prints, before it is escaped."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
