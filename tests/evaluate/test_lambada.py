"""LAMBADA: the greedy word, against lm-eval's own task on the same model."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from recoup.config import Evaluate
from recoup.evaluate import lambada, likelihood_task
from recoup.models.load import LanguageModel, load
from tests.evaluate.lm_eval_tasks import evaluated


@pytest.fixture
def parrot(tiny_models: dict[str, Path]) -> LanguageModel:
    """A model that writes a space after "o", "b" after a space and "e" after "b": blocks do nothing, the head looks up."""
    model = load(str(tiny_models["qwen2"]))
    network = model.model.get_decoder()
    for block in network.layers:
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    head = model.model.get_output_embeddings().weight.data.zero_()
    for token, following in ("o ", " b", "be"):
        [[here], [there]] = model.tokenizer([token, following]).input_ids
        head[there] = network.norm(network.embed_tokens(torch.tensor(here))).detach()
    return model


def test_grade() -> None:
    assert lambada.grade([(-1.5, True)]) == {"acc": 1.0, "logp": -1.5}
    assert lambada.grade([(-0.5, False)]) == {"acc": 0.0, "logp": -0.5}


def test_equals_lm_eval(parrot: LanguageModel, tmp_path: Path) -> None:
    model = parrot
    said = [
        ("To be or not to", "be"),
        ("To be or not to", "bed"),
        ("To be or not to", "do"),
        ("He sat\n\nand", "wept."),
    ]
    rows = [{"context": context, "continuation": word} for context, word in said]
    file = tmp_path / lambada.TASK.file
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = likelihood_task.score(model, lambada.TASK, Evaluate(data=str(tmp_path)))
    theirs = evaluated(
        model, "lambada", "lambada_openai", [{"text": f"{r['context']} {r['continuation']}"} for r in rows]
    )
    assert list(ours.scores) == [sample["acc"] for sample in theirs["samples"]]
    assert list(ours.scores) == [1, 0, 0, 0]
    logps = [sample["logp"] for sample in ours.samples]
    assert logps == pytest.approx([sample["perplexity"] for sample in theirs["samples"]], abs=1e-4)
    perplexity = math.exp(-sum(logps) / len(logps))
    assert perplexity == pytest.approx(theirs["results"]["perplexity,none"], rel=1e-4)


@pytest.mark.skipif("RECOUP_DATA" not in os.environ, reason="RECOUP_DATA names the folder with lambada/")
def test_the_real_rows_are_read(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    items = lambada.items(model, Path(os.environ["RECOUP_DATA"]) / lambada.TASK.file)
    assert [item.gold for item in items[:2]] == ["Shane", "insurance"]
    assert all(model.tokenizer.decode(item.pairs[0][1]) == f" {item.gold}" for item in items)
