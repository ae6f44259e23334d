"""Layerwise damage: same tokens through both models, pads and sinks treated apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.cka import debiased_cka
from recoup.config import Quantize
from recoup.data.prompts import load_prompts
from recoup.degrade import METHODS, Context
from recoup.diagnose import damage
from recoup.diagnose.bounds import Bounds
from recoup.diagnose.damage import layer_damage
from recoup.diagnose.layers import token_states
from recoup.evaluate.fidelity import token_damage
from recoup.models.layers import blocks
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, pack, sample
from recoup.progress import silent
from recoup.structure.spec import Structure
from tests.conftest import LAYOUTS, WIDTH, save_tiny

LENGTHS = [(3, 9), (7, 4), (1, 12), (5, 5)]
NUM_TOKENS = sum(prompt + completion for prompt, completion in LENGTHS)


def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(256, (n,), generator=generator).tolist()

    return pack([draw(p) for p, _ in LENGTHS], [draw(c) for _, c in LENGTHS], pad=258)


def looked(
    teacher: LanguageModel, student: LanguageModel, num_bootstrap: int = 0, bounds: Bounds | None = None
) -> damage.Layers:
    return layer_damage(teacher, student, rollouts(), seed=0, num_bootstrap=num_bootstrap, bounds=bounds)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cka_with_and_without_sinks(tiny_models: dict[str, Path], layout: str, tmp_path: Path) -> None:
    teacher, student = load(str(tiny_models[layout])), load(str(save_tiny(layout, tmp_path, seed=1)))
    found = looked(teacher, student, num_bootstrap=50)
    states, _ = token_states(teacher, student, rollouts())
    assert found.num_tokens == NUM_TOKENS - len(LENGTHS)
    for index, layer in enumerate(found.layers):
        X, Y = states.student[index], states.teacher[index]
        assert (layer.layer, layer.teacher_layer) == (index, index)
        assert layer.linear_cka == pytest.approx(debiased_cka(X, Y, ~states.sink_N), abs=1e-5)
        assert layer.linear_cka_all_tokens == pytest.approx(debiased_cka(X, Y), abs=1e-5)
        assert layer.linear_cka < 0.99
        assert layer.cka_interval is not None
        assert layer.cka_interval[0] < layer.linear_cka < layer.cka_interval[1]
        assert (layer.ceiling, layer.floor) == (None, None)
        assert found.cka_map[index][index] == pytest.approx(layer.linear_cka, abs=1e-4)


def test_a_model_against_itself(tiny_model: Path) -> None:
    model = load(str(tiny_model), dtype=torch.bfloat16)
    found = looked(model, model, num_bootstrap=20)
    for layer in found.layers:
        assert layer.linear_cka == pytest.approx(1, abs=1e-6)
        assert layer.linear_cka_all_tokens == pytest.approx(1, abs=1e-6)
        assert layer.cka_without_massive == layer.linear_cka
        assert layer.cka_interval == pytest.approx((1, 1), abs=1e-6)
        assert (layer.relative_drift, layer.relative_l2, layer.attention_drift, layer.ffn_drift) == (0, 0, 0, 0)
        assert list(layer.head_drift) == [0.0] * 4
        assert layer.procrustes == pytest.approx(0, abs=1e-5)
        assert layer.student_rank == layer.teacher_rank
        assert not layer.massive_dims
        assert layer.massive_share == 0
        assert 1 < (layer.teacher_rank or 0) <= WIDTH


def test_no_resamples_no_interval(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    assert [layer.cka_interval for layer in looked(model, model).layers] == [None, None]


@pytest.mark.parametrize("lengths", [[(4, 6)], [(40, 6), (1, 1), (1, 1)]])
def test_too_few_or_short_rollouts_have_no_interval(
    tiny_model: Path, tmp_path: Path, lengths: list[tuple[int, int]]
) -> None:
    """A draw of the two short rollouts alone has two tokens that are no sinks; the value has 47 and 9."""
    teacher, student = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))
    few = pack([[*range(prompt)] for prompt, _ in lengths], [[*range(90, 90 + n)] for _, n in lengths], pad=258)
    for layer in layer_damage(teacher, student, few, seed=0, num_bootstrap=50).layers:
        assert layer.linear_cka < 1
        assert layer.cka_interval is None


def test_bounds_are_those_of_the_partner(tiny_model: Path, tmp_path: Path) -> None:
    """Two blocks against three: partners are the teacher's second and third."""
    deep = load(str(save_tiny("llama", tmp_path, num_hidden_layers=3)))
    bounds = Bounds(ceiling=(0.97, 0.98, 0.99), floor=(0.1, 0.2, 0.3), num_tokens=10)
    found = looked(deep, load(str(tiny_model)), bounds=bounds)
    assert [(layer.teacher_layer, layer.ceiling, layer.floor) for layer in found.layers] == [
        (1, 0.98, 0.2),
        (2, 0.99, 0.3),
    ]
    assert [len(row) for row in found.cka_map] == [3, 3]


def test_sinks_hide_damage_only_from_the_number_that_keeps_them(tiny_model: Path, tmp_path: Path) -> None:
    """Both models push the first token far out in one direction; their other tokens are unrelated."""
    teacher, student = load(str(tiny_model)), load(str(save_tiny("llama", tmp_path, seed=1)))
    for model in (teacher, student):
        _push(model, dim=3)
    last = looked(teacher, student).layers[1]
    assert last.linear_cka_all_tokens > 0.99
    assert last.linear_cka < 0.9
    assert last.massive_dims == (3,)
    assert last.massive_share == pytest.approx(1, abs=1e-3)


