"""Two real processes (gloo) that share out weights, what trains and moments by rows do what one process does."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from recoup.config import Magnitude, Quantize, Recover
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.errors import ConfigError
from recoup.models.load import load
from recoup.recover.run import RecoverInputs, run
from recoup.results import RecoverResult
from recoup.run_folder import read_jsonl
from recoup.structure.spec import read_structure
from recoup.structure.verify import verify
from recoup.training.processes import Processes, all_processes
from recoup.training.sharding import check_optimizer
from tests.launching import BASE, ROOT, finish, killed_at_a_checkpoint, launch

JOBS = ("grid", "idle", "lora", "scales", "reuse", "average", "half")

CONTINUED = {"grid": 2, "reuse": 3}  # job → step of the last checkpoint before the stop


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"tell me about number {i} and {'what comes after ' * (i % 3)}it" for i in range(24)))
    return str(path)


@pytest.fixture(scope="module")
def jobs(tiny_models: dict[str, Path], prompts: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("students")
    tied, loose = str(tiny_models["llama"]), str(tiny_models["qwen2"])
    quantized = degrade(Quantize(bits=3, group_size=16), DegradeInputs(tied, 0), root / "int3").checkpoint
    sparse = degrade(Magnitude(sparsity=0.5), DegradeInputs(loose, 0), root / "sparse").checkpoint
    term = {"prompts": prompts, "num_prompts": 8}
    grid = {"student": quantized, "teachers": [tied], "before": tied}
    mask = {"student": sparse, "teachers": [loose]}
    return {
        "grid": {**grid, "config": {**BASE, "terms": [term]}},
        # one rollout a step: the second process has no gradient, and still takes every step
        "idle": {**grid, "config": {**BASE, "terms": [term], "batch_size": 1}},
        # 3 + 2 rollouts or 2 + 3 a step, of two terms: the processes have different numbers of micro-batches
        "lora": {**mask, "teachers": [loose, loose],
                 "config": {**BASE, "terms": [term, {**term, "weight": 3.0}], "batch_size": 5, "micro_batch_size": 2,
                            "skip_tokens": 1, "train": {"what": "lora", "lora_rank": 4}}},
        "scales": {**grid, "config": {**BASE, "terms": [term], "train": {"what": "scales"}}},
        # rollouts that wait in a checkpoint
        "reuse": {**grid, "config": {**BASE, "terms": [term], "batch_size": 3, "checkpoint_every": 1,
                                     "rollout": {**BASE["rollout"], "uses": 2, "ahead": 2}}},
        # a teacher whose fp32 weights are shared out as well
        "average": {**mask, "teachers": ["ema", loose],
                    "config": {**BASE, "terms": [term, term], "batch_size": 4, "teachers": {"ema_rate": 0.1}}},
        # two micro-batches of bf16 gradients in each process
        "half": {**mask, "config": {**BASE, "terms": [term], "batch_size": 4, "precision": "bf16", "steps": 1}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def one(jobs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job by this process alone."""
    folder = tmp_path_factory.mktemp("one")
    for name, job in jobs.items():
        run(Recover.model_validate(job["config"]), inputs_of(job), folder / name)
    return folder


