"""Sampling: the tokens of `model.generate`, the distribution of the model, and rows that draw for themselves."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, end_ids, pack, pad_id, sample
from tests.conftest import save_tiny

LAYOUTS = ("llama", "qwen2", "gemma3_text", "gpt2", "qwen3", "mistral")
LENGTHS = (3, 11, 1, 7, 7, 2, 14)
TOKENS = 24
DRAWS = 4000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, LanguageModel]:
    root = tmp_path_factory.mktemp("sampled")
    more = {layout: save_tiny(layout, root / layout) for layout in ("qwen3", "mistral")}
    models = {layout: load(str(folder)) for layout, folder in {**tiny_models, **more}.items()}
    for model in models.values():  # ends of turn that the likeliest completions meet at different times
        free = sample(model, prompts(), Sampling(TOKENS)).completions()
        changes = [next(token for token in row if token != row[0]) for row in free if len(set(row)) > 1]
        model.model.generation_config.eos_token_id = sorted({*changes[:3], free[0][-1]})
    return models


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in LENGTHS]


def test_pack_by_hand() -> None:
    rollouts = pack([[1, 2], [3]], [[4], [5, 6]], pad=0, logps=[[-1.0], [-2.0, -3.0]])
    assert rollouts.tokens_BT.tolist() == [[1, 2, 4, 0], [0, 3, 5, 6]]
    assert rollouts.attention_BT.long().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]
    assert rollouts.completion_BT.long().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert rollouts.logp_BT is not None
    assert rollouts.logp_BT.tolist() == [[0, 0, -1, 0], [0, 0, -2, -3]]
    assert pack([[1]], [[2]], pad=0).logp_BT is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_tokens_are_those_of_generate(tiny: dict[str, LanguageModel], layout: str) -> None:
    model, asked = tiny[layout], prompts()
    packed = pack(asked, [[]] * len(asked), pad_id(model))
    tokens, attention = packed.tokens_BT[:, :-1], packed.attention_BT[:, :-1]
    ends = end_ids(model)
    made = model.model.generate(
        tokens, attention_mask=attention.long(), max_new_tokens=TOKENS, do_sample=False, eos_token_id=sorted(ends)
    )
    theirs = [until_end(row, ends) for row in made[:, tokens.shape[1] :].tolist()]
    ours = sample(model, asked, Sampling(TOKENS)).completions()
    assert ours == theirs
    assert sample(model, asked, Sampling(TOKENS, batch_size=3)).completions() == theirs
    assert len(set(map(len, ours))) > 2, "rows were to end at different times"


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Tokens up to the first end, the end included."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: last + 1]


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_a_row_draws_the_same_in_any_company(tiny: dict[str, LanguageModel], layout: str) -> None:
    model, asked = tiny[layout], prompts()
    together = sample(model, asked, Sampling(TOKENS, 0.8, seed=4)).completions()
    assert sample(model, asked, Sampling(TOKENS, 0.8, seed=4, batch_size=2)).completions() == together
    halves = [
        sample(model, [asked[i] for i in rows], Sampling(TOKENS, 0.8, seed=4, rows=rows)).completions()
        for rows in ((0, 2, 4, 6), (1, 3, 5))
    ]
    assert halves == [together[0::2], together[1::2]]
    assert sample(model, asked, Sampling(TOKENS, 0.8, seed=5)).completions() != together


def test_equal_prompts_draw_differently(tiny: dict[str, LanguageModel]) -> None:
    completions = sample(tiny["llama"], [[1, 2, 3]] * 8, Sampling(TOKENS, 1.0)).completions()
    assert len({tuple(completion) for completion in completions}) > 1


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@torch.inference_mode()
def test_log_probabilities_are_the_models_own(tiny: dict[str, LanguageModel], layout: str) -> None:
    model = tiny[layout]
    rollouts = sample(model, prompts(), Sampling(TOKENS, 0.7, logp=True))
    assert rollouts.logp_BT is not None
    expected = exact_logp(model, rollouts, 0.7)
    assert torch.allclose(rollouts.logp_BT, expected, atol=1e-4)
    assert not rollouts.logp_BT[~rollouts.completion_BT].any()
    assert (rollouts.logp_BT[rollouts.completion_BT] < 0).all()
    assert sample(model, prompts(), Sampling(2, 0.7)).logp_BT is None


def exact_logp(model: LanguageModel, rollouts: Rollouts, temperature: float) -> Tensor:
    """Each completion alone, without padding."""
    expected = torch.zeros(rollouts.tokens_BT.shape)
    for row in range(len(expected)):
        real = rollouts.attention_BT[row]
        tokens = rollouts.tokens_BT[row, real]
        logp = torch.log_softmax(model.model(tokens[None]).logits[0] / temperature, -1)
        expected[row, real.nonzero()[1:, 0]] = logp[:-1].gather(1, tokens[1:, None])[:, 0]
    return expected * rollouts.completion_BT


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@torch.inference_mode()
def test_tokens_are_drawn_from_the_models_distribution(tiny: dict[str, LanguageModel], layout: str) -> None:
    """Chi-square of the first and the second token against exact probabilities."""
    model, prompt, temperature = tiny[layout], [5, 77, 201], 0.8
    ends = sorted(end_ids(model))
    drawn = sample(model, [prompt] * DRAWS, Sampling(2, temperature, seed=1, batch_size=1000)).completions()

    def next_p(contexts: list[list[int]]) -> Tensor:
        return torch.softmax(model.model(torch.tensor(contexts)).logits[:, -1].double() / temperature, -1)

    (first_V,) = next_p([prompt])
    second_V = first_V.clone()
    second_V[ends] = 0  # who ended has no second token
    second_V = (second_V / second_V.sum()) @ next_p([[*prompt, token] for token in range(len(first_V))])
    first = torch.tensor([completion[0] for completion in drawn])
    second = torch.tensor([completion[1] for completion in drawn if len(completion) == 2])
    assert len(second) == int((~torch.isin(first, torch.tensor(ends))).sum())
    for tokens, probability_V in ((first, first_V), (second, second_V)):
        assert deviation(tokens, probability_V) < 4
        assert deviation(tokens, torch.full_like(probability_V, 1 / len(probability_V))) > 4  # it can tell


def deviation(tokens: Tensor, probability_V: Tensor) -> float:
    """Chi-square in standard deviations above its mean; tokens expected fewer than 5 times count as one."""
    counts = torch.bincount(tokens, minlength=len(probability_V)).double()
    expected = probability_V * len(tokens)
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None].clamp_min(1e-9)])
    degrees = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5)
