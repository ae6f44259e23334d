"""Words for people: one line where a library answers a bad file with pages, and no loading bars in recoup's own display."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from recoup.errors import RecoupError, SourceError

BAD_FILE = (OSError, ValueError, KeyError, RuntimeError, ImportError, IndexError, TypeError, SafetensorError)


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn what libraries raise on a bad or missing file into one line.

    Raises:
        SourceError: with the first line of what the library said; recoup's own errors pass through.
    """
    try:
        yield
    except RecoupError:
        raise
    except BAD_FILE as error:
        raise SourceError(f"{name}: cannot load this model ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """The first line of an error that says anything."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def matrices(count: int) -> str:
    """`1 matrix`, `14 matrices`."""
    return "1 matrix" if count == 1 else f"{count} matrices"


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars of the library would tear recoup's own progress display."""
    enabled: Any = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
