"""Importance by hand, then: heads that do nothing go first, nothing else changes, and a cut model reloads as it was."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from recoup.config import AttentionHeads, Quantize, Recover
from recoup.degrade import Context, quantize
from recoup.degrade.attention_heads import apply, contribution, kept_heads, kept_inputs
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.errors import StructureError
from recoup.models.layers import HeadCounts, attentions, block_linears, head_counts
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.recover.run import RecoverInputs
from recoup.recover.run import run as recover
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify
from tests.conftest import save_tiny

IDS = torch.tensor([[72, 101, 108, 108, 111, 32, 119, 111]])
SHORT = {"calibration_tokens": 100}
# layout → key/value heads of the models below; two query heads read each
GROUPS = {"llama": 2, "qwen2": 2, "gemma3_text": 2}
# unit → query heads that do nothing, and (query, key/value) heads that half of the units leave
SILENT = {"group": ([2, 3], (2, 1)), "query": ([0, 3], (2, 2))}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of two groups with two query heads each; qwen2's query, key and value projections have biases."""
    root = tmp_path_factory.mktemp("grouped")
    return {layout: save_tiny(layout, root / layout, num_key_value_heads=groups) for layout, groups in GROUPS.items()}


def silence(model: LanguageModel, heads: list[int]) -> None:
    """Nothing that these query heads compute is read."""
    dim = head_counts(model.model).dim
    for part in attentions(model.model):
        model.model.get_parameter(f"{part.output}.weight").data[:, kept_inputs(torch.tensor(heads), dim)] = 0


def masked(model: LanguageModel) -> Structure:
    """Half of every linear layer set to zero, and kept so."""
    constraints = {}
    for layer in block_linears(model.model):
        weight = model.model.get_parameter(f"{layer}.weight").data
        constraints[f"{layer}.weight"] = Constraint(mask_OI=magnitude_mask(weight, 0.5))
        weight.copy_(constraints[f"{layer}.weight"].project(weight))
    return Structure(constraints)


def test_contribution_by_hand() -> None:
    # one token z = (1, 2 | 3, 0), two units of two inputs; W rows (1, 1 | 0, 5), (0, 2 | 4, 5):
    # unit 0 adds (1 + 2, 4) = (3, 4), of norm 5; unit 1 adds (0, 12), of norm 12
    z = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    weight = torch.tensor([[1.0, 1.0, 0.0, 5.0], [0.0, 2.0, 4.0, 5.0]])
    assert contribution(weight, z.T @ z, 1, 2).tolist() == [5.0, 12.0]
    # a second token that is zero halves the mean square: 5/√2 and 12/√2
    torch.testing.assert_close(contribution(weight, z.T @ z, 2, 2), torch.tensor([5.0, 12.0]) / 2**0.5)


def test_contribution_of_a_group_is_of_its_sum() -> None:
    # two heads that cancel add nothing together: z = (1, 1), W = (1, −1)
    z = torch.tensor([[1.0, 1.0]])
    weight = torch.tensor([[1.0, -1.0]])
    assert contribution(weight, z.T @ z, 1, 2).tolist() == [1.0, 1.0]
    assert contribution(weight, z.T @ z, 1, 1).tolist() == [0.0]


