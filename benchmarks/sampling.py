"""Sampling: `recoup.models.sample` against `model.generate`, the embedded model in bf16, the same prompts and length.

Rates count completion tokens up to the end of turn. The floor of a decode step is what the machine cannot do faster: reading
every weight and the cache once at the memory bandwidth measured here, or multiplying at the bf16 rate measured here, whichever
takes longer.

Run: `python -m benchmarks.sampling`
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from recoup.models.decoding.choose import Workload, decoder_for
from recoup.models.decoding.draw import draw, uniforms
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Sampling, end_ids, pack, pad_id, sample

BATCHES = (32, 64)
MAX_TOKENS = 64  # the recover stage's default
TEMPERATURE = 0.8
REPEATS = 2  # of each way, in turn; `generate` takes long
STEPS = 12  # decode steps timed
BEST_OF = 20  # measurements of bandwidth and rate, which only disturbances lower
READ_BYTES, SQUARE = 2**28, 2048  # larger than any private cache; large enough for the full rate

Call = Callable[[], int]


def main() -> None:
    """Print rates, ratios and the share of the floor at each batch size."""
    model = load("embedded", dtype=torch.bfloat16)
    bandwidth, rate = read_bandwidth(), multiply_rate()
    threads = torch.get_num_threads()
    print(f"{threads} threads: {bandwidth / 1e9:.1f} GB/s read, {rate / 1e9:.0f} GFLOP/s in bf16", flush=True)
    for batch in BATCHES:
        prompts = [_prompt(model, f"Tell me {number} things about the number {number}.") for number in range(batch)]
        ways: dict[str, Call] = {
            "ours": partial(_ours, model, prompts),
            "generate": partial(_generate, model, prompts),
            "generate, static cache": partial(_generate, model, prompts, cache_implementation="static"),
        }
        rates = _rates(ways)
        for name, tokens_per_second in rates.items():
            ratio = rates["ours"] / tokens_per_second
            print(
                f"batch {batch}, {name}: {tokens_per_second:.1f} tokens/s; ours is {ratio:.2f} times as fast",
                flush=True,
            )
        seconds, columns = step_seconds(model, prompts)
        floor = floor_seconds(model, batch, columns, bandwidth, rate)
        print(
            f"batch {batch}, decode step: {1e3 * seconds:.1f} ms, floor {1e3 * floor:.1f} ms, share {floor / seconds:.0%}",
            flush=True,
        )


def read_bandwidth() -> float:
    """Bytes a second of reading memory once."""
    numbers = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    return READ_BYTES / _best(numbers.sum)


def multiply_rate() -> float:
    """Floating-point operations a second of a large product in bf16."""
    square = torch.randn(SQUARE, SQUARE).bfloat16()
    return 2 * SQUARE**3 / _best(lambda: square @ square)


def floor_seconds(model: LanguageModel, batch: int, columns: int, bandwidth: float, rate: float) -> float:
    """The least seconds of one decode step over a cache of `columns` tokens a row."""
    config = model.model.config
    numbers = sum(parameter.numel() for parameter in model.model.parameters())  # the tied embedding is the head
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * columns * batch
    scores = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * columns * batch
    return max(2 * (numbers + cache) / bandwidth, (2 * numbers * batch + scores) / rate)


@torch.inference_mode()
def step_seconds(model: LanguageModel, prompts: list[list[int]]) -> tuple[float, int]:
    """Median seconds of a decode step, the draw included, and the mean columns of the cache meanwhile."""
    packed = pack(prompts, [[]] * len(prompts), pad_id(model))
    tokens_BT, attention_BT = packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1]
    decoder = decoder_for(model.model, Workload(len(prompts), MAX_TOKENS, tokens_BT.shape[1] + STEPS))
    logits_BV = decoder.prefill(tokens_BT, attention_BT, STEPS)
    uniform_BT = uniforms(0, range(len(prompts)), STEPS)
    seconds = []
    for step in range(STEPS):
        began = time.perf_counter()
        logits_BV = decoder.step(draw(logits_BV, TEMPERATURE, uniform_BT[:, step])[0])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), tokens_BT.shape[1] + STEPS // 2


def _prompt(model: LanguageModel, text: str) -> list[int]:
    turns = [{"role": "user", "content": text}]
    written = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(model.tokenizer(written).input_ids)


def _ours(model: LanguageModel, prompts: list[list[int]]) -> int:
    return int(sample(model, prompts, Sampling(MAX_TOKENS, TEMPERATURE)).completion_BT.sum())


def _generate(model: LanguageModel, prompts: list[list[int]], **settings: object) -> int:
    """Tokens that `generate` made, those after an end of turn left out."""
    packed = pack(prompts, [[]] * len(prompts), pad_id(model))
    tokens_BT, attention_BT = packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1].long()
    sampled = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "max_new_tokens": MAX_TOKENS}
    with torch.inference_mode():
        made_BT = model.model.generate(tokens_BT, attention_mask=attention_BT, **sampled, **settings)
    completions_BT = made_BT[:, tokens_BT.shape[1] :]
    end_BT = torch.isin(completions_BT, torch.tensor(sorted(end_ids(model)))).long()
    return int((end_BT.cumsum(-1) - end_BT == 0).sum())


def _rates(ways: dict[str, Call]) -> dict[str, float]:
    """Median tokens a second of each way, taken in turn; our first, which checks the decoder, is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    ways["ours"]()  # compares its decoder with the model's forward pass, once
    for _ in range(REPEATS):
        for name, call in ways.items():
            began = time.perf_counter()
            tokens = call()
            found[name].append(tokens / (time.perf_counter() - began))
    return {name: statistics.median(rates) for name, rates in found.items()}


def _best(call: Callable[[], object]) -> float:
    """Least seconds of several calls."""
    seconds = []
    for _ in range(BEST_OF):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