@pytest.fixture(scope="module")
def two(jobs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job by two processes; `continued …` goes on from the checkpoint of one process that was stopped."""
    folder = tmp_path_factory.mktemp("two")
    every = {**jobs, **{f"continued {name}": jobs[name] for name in CONTINUED}}
    for name, last in CONTINUED.items():
        job, stage = jobs[name], folder / f"continued {name}"
        with pytest.raises(KeyboardInterrupt):
            run(Recover.model_validate(job["config"]), inputs_of(job), stage, stop_at_4)
        assert json.loads((stage / "state" / "position.json").read_text())["position"]["step"] == last
    (folder / "jobs.json").write_text(json.dumps(every))
    worker = str(ROOT / "tests" / "sharded_worker.py")
    finish(launch(worker, str(folder / "jobs.json"), str(folder), config="fsdp2"))
    return folder


def inputs_of(job: dict[str, Any]) -> RecoverInputs:
    return RecoverInputs(job["student"], tuple(job["teachers"]), 0, before=job.get("before"))


def stop_at_4(_label: str, done: int, total: int) -> None:
    """Raise after the fourth step and before its checkpoint."""
    if (done, total) == (4, 4):
        raise KeyboardInterrupt


def tensors(folder: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    """The model's weights and what trained beside them."""
    return load_file(folder / "state" / f"{name}.safetensors")


def assert_same(ours: Path, theirs: Path) -> None:
    """The same weights, trained tensors and moments, but for float32 rounding."""
    for name in ("weights", "optimizer"):
        alone, shared = tensors(ours, name), tensors(theirs, name)
        assert alone.keys() == shared.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(shared[key], tensor, rtol=1e-5, atol=5e-6, msg=partial("{}: {}".format, key))


@pytest.mark.parametrize("job", JOBS)
def test_shards_end_with_the_weights_and_moments_of_one_process(one: Path, two: Path, job: str) -> None:
    # the gradients' norm is summed in another order, and so are gradients of more than two micro-batches; found: 1.5e-6
    assert_same(one / job, two / job)


@pytest.mark.parametrize("job", JOBS)
def test_metrics_and_texts_are_those_of_one_process(one: Path, two: Path, job: str) -> None:
    alone, shared = read_jsonl(one / job / "metrics.jsonl"), read_jsonl(two / job / "metrics.jsonl")
    assert len(alone) == len(shared) > 0
    for ours, theirs in zip(alone, shared, strict=True):
        assert [ours[key] for key in ("step", "phase", "num_tokens")] == [
            theirs[key] for key in ("step", "phase", "num_tokens")
        ]
        for key in ("loss", "grad_norm", "overlap"):
            assert ours[key] == (theirs[key] and pytest.approx(theirs[key], rel=1e-4)), key
    texts = [
        sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(folder / job / "rollouts.jsonl"))
        for folder in (one, two)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("job", JOBS)
def test_structure_is_exact_and_counted_whole(one: Path, two: Path, job: str) -> None:
    alone, shared = (RecoverResult.read(folder / job / "result.json") for folder in (one, two))
    assert shared.structure_exact
    assert shared.num_trained == alone.num_trained
    assert shared.structure == alone.structure
    checkpoint = Path(shared.checkpoint)
    assert verify(load(str(checkpoint)).model, read_structure(checkpoint)).exact
    assert (checkpoint / "model.safetensors").stat().st_size == (
        Path(alone.checkpoint) / "model.safetensors"
    ).stat().st_size


def test_memory_is_divided(one: Path, two: Path) -> None:
    # tiny Llama: embedding 259 × 32, and per block 3 × 48 × 32 + (2 × 32 + 2 × 16) × 32 + 2 × 32, and a last norm of 32
    numbers = 259 * 32 + 2 * (3 * 48 * 32 + (2 * 32 + 2 * 16) * 32 + 2 * 32) + 32
    held = [json.loads((two / f"rank{rank}.json").read_text())["grid"] for rank in (0, 1)]
    assert RecoverResult.read(one / "grid" / "result.json").num_trained == numbers
    for what, each in (("weights", 4), ("trained", 4), ("optimizer", 8)):
        steps = (
            4 * len(tensors(one / "grid", "optimizer")) // 3 if what == "optimizer" else 0
        )  # AdamW counts per tensor
        mine = [known[what] - steps for known in held]
        assert sum(mine) == each * numbers, what
        assert abs(mine[0] - mine[1]) <= each * 32, what  # 259 rows: 130 and 129
    assert all(known["gradients"] == 0 for known in held)


@pytest.mark.parametrize("job", CONTINUED)
def test_shards_continue_what_one_process_began(one: Path, two: Path, job: str) -> None:
    assert_same(one / job, two / f"continued {job}")
    assert [row["step"] for row in read_jsonl(two / f"continued {job}" / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_killed_run_goes_on_in_shards_and_in_one_process(
    tiny_model: Path, jobs: dict[str, Any], one: Path, prompts: str, tmp_path: Path
) -> None:
    job = jobs["grid"]
    config = {
        "name": "sharded", "model": str(tiny_model), "student": job["student"], "recover": job["config"],
        "diagnose": {"prompts": prompts, "num_prompts": 2, "max_tokens": 4},
        "evaluate": {"tasks": [], "fidelity_prompts": prompts, "num_fidelity_prompts": 2, "fidelity_tokens": 4,
                     "num_bootstrap": 10},
    }  # fmt: skip
    path, folder = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(config))
    command = ("-m", "recoup", "run", str(path), "--output", str(folder))
    assert killed_at_a_checkpoint(launch(*command, config="fsdp2"), folder / "recover")
    shutil.copytree(folder / "recover", tmp_path / "alone")
    said = finish(launch(*command, config="fsdp2"))
    assert said.count("report:") == 1  # one of the two speaks
    assert (folder / "report" / "index.html").is_file()
    run(Recover.model_validate(job["config"]), inputs_of(job), tmp_path / "alone")
    assert_same(one / "grid", folder / "recover")
    assert_same(one / "grid", tmp_path / "alone")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version must be 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading must be false",
        ),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params must be false"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported"),
    ],
)
def test_other_ways_to_shard_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        all_processes()


def test_optimizers_that_mix_rows_are_refused() -> None:
    shared_out = Processes(0, 2, sharded=True)
    check_optimizer("adamw", shared_out)
    check_optimizer("adafactor", Processes(0, 2))
    for name in ("adafactor", "adamw_8bit"):
        with pytest.raises(ConfigError, match=f"{name} cannot be divided"):
            check_optimizer(name, shared_out)
