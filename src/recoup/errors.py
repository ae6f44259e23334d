"""Errors a user can meet. Each also is the builtin it refines, so `except ValueError` keeps working.

A message is one line: what is wrong, where, and how to fix it. Bugs of our own are `assert`s, never these.
"""

import difflib
from collections.abc import Iterable


class RecoupError(Exception):
    """Root of every error that recoup raises on purpose; the command line turns it into one line and exit code 2."""


class ConfigError(RecoupError, ValueError):
    """A configuration value is unknown, out of range, or contradicts another one."""


class SourceError(RecoupError, ValueError):
    """A model, adapter or tokenizer cannot be found or used."""


class DataError(RecoupError, ValueError):
    """A prompt, training or benchmark file is missing, malformed or empty."""


class StructureError(RecoupError, ValueError):
    """A weight left its grid, mask or shape, or a structure does not fit the model."""


class ExportError(RecoupError, ValueError):
    """A model cannot be written in a format, or reads back as another model."""


class RunFolderError(RecoupError, OSError):
    """A run folder cannot be written, or holds a different run."""


class TrainingError(RecoupError, ArithmeticError):
    """Training produced a value that cannot be continued from (NaN or infinity)."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Message for an unknown `name`, which offers the nearest `known` ones, or all when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {name!r}; {offer}"
