"""Completions: batches of bounded size, and what ends them."""

from pathlib import Path

import pytest

from recoup.evaluate import completion
from recoup.evaluate.completion import complete
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample

PROMPTS = [[65 + i] * (10 - i) for i in range(5)]  # 10, 9, 8, 7 and 6 tokens


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Rollouts]:
    """Every batch that is drawn."""
    batches: list[Rollouts] = []

    def watched(model: LanguageModel, prompts: list[list[int]], settings: Sampling) -> Rollouts:
        batches.append(sample(model, prompts, settings))
        return batches[-1]

    monkeypatch.setattr(completion, "sample", watched)
    return batches


def test_a_batchs_cache_is_bounded(tiny_model: Path, drawn: list[Rollouts]) -> None:
    told: list[tuple[int, int]] = []
    texts = complete(load(str(tiny_model)), PROMPTS, Sampling(6), 9, lambda done, total: told.append((done, total)))
    # 4 · 9 = 36 tokens: 2 rows of 10 + 6; 2 of 8 + 6; the last
    assert [len(batch.tokens_BT) for batch in drawn] == [2, 2, 1]
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert texts == complete(load(str(tiny_model)), PROMPTS, Sampling(6), 10_000)
    assert len(drawn[-1].tokens_BT) == 5


def test_a_completion_ends_where_a_stop_is_written(tiny_model: Path, drawn: list[Rollouts]) -> None:
    model = load(str(tiny_model))
    [whole] = complete(model, PROMPTS[:1], Sampling(20), 1000)
    stop = whole[4:6]
    [stopped] = complete(model, PROMPTS[:1], Sampling(20), 1000, stops=["", "is never written", stop])
    assert stopped == whole[: whole.index(stop) + 2]
    ids = drawn[-1].completions()[0]
    assert model.tokenizer.decode(ids) == stopped  # nothing was drawn beyond it
    assert len(ids) < len(drawn[0].completions()[0])
