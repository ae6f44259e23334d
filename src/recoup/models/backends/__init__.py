"""Who samples rollouts: a table from the config's word to the backend, and nothing else."""

from collections.abc import Callable

from recoup.models.backends.base import Backend, Setup
from recoup.models.backends.native import Native
from recoup.models.backends.transformers import Generate
from recoup.models.backends.vllm_colocated import VllmColocated
from recoup.models.backends.vllm_server import VllmServer

BACKENDS: dict[str, Callable[[Setup], Backend]] = {
    "native": Native,
    "transformers": Generate,
    "vllm": VllmColocated,
    "vllm_server": VllmServer,
}

__all__ = ["BACKENDS", "Backend", "Setup"]
