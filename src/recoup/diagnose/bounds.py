"""Between what a layer's CKA lies: a ceiling that no student is asked to pass, and a floor that says nothing was kept.

- Ceiling: the teacher against itself in another precision (bfloat16 where it computes in float32, else float32; the same
  weights as far as the coarser type holds them).
- Floor: the teacher against a model of its own architecture with newly drawn weights. It is not 0: equal tokens have equal
  embeddings in both models, and both mix them by position.

Both depend on the teacher and the text alone, so one value serves many students. Memory: one more model at a time (the float32
copy is twice the teacher).
"""

import copy
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from recoup.cka import cka_pairs
from recoup.diagnose.layers import token_states
from recoup.models.load import LanguageModel
from recoup.models.sample import Rollouts

MAX_TOKENS = 1024  # SmolLM2's floor is then within 0.03 of that at 2,048 (fewer sequences, fewer unlike tokens), its ceiling 1e-4


@dataclass(frozen=True)
class Bounds:
    """By block of the teacher, debiased CKA without sink tokens."""

    ceiling: tuple[float, ...]
    floor: tuple[float, ...]
    num_tokens: int  # sink tokens left out


def cka_bounds(teacher: LanguageModel, rollouts: Rollouts, *, seed: int, max_tokens: int = MAX_TOKENS) -> Bounds:
    """Ceiling and floor of every block of the teacher, on whole sequences of at most `max_tokens` tokens.

    Args:
        teacher: stays as it is.
        rollouts: those that students are compared on.
        seed: draws the weights of the re-initialised model; no generator outside is touched.
        max_tokens: sequences are spread evenly over the rollouts.

    Raises:
        SourceError: a hidden state is NaN or infinite.
        DataError: too few tokens for the estimator.
    """
    ceiling, _ = _cka(teacher, in_other_precision(teacher.model), rollouts, max_tokens)
    floor, num_tokens = _cka(teacher, reinitialised(teacher.model, seed), rollouts, max_tokens)
    return Bounds(ceiling, floor, num_tokens)


def in_other_precision(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose parameters are bfloat16 where the model's are float32, else float32.

    Buffers stay: rotary frequencies are float32 in every precision.
    """
    other = torch.bfloat16 if model.dtype == torch.float32 else torch.float32
    return _cast(copy.deepcopy(model), other)


def reinitialised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same architecture, type and device, with weights drawn by `seed` as its library draws them."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, whatever the device
        torch.default_generator.manual_seed(seed)
        fresh = type(model)(copy.deepcopy(model.config))
    return _cast(fresh, model.dtype).to(model.device).eval()


def _cka(
    teacher: LanguageModel, other: PreTrainedModel, rollouts: Rollouts, max_tokens: int
) -> tuple[tuple[float, ...], int]:
    states, _ = token_states(teacher, replace(teacher, model=other), rollouts, max_tokens)
    values_L = cka_pairs(states.student, states.teacher, ~states.sink_N).value_L
    return tuple(values_L.tolist()), int((~states.sink_N).sum())


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
