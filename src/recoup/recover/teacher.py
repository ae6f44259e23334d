"""Teachers: historical checkpoints, frozen, that score the student's rollouts token by token."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recoup.models.load import LanguageModel, load
from recoup.models.logits import completion_logits, shared_vocabulary
from recoup.models.sample import Rollouts


@dataclass(frozen=True)
class Teacher:
    """A frozen model and the number of leading logits it shares with the student."""

    model: LanguageModel
    num_shared: int

    @torch.inference_mode()
    def score(self, rollouts: Rollouts) -> Float[Tensor, "N V"]:
        """Logits for every completion token over the shared vocabulary."""
        return completion_logits(self.model.model, rollouts)[:, : self.num_shared]


def load_teachers(
    names: tuple[str, ...], student: LanguageModel, dtype: torch.dtype, chat_template: str | Path | None
) -> tuple[Teacher, ...]:
    """One teacher per name; a name that stands twice is loaded once.

    Raises:
        SourceError: a teacher cannot be loaded, or its tokenizer is not the student's.
    """
    loaded = {name: load(name, dtype=dtype, chat_template=chat_template) for name in dict.fromkeys(names)}
    return tuple(Teacher(loaded[name], shared_vocabulary(student, loaded[name])) for name in names)
