"""recoup: give a damaged language model back what it lost, from its own earlier checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recoup.api import degrade, diagnose, evaluate, load, recover

__all__ = ["degrade", "diagnose", "evaluate", "load", "recover"]


def __getattr__(name: str) -> Any:
    """Import the public functions when they are used: the config and the report need no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'recoup' has no attribute {name!r}")
    return getattr(import_module("recoup.api"), name)
