"""Two real processes (gloo) do what one does: same weights, same metrics, same decisions, exact after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from recoup.config import Magnitude, Quantize, Recover
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.models.load import load
from recoup.recover.run import RecoverInputs, run
from recoup.results import RecoverResult
from recoup.run_folder import read_jsonl
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from recoup.training.processes import ALONE
from tests.launching import BASE, ROOT, finish, killed_at_a_checkpoint, launch


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"tell me about number {i} and {'what comes after ' * (i % 3)}it" for i in range(24)))
    return str(path)


@pytest.fixture(scope="module")
def jobs(tiny_models: dict[str, Path], prompts: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("students")
    teacher = str(tiny_models["llama"])
    quantized = degrade(Quantize(bits=3, group_size=16), DegradeInputs(teacher, 0), root / "int3").checkpoint
    sparse = degrade(Magnitude(sparsity=0.5), DegradeInputs(teacher, 0), root / "sparse").checkpoint
    term = {"prompts": prompts, "num_prompts": 8}
    return {
        "exact": {"student": quantized, "teachers": [teacher], "before": teacher, "config": {**BASE, "terms": [term]}},
        # one rollout a step: the second process has none, and still takes every step
        "idle": {"student": quantized, "teachers": [teacher], "config": {**BASE, "terms": [term], "batch_size": 1}},
        # 3 + 2 rollouts or 2 + 3 a step, of two terms: 2 + 1 and 1 + 1 of them in each process
        "uneven": {
            "student": sparse,
            "teachers": [teacher, teacher],
            "config": {**BASE, "terms": [term, {**term, "weight": 3.0}], "batch_size": 5, "micro_batch_size": 2,
                       "skip_tokens": 1, "train": {"what": "lora", "lora_rank": 4}},
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def two(jobs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job by two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    finish(launch(str(ROOT / "tests" / "processes_worker.py"), str(folder / "jobs.json"), str(folder)))
    return folder


@pytest.fixture(scope="module")
def one(jobs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job by this process alone."""
    folder = tmp_path_factory.mktemp("one")
    for name, job in jobs.items():
        inputs = RecoverInputs(job["student"], tuple(job["teachers"]), 0, before=job.get("before"))
        run(Recover.model_validate(job["config"]), inputs, folder / name)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The model's weights and what trained beside them."""
    return load_file(folder / "state" / "weights.safetensors")


@pytest.mark.parametrize("job", ["exact", "idle"])
def test_two_processes_end_with_the_weights_of_one_bit_for_bit(one: Path, two: Path, job: str) -> None:
    # a gradient is g0 + g1, of two micro-batches in one process or of one in each of two: addition commutes exactly
    ours, theirs = tensors(one / job), tensors(two / job)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # and they did train: the latents are not where the student began
    assert any(not torch.equal(ours[f"{n}"], ours[n.partition(":")[0]]) for n in ours if n.endswith(":latent"))


def test_uneven_shares_give_the_same_up_to_rounding(one: Path, two: Path) -> None:
    # (g0 + g1) + g2 against (g0 + g2) + g1: float32 rounding, which Adam's division passes on where gradients are small
    ours, theirs = tensors(one / "uneven"), tensors(two / "uneven")
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("job", ["exact", "idle", "uneven"])
def test_metrics_are_of_the_whole_batch(one: Path, two: Path, job: str) -> None:
    alone, shared = read_jsonl(one / job / "metrics.jsonl"), read_jsonl(two / job / "metrics.jsonl")
    assert len(alone) == len(shared) == 4
    for ours, theirs in zip(alone, shared, strict=True):
        for key in ("step", "phase", "num_tokens", "completion_tokens_mean", "learning_rate"):
            assert ours[key] == theirs[key], key
        for key in ("loss", "grad_norm", "overlap")[: 3 if ours["phase"] == "off_policy" else 2]:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    assert [row["overlap"] is None for row in shared] == [False, False, True, True]


@pytest.mark.parametrize("job", ["exact", "idle", "uneven"])
def test_the_same_texts_are_written_once(one: Path, two: Path, job: str) -> None:
    def texts(folder: Path) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(folder / job / "rollouts.jsonl"))

    assert texts(one) == texts(two)


@pytest.mark.parametrize("job", ["exact", "uneven"])
def test_structure_is_exact(two: Path, job: str) -> None:
    result = RecoverResult.read(two / job / "result.json")
    checkpoint = Path(result.checkpoint)
    assert result.structure_exact
    assert verify(load(str(checkpoint)).model, read_structure(checkpoint)).exact


def test_what_each_process_knows(two: Path) -> None:
    first, second = (json.loads((two / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["digests"] == second["digests"]  # of every tensor that trains: replicas never part
    for known in (first, second):
        assert known["sum"] == [3.0, 1.0]  # 1 + 2, 0.5 + 0.5
        assert known["gather"] == ["row 0", "row 1", "row 1"]
        assert known["share"] == "said by 0"
        assert known["gradients"] == [[1.0, 2.0], [30.0, 30.0, 30.0]]  # + nothing; 10 + 20
    assert (first["mine"], second["mine"]) == ([0, 2, 4], [1, 3])


def test_a_guard_on_the_shards_of_two_processes_is_the_guard_of_the_whole(two: Path) -> None:
    for rank in (0, 1):
        known = json.loads((two / f"rank{rank}.json").read_text())["sharded"]
        assert known == {"rows_held": 24, "weights_equal": True, "structure_equal": True, "moved": True}  # of 48


def test_alone_nothing_is_communicated() -> None:
    assert ALONE.sum([1, 2.5]) == [1.0, 2.5]
    assert ALONE.gather(["a"]) == ["a"]
    assert ALONE.share("a") == "a"
    assert list(ALONE.mine(3)) == [0, 1, 2]


def test_a_whole_run_is_killed_and_goes_on(
    tiny_model: Path, jobs: dict[str, Any], one: Path, prompts: str, tmp_path: Path
) -> None:
    job = jobs["exact"]
    config = {
        "name": "two", "model": str(tiny_model), "student": job["student"],
        "recover": {**job["config"], "steps": 4},
        "diagnose": {"prompts": prompts, "num_prompts": 2, "max_tokens": 4},
        "evaluate": {"tasks": [], "fidelity_prompts": prompts, "num_fidelity_prompts": 2, "fidelity_tokens": 4,
                     "num_bootstrap": 10},
    }  # fmt: skip
    path, folder = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(config))
    command = ("-m", "recoup", "run", str(path), "--output", str(folder))
    killed_before_the_end = killed_at_a_checkpoint(launch(*command), folder / "recover")
    said = finish(launch(*command))
    assert killed_before_the_end
    assert said.count("report:") == 1  # one of the two speaks
    ours, theirs = tensors(one / "exact"), tensors(folder / "recover")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert [row["step"] for row in read_jsonl(folder / "recover" / "metrics.jsonl")] == [0, 1, 2, 3]
    assert (folder / "report" / "index.html").is_file()