@given(seed=st.integers(0, 1000), units=st.sampled_from([1, 2, 4]), tokens=st.integers(1, 6))
def test_contribution_is_the_error_of_leaving_a_unit_out(seed: int, units: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, weight = torch.randn(tokens, 8, generator=generator), torch.randn(3, 8, generator=generator)
    found = contribution(weight, z.T @ z, tokens, units)
    for unit, channels in enumerate(torch.arange(8).view(units, -1)):
        without = weight.clone()
        without[:, channels] = 0
        error = (z @ weight.T - z @ without.T).square().sum(1).mean().sqrt()
        torch.testing.assert_close(found[unit], error, rtol=1e-4, atol=1e-5)


def test_kept_inputs_by_hand() -> None:
    assert kept_inputs(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_kept_heads_by_hand() -> None:
    smol = HeadCounts(9, 3, 64)
    assert kept_heads(smol, AttentionHeads(fraction=1 / 3)) == HeadCounts(6, 2, 64)
    assert kept_heads(smol, AttentionHeads(fraction=1 / 3, unit="query")) == HeadCounts(6, 3, 64)
    with pytest.raises(StructureError, match=r"removes none of 1 key/value groups .*unit: query"):
        kept_heads(HeadCounts(4, 1, 8), AttentionHeads(fraction=0.25))
    with pytest.raises(StructureError, match=r"removes all 1 query heads .*unit: group"):
        kept_heads(HeadCounts(4, 4, 8), AttentionHeads(fraction=0.75, unit="query"))


@pytest.mark.parametrize("layout", GROUPS)
@pytest.mark.parametrize("unit", SILENT)
def test_heads_that_do_nothing_are_the_ones_removed(
    grouped: dict[str, Path], layout: str, unit: str, text_file: Path, context: Context, tmp_path: Path
) -> None:
    dead, left = SILENT[unit]
    model = load(str(grouped[layout]))
    silence(model, dead)
    before = model.model(IDS).logits
    config = AttentionHeads.model_validate({"unit": unit, "fraction": 0.5, "calibration": str(text_file), **SHORT})
    structure = apply(model, Structure(), config, context)
    after = model.model(IDS).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert head_counts(model.model) == HeadCounts(*left, 8)

    save(model, structure, tmp_path / "cut")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert torch.equal(reloaded(IDS).logits, after)
    assert AutoConfig.from_pretrained(tmp_path / "cut").head_dim == 8
    first = attentions(reloaded)[0]
    assert reloaded.get_parameter(f"{first.query}.weight").shape == (left[0] * 8, 32)
    assert reloaded.get_parameter(f"{first.key}.weight").shape == (left[1] * 8, 32)


def test_shapes_name_only_what_changed(grouped: dict[str, Path], text_file: Path, context: Context) -> None:
    both, model = AttentionHeads(fraction=0.5, calibration=str(text_file), **SHORT), load(str(grouped["llama"]))
    structure = apply(model, Structure(), both, context)
    heads = {"before": 4, "after": 2}
    assert structure.shapes == {"num_attention_heads": heads, "num_key_value_heads": {"before": 2, "after": 1}}
    again = apply(model, structure, both.model_copy(update={"unit": "query"}), context)
    assert again.shapes["num_attention_heads"] == {"before": 4, "after": 1}

    model = load(str(grouped["llama"]))
    structure = apply(model, Structure(), both.model_copy(update={"unit": "query"}), context)
    assert structure.shapes == {"num_attention_heads": heads}


@pytest.mark.parametrize("unit", ["group", "query"])
def test_masks_are_cut_with_their_weights(
    grouped: dict[str, Path], unit: str, text_file: Path, context: Context
) -> None:
    model = load(str(grouped["qwen2"]))
    structure = masked(model)
    config = AttentionHeads.model_validate({"unit": unit, "fraction": 0.5, "calibration": str(text_file), **SHORT})
    structure = apply(model, structure, config, context)
    assert verify(model.model, structure).exact
    for name, constraint in structure.constraints.items():
        assert constraint.mask_OI is not None
        assert constraint.mask_OI.shape == model.model.get_parameter(name).shape


def test_a_fused_projection_is_refused_by_name(tiny_models: dict[str, Path], context: Context) -> None:
    model = load(str(tiny_models["gpt2"]))
    with pytest.raises(StructureError, match=r"block 0 of GPT2LMHeadModel: .*does not fit this architecture"):
        apply(model, Structure(), AttentionHeads(calibration="missing.txt"), context)


def test_a_number_that_the_architecture_refuses_is_refused_first(tmp_path: Path, context: Context) -> None:
    # Llama wants a width that divides by the number of heads: 32 does not divide by 3
    model = load(str(save_tiny("llama", tmp_path / "mha", num_key_value_heads=4)))
    with pytest.raises(StructureError, match=r"LlamaForCausalLM cannot have num_attention_heads = 3, .*multiple"):
        apply(model, Structure(), AttentionHeads(fraction=0.25, calibration="missing.txt"), context)


def test_norms_over_all_heads_are_refused(tmp_path: Path, context: Context) -> None:
    model = load(str(save_tiny("llama", tmp_path / "normed")))
    for part in attentions(model.model):
        attention = model.model.get_submodule(part.query.rpartition(".")[0])
        attention.q_norm = torch.nn.RMSNorm(32)  # as OLMo 2 has it: one norm over 4 heads of 8
    with pytest.raises(StructureError, match="does not fit this architecture"):
        apply(model, Structure(), AttentionHeads(calibration="missing.txt"), context)


def test_a_quantized_model_is_refused(grouped: dict[str, Path], context: Context) -> None:
    model = load(str(grouped["llama"]))
    structure = quantize.apply(model, Structure(), Quantize(group_size=16), context)
    with pytest.raises(StructureError, match=r"q_proj\.weight lies on a grid .*; prune before you quantize"):
        apply(model, structure, AttentionHeads(calibration="missing.txt"), context)


def test_a_head_pruned_student_recovers(grouped: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    teacher = str(grouped["llama"])
    config = AttentionHeads(fraction=0.5, calibration=str(text_file), **SHORT)
    student = degrade(config, DegradeInputs(teacher, 0), tmp_path / "damaged").checkpoint
    result = recover(short_recovery(text_file), RecoverInputs(student, (teacher,), 0), tmp_path / "recover")
    assert result.structure_exact
    assert result.first_loss_nats is not None
    assert result.last_loss_nats is not None
    assert result.last_loss_nats < result.first_loss_nats
    saved = load(result.checkpoint)
    assert head_counts(saved.model) == HeadCounts(2, 1, 8)
    assert saved.structure.shapes["num_attention_heads"] == {"before": 4, "after": 2}


def short_recovery(prompts: Path) -> Recover:
    """A dozen steps in float32."""
    return Recover.model_validate({
        "terms": [{"prompts": str(prompts), "num_prompts": 8}],
        "steps": 12, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 3e-3, "precision": "fp32", "warmup_steps": 0,
        "rollout": {"max_tokens": 8, "temperature": 1.0}, "bootstrap": {"max_steps": 0},
    })  # fmt: skip
