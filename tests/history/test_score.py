"""Groups of a prompt file as capabilities, and their scores against the model's own logits."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from recoup.config import Evaluate, History
from recoup.errors import ConfigError, DataError, SourceError
from recoup.evaluate import harness
from recoup.history.score import LOG_PROBABILITY, Capability, capabilities, check, score
from recoup.models.load import LanguageModel, load

EVALUATE = Evaluate(tasks=(), limit=3)


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path]) -> LanguageModel:
    return load(str(tiny_models["llama"]))


def write(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(group: str | None, count: int = 40) -> list[dict[str, str]]:
    made = [{"prompt": f"{group} question {i}", "answer": f"{group} {i}"} for i in range(count)]
    return made if group is None else [row | {"group": group} for row in made]


def known(config: History, model: LanguageModel) -> tuple[Capability, ...]:
    return capabilities(config, check(config), model, seed=0)


def test_the_score_is_the_mean_log_probability_of_the_answer(model: LanguageModel, tmp_path: Path) -> None:
    config = History(prompts=write(tmp_path / "p.jsonl", rows("a", 8)), num_prompts=3)
    found = score(model, known(config, model)[0], EVALUATE)
    assert (found.task, found.metric, len(found.scores)) == ("a", LOG_PROBABILITY, 3)
    for row, value in zip(known(config, model)[0].rows, found.scores, strict=True):
        assert row.answer is not None
        ids = torch.tensor([[*row.ids, *row.answer]])
        logp = model.model(ids).logits[0, :-1].log_softmax(-1)
        places = range(len(row.ids) - 1, ids.shape[1] - 1)  # position t predicts token t + 1
        by_hand = sum(float(logp[t, ids[0, t + 1]]) for t in places) / len(row.answer)
        assert value == pytest.approx(by_hand, abs=1e-4)


def test_groups_share_the_rows_evenly_and_none_is_held_out(model: LanguageModel, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [*rows("a", 200), *rows("b", 20), *rows(None, 30)])
    first, second = known(History(prompts=file, num_prompts=17), model)  # rows without a group are no capability here
    assert [(c.name, c.group, c.is_task, len(c.rows)) for c in (first, second)] == [
        ("a", "a", False, 8),
        ("b", "b", False, 8),
    ]
    assert len({*first.item_ids, *second.item_ids}) == 16
    from recoup.data.prompts import load_prompts

    held_out = {prompt.text for prompt in load_prompts(file, model, 999, 0, "held_out")}
    assert held_out
    assert not held_out & {row.text for row in (*first.rows, *second.rows)}


def test_a_file_without_groups_is_one_capability(model: LanguageModel, tmp_path: Path) -> None:
    found = known(History(prompts=write(tmp_path / "tools.jsonl", rows(None)), num_prompts=5), model)
    assert [(c.name, c.group, len(c.rows)) for c in found] == [("tools", None, 5)]


def test_a_group_called_like_a_benchmark_is_told_apart(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recoup.history.score.check_tasks", lambda names, data: None)
    config = History(tasks=("science", "arc_easy"), prompts=write(tmp_path / "p.jsonl", rows("science")), num_prompts=4)
    found = known(config, model)
    assert [(c.name, c.is_task, c.group) for c in found] == [
        ("science", True, None),
        ("arc_easy", True, None),
        ("science (prompts)", False, "science"),
    ]


def test_mistakes(model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "known_names", lambda: frozenset({"gsm8k"}))  # lm-eval's own take long to list
    with pytest.raises(DataError, match=r"need answers; give a \.jsonl file"):
        check(History(prompts="self"))
    with pytest.raises(DataError, match="no such file"):
        check(History(prompts=str(tmp_path / "gone.jsonl")))
    with pytest.raises(ConfigError, match="unknown task"):
        check(History(tasks=("arc_esay",)))
    silent = write(tmp_path / "silent.jsonl", [{"prompt": f"question {i}"} for i in range(9)])
    with pytest.raises(DataError, match="none of 8 prompts has an answer"):
        known(History(prompts=silent, num_prompts=8), model)
    many = write(tmp_path / "many.jsonl", [row for name in "abc" for row in rows(name)])
    with pytest.raises(ConfigError, match="num_prompts 5 is too few for 3 groups"):
        known(History(prompts=many, num_prompts=5), model)
    lonely = write(tmp_path / "lonely.jsonl", [{"prompt": "question 1", "answer": "yes"}, *rows(None, 8)][:1] * 2)
    with pytest.raises(DataError, match="1 answered row of 'lonely' to train on; a capability needs 2 at least"):
        known(History(prompts=lonely), model)


def test_broken_weights_are_no_score(tiny_model: Path, tmp_path: Path) -> None:
    broken = load(str(tiny_model))
    broken.model.get_input_embeddings().weight[:] = torch.nan
    config = History(prompts=write(tmp_path / "p.jsonl", rows("a", 8)), num_prompts=3)
    with pytest.raises(SourceError, match="gives NaN or infinity on a; its weights are broken"):
        score(broken, known(config, broken)[0], EVALUATE)
