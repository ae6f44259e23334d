"""Scores on disk: what is kept, when it is found again, and what a damaged file does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recoup.divergence import HiddenTargets, Targets, TopKTargets
from recoup.errors import RunFolderError
from recoup.models.load import load
from recoup.models.sample import Rollouts, pack
from recoup.recover.teachers.cached import Cached, read, write
from recoup.recover.teachers.ema import Average
from recoup.recover.teachers.frozen import Frozen
from tests.conftest import LAYOUTS

A, B, C = ([1, 2, 3], [5, 6]), ([4], [7, 8, 9]), ([4, 7], [8, 9])  # B and C: the same tokens, another beginning


def rollouts_of(*rows: tuple[list[int], list[int]]) -> Rollouts:
    return pack([prompt for prompt, _ in rows], [completion for _, completion in rows], pad=0)


class Counting(Frozen):
    """A teacher that says how many rollouts it was asked about."""

    asked = 0

    def score(self, rollouts: Rollouts) -> Targets:
        self.asked += len(rollouts.tokens_BT)
        return super().score(rollouts)


@pytest.fixture
def teacher(tiny_model: Path) -> Counting:
    return Counting(load(str(tiny_model)), num_shared=259)


def hidden(targets: Targets) -> torch.Tensor:
    assert isinstance(targets, HiddenTargets)
    return targets.hidden_ND


def test_asked_once(teacher: Counting, tmp_path: Path) -> None:
    cached = Cached(teacher, tmp_path, "hidden_states", 1)
    first = hidden(cached.score(rollouts_of(A, B)))
    assert teacher.asked == 2
    assert torch.equal(hidden(cached.score(rollouts_of(A, B))), first)
    assert teacher.asked == 2
    cached.score(rollouts_of(C))
    assert teacher.asked == 3  # where the completion begins matters
    again = Cached(teacher, tmp_path, "hidden_states", 1)  # another run
    mixed = hidden(again.score(rollouts_of(B, ([9, 9, 9, 9], [1]), A)))
    assert teacher.asked == 4
    assert torch.equal(mixed[:3], first[2:])  # rows keep their order: B has three tokens, A two
    assert torch.equal(mixed[4:], first[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_are_exact(tiny_models: dict[str, Path], layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    teacher = Frozen(load(str(tiny_models[layout]), dtype=dtype), num_shared=8)
    cached = Cached(teacher, tmp_path, "hidden_states", 1)
    expected = teacher.score(rollouts_of(A, B))
    for _ in range(2):
        found = cached.score(rollouts_of(A, B))
        assert torch.equal(hidden(found), hidden(expected))
        assert hidden(found).dtype == dtype
        assert isinstance(found, HiddenTargets)
        assert torch.equal(found.head.weight_VD, teacher.head().weight_VD)


def test_top_k_is_kept_and_found(teacher: Counting, tmp_path: Path) -> None:
    cached = Cached(teacher, tmp_path, "top_k", 4)
    first, second = cached.score(rollouts_of(A, B)), cached.score(rollouts_of(A, B))
    assert teacher.asked == 2
    assert isinstance(first, TopKTargets)
    assert isinstance(second, TopKTargets)
    assert torch.equal(first.ids_NK, second.ids_NK)
    assert torch.equal(first.logp_NK, second.logp_NK)
    assert (first.ids_NK.shape, first.ids_NK.dtype) == ((5, 4), torch.int64)
    everything = Cached(teacher, tmp_path, "top_k", 999).score(rollouts_of(A))
    assert isinstance(everything, TopKTargets)
    assert everything.ids_NK.shape == (2, 259)  # k is at most the shared vocabulary
    targets = teacher.score(rollouts_of(A))
    assert isinstance(targets, HiddenTargets)
    logp_NV = torch.log_softmax(targets.head.logits(targets.hidden_ND), -1)
    torch.testing.assert_close(everything.logp_NK, logp_NV.gather(1, everything.ids_NK))


def test_top_k_is_of_the_shared_vocabulary(tiny_model: Path, tmp_path: Path) -> None:
    targets = Cached(Frozen(load(str(tiny_model)), num_shared=6), tmp_path, "top_k", 6).score(rollouts_of(A, B))
    assert isinstance(targets, TopKTargets)
    assert targets.ids_NK.max() < 6
    torch.testing.assert_close(targets.logp_NK.exp().sum(-1), torch.ones(5))  # nothing is left for the tail


def test_another_teacher_finds_nothing(teacher: Counting, tmp_path: Path) -> None:
    Cached(teacher, tmp_path, "top_k", 4).score(rollouts_of(A))
    for other in ("top_k", 5), ("hidden_states", 4):
        asked = teacher.asked
        Cached(teacher, tmp_path, *other).score(rollouts_of(A))
        assert teacher.asked == asked + 1
    model = load(teacher.name)
    model.model.get_parameter("model.norm.weight").data += 1  # trained anew in the same folder
    moved = Counting(model, 259)
    Cached(moved, tmp_path, "top_k", 4).score(rollouts_of(A))
    assert moved.asked == 1


@pytest.mark.parametrize("damage", ["cut off", "a bit", "empty", "another rollout's", "text"])
def test_a_damaged_file_is_worked_out_anew(teacher: Counting, tmp_path: Path, damage: str) -> None:
    cached = Cached(teacher, tmp_path, "hidden_states", 1)
    first = hidden(cached.score(rollouts_of(A)))
    (path,) = tmp_path.glob("*/*.safetensors")
    sound = path.read_bytes()
    flipped = sound[:-1] + bytes([sound[-1] ^ 1])
    if damage == "another rollout's":
        write(path, {"hidden_ND": torch.zeros(7, 32)})
    else:
        path.write_bytes({"cut off": sound[:-5], "a bit": flipped, "empty": b"", "text": b"x" * 200}[damage])
    assert read(path, 2) is None
    assert torch.equal(hidden(cached.score(rollouts_of(A))), first)
    assert teacher.asked == 2
    assert path.read_bytes() == sound


def test_size_by_hand(teacher: Counting, tmp_path: Path) -> None:
    cached = Cached(teacher, tmp_path, "hidden_states", 1)
    assert cached.disk_bytes() == 0
    cached.score(rollouts_of(A, B))
    # A has 2 tokens and B 3, of width 32 in float32, and each file a header
    paths = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(paths) == 2
    assert sum(load_file(path)["hidden_ND"].nbytes for path in paths) == 5 * 32 * 4
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in paths)
    assert cached.disk_bytes() == 5 * 32 * 4 + headers
    assert cached.memory_bytes() == teacher.memory_bytes()
    assert cached.describe() == f"{teacher.describe()}, 0.0 MB of scores on disk"


def test_a_moving_teacher_is_not_cached(teacher: Counting, tmp_path: Path) -> None:
    student = load(teacher.name)
    with pytest.raises(AssertionError, match="moves"):
        Cached(Average(student, student, (), 0.1, 1), tmp_path, "top_k", 4)


def test_a_folder_that_cannot_be_made(teacher: Counting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match="file"):
        Cached(teacher, tmp_path / "file", "top_k", 4).score(rollouts_of(A))
