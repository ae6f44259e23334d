"""Pages of diagnoses, read back."""

from functools import cache

from recoup.report.diagnosis import render
from recoup.report.gather import Diagnosis

from .diagnosed import DIAGNOSIS, HISTORY, TRIAGE
from .reading import Page

WHOLE = Diagnosis(DIAGNOSIS, TRIAGE, HISTORY)


@cache
def whole() -> str:
    """The page of all that there can be."""
    return render(WHOLE)


def page_of(diagnosis: Diagnosis) -> Page:
    page = Page(whole() if diagnosis is WHOLE else render(diagnosis))
    assert page.open == []
    return page
