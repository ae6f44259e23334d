"""What trains: gradients against autograd, exact merging, and that nothing else moves."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recoup.config import Train
from recoup.errors import StructureError
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.structure.grids import GRIDS, IntegerGrid, NF4Grid
from recoup.structure.grids.base import Grid
from recoup.structure.guard import Guard
from recoup.structure.masks import magnitude_mask
from recoup.structure.spec import Constraint, Structure
from recoup.structure.trainable import Latent, LoRA, LowRank, Scales, Trainable
from recoup.structure.verify import verify
from recoup.training.plan import lora_of, training_plan
from tests.conftest import LAYOUTS, save_tiny
from tests.structure.conftest import constrain


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(trainable: Trainable, name: str) -> list[list[float]]:
    found = trainable.tensors[name].grad
    assert found is not None
    return found.tolist()


def test_low_rank_gradient_by_hand() -> None:
    # W = W0 + 2 B A with A = [1, 3], B = [5]: dA = 2·5·[7, 11] = [70, 110], dB = 2·(7·1 + 11·3) = 80
    update = LowRank(torch.zeros(1, 2), LoRA(rank=1))
    update.tensors["lora_A"].data = torch.tensor([[1.0, 3.0]])
    update.tensors["lora_B"].data = torch.tensor([[5.0]])
    update.pull(torch.tensor([[7.0, 11.0]]))
    assert gradient(update, "lora_A") == [[70.0, 110.0]]
    assert gradient(update, "lora_B") == [[80.0]]
    _, weight = update.constrained(Constraint())
    assert torch.equal(weight, torch.tensor([[10.0, 30.0]]))  # 2·5·[1, 3]


def test_scale_gradient_by_hand() -> None:
    # codes 3 and −1 at scale 0.5: d scale = 7·3 + 11·(−1) = 10
    grid = IntegerGrid(bits=3, group_size=2, symmetric=True)
    scales = Scales(torch.tensor([[1.5, -0.5]]), Constraint(grid, {"scale": torch.tensor([[0.5]])}))
    scales.pull(torch.tensor([[7.0, 11.0]]))
    assert gradient(scales, "scale") == [[10.0]]


def test_a_latent_weight_starts_where_it_was_rounded_from_by_hand() -> None:
    grid, kept = (
        IntegerGrid(bits=3, group_size=2, symmetric=True),
        torch.tensor([[1.5, -0.5]]),
    )  # codes 3 and −1 at scale 0.5
    constraint = Constraint(grid, {"scale": torch.tensor([[0.5]])})
    latent = Latent(kept)
    assert not latent.start_from(torch.tensor([[1.5, -0.8]]), constraint, kept)  # rounds to −1
    assert not latent.start_from(torch.tensor([[1.6, -0.5]]), constraint, kept)  # its own scale is another
    assert torch.equal(latent.tensors["latent"], kept)
    assert latent.start_from(torch.tensor([[1.5, -0.7]]), constraint, kept)
    assert torch.equal(latent.tensors["latent"], torch.tensor([[1.5, -0.7]]))
    assert torch.equal(latent.constrained(constraint)[1], kept)


@pytest.mark.parametrize(
    "grid", [grid() for grid in GRIDS.values() if grid is not IntegerGrid] + [IntegerGrid(3, 16, symmetric=False)]
)
def test_a_rounded_model_starts_where_it_was_rounded_from(grid: Grid, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
    earlier, student = load(str(tmp_path)), on_grid(load(str(tmp_path)), grid)
    guard = Guard(student.model, student.structure)
    rounded = {name: weight.detach().clone() for name, weight in student.model.named_parameters()}
    assert guard.start_from(dict(earlier.model.named_parameters())) == len(student.structure.constraints)
    guard.project()
    assert all(torch.equal(weight, rounded[name]) for name, weight in student.model.named_parameters())
    name = next(iter(student.structure.constraints))
    assert torch.equal(guard.state()[f"{name}:latent"], earlier.model.get_parameter(name))


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), rank=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_low_rank_gradient_is_autograds(rows: int, columns: int, rank: int, seed: int) -> None:
    start, upstream = normal(rows, columns, seed=seed), normal(rows, columns, seed=seed + 1)
    update = LowRank(start, LoRA(rank, seed=seed))
    update.tensors["lora_B"].data = normal(rows, rank, seed=seed + 2)
    a, b = (update.tensors[name].detach().clone().requires_grad_() for name in ("lora_A", "lora_B"))
    ((start + 2.0 * b @ a) * upstream).sum().backward()
    update.pull(upstream)
    torch.testing.assert_close(update.tensors["lora_A"].grad, a.grad)
    torch.testing.assert_close(update.tensors["lora_B"].grad, b.grad)


def on_grid(model: LanguageModel, grid: Grid, sparsity: float | None = None, *, refit: bool = True) -> LanguageModel:
    """`model` with every linear layer of its blocks on `grid`."""
    constraints = {}
    for name, free in constrain(model, grid, sparsity, refit=refit).constraints.items():
        weight = model.model.get_parameter(name).data
        constraints[name] = free.fitted(weight)
        weight.copy_(constraints[name].project(weight))
    return LanguageModel(model.name, model.model, model.tokenizer, model.path, Structure(constraints))


def train(student: LanguageModel, config: Train, steps: int = 4, rate: float = 3e-2) -> tuple[Guard, list[float]]:
    guard = Guard(student.model, student.structure, training_plan(student, config), lora_of(config, 0))
    optimizer = torch.optim.AdamW(guard.parameters(), lr=rate)
    ids = torch.tensor([student.tokenizer("some words to learn from").input_ids])
    losses = []
    for _ in range(steps):
        loss = student.model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        guard.project()
        optimizer.zero_grad()
        losses.append(loss.item())
    return guard, losses


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_lora_merges_with_no_difference(
    tiny_models: dict[str, Path], layout: str, sparsity: float | None, tmp_path: Path
) -> None:
    student = on_grid(load(str(tiny_models[layout])), IntegerGrid(4, 16, symmetric=True), sparsity)
    before = {name: weight.detach().clone() for name, weight in student.model.named_parameters()}
    guard, losses = train(student, Train(what="lora", lora_rank=2), steps=6)
    assert losses[-1] < losses[0]
    changed = {name for name, weight in student.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert changed <= set(student.structure.constraints)
    checked = save(student, guard.structure, tmp_path / "merged")
    assert checked.exact
    ids = torch.tensor([student.tokenizer("a prompt").input_ids])
    merged = load(str(tmp_path / "merged"))
    assert (merged.model(ids).logits - student.model(ids).logits).abs().max() == 0


@pytest.mark.parametrize("grid", [IntegerGrid(3, 16, symmetric=True), IntegerGrid(4, 16, symmetric=False), NF4Grid(16)])
def test_scales_train_and_codes_stay(tiny_model: Path, grid: Grid) -> None:
    student = on_grid(load(str(tiny_model)), grid)
    name = "model.layers.1.mlp.down_proj.weight"
    before, old = student.model.get_parameter(name).detach().clone(), student.structure.constraints[name]
    guard, losses = train(student, Train(what="scales"))
    assert losses[-1] < losses[0]
    new = guard.structure.constraints[name]
    assert not torch.equal(new.parameters["scale"], old.parameters["scale"])
    codes = [
        w.view(w.shape[0], -1, 16) / c.parameters["scale"][..., None]
        for w, c in ((before, old), (student.model.get_parameter(name).detach(), new))
    ]
    torch.testing.assert_close(codes[0], codes[1], rtol=1e-6, atol=1e-6)
    assert verify(student.model, guard.structure).exact


def test_scales_that_stay_stay(tiny_model: Path) -> None:
    student = on_grid(load(str(tiny_model)), IntegerGrid(4, 16, symmetric=True), refit=False)
    before = {name: c.parameters["scale"].clone() for name, c in student.structure.constraints.items()}
    guard, losses = train(student, Train())
    assert losses[-1] < losses[0]
    assert all(torch.equal(guard.structure.constraints[name].parameters["scale"], before[name]) for name in before)
    assert verify(student.model, guard.structure).exact


@pytest.mark.parametrize(
    ("config", "moves"),
    [
        (Train(what="norms"), lambda name: "norm" in name),
        (Train(layers=(1,)), lambda name: ".layers.1." in name),
        (Train(what="lora", layers=(0,)), lambda name: ".layers.0." in name and "norm" not in name),
    ],
)
def test_only_what_was_chosen_moves(tiny_model: Path, config: Train, moves) -> None:
    student = load(str(tiny_model))
    before = {name: weight.detach().clone() for name, weight in student.model.named_parameters()}
    train(student, config)
    changed = {name for name, weight in student.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if moves(name)}


def test_gradients_of_constrained_weights_are_freed(tiny_model: Path) -> None:
    student = on_grid(load(str(tiny_model)), IntegerGrid(4, 16, symmetric=True))
    guard = Guard(student.model, student.structure, training_plan(student, Train(what="lora")), LoRA(2))
    ids = torch.tensor([student.tokenizer("words").input_ids])
    student.model(ids, labels=ids).loss.backward()
    assert all(weight.grad is None for weight in student.model.parameters())
    assert all(tensor.grad is not None for tensor in guard.parameters())


def test_two_micro_batches_add_up(tiny_model: Path) -> None:
    gradients = []
    for repeats in (1, 2):
        student = on_grid(load(str(tiny_model)), IntegerGrid(4, 16, symmetric=True))
        guard = Guard(student.model, student.structure)
        ids = torch.tensor([student.tokenizer("words").input_ids])
        for _ in range(repeats):
            (student.model(ids, labels=ids).loss / repeats).backward()
        gradients.append([tensor.grad for tensor in guard.parameters()])
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(once, twice)


def test_scales_of_a_mask_are_refused(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    name = "model.layers.0.mlp.up_proj.weight"
    mask = magnitude_mask(student.model.get_parameter(name).data, 0.5)
    with pytest.raises(StructureError, match="use train: weights or lora"):
        Guard(student.model, Structure({name: Constraint(mask_OI=mask)}), {name: "scales"})


def test_bad_plans_say_what_to_do(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    with pytest.raises(StructureError, match=r"nothing to train with train\.what 'scales'"):
        training_plan(student, Train(what="scales"))
    with pytest.raises(StructureError, match="has blocks 0 to 1"):
        training_plan(student, Train(layers=(0, 7)))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for llama.cpp's blocks of 256."""
    folder = tmp_path_factory.mktemp("wide")
    return save_tiny("llama", folder, hidden_size=256, intermediate_size=256, num_hidden_layers=1)


@pytest.mark.parametrize("name", GRIDS)
def test_every_format_trains_and_stays_exact(wide_model: Path, name: str, tmp_path: Path) -> None:
    grid = IntegerGrid(4, 64, symmetric=True) if name == "int" else GRIDS[name]()
    student = on_grid(load(str(wide_model)), grid, refit=grid.quick_fit)
    before = {name: student.model.get_parameter(name).detach().clone() for name in student.structure.constraints}
    guard, losses = train(student, Train(), steps=3, rate=1e-2)
    assert losses[-1] < losses[0]
    assert any(not torch.equal(before[name], student.model.get_parameter(name)) for name in before)
    assert save(student, guard.structure, tmp_path / "trained").exact
    again = load(str(tmp_path / "trained"))
    assert verify(again.model, again.structure).exact
