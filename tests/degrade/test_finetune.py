"""Fine-tuning: order and loss by hand, then it learns its rows, full and through LoRA, the same way twice."""

from math import log
from pathlib import Path

import pytest
import torch

from recoup.config import SFT
from recoup.data.sft import load_examples
from recoup.degrade import Context
from recoup.degrade.finetune import apply, batch_order, num_steps, token_losses
from recoup.errors import TrainingError
from recoup.models.layers import block_linears
from recoup.models.load import LanguageModel, load
from recoup.models.logits import completion_logits, completion_tokens
from recoup.models.sample import pack, pad_id
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure
from tests.conftest import LAYOUTS


def config_for(rows_file: Path, **changes: object) -> SFT:
    settings = {
        "train_file": str(rows_file),
        "epochs": 4,
        "batch_size": 3,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
    }
    return SFT.model_validate({**settings, **changes})


@torch.no_grad()
def loss_on(model: LanguageModel, rows_file: Path) -> float:
    rows = load_examples(str(rows_file), model.tokenizer, 512).rows
    rollouts = pack([row.prompt for row in rows], [row.completion for row in rows], pad_id(model))
    return token_losses(completion_logits(model.model, rollouts), completion_tokens(rollouts)).mean().item()


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}


def test_token_losses_by_hand() -> None:
    # odds 1 : 3 are probabilities 1/4 and 3/4
    logits = torch.tensor([[0.0, log(3.0)], [0.0, log(3.0)]])
    torch.testing.assert_close(token_losses(logits, torch.tensor([0, 1])), torch.tensor([log(4.0), log(4 / 3)]))


def test_num_steps_by_hand() -> None:
    config = SFT(train_file="x", epochs=2, batch_size=4)
    assert num_steps(9, config) == 6  # 3 batches a pass: 4, 4, 1
    assert num_steps(9, config.model_copy(update={"steps": 7})) == 7


def test_every_pass_sees_every_row_once_in_a_new_order() -> None:
    order = batch_order(5, 2, seed=0)
    passes = [[i for _ in range(3) for i in next(order)] for _ in range(2)]
    assert [sorted(rows) for rows in passes] == [list(range(5))] * 2
    assert passes[0] != passes[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_it_learns_its_rows_and_moves_its_weights(
    tiny_models: dict[str, Path], layout: str, adapter: str, rows_file: Path, context: Context
) -> None:
    model = load(str(tiny_models[layout]))
    loss, before = loss_on(model, rows_file), weights(model)
    config = config_for(rows_file, adapter=adapter, lora_rank=4)
    assert apply(model, Structure(), config, context) == Structure()
    assert loss_on(model, rows_file) < loss - 0.1
    after = weights(model)
    assert set(after) == set(before)  # a LoRA leaves no layers of its own
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    linears = {f"{name}.weight" for name in block_linears(model.model)}
    assert moved == linears if adapter == "lora" else moved >= linears
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_seed_decides_everything(tiny_model: Path, adapter: str, rows_file: Path, context: Context) -> None:
    outcomes = []
    for _ in range(2):
        model = load(str(tiny_model))
        apply(model, Structure(), config_for(rows_file, adapter=adapter, epochs=1), context)
        outcomes.append(weights(model))
        torch.randn(7)  # the global generator has no say
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_micro_batches_only_save_memory(tiny_model: Path, rows_file: Path, context: Context) -> None:
    def losses(size: int) -> list[float]:
        labels: list[str] = []
        config = config_for(rows_file, batch_size=4, micro_batch_size=size, steps=2)
        watched = Context(0, lambda label, done, total: labels.append(label), context.note)
        apply(load(str(tiny_model)), Structure(), config, watched)
        return [float(label.rpartition(" ")[2]) for label in labels]

    assert losses(1) == pytest.approx(losses(4), abs=0.02)  # bf16 rounds differently


def test_notes_say_what_was_done(tiny_model: Path, rows_file: Path) -> None:
    notes: list[str] = []
    # under 12 tokens fit only `red, red!` and its end of turn (10); the others are 14 tokens long
    config = config_for(rows_file, epochs=1, max_tokens=12)
    apply(load(str(tiny_model)), Structure(), config, Context(0, lambda *progress: None, notes.append))
    assert notes == ["fine-tuned (full) for 1 steps on 1 rows, 3 dropped (completion over 12 tokens)"]


def test_lora_on_a_mask_leaves_its_zeros(tiny_model: Path, rows_file: Path, context: Context) -> None:
    model = load(str(tiny_model))
    name = "model.layers.0.mlp.up_proj.weight"
    weight = model.model.get_parameter(name)
    mask = magnitude_mask(weight, 0.5)
    weight.data.mul_(mask)
    before = weight.detach().clone()
    apply(model, Structure({name: Constraint(mask_OI=mask)}), config_for(rows_file, adapter="lora"), context)
    assert (weight[~mask] == 0).all()
    assert not torch.equal(weight[mask], before[mask])


def test_nan_is_refused(tiny_model: Path, rows_file: Path, context: Context) -> None:
    model = load(str(tiny_model))
    model.model.get_parameter("model.norm.weight").data[0] = float("nan")
    with pytest.raises(TrainingError, match="loss is nan"):
        apply(model, Structure(), config_for(rows_file), context)
