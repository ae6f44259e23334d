"""Grids and masks hold bit for bit: by hand, as properties, through training, and through a save."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recoup.errors import StructureError
from recoup.models.load import load
from recoup.models.save import save
from recoup.structure.grids import NF4_CODES, IntegerGrid, NF4Grid
from recoup.structure.guard import Guard
from recoup.structure.masks import magnitude_mask, pack, unpack
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from tests.conftest import LAYOUTS
from tests.structure.conftest import constrain


def test_symmetric_int3_by_hand() -> None:
    # codes −3…3; the largest magnitude 0.75 sets scale 0.25: 0.75/0.25 = 3, 0.3/0.25 = 1.2 → 1, −0.4/0.25 = −1.6 → −2
    weight = torch.tensor([[0.75, 0.3, -0.4, 0.1]])
    grid = IntegerGrid(bits=3, group_size=4, symmetric=True)
    assert torch.equal(grid.project(weight, grid.fit(weight)), torch.tensor([[0.75, 0.25, -0.5, 0.0]]))


def test_asymmetric_int2_by_hand() -> None:
    # codes 0…3 over [−0.5, 1.0]: scale 0.5, zero round(0.5/0.5) = 1; 0.6/0.5 = 1.2 → code 2 → (2−1)·0.5 = 0.5
    weight = torch.tensor([[-0.5, 1.0, 0.6, 0.1]])
    grid = IntegerGrid(bits=2, group_size=4, symmetric=False)
    assert torch.equal(grid.project(weight, grid.fit(weight)), torch.tensor([[-0.5, 1.0, 0.5, 0.0]]))


def test_nf4_by_hand() -> None:
    # absmax 2: 2 → 1.0; −0.4/2 = −0.2, between −0.2844 and −0.1848, nearer the latter
    weight = torch.tensor([[2.0, -0.4, 0.0, 0.0]])
    grid = NF4Grid(group_size=4)
    assert torch.equal(grid.project(weight, grid.fit(weight)), torch.tensor([[2.0, NF4_CODES[5] * 2, 0.0, 0.0]]))


GRIDS = st.one_of(
    st.builds(IntegerGrid, st.integers(2, 8), st.sampled_from([1, 4, 16]), st.booleans()),
    st.builds(NF4Grid, st.sampled_from([4, 5, 64])),
)


def test_scale_below_float16_by_hand() -> None:
    # 2^-20 / 15 is below 2^-14, float16's smallest normal number: the group's only code is 0, and stays so
    tiny = torch.full((1, 4), 2.0**-20)
    grid = IntegerGrid(bits=5, group_size=4, symmetric=True)
    assert grid.fit(tiny)["scale"].item() == 2.0**-14
    assert torch.equal(grid.project(tiny, grid.fit(tiny)), torch.zeros(1, 4))


@example(grid=IntegerGrid(5, 1, symmetric=True), rows=2, groups=3, seed=1, scale=0.001)
@given(
    grid=GRIDS,
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-9, 1e-3, 1.0, 300.0]),
)
@settings(deadline=None, max_examples=150)
def test_projection_is_idempotent_bit_for_bit(
    grid: IntegerGrid | NF4Grid, rows: int, groups: int, seed: int, scale: float
) -> None:
    weight = torch.randn(rows, groups * 16, generator=torch.Generator().manual_seed(seed)) * scale
    parameters = grid.fit(weight)
    once = grid.project(weight, parameters)
    assert torch.equal(grid.project(once, parameters), once)
    if isinstance(grid, NF4Grid) or grid.symmetric:  # these may also be fitted anew to what they projected
        assert torch.equal(grid.project(once, grid.fit(once)), once)


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_symmetric_rounding_error_is_at_most_half_a_step(bits: int, seed: int) -> None:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed))
    grid = IntegerGrid(bits, 16, symmetric=True)
    parameters = grid.fit(weight)
    error = (grid.project(weight, parameters) - weight).abs().view(3, 2, 16)
    # float16 scales are off by at most 2^-11, which the largest code multiplies
    assert (error <= parameters["scale"][..., None] * (0.5 + 2 ** (bits - 1) * 2**-11)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    with pytest.raises(StructureError, match="NaN or infinity"):
        IntegerGrid(4, 2, symmetric=True).fit(torch.tensor([[1.0, bad]]))


def test_group_size_that_does_not_divide_says_which_would() -> None:
    with pytest.raises(StructureError, match="group_size 128 does not divide a layer of 576 inputs; use 144"):
        IntegerGrid(4, 128, symmetric=True).fit(torch.zeros(2, 576))


def test_zero_group_stays_zero() -> None:
    zeros = torch.zeros(2, 8)
    for grid in (IntegerGrid(3, 4, symmetric=True), IntegerGrid(3, 4, symmetric=False), NF4Grid(4)):
        assert torch.equal(grid.project(zeros, grid.fit(zeros)), zeros)


@given(rows=st.integers(1, 7), columns=st.integers(1, 9), sparsity=st.floats(0.05, 0.95), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_sparsity_is_met_exactly_and_masks_pack(rows: int, columns: int, sparsity: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    mask = magnitude_mask(weight, sparsity)
    assert int((~mask).sum()) == round(sparsity * rows * columns)
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()
    assert torch.equal(unpack(pack(mask), (rows, columns)), mask)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("grid", "sparsity"),
    [
        (IntegerGrid(3, 16, symmetric=True), None),
        (IntegerGrid(4, 8, symmetric=False), None),
        (NF4Grid(), None),
        (None, 0.5),
        (IntegerGrid(4, 16, symmetric=True), 0.5),
    ],
)
def test_a_student_trains_and_stays(
    tiny_models: dict[str, Path],
    layout: str,
    grid: IntegerGrid | NF4Grid | None,
    sparsity: float | None,
    tmp_path: Path,
) -> None:
    student = load(str(tiny_models[layout]))
    student.model.requires_grad_(True)
    guard = Guard(student.model, constrain(student, grid, sparsity))
    guard.project()
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    optimizer = torch.optim.AdamW(guard.parameters(), lr=3e-2)
    ids = torch.tensor([student.tokenizer("some words to learn from").input_ids])
    losses = []
    for _ in range(6):
        loss = student.model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        guard.project()
        losses.append(loss.item())
        assert verify(student.model, guard.structure).exact
    assert losses[-1] < losses[0]
    moved = [
        name for name in guard.structure.constraints if not torch.equal(before[name], student.model.get_parameter(name))
    ]
    assert moved

    save(student, guard.structure, tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    checked = verify(again.model, read_structure(tmp_path / "saved"))
    assert checked.exact
    assert torch.equal(again.model(ids).logits, student.model.eval()(ids).logits)
    if sparsity is not None:
        assert checked.sparsity >= sparsity


def test_a_violation_is_found_and_never_saved(tiny_model: Path, tmp_path: Path) -> None:
    student = load(str(tiny_model))
    guard = Guard(student.model, constrain(student, IntegerGrid(3, 16, symmetric=True), None))
    guard.project()
    name = next(iter(guard.structure.constraints))
    student.model.get_parameter(name).data[0, 0] += 1e-7
    assert verify(student.model, guard.structure).violations == (name,)
    with pytest.raises(StructureError, match="not saved; 1 weights left their structure"):
        save(student, guard.structure, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_structure_files_that_do_not_belong_together_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    student = load(str(tiny_model))
    for bits, folder in ((3, tmp_path / "a"), (4, tmp_path / "b")):
        guard = Guard(student.model, constrain(student, IntegerGrid(bits, 16, symmetric=True), None))
        guard.project()
        save(student, guard.structure, folder)
    (tmp_path / "a" / "structure.safetensors").write_bytes((tmp_path / "b" / "structure.safetensors").read_bytes())
    with pytest.raises(StructureError, match="do not belong together"):
        read_structure(tmp_path / "a")
    (tmp_path / "a" / "structure.json").write_text("{")
    with pytest.raises(StructureError, match="not a readable structure"):
        read_structure(tmp_path / "a")


def test_structure_for_another_model_is_refused(tiny_models: dict[str, Path]) -> None:
    llama, gpt2 = load(str(tiny_models["llama"])), load(str(tiny_models["gpt2"]))
    with pytest.raises(StructureError, match="which this model does not have"):
        Guard(gpt2.model, constrain(llama, NF4Grid(), None))


def test_bits_per_weight_counts_embeddings_and_head(tiny_model: Path) -> None:
    student = load(str(tiny_model))
    guard = Guard(student.model, constrain(student, IntegerGrid(4, 16, symmetric=True), None))
    guard.project()
    checked = verify(student.model, guard.structure)
    # constrained weights: 4 bits + 16/16 per group = 5; the rest 16
    rest = checked.num_parameters - checked.num_constrained
    assert checked.bits_per_weight == pytest.approx((5 * checked.num_constrained + 16 * rest) / checked.num_parameters)
