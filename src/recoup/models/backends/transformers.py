"""Sampling by `model.generate` of transformers: slower than recoup's own, for architectures with a cache of their own.

A logits processor draws the tokens, as `recoup.models.sample` does, and leaves `generate` one token to take: each row has
random numbers of its own, the same as in native sampling, no global generator is touched, and the log-probability of each
token is at hand.

Shapes: B rollouts, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from recoup.models.backends.base import Completion, laid_out, row_numbers
from recoup.models.backends.native import Twin
from recoup.models.decoding.draw import draw, uniforms
from recoup.models.sample import Rollouts, Sampling, end_ids, pack, pad_id


class Generate(Twin):
    """Sampling by `model.generate`."""

    def sample(self, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
        """Complete every prompt, `settings.batch_size` at a time, longest prompts first so that batches waste few pads."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        numbers = row_numbers(settings, len(prompts))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            batch = self._complete([prompts[i] for i in chosen], [numbers[i] for i in chosen], settings)
            completions.update(zip(chosen, batch, strict=True))
        return laid_out(prompts, [completions[i] for i in range(len(prompts))], self.model, logp=settings.logp)

    @torch.inference_mode()
    def _complete(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], settings: Sampling
    ) -> list[Completion]:
        packed = pack(prompts, [[]] * len(prompts), pad_id(self.model), self.model.device)
        tokens_BT, attention_BT = packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1]
        uniform_BT = uniforms(settings.seed, numbers, settings.max_tokens).to(self.model.device)
        choose = _Choose(uniform_BT, settings.temperature)
        ends = end_ids(self.model)
        generated_BT = self.model.model.generate(
            tokens_BT,
            attention_mask=attention_BT.long(),
            generation_config=_plain_config(settings.max_tokens, ends, pad_id(self.model)),
            logits_processor=LogitsProcessorList([choose]),
        )[:, tokens_BT.shape[1] :]
        logp_BT = torch.stack(choose.logp, dim=1)
        completions = []
        for row, logp in zip(generated_BT.tolist(), logp_BT.tolist(), strict=True):
            length = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
            completions.append(Completion(row[:length], logp[:length]))
        return completions


class _Choose(LogitsProcessor):
    """Draws one token a row and forbids all others."""

    def __init__(self, uniform_BT: Tensor, temperature: float) -> None:
        self.uniform_BT, self.temperature = uniform_BT, temperature
        self.logp: list[Tensor] = []  # a step each, over the rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002  the signature is transformers'
        token_B, logp_B = draw(scores, self.temperature, self.uniform_BT[:, len(self.logp)])
        self.logp.append(logp_B)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)


def _plain_config(max_tokens: int, ends: set[int], pad: int) -> GenerationConfig:
    """Greedy over what the processor left: penalties of the model's own generation config are set to have no effect."""
    return GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
