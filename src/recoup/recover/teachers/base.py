"""What a teacher is: a language model that scores rollouts token by token, wherever its weights come from.

A teacher's score is its last hidden states and its head, from which a divergence over the full vocabulary is worked out a few
rows at a time (`recoup.divergence`); its logits are never laid out. What is shown to a teacher is in the rollouts' prompts and
nowhere else: a demonstration-conditioned teacher (SDFT, arXiv 2601.19897) is any teacher that is given the same completions
behind longer prompts. Its N scores come in the order of the student's N completion tokens, because padding changes columns
and never the order of tokens.

Shapes: B rollouts, N completion tokens, D width.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recoup.divergence import Head, HiddenTargets, Targets
from recoup.models.hidden import completion_hidden
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts

SAMPLED_VALUES = 64  # of each tensor that a fingerprint looks at: training moves every tensor nearly everywhere
CONFIG_PLACES = (
    "_name_or_path",
    "transformers_version",
)  # say where a model lay and who wrote it, not what it computes
MEGABYTE = 1e6


class Teacher(ABC):
    """A model that scores rollouts.

    `num_shared` counts the leading vocabulary entries it shares with the student. `identity` tells its scores from those of
    any other teacher, as `fingerprint` does; null for a teacher that moves, whose scores are not worth keeping.
    """

    name: str
    num_shared: int
    identity: str | None

    @abstractmethod
    def model(self) -> AbstractContextManager[LanguageModel]:
        """Yield the model with this teacher's weights in it: to write completions and prompts, or for its hidden states.

        Inside the `with` nobody else may use the student's compute copy: `ema` and `start` speak through it. It may be
        entered again from inside; `score` does so.
        """

    @abstractmethod
    def head(self) -> Head:
        """The output head; gives no gradients, and stays the teacher's after `model` is left."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory that this teacher takes beside the student's, bytes."""

    def score(self, rollouts: Rollouts) -> Targets:
        """What the teacher says of every completion token; no gradients.

        Under `no_grad`, not `inference_mode`: an autograd function may not save tensors made in inference mode.
        """
        with self.model() as speaker, torch.no_grad():
            return HiddenTargets(completion_hidden(speaker.model, rollouts), self.head())

    def after_step(self, step: int) -> None:
        """Called once after each optimizer step, counted from 0; only a moving teacher does something."""
        assert step >= 0, "steps count from 0"

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs; empty for a teacher that does not move."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        assert not state, f"{self.name} does not move and has no state"

    def describe(self) -> str:
        """One line for the user: who teaches and what it costs."""
        return f"teacher {self.name}: {self.memory_bytes() / MEGABYTE:,.1f} MB beside the student"


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors; one that stands twice counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def held_tensors(module: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers of a module."""
    yield from module.parameters()
    yield from module.buffers()


def frozen_head(head: Head) -> Head:
    """The head apart from the model's parameter: it keeps these values when another weight is laid in there."""
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return Head(head.weight_VD.detach(), bias_V, head.scale, head.softcap)


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of what the model computes: its config, and name, type, shape and a sample of each tensor's values.

    By content, not by path: a checkpoint that was trained anew in the same folder is another teacher, and a copied folder is
    the same one.
    """
    described = {key: value for key, value in model.config.to_diff_dict().items() if key not in CONFIG_PLACES}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED_VALUES)].float().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
