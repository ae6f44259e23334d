"""recoup: give a damaged language model back what it lost, from its own earlier checkpoints."""

import os
from importlib import import_module

# torch reads this once, before its first large tensor: on Linux it then asks for pages of 2 MB. A training step takes
# gigabytes and gives them back, and every page that the kernel hands out again costs a fault: 100 times fewer of them.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# A stage's package and its function share a name. Importing a package for the first time sets that name here, so the
# packages (which import no torch) come first, and the functions then take their names for good.
for _stage in ("degrade", "diagnose", "evaluate", "export", "recover"):
    import_module(f"recoup.{_stage}")

from recoup.api import degrade, diagnose, evaluate, export, load, recover  # noqa: E402

__all__ = ["degrade", "diagnose", "evaluate", "export", "load", "recover"]