def test_a_student_that_moved_its_massive_dimension_shows_it(tiny_model: Path) -> None:
    """Equal weights, but the first token is pushed along another axis: no CKA says so, the dimensions do."""
    teacher, student = load(str(tiny_model)), load(str(tiny_model))
    _push(teacher, dim=3)
    _push(student, dim=5)
    found = looked(teacher, student)
    assert found.layers[1].linear_cka == pytest.approx(1, abs=1e-6)
    assert found.layers[1].linear_cka_all_tokens > 0.99
    assert found.layers[1].massive_dims == (3,)
    assert [layer.student_massive_dims for layer in found.layers] == [(), (5,)]


@pytest.mark.parametrize("moved", ["teacher", "student"])
def test_a_sink_of_one_model_alone_is_left_out_and_counted(tiny_model: Path, moved: str) -> None:
    """Equal weights, but one model puts the second token of each sequence far out, from its first block on."""
    models = {name: load(str(tiny_model)) for name in ("teacher", "student")}
    _push(models[moved], dim=3, block=0, place=1)
    found = looked(models["teacher"], models["student"])
    assert found.num_moved_sinks == len(LENGTHS)
    assert found.num_tokens == sum(map(sum, LENGTHS)) - 2 * len(LENGTHS)
    assert found.layers[0].linear_cka == pytest.approx(1, abs=1e-6)
    assert found.layers[0].linear_cka_all_tokens < 0.5
    assert looked(models[moved], models[moved]).num_moved_sinks == 0


def _push(model: LanguageModel, dim: int, block: int = 1, place: int = 0) -> None:
    """Put the token at `place` of each sequence far out after a block."""

    def far_out(_block: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        places = torch.tensor([7 - prompt + place for prompt, _ in LENGTHS])
        output[torch.arange(len(places)), places, dim] += 10_000
        return output

    blocks(model.model)[block].register_forward_hook(far_out)


def test_without_massive_dimensions(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dimensions 3 and 7 left out of both models, at the tokens that are no sinks."""
    monkeypatch.setattr(damage, "massive_dims", lambda _states: (3, 7))
    teacher, student = load(str(tiny_model)), load(str(tiny_model))
    student.model.get_submodule("model.layers.0.mlp.down_proj").weight.data[3] *= 50
    found = looked(teacher, student)
    states, _ = token_states(teacher, student, rollouts())
    kept = [dim for dim in range(WIDTH) if dim not in (3, 7)]
    for index, layer in enumerate(found.layers):
        X, Y = states.student[index][:, kept], states.teacher[index][:, kept]
        assert layer.cka_without_massive == pytest.approx(debiased_cka(X, Y, ~states.sink_N), abs=1e-5)
        assert layer.massive_dims == (3, 7)
    assert found.layers[0].linear_cka < 0.9
    assert found.layers[0].cka_without_massive == pytest.approx(1, abs=1e-4)


def test_pruned_width_and_depth(tiny_model: Path, tmp_path: Path) -> None:
    teacher = load(str(tiny_model))
    narrow = load(str(save_tiny("llama", tmp_path / "narrow", intermediate_size=40)))
    wide = load(str(save_tiny("llama", tmp_path / "wide", num_hidden_layers=3, hidden_size=64)))
    assert [layer.relative_drift for layer in looked(teacher, narrow).layers] == [None, None]
    for one, other in ((wide, teacher), (teacher, wide)):
        for layer in looked(one, other).layers:
            assert (layer.relative_l2, layer.attention_drift, layer.ffn_drift, layer.head_drift) == (
                None,
                None,
                None,
                (),
            )
            assert layer.procrustes is not None
            assert layer.student_rank != layer.teacher_rank


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_default_view_ranks_damage_as_token_kl_does() -> None:
    """The embedded model against itself, on NF4, on 3-bit integers, and with its blocks in another order.

    3 bits leave the all-tokens view blind: with sinks the later blocks read over 0.99, without them under 0.9.
    """
    teacher = load("embedded", dtype=torch.bfloat16)
    prompts = [prompt.ids for prompt in load_prompts("self", teacher, 6, seed=0)]
    texts = sample(teacher, prompts, Sampling(max_tokens=32))
    seen, kl = {}, {}
    for name, injure in INJURIES.items():
        student = load("embedded")
        injure(student)
        for parameter in student.model.parameters():
            parameter.data = parameter.data.bfloat16()
        seen[name] = layer_damage(teacher, student, texts, seed=0, num_bootstrap=0).layers
        kl[name] = token_damage(teacher, student, texts, num_bootstrap=2, seed=0).token_kl_nats.value
    cka = {name: sum(layer.linear_cka for layer in layers) / len(layers) for name, layers in seen.items()}
    assert sorted(cka, key=lambda name: -cka[name]) == sorted(kl, key=lambda name: kl[name]) == list(INJURIES)
    assert cka["reference"] == pytest.approx(1, abs=1e-5)
    assert min(layer.linear_cka_all_tokens for layer in seen["int3"][12:28]) > 0.99
    assert max(layer.linear_cka for layer in seen["int3"][24:]) < 0.9


def _quantized(**settings: Any) -> Callable[[LanguageModel], None]:
    def quantize(model: LanguageModel) -> None:
        METHODS["quantize"].apply(model, Structure(), Quantize(**settings), Context(0, silent, lambda _line: None))

    return quantize


def _shuffled(model: LanguageModel) -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
    model.model.get_submodule("model").layers = torch.nn.ModuleList(blocks(model.model)[index] for index in order)


INJURIES: dict[str, Callable[[LanguageModel], None]] = {
    "reference": lambda _model: None,
    "nf4": _quantized(format="nf4"),
    "int3": _quantized(bits=3, group_size=64, symmetric=False),
    "shuffled": _shuffled,
}
