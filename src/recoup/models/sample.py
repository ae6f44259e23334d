"""Sample completions from a causal language model: prompts in, rollouts out.

One prefill, then one token a step over a cache of keys and values (`decoding`); rows that have ended leave the batch, so
a long completion never makes the short ones pay. What a row draws depends on the model, the seed and the row's number, and
on nothing else but rounding. The same function writes prompts, rollouts, teacher completions and generations.

Shapes: B rollouts, T padded tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recoup.models.decoding.base import Decoder, position_ids
from recoup.models.decoding.choose import Workload, decoder_for
from recoup.models.decoding.draw import draw, uniforms
from recoup.models.load import LanguageModel

__all__ = ["Rollouts", "Sampling", "draw", "end_ids", "pack", "pad_id", "position_ids", "sample"]

DEFAULT_BATCH = 64
LEAVE_SHARE = 0.25  # rows leave once a quarter of the batch has ended: moving rows costs about one decode step


@dataclass(frozen=True)
class Rollouts:
    """Prompts with completions: prompts padded on the left, completions on the right."""

    tokens_BT: Int[Tensor, "B T"]
    attention_BT: Bool[Tensor, "B T"]  # true at real tokens
    completion_BT: Bool[Tensor, "B T"]  # true at completion tokens, the end of turn included
    logp_BT: Float[Tensor, "B T"] | None = None  # log-probability each completion token was drawn with; 0 elsewhere

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
    rows: tuple[int, ...] | None = None  # number of each prompt, >= 0, by which it draws; None: 0, 1, 2, …
    logp: bool = False  # keep the log-probability of each token
    stop: Callable[[Sequence[int]], bool] | None = None  # says of a completion so far whether it has ended


def sample(model: LanguageModel, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
    """Complete every prompt, `settings.batch_size` at a time, longest prompts first so that batches waste few pads.

    Returns:
        Rollouts in the order of `prompts`.
    """
    assert all(prompts), "an empty prompt"
    assert settings.rows is None or len(settings.rows) == len(prompts), "one row number a prompt"
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    num_batches = -(-len(prompts) // settings.batch_size)
    longest = max(map(len, prompts)) + settings.max_tokens
    work = Workload(min(len(prompts), settings.batch_size), num_batches * settings.max_tokens, longest)
    decoder = decoder_for(model.model, work)
    answers: dict[int, _Answer] = {}
    for start in range(0, len(order), settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        numbers = chosen if settings.rows is None else [settings.rows[i] for i in chosen]
        batch = _complete(model, decoder, [prompts[i] for i in chosen], numbers, settings)
        answers.update(zip(chosen, batch, strict=True))
    inorder = [answers[i] for i in range(len(prompts))]
    logps = [answer.logps for answer in inorder] if settings.logp else None
    return pack(prompts, [answer.tokens for answer in inorder], pad_id(model), model.device, logps)


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad: int,
    device: torch.device | str = "cpu",
    logps: Sequence[Sequence[float]] | None = None,
) -> Rollouts:
    """Lay prompts and completions out as rollouts: every completion starts at the same column.

    Args:
        prompts: token ids.
        completions: token ids.
        pad: id at the places without a token.
        device: where the rollouts go.
        logps: log-probability of each completion token, where known.
    """
    left, right = max(map(len, prompts)), max(1, *map(len, completions))
    tokens = torch.full((len(prompts), left + right), pad)
    attention = torch.zeros_like(tokens, dtype=torch.bool)
    completion = torch.zeros_like(attention)
    for row, (prompt, answer) in enumerate(zip(prompts, completions, strict=True)):
        start, end = left - len(prompt), left + len(answer)
        tokens[row, start:end] = torch.tensor([*prompt, *answer])
        attention[row, start:end] = True
        completion[row, left:end] = True
    logp = None
    if logps is not None:
        logp = torch.zeros(tokens.shape)
        logp[completion] = torch.tensor([value for row in logps for value in row])
        logp = logp.to(device)
    return Rollouts(tokens.to(device), attention.to(device), completion.to(device), logp)


def pad_id(model: LanguageModel) -> int:
    """The pad token's id, 0 where there is none: masks never depend on it."""
    pad = model.tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def end_ids(model: LanguageModel) -> set[int]:
    """Ids that end a turn: those of the generation config and the tokenizer's own."""
    ids = getattr(model.model.generation_config, "eos_token_id", None)
    listed = ids if isinstance(ids, list) else [ids]
    return {int(i) for i in [*listed, model.tokenizer.eos_token_id] if i is not None}


@dataclass(frozen=True)
class _Answer:
    """One completion as it grows."""

    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


@torch.inference_mode()
def _complete(
    model: LanguageModel,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    settings: Sampling,
) -> list[_Answer]:
    """Complete one batch. A slot is a row of the decoder's batch; `rows[slot]` says whose it is, -1 after its end."""
    ends = end_ids(model)
    packed = pack(prompts, [[]] * len(prompts), pad_id(model), model.device)
    uniform_BT = uniforms(settings.seed, numbers, settings.max_tokens).to(model.device)
    answers = [_Answer() for _ in prompts]
    rows = list(range(len(prompts)))
    logits_BV = decoder.prefill(packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1], settings.max_tokens - 1)
    for step in range(settings.max_tokens):
        drawn_B, logp_B = draw(logits_BV, settings.temperature, uniform_BT[rows, step])
        tokens = drawn_B.tolist()
        for row, token, logp in zip(rows, tokens, logp_B.tolist(), strict=True):
            if row >= 0:
                answers[row].tokens.append(token)
                answers[row].logps.append(logp)
        rows = [-1 if row < 0 or _ended(answers[row].tokens, ends, settings) else row for row in rows]
        going = [slot for slot, row in enumerate(rows) if row >= 0]
        if not going or step + 1 == settings.max_tokens:
            break
        if len(rows) - len(going) >= LEAVE_SHARE * len(rows):
            slots = _closed_up(going)
            decoder.keep(slots)
            drawn_B, rows = drawn_B[slots], [rows[slot] for slot in slots]
        logits_BV = decoder.step(drawn_B)
    return answers


def _ended(tokens: Sequence[int], ends: set[int], settings: Sampling) -> bool:
    return tokens[-1] in ends or (settings.stop is not None and settings.stop(tokens))


def _closed_up(going: Sequence[int]) -> list[int]:
    """The slots in `going`, moved as little as possible: who stands within the first `len(going)` stays put."""
    kept, movers = set(going), [slot for slot in going if slot >= len(going)]
    return [slot if slot in kept else movers.pop() for slot in range(len(going))]
