"""Sampling: `recoup.models.sample` against `model.generate`, the embedded model in bf16, the same prompts and length.

Run: `python -m benchmarks.sampling`
"""

import torch

from benchmarks.timing import compare
from recoup.models.load import load
from recoup.models.sample import Sampling, pack, pad_id, sample

NUM_PROMPTS, MAX_TOKENS = 32, 32


def main() -> None:
    """Print the ratio; both draw from the whole vocabulary at temperature 0.8."""
    model = load("embedded", dtype=torch.bfloat16)
    texts = [f"Tell me {number} things about the number {number}." for number in range(NUM_PROMPTS)]
    prompts = [
        model.tokenizer(model.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)).input_ids
        for text in texts
    ]  # fmt: skip
    packed = pack(prompts, [[]] * len(prompts), pad_id(model), model.device)
    tokens_BT, attention_BT = packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1].long()

    def generate() -> None:
        with torch.inference_mode():
            model.model.generate(
                tokens_BT,
                attention_mask=attention_BT,
                max_new_tokens=MAX_TOKENS,
                do_sample=True,
                temperature=0.8,
                top_k=0,
            )

    compare("sampling", lambda: sample(model, prompts, Sampling(MAX_TOKENS, 0.8)), generate, "transformers generate")


if __name__ == "__main__":
    main()
