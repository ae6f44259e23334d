"""Sample completions from a causal language model: prompts in, rollouts out.

One prefill, then one token a step over a growing KV cache; rows that have ended leave the batch, so a long completion
never makes the short ones pay. The same function writes prompts, rollouts, teacher completions and generations.

Shapes: B rollouts, T padded tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from recoup.models.load import LanguageModel

DEFAULT_BATCH = 64
LEAVE_SHARE = 0.25  # rows leave once a quarter of the batch has ended: compacting the cache costs about one decode step


@dataclass(frozen=True)
class Rollouts:
    """Prompts with completions: prompts padded on the left, completions on the right."""

    tokens_BT: Int[Tensor, "B T"]
    attention_BT: Bool[Tensor, "B T"]  # true at real tokens
    completion_BT: Bool[Tensor, "B T"]  # true at completion tokens, the end of turn included

    def completions(self) -> list[list[int]]:
        """Token ids of each completion."""
        return [row[mask].tolist() for row, mask in zip(self.tokens_BT, self.completion_BT, strict=True)]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_tokens: int  # completion length, tokens
    temperature: float = 0.0  # 0 is greedy
    seed: int = 0
    batch_size: int = DEFAULT_BATCH


def sample(model: LanguageModel, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
    """Complete every prompt, `settings.batch_size` at a time, longest prompts first so that batches waste few pads.

    Returns:
        Rollouts in the order of `prompts`.
    """
    assert all(prompts), "an empty prompt"
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    generator = torch.Generator(model.device).manual_seed(settings.seed)
    completions: dict[int, list[int]] = {}
    for start in range(0, len(order), settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        batch = _complete(model, [prompts[i] for i in chosen], settings, generator)
        completions.update(zip(chosen, batch, strict=True))
    return pack(prompts, [completions[i] for i in range(len(prompts))], pad_id(model), model.device)


def pack(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> Rollouts:
    """Lay prompts and completions out as rollouts: every completion starts at the same column."""
    left, right = max(map(len, prompts)), max(1, *map(len, completions))
    tokens = torch.full((len(prompts), left + right), pad)
    attention = torch.zeros_like(tokens, dtype=torch.bool)
    completion = torch.zeros_like(attention)
    for row, (prompt, answer) in enumerate(zip(prompts, completions, strict=True)):
        start, end = left - len(prompt), left + len(answer)
        tokens[row, start:end] = torch.tensor([*prompt, *answer])
        attention[row, start:end] = True
        completion[row, left:end] = True
    return Rollouts(tokens.to(device), attention.to(device), completion.to(device))


def pad_id(model: LanguageModel) -> int:
    """The pad token's id, 0 where there is none: masks never depend on it."""
    pad = model.tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def end_ids(model: LanguageModel) -> set[int]:
    """Ids that end a turn: those of the generation config and the tokenizer's own."""
    ids = getattr(model.model.generation_config, "eos_token_id", None)
    listed = ids if isinstance(ids, list) else [ids]
    return {int(i) for i in [*listed, model.tokenizer.eos_token_id] if i is not None}


def position_ids(attention_BT: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Positions that count real tokens only."""
    return (attention_BT.long().cumsum(-1) - 1).clamp_min(0)


def draw(
    logits_BV: Float[Tensor, "B V"], temperature: float, generator: torch.Generator | None = None
) -> Int[Tensor, " B"]:
    """One token a row: argmax at temperature 0, else one draw from softmax(logits / temperature)."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    # inverse of the cumulative distribution: one uniform number a row, where multinomial draws V of them
    cumulative_BV = torch.softmax(logits_BV.float() / temperature, dim=-1).cumsum(-1)
    uniform_B1 = torch.rand(len(logits_BV), 1, generator=generator, device=logits_BV.device)
    chosen_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    return chosen_B1[:, 0].clamp_max(logits_BV.shape[1] - 1)


@torch.inference_mode()
def _complete(
    model: LanguageModel, prompts: Sequence[Sequence[int]], settings: Sampling, generator: torch.Generator
) -> list[list[int]]:
    ends = torch.tensor(sorted(end_ids(model)), device=model.device)
    packed = pack(prompts, [[]] * len(prompts), pad_id(model), model.device)
    tokens_BT, attention_BT = packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1]
    rows = torch.arange(len(prompts), device=model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    cache = DynamicCache(config=model.model.config)
    _prefill(model.model, tokens_BT[:, :-1], attention_BT[:, :-1], cache)
    tokens_BT = tokens_BT[:, -1:]
    for _ in range(settings.max_tokens):
        logits_BV = _next_logits(model.model, tokens_BT, attention_BT, cache)
        drawn_B = draw(logits_BV, settings.temperature, generator)
        for row, token in zip(rows.tolist(), drawn_B.tolist(), strict=True):
            if row >= 0:
                answers[row].append(token)
        rows = torch.where(torch.isin(drawn_B, ends), -1, rows)
        going = rows >= 0
        if not going.any():
            break
        tokens_BT = drawn_B[:, None]
        if (~going).sum() >= LEAVE_SHARE * len(rows):
            cache.batch_select_indices(going.nonzero()[:, 0])
            tokens_BT, attention_BT, rows = tokens_BT[going], attention_BT[going], rows[going]
        attention_BT = torch.cat([attention_BT, attention_BT.new_ones(len(rows), 1)], dim=1)
    return answers


def _prefill(
    model: PreTrainedModel, tokens_BT: Int[Tensor, "B T"], attention_BT: Bool[Tensor, "B T"], cache: DynamicCache
) -> None:
    """Fill the cache through the backbone alone.

    The head over a prompt is work, and `logits_to_keep` on a CPU copies the whole head once per row.
    """
    if tokens_BT.shape[1]:
        positions_BT = position_ids(attention_BT)
        model.base_model(
            tokens_BT,
            attention_mask=attention_BT.long(),
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
        )


def _next_logits(
    model: PreTrainedModel, tokens_B1: Int[Tensor, "B 1"], attention_BT: Bool[Tensor, "B T"], cache: DynamicCache
) -> Float[Tensor, "B V"]:
    """Logits of the token that follows `tokens_B1`, the one token that the cache has not seen."""
    positions_B1 = position_ids(attention_BT)[:, -1:]
    output = model(
        tokens_B1, attention_mask=attention_BT.long(), position_ids=positions_B1, past_key_values=cache, use_cache=True
    )
    return output.logits[:, -1]
