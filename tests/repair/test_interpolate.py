"""Interpolation: each weight between the two, nothing else moved, and only where a weight between the two is allowed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from recoup.config import Quantize
from recoup.models.load import load
from recoup.progress import silent
from recoup.repair import Candidate, Damaged, applies, candidates, keep
from recoup.repair.base import weights
from tests.conftest import save_tiny
from tests.repair.conftest import HELD, injured, pair, text


def test_weights_by_hand(tiny_model: Path) -> None:
    damaged = pair(tiny_model)
    for weight in weights(damaged.teacher).values():
        weight.fill_(3)
    for weight in weights(damaged.student).values():
        weight.fill_(5)
    # 5 (1 − s) + 3 s = 5 − 2 s, for s = 0.2, 0.4, 0.6, 0.8
    found = [(c.settings, {float(v) for w in weights(c.model).values() for v in w.unique()}) for c in swept(damaged)]
    assert [settings for settings, _ in found] == [{"share": share} for share in (0.2, 0.4, 0.6, 0.8)]
    for (_, values), expected in zip(found, (4.6, 4.2, 3.8, 3.4), strict=True):
        assert len(values) == 1
        assert abs(values.pop() - expected) < 1e-6
    assert all((weight == 5).all() for weight in weights(damaged.student).values()), "the student stays as it is"
    assert all((weight == 3).all() for weight in weights(damaged.teacher).values())


def test_a_candidate_is_kept_as_an_ordinary_folder(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    damaged = pair(tiny_models["llama"])  # its head is tied to its embeddings
    weights(damaged.student)["model.norm.weight"].fill_(2)  # 1 in the teacher: 2 − s
    candidate = next(iter(swept(damaged)))
    reloaded = load(str(keep(candidate, tmp_path / "kept")))
    assert torch.allclose(weights(reloaded)["model.norm.weight"], torch.tensor(1.8))
    assert reloaded.model.get_output_embeddings().weight is reloaded.model.get_input_embeddings().weight


def test_where_it_does_not_apply(tiny_model: Path, tmp_path: Path) -> None:
    damaged = pair(tiny_model)
    assert "the teacher's own" in str(applies("interpolate", damaged))
    assert "the teacher's own" in str(applies("svd_repair", damaged))
    weights(damaged.student)["model.norm.weight"][0] += 1
    assert applies("interpolate", damaged) is None
    assert "compressed" in str(
        applies("interpolate", replace(damaged, student=replace(damaged.student, structure=HELD)))
    )
    rounded = injured(tiny_model, Quantize(bits=3, group_size=16))
    assert "int3, groups of 16" in str(applies("interpolate", rounded))
    wider = load(str(save_tiny("llama", tmp_path, intermediate_size=64)))
    reason = str(applies("interpolate", Damaged(wider, damaged.student, text())))
    assert "model.layers.0.mlp.down_proj.weight" in reason


def swept(damaged: Damaged) -> Iterator[Candidate]:
    return candidates("interpolate", damaged, silent)
