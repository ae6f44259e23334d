"""A diagnosis's page loads nothing, and what models and data wrote stays text."""

import re
from functools import cache
from typing import Any

from recoup.report.diagnosis import render
from recoup.report.gather import Diagnosis
from recoup.results import Record, TriageResult

from .diagnosed import DIAGNOSIS, HISTORY, TRIAGE
from .pages import WHOLE, page_of, whole
from .reading import ATTACK, Page


def test_nothing_is_loaded_and_nothing_runs():
    html = whole()
    page = Page(html)
    assert all(address.startswith(("#", "data:,")) for address in page.addresses)
    assert not {"script", "iframe", "form", "object", "base"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert "default-src 'none'" in html


def test_ids_are_unique():
    ids = re.findall(r' id="([^"]*)"', whole())
    assert len(set(ids)) == len(ids)


def attacked(value: Any, text: str) -> Any:
    """Every free text of a record replaced; words that a field's type fixes stay."""
    if isinstance(value, Record):
        fixed = {"verdict", "measure", "metric"} if not isinstance(value, TriageResult) else {"verdict"}
        return value.model_copy(
            update={
                name: attacked(getattr(value, name), text) for name in type(value).model_fields if name not in fixed
            }
        )
    if isinstance(value, tuple):
        return tuple(attacked(item, text) for item in value)
    if isinstance(value, dict):
        return {f"{text}{key}": attacked(item, text) for key, item in value.items()}
    return f"{text}{value}" if isinstance(value, str) else value


FOREIGN = f'</pre></title></svg>{ATTACK}"><img src=x onerror=alert(1)>\x1b[31m\x00\u202e\u2066\x9b'


@cache
def attacked_page() -> str:
    """The page of records in which every text is an attack."""
    return render(Diagnosis(*(attacked(record, FOREIGN) for record in (DIAGNOSIS, TRIAGE, HISTORY))))


def test_foreign_markup_is_inert_everywhere():
    page, clean = Page(attacked_page()), page_of(WHOLE)
    assert page.open == []
    assert set(page.tags) == set(clean.tags)
    assert page.attributes == clean.attributes
    assert "alert(1)" in page.text


def test_control_and_reordering_characters_are_shown_not_sent():
    html = attacked_page()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert "␛[31m␀" in html
