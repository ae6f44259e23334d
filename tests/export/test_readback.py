"""The measure of an export, and who reads it."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recoup.errors import ExportError
from recoup.export import llama_cpp, readback
from recoup.models.load import load


def test_equal_logits_differ_by_nothing() -> None:
    logits_NV = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    assert readback.compare(logits_NV, logits_NV.clone()) == readback.Difference(0.0, 0.0, 1.0)


def test_difference_by_hand() -> None:
    # one token, two words: trained (1/2, 1/2), exported (3/4, 1/4), that is logits log 3 and 0
    # KL = 1/2 log(1/2 / 3/4) + 1/2 log(1/2 / 1/4) = 1/2 log(2/3) + 1/2 log 2 = 1/2 log(4/3)
    # a second token on which they agree: its KL is 0, and the mean is a quarter of log(4/3); top-1 agrees on both (ties: first)
    trained_NV = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    exported_NV = torch.tensor([[math.log(3), 0.0], [0.0, 2.0]])
    found = readback.compare(trained_NV, exported_NV)
    assert found.token_kl_nats == pytest.approx(math.log(4 / 3) / 4, abs=1e-7)
    assert found.max_logit_difference == pytest.approx(math.log(3))
    assert found.top1_agreement == 1
    assert readback.compare(trained_NV, exported_NV.flip(1)).top1_agreement == 0


@given(st.integers(0, 5))
def test_padding_of_the_vocabulary_is_left_out(padding: int) -> None:
    logits_NV = torch.arange(12.0).view(3, 4)
    padded_NV = torch.cat([logits_NV, torch.full((3, padding), 50.0)], dim=1)
    assert readback.compare(logits_NV, padded_NV) == readback.compare(padded_NV, logits_NV)
    assert readback.compare(logits_NV, padded_NV).token_kl_nats == 0


def test_a_model_that_overflows_is_refused() -> None:
    with pytest.raises(ExportError, match="NaN or infinity"):
        readback.compare(torch.zeros(1, 2), torch.tensor([[0.0, torch.nan]]))


def test_a_probe_scores_greedy_completions(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    probe = readback.probe(model)
    tokens_N = probe.rollouts.tokens_BT[probe.rollouts.completion_BT]
    assert len(probe.rollouts.tokens_BT) == len(readback.TEXTS)
    assert len(tokens_N) <= len(readback.TEXTS) * readback.COMPLETION_TOKENS
    # greedy: each token is the one its own logits put first, up to rounding (sampling goes token by token, scoring at once)
    assert (probe.logits_NV.argmax(-1) == tokens_N).float().mean() > 0.99


def test_what_transformers_cannot_read_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    rollouts = readback.probe(load(str(tiny_model))).rollouts
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ExportError, match="transformers cannot read the export back") as caught:
        readback.by_transformers(tmp_path, rollouts)
    assert "\n" not in str(caught.value)


def test_without_llama_cpp_its_verbs_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    with pytest.raises(ExportError, match=r"llama-cpp-python is not installed.*pip install llama-cpp-python=="):
        llama_cpp.completion_logits(Path("model.gguf"), [([1, 2], 1)])
