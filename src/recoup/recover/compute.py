"""The student as it computes: a bf16 copy of its fp32 weights that samples, runs forward and backward, and keeps no gradient.

The optimizer moves fp32 weights; what they are after a step is rounded once into the copy, where autocast would round every
weight in every forward pass, and hold the residual stream in fp32. Measured against fp32 gradients on SmolLM2-135M: see
docs/methods.md. In fp32 the student computes itself, unless several processes share out its rows: then the copy is what each has
whole.
"""

from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from recoup.config import Memory, Rollout
from recoup.divergence import Head
from recoup.models.backends.native import copied
from recoup.models.hidden import head_of
from recoup.models.load import LanguageModel
from recoup.structure.guard import Guard
from recoup.structure.shards import whole
from recoup.training.memory import PLAIN_ATTENTION_TOKENS, checkpoint_blocks, offloaded
from recoup.training.sharding import RowGuard


class ComputeCopy:
    """What samples and learns for `student`; `follow` after every change of the student's weights.

    Raises:
        SourceError: the student has no output head, or one that is no known formula.
        StructureError: the student has no blocks that can be found, for gradient checkpointing.
    """

    def __init__(self, student: LanguageModel, guard: Guard, dtype: torch.dtype, memory: Memory) -> None:
        self._master, self._trained = student.model, guard.trained
        own = student.model.dtype == dtype and not isinstance(guard, RowGuard)
        self.model = student if own else replace(student, model=copied(student.model, dtype))
        if not own:
            guard.listen(self.model.model)
        if memory.gradient_checkpointing:
            checkpoint_blocks(self.model.model)
        self._offload = memory.offload_activations
        self.head: Head = head_of(self.model.model)

    @torch.no_grad()
    def follow(self) -> None:
        """Take over the present values of what trains."""
        if self.model.model is not self._master:
            mine, theirs = dict(self.model.model.named_parameters()), dict(self._master.named_parameters())
            for name in self._trained:
                mine[name].copy_(whole(theirs[name]))

    def learning(self) -> AbstractContextManager[object]:
        """Context of a forward pass that gradients are wanted of."""
        return offloaded(self.model.model) if self._offload else torch.enable_grad()

    def choose_attention(self, rollout: Rollout) -> None:
        """Plain attention for short rollouts on a CPU: torch's fused backward takes twice its time there.

        Measured at 12 rollouts of 104 tokens, SmolLM2-135M: a third of the student's backward pass. Plain attention keeps
        T × T scores per head and layer for the backward pass, so long rollouts keep the fused kernel.
        """
        short = rollout.max_prompt_tokens + rollout.max_tokens <= PLAIN_ATTENTION_TOKENS
        if self.model.device.type == "cpu" and short:
            self.model.model.set_attn_implementation("eager")
