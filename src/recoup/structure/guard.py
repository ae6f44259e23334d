"""The guard: lets an optimizer move latent weights while the model itself never leaves its structure.

Straight-through estimation (arXiv 1308.3432): the forward pass sees the projected weight, the gradient passes to the latent
one unchanged. Instead of wrapping layers, the guard keeps the latent copies and lays them into the model only for the
optimizer's step:

    loss.backward()                   # gradients at the projected weights
    with guard.latent_weights():      # the model holds latent weights here …
        optimizer.step()
                                      # … and projected ones again from here on

So forward passes and decoding cost nothing extra, the model can be saved or sampled from at any moment, and sharded or
wrapped parameters work as they are. A mask needs no latent copy: projecting is multiplying by it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recoup.errors import StructureError
from recoup.structure.spec import Constraint, Structure


class Guard:
    """Keeps `model` on `structure` through training.

    Attributes:
        structure: the structure as last fitted; scales follow the latent weights.

    Raises:
        StructureError: the structure names a weight the model lacks, or of another shape.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        parameters = dict(model.named_parameters())
        missing = [name for name in structure.constraints if name not in parameters]
        if missing:
            raise StructureError(f"the structure constrains {missing[0]!r}, which this model does not have")
        constraints = {name: c.to(parameters[name].device) for name, c in structure.constraints.items()}
        self.structure = structure = Structure(constraints, structure.shapes)
        self._weights = {name: parameters[name] for name in structure.constraints}
        self._latent = {
            name: weight.detach().clone() for name, weight in self._weights.items() if structure.constraints[name].grid
        }
        self._check_shapes()

    @contextmanager
    def latent_weights(self) -> Iterator[None]:
        """Lay the latent weights into the model; on leaving, keep what they became and project."""
        for name, latent in self._latent.items():
            self._weights[name].data.copy_(latent)
        yield
        for name, latent in self._latent.items():
            latent.copy_(self._weights[name].data)
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Fit every grid to its latent weight and lay the projected weights into the model."""
        fitted: dict[str, Constraint] = {}
        for name, constraint in self.structure.constraints.items():
            weight = self._weights[name]
            latent = self._latent.get(name, weight.data)
            fitted[name] = constraint.fitted(latent)
            weight.data.copy_(fitted[name].project(latent))
        self.structure = Structure(fitted, self.structure.shapes)

    def latent_state(self) -> dict[str, Tensor]:
        """The latent weights, for a checkpoint; masks have none."""
        return dict(self._latent)

    def load_latent_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint's latent weights."""
        for name, latent in self._latent.items():
            latent.copy_(state[name])
        self.project()

    def _check_shapes(self) -> None:
        for name, constraint in self.structure.constraints.items():
            mask_OI, shape = constraint.mask_OI, constraint.view_OI(self._weights[name]).shape
            if mask_OI is not None and mask_OI.shape != shape:
                raise StructureError(f"{name}: mask of shape {tuple(mask_OI.shape)} on a weight of {tuple(shape)}")
