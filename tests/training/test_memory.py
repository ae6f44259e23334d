"""Memory: checkpointed and offloaded gradients are the plain ones bit for bit; sampling and hooks see no difference."""

import copy
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recoup.errors import TrainingError
from recoup.models.capture import block_outputs
from recoup.models.hidden import completion_hidden
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, pack, sample
from recoup.training import memory

LAYOUTS = ["llama", "qwen2", "gemma3_text", "gpt2"]


def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in (9, 14, 30)]
    return pack([row[:5] for row in rows], [row[5:] for row in rows], 0)


def gradients(model: LanguageModel, context=nullcontext) -> dict[str, Tensor]:
    model.model.requires_grad_(True).zero_grad()
    with context():
        hidden = completion_hidden(model.model, rollouts())
    hidden.pow(2).sum().backward()
    return {name: weight.grad for name, weight in model.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpointed_gradients_are_the_same_bit_for_bit(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    plain = {name: gradient.clone() for name, gradient in gradients(model).items()}
    memory.checkpoint_blocks(model.model)
    kept = gradients(model)
    assert plain.keys() == kept.keys()
    assert all(torch.equal(plain[name], kept[name]) for name in plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpointing_keeps_fewer_bytes_between_forward_and_backward(
    tiny_models: dict[str, Path], layout: str
) -> None:
    model = load(str(tiny_models[layout]))
    plain = kept_bytes(model)
    memory.checkpoint_blocks(model.model)
    assert kept_bytes(model) < 0.5 * plain


def kept_bytes(model: LanguageModel) -> int:
    """Bytes that autograd holds after a forward pass, each tensor's memory once."""
    held: dict[int, int] = {}

    def pack_(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.model.requires_grad_(True)
    weights = {weight.untyped_storage().data_ptr() for weight in model.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack_, lambda tensor: tensor):
        hidden = completion_hidden(model.model, rollouts())
    assert hidden.requires_grad
    return sum(size for place, size in held.items() if place not in weights)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_taken_by_hooks_stay_right_and_carry_gradients(tiny_models: dict[str, Path], layout: str) -> None:
    found = {}
    for checkpointed in (False, True):
        model = load(str(tiny_models[layout]))
        model.model.requires_grad_(True)
        if checkpointed:
            memory.checkpoint_blocks(model.model)
        with block_outputs(model.model) as outputs:
            completion_hidden(model.model, rollouts())
            states = dict(outputs)
            sum(state.pow(2).sum() for state in states.values()).backward()  # type: ignore[union-attr]
        found[checkpointed] = (states, next(model.model.parameters()).grad)
    assert found[True][0].keys() == found[False][0].keys() == {0, 1}
    assert all(torch.equal(found[True][0][block], found[False][0][block]) for block in found[False][0])
    assert torch.equal(found[True][1], found[False][1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sampling_is_the_same_and_a_copy_is_checkpointed_itself(tiny_models: dict[str, Path], layout: str) -> None:
    model = load(str(tiny_models[layout]))
    settings = Sampling(max_tokens=6, temperature=1.0, seed=3)
    before = sample(model, [[5, 6, 7], [8, 9]], settings).completions()
    memory.checkpoint_blocks(model.model)
    assert sample(model, [[5, 6, 7], [8, 9]], settings).completions() == before
    twin = copy.deepcopy(model.model)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(0.5)
    other = LanguageModel("twin", twin, model.tokenizer, None)
    changed = gradients(other)
    assert all(weight.grad is None for weight in model.model.parameters())
    assert changed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moved_activations_give_the_same_gradients_and_weights_are_not_moved(
    tiny_models: dict[str, Path], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "LEAST_OFFLOADED", 1)
    model = load(str(tiny_models[layout]))
    plain = {name: gradient.clone() for name, gradient in gradients(model).items()}
    hooks = memory.activations_moved(model.model)
    moved = gradients(model, lambda: hooks)
    assert all(torch.equal(plain[name], moved[name]) for name in plain)
    weight = next(model.model.parameters()).detach()
    assert hooks.pack_hook(weight)[1] is weight  # type: ignore[attr-defined]
    assert hooks.pack_hook(torch.ones(3))[1].data_ptr() != torch.ones(3).data_ptr()  # type: ignore[attr-defined]


def test_nothing_is_moved_on_a_cpu(tiny_model: Path) -> None:
    assert isinstance(memory.offloaded(load(str(tiny_model)).model), nullcontext)


@pytest.mark.gpu
def test_activations_leave_the_accelerator(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LEAST_OFFLOADED", 1)
    hooks = memory.offloaded(load(str(tiny_model)).model)
    device, outside = hooks.pack_hook(torch.ones(3, device="cuda"))  # type: ignore[attr-defined]
    assert (device.type, outside.device.type, outside.is_pinned()) == ("cuda", "cpu", True)


def test_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**52)
    assert memory.out_of_memory(refused.value)
    assert memory.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert memory.out_of_memory(MemoryError())
    assert not memory.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory.out_of_memory(KeyboardInterrupt())


def test_micro_batches_halve_down_to_one() -> None:
    assert [memory.smaller(size) for size in (12, 6, 3, 2)] == [6, 3, 1, 1]
    with pytest.raises(TrainingError, match="micro_batch_size 1"):
        memory.smaller(1)


FAULTS = """
import resource, recoup, torch
torch.ones(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(), reason="the kernel has no huge pages"
)
def test_large_tensors_lie_in_huge_pages() -> None:
    """256 MB are 65,536 pages of 4 KB or 128 of 2 MB; the kernel is asked, and may have a few to spare only."""
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 2**15


def test_peak_memory_is_in_bytes() -> None:
    if torch.cuda.is_available() or not Path("/proc/self/statm").is_file():
        pytest.skip("compared with what Linux says of this process")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    # at least what is there now (getrusage and statm are not updated together), and no other unit
    assert 0.9 * resident < memory.peak_memory_bytes() < 100 * resident


def test_available_memory_is_what_the_kernel_or_the_container_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("the accelerator says how much is free")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:   1000 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_bytes() == 1000 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    assert memory.available_bytes() == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() == 1000 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    assert memory.available_bytes() == 0


@pytest.mark.skipif(
    not memory.CLEAR_REFS.is_file() or torch.cuda.is_available(), reason="only Linux forgets a process's peak"
)
def test_a_peak_is_forgotten() -> None:
    torch.zeros(64 * 2**20)  # 256 MiB, touched and let go
    before = memory.peak_memory_bytes()
    memory.forget_peak_memory()
    assert memory.peak_memory_bytes() < before - 128 * 2**20
