"""The calibration walk: it counts what layers see, pads never count, and later blocks see what earlier ones became."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recoup.degrade.gather import Gather, Gatherer, Statistics
from recoup.degrade.walk import Visit, boundaries, input_statistics, walk, walk_linears
from recoup.errors import StructureError
from recoup.models.capture import hidden_states
from recoup.models.layers import block_linears, blocks
from recoup.models.load import load
from recoup.models.sample import Rollouts, pack
from recoup.structure.spec import Constraint, Structure
from tests.conftest import LAYOUTS

PROMPTS = [[72, 101, 108, 108, 111, 33], [7, 8], [9, 10, 11], [1, 2, 3, 4]]
EVERYTHING: tuple[Gather, ...] = ("absolute_sum", "square_sum", "second_moment")


def unwatched(_done: int, _total: int) -> None:
    pass


def known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def two_batches() -> list[Rollouts]:
    return [pack(PROMPTS[:2], [[], []], 0), pack(PROMPTS[2:], [[], []], 0)]


def test_sums_by_hand() -> None:
    # real tokens (1, −2) and (3, 4), a pad of (100, 100): Σ|x| = (4, 6), Σx² = (10, 20), Σx₀x₁ = −2 + 12 = 10
    linear = nn.Linear(2, 2)
    gatherer = Gatherer({"layer": linear}, EVERYTHING)
    with gatherer.watching(torch.tensor([[False, True, True]])):
        linear(torch.tensor([[[100.0, 100], [1, -2], [3, 4]]]))
    statistics = gatherer.statistics()["layer"]
    assert statistics.num_tokens == 2
    assert torch.equal(known(statistics.absolute_sum_I), torch.tensor([4.0, 6]))
    assert torch.equal(known(statistics.square_sum_I), torch.tensor([10.0, 20]))
    assert torch.equal(known(statistics.second_moment_II), torch.tensor([[10.0, 10], [10, 20]]))


def as_walked() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_walk_that_changes_nothing_sees_what_an_ordinary_pass_sees(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    seen: dict[str, Statistics] = {}
    outputs: list[Tensor] = []

    def look(visit: Visit) -> None:
        seen.update(visit.statistics)
        with as_walked():
            outputs.append(visit.run())

    walk(model, two_batches(), EVERYTHING, look, unwatched)
    linears = block_linears(model.model)
    with as_walked():
        ordinary = input_statistics(model, list(linears), two_batches(), EVERYTHING, unwatched)
    assert seen.keys() == linears.keys() == ordinary.keys()
    for layer, statistics in ordinary.items():
        assert statistics.num_tokens == sum(map(len, PROMPTS)) == seen[layer].num_tokens
        for field in ("absolute_sum_I", "square_sum_I", "second_moment_II"):
            torch.testing.assert_close(getattr(seen[layer], field), getattr(statistics, field))
    batch = two_batches()[0]
    with as_walked():
        states = hidden_states(model.model, batch)
    for mine, whole in zip(outputs, states, strict=True):
        torch.testing.assert_close(mine, whole[batch.attention_BT].float())


def test_layers_that_share_an_input_share_their_sums(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    seen = input_statistics(model, list(block_linears(model.model)), two_batches(), {"square_sum"}, unwatched)
    block = "model.layers.0."
    assert seen[block + "self_attn.q_proj"] is seen[block + "self_attn.v_proj"]
    assert seen[block + "mlp.gate_proj"] is seen[block + "mlp.up_proj"]
    assert seen[block + "self_attn.q_proj"] is not seen[block + "mlp.up_proj"]
    assert seen[block + "mlp.up_proj"].second_moment_II is None


def test_how_prompts_are_batched_makes_no_difference(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    layers = list(block_linears(model.model))
    alone = [pack([prompt], [[]], 0) for prompt in PROMPTS]
    together = [pack(PROMPTS, [[]] * len(PROMPTS), 0)]  # with pads
    one, other = (input_statistics(model, layers, batches, EVERYTHING, unwatched) for batches in (alone, together))
    for layer in layers:
        torch.testing.assert_close(one[layer].second_moment_II, other[layer].second_moment_II, rtol=1e-4, atol=1e-4)


def test_later_blocks_see_what_earlier_ones_became(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    seen: list[Visit] = []

    def silence_the_first(visit: Visit) -> None:
        seen.append(visit)
        if visit.index == 0:
            for layer in visit.statistics:
                model.model.get_parameter(f"{layer}.weight").zero_()

    walk(model, two_batches(), {"square_sum"}, silence_the_first, unwatched)
    layer = "model.layers.1.self_attn.q_proj"
    after = input_statistics(model, [layer], two_batches(), {"square_sum"}, unwatched)[layer].square_sum_I
    assert torch.equal(known(seen[1].statistics[layer].square_sum_I), known(after))
    # a block of zeros adds nothing, so the second one is given the embeddings
    embeddings = model.model.get_input_embeddings()(torch.tensor(PROMPTS[0]))
    normed = model.model.get_submodule("model.layers.1.input_layernorm")(embeddings)
    first = input_statistics(model, [layer], [pack(PROMPTS[:1], [[]], 0)], {"square_sum"}, unwatched)[layer]
    torch.testing.assert_close(first.square_sum_I, normed.square().sum(0))


def test_progress_counts_blocks(tiny_model: Path) -> None:
    steps: list[tuple[int, int]] = []
    walk(load(str(tiny_model)), two_batches(), set(), lambda visit: None, lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_boundaries_hold_every_hidden_state(tiny_models: dict[str, Path], layout: str) -> None:
    model, batch = load(str(tiny_models[layout])), two_batches()[0]
    before, *outputs = boundaries(model, batch)
    for mine, whole in zip(outputs, hidden_states(model.model, batch), strict=True):
        assert torch.equal(mine, whole)
    handed = []
    hook = blocks(model.model)[0].register_forward_pre_hook(lambda _block, inputs: handed.append(inputs[0]))
    boundaries(model, batch)
    hook.remove()
    assert torch.equal(before, handed[0])


def test_walk_linears_lays_weights_on_what_they_keep_and_names_what_fails(tiny_models: dict[str, Path]) -> None:
    model = load(str(tiny_models["gpt2"]))  # weights lie transposed

    def first_half(weight_OI: Tensor, before: Constraint, statistics: Statistics) -> tuple[Tensor, Constraint]:
        assert before.transposed
        mask_OI = torch.zeros_like(weight_OI, dtype=torch.bool)
        mask_OI[: len(mask_OI) // 2] = True
        return 2 * weight_OI, Constraint(mask_OI=mask_OI, transposed=True)

    name = "transformer.h.0.mlp.c_fc.weight"
    old = model.model.get_parameter(name).clone()
    structure = walk_linears(model, Structure(), two_batches(), set(), first_half, unwatched)
    new = model.model.get_parameter(name)
    assert torch.equal(new[:, :64], 2 * old[:, :64])
    assert not new[:, 64:].any()
    assert len(structure.constraints) == 8

    def refuse(weight_OI: Tensor, before: Constraint, statistics: Statistics) -> tuple[Tensor, Constraint]:
        raise StructureError("will not")

    with pytest.raises(StructureError, match=r"transformer\.h\.0\.attn\.c_attn\.weight: will not"):
        walk_linears(model, Structure(), two_batches(), set(), refuse, unwatched)


def test_blocks_that_are_no_chain_are_refused(tiny_model: Path) -> None:
    model = load(str(tiny_model))
    blocks(model.model)[1].register_forward_pre_hook(lambda _block, inputs: (inputs[0] + 1, *inputs[1:]))
    with pytest.raises(StructureError, match=r"block 1 \(LlamaDecoderLayer\) is not given just what the block before"):
        walk(model, two_batches(), set(), lambda visit: None, unwatched)


def test_a_layer_that_does_not_run_is_named(tiny_model: Path) -> None:
    with pytest.raises(StructureError, match="lm_head: this layer was not run"):
        input_statistics(load(str(tiny_model)), ["lm_head"], two_batches(), {"square_sum"}, unwatched)


def test_layers_that_see_only_some_tokens_are_refused() -> None:
    linear = nn.Linear(2, 2)
    gatherer = Gatherer({"expert": linear}, EVERYTHING)
    with (
        pytest.raises(StructureError, match=r"expert: runs on inputs of shape \(3, 2\), not on every token"),
        gatherer.watching(torch.ones(1, 5, dtype=torch.bool)),
    ):
        linear(torch.ones(3, 2))
