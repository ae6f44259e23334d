"""An injury."""

from recoup.results.base import Result


class DegradeResult(Result):
    """One injury."""

    method: str  # `type` of the config
    summary: str  # one line for people: "int3, group 64, symmetric: 210 matrices"
    source: str  # the model that was damaged, as the user named it
    checkpoint: str  # folder of the damaged model
    num_parameters: int
    num_constrained: int = 0  # weights that lie on a grid or under a mask
    sparsity: float = 0.0  # share of zeros among constrained weights
    bits_per_weight: float | None = None  # whole model, embeddings and head included
    seconds: float
