"""Both criteria by hand, then: blocks that do nothing go first, and a shortened model reloads and decodes as it was."""

from math import pi
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from recoup.config import Depth, Quantize
from recoup.degrade import Context, quantize
from recoup.degrade.depth import angular_distances, apply, cosine_sum, last_tokens, lowest, renamed
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.errors import StructureError
from recoup.models.layers import blocks, is_linear
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Sampling, sample
from recoup.models.save import save
from recoup.recover.run import RecoverInputs
from recoup.recover.run import run as recover
from recoup.structure.spec import Constraint, Structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS, save_tiny
from tests.degrade.test_attention_heads import short_recovery

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111]
IDS = torch.tensor([PROMPT])
DEAD = {"block_influence": [0, 2], "angular": [1, 2]}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of four blocks; every other block of gemma3_text sees a window of four tokens."""
    root = tmp_path_factory.mktemp("deep")
    return {
        "llama": save_tiny("llama", root / "llama", num_hidden_layers=4),
        "qwen2": save_tiny("qwen2", root / "qwen2", num_hidden_layers=4),
        "gemma3_text": save_tiny(
            "gemma3_text", root / "gemma3_text", num_hidden_layers=4, layer_types=SLIDING, sliding_window=4
        ),
        "gpt2": save_tiny("gpt2", root / "gpt2", n_layer=4),
    }


def silence(model: LanguageModel, dead: list[int]) -> None:
    """Blocks that pass on what they are given: nothing comes out of their linear layers."""
    for index in dead:
        for module in blocks(model.model)[index].modules():
            if is_linear(module):
                for parameter in module.parameters():
                    parameter.data.zero_()


def config_of(text_file: Path, **settings: object) -> Depth:
    return Depth.model_validate({"calibration": str(text_file), "calibration_tokens": 100, **settings})


def test_cosine_sum_by_hand() -> None:
    # a pad, then cos((1, 0), (1, 1)) = 1/√2 and cos((0, 2), (0, −1)) = −1
    before = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]]])
    after = torch.tensor([[[9.0, 9.0], [1.0, 1.0], [0.0, -1.0]]])
    assert cosine_sum(before, after, torch.tensor([[False, True, True]])) == pytest.approx(0.5**0.5 - 1)


def test_lowest_by_hand() -> None:
    assert lowest(torch.tensor([0.3, 0.1, 0.2, 0.1]), 2) == [1, 3]
    assert lowest(torch.tensor([0.1, 0.1, 0.1]), 2) == [0, 1]


def test_angular_distances_by_hand() -> None:
    # two sequences at three boundaries, directions in degrees: (0, 90, 90) and (0, 90, 180)
    angles = torch.tensor([[0.0, 0.0], [90.0, 90.0], [90.0, 180.0]]) * pi / 180
    states = torch.stack([angles.cos(), angles.sin()], dim=-1) * 3
    # runs of one: (1/2 + 1/2)/2 and (0 + 1/2)/2; the run of two: (1/2 + 1)/2
    torch.testing.assert_close(angular_distances(states, 1).float(), torch.tensor([0.5, 0.25]), atol=1e-4, rtol=0)
    torch.testing.assert_close(angular_distances(states, 2).float(), torch.tensor([0.75]), atol=1e-4, rtol=0)


def test_last_tokens_by_hand() -> None:
    states = torch.arange(6.0).view(2, 3, 1)
    attention = torch.tensor([[True, True, False], [False, True, True]])
    assert last_tokens(states, attention).tolist() == [[1.0], [5.0]]


def test_renamed_by_hand() -> None:
    kept, gone, outside = Constraint(transposed=True), Constraint(), Constraint()
    names = {"h.1.a.weight": gone, "h.2.a.weight": kept, "h.10.a.weight": gone, "head.weight": outside}
    assert renamed(names, "h", [0, 2]) == {"h.1.a.weight": kept, "head.weight": outside}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("criterion", DEAD)
def test_blocks_that_do_nothing_are_the_ones_removed(
    deep: dict[str, Path], layout: str, criterion: str, text_file: Path, context: Context, tmp_path: Path
) -> None:
    dead = DEAD[criterion]
    model = load(str(deep[layout]))
    silence(model, dead)
    before = model.model(IDS).logits
    structure = apply(model, Structure(), config_of(text_file, num_blocks=2, criterion=criterion), context)
    after = model.model(IDS).logits
    assert torch.equal(after, before)
    assert structure.shapes == {"num_hidden_layers": {"before": 4, "after": 2}}

    save(model, structure, tmp_path / "cut")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert torch.equal(reloaded(IDS).logits, after)
    assert len(blocks(reloaded)) == reloaded.config.num_hidden_layers == 2
    if layout == "gemma3_text":
        kept = [kind for index, kind in enumerate(SLIDING) if index not in dead]
        assert reloaded.config.layer_types == kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shortened_model_decodes_alike_with_and_without_a_cache(
    deep: dict[str, Path], layout: str, text_file: Path, context: Context
) -> None:
    model = load(str(deep[layout]))
    apply(model, Structure(), config_of(text_file, num_blocks=1), context)
    ids = IDS
    for _ in range(12):
        ids = torch.cat([ids, model.model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    cached = model.model.generate(
        IDS,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        past_key_values=DynamicCache(config=model.model.config),
    )
    assert cached.tolist() == ids.tolist()
    own = sample(model, [PROMPT], Sampling(12)).completions()[0]
    assert own == ids[0, len(PROMPT) : len(PROMPT) + len(own)].tolist()


def test_grids_move_up_with_their_blocks(deep: dict[str, Path], text_file: Path, context: Context) -> None:
    model = load(str(deep["gpt2"]))
    structure = quantize.apply(model, Structure(), Quantize(group_size=16), context)
    silence(model, [1])
    moved = structure.constraints["transformer.h.3.mlp.c_fc.weight"]
    before = model.model(IDS).logits
    after = apply(model, structure, config_of(text_file, num_blocks=1), context)
    assert torch.equal(model.model(IDS).logits, before)
    assert verify(model.model, after).exact
    assert len(after.constraints) == 3 * 4
    assert after.constraints["transformer.h.2.mlp.c_fc.weight"] is moved


def test_the_first_depth_stays_noted(deep: dict[str, Path], text_file: Path, context: Context) -> None:
    model = load(str(deep["llama"]))
    once = apply(model, Structure(), config_of(text_file, num_blocks=1), context)
    twice = apply(model, once, config_of(text_file, num_blocks=2), context)
    assert twice.shapes == {"num_hidden_layers": {"before": 4, "after": 1}}


def test_attributes_that_follow_from_the_index_are_those_of_a_reload(
    text_file: Path, context: Context, tmp_path: Path
) -> None:
    # GPT-2 can divide a block's scores by its number: a block that moves up is then another one, in memory as on disk
    model = load(str(save_tiny("gpt2", tmp_path / "in", n_layer=4, scale_attn_by_inverse_layer_idx=True)))
    silence(model, [1])
    structure = apply(model, Structure(), config_of(text_file, num_blocks=1), context)
    save(model, structure, tmp_path / "out")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits, model.model(IDS).logits)


def test_removing_every_block_is_refused(deep: dict[str, Path], context: Context) -> None:
    model = load(str(deep["llama"]))
    with pytest.raises(StructureError, match=r"num_blocks 4 removes all 4 blocks of .*; lower it"):
        apply(model, Structure(), Depth(num_blocks=4, calibration="missing.txt"), context)


def test_a_depth_pruned_student_recovers(deep: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    teacher = str(deep["llama"])
    student = degrade(config_of(text_file, num_blocks=1), DegradeInputs(teacher, 0), tmp_path / "damaged").checkpoint
    result = recover(short_recovery(text_file), RecoverInputs(student, (teacher,), 0), tmp_path / "recover")
    assert result.structure_exact
    assert result.first_loss_nats is not None
    assert result.last_loss_nats is not None
    assert result.last_loss_nats < result.first_loss_nats
    saved = load(result.checkpoint)
    assert len(blocks(saved.model)) == 3
    assert saved.structure.shapes == {"num_hidden_layers": {"before": 4, "after": 3}}
