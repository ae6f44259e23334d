"""What every grid and pattern costs the embedded model, and what a small repair gives back: the table of docs/structures.md.

Run: `python -m tools.structures [NAME ...]` keeps `results/structures/NAME.json`; what is there already is not run again.
Every entry gets the same repair: the same prompts, steps and tokens. Only the learning rate goes by the damage.
"""

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from rich.console import Console

import recoup
from recoup.config import Evaluate
from recoup.data.prompts import load_prompts
from recoup.errors import RecoupError
from recoup.evaluate.fidelity import token_damage
from recoup.evaluate.run import score
from recoup.models.check import verify_checkpoint
from recoup.models.load import LanguageModel, load
from recoup.models.sample import Rollouts, Sampling, sample
from recoup.progress import Progress, terminal
from recoup.provenance import environment
from recoup.run_folder import write_text

ROOT = Path(__file__).parent.parent
RECORDS, WORK = ROOT / "results" / "structures", ROOT / "runs" / "structures"
TASKS = ("arc_easy", "sciq")
NUM_ITEMS, NUM_HELD_OUT, HELD_OUT_TOKENS = 100, 24, 32
REPAIR: dict[str, Any] = {
    "steps": 6, "batch_size": 12, "micro_batch_size": 12, "warmup_steps": 1, "rollout": {"max_tokens": 32},
    "bootstrap": {"max_steps": 0},
}  # fmt: skip
CALIBRATION_TOKENS = 64  # of each answer that calibration text is made of
NUM_PROMPTS = 160  # more than the 72 rollouts of a repair, a fifth of them held out
PRUNED_RATE = (
    1e-4  # what is left of a pruned model moves freely, while codes must be pushed over half a step of their grid
)
RATES = ((0.8, 1e-3), (0.2, 2e-4), (0.0, 5e-5))  # damage in nats at least → learning rate: severe damage wants more


@dataclass(frozen=True)
class Entry:
    """A structure: the injury that makes it, what it is exported to, and what its repair changes of `REPAIR`."""

    method: str
    settings: dict[str, Any]
    targets: tuple[str, ...]
    repair: dict[str, Any] = field(default_factory=dict)


def _grid(format_: str, *targets: str, **settings: Any) -> Entry:
    return Entry("quantize", {"format": format_, **settings}, targets)


def _int(bits: int, *targets: str, **settings: Any) -> Entry:
    return _grid("int", *targets, bits=bits, **{"group_size": 64, **settings})


def _part(what: str, rate: float) -> Entry:
    """int3 again, with a part of it training; fewer numbers want a larger learning rate."""
    return Entry("quantize", {"bits": 3}, (), {"train": {"what": what}, "learning_rate": rate})


ENTRIES: dict[str, Entry] = {
    "int8_channel": _int(8, "compressed-tensors", "gguf", group_size=None),
    "int4": _int(4, "compressed-tensors", "gguf"),
    "int4_asymmetric": _int(4, "compressed-tensors", symmetric=False),
    "int4_gptq": _int(4, "compressed-tensors", "gguf", start="gptq"),
    "int4_awq": _int(4, "compressed-tensors", start="awq"),
    "int3": _int(3, "gguf"),
    **{f"int3_{what}": _part(what, rate) for what, rate in (("lora", 1e-2), ("scales", 1e-3), ("norms", 1e-2))},
    "int3_gptq": _int(3, "gguf", start="gptq"),
    "int2_g32": _int(2, "gguf", group_size=32, symmetric=False),
    "nf4": _grid("nf4", "safetensors"),
    "nf4_double": _grid("nf4", "safetensors", double_quantized=True),
    "fp8": _grid("fp8", "compressed-tensors"),
    "mxfp4": _grid("mxfp4", "compressed-tensors", "gguf"),
    "nvfp4": _grid("nvfp4", "compressed-tensors"),
    **{name: _grid(name, "gguf") for name in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")},
    **{name: _grid(name, "gguf") for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")},
    "magnitude50": Entry("magnitude", {"sparsity": 0.5}, ("safetensors",)),
    "wanda50": Entry("wanda", {"sparsity": 0.5}, ("safetensors",)),
    "sparsegpt50": Entry("sparsegpt", {"sparsity": 0.5}, ("safetensors",)),
    "wanda_2of4": Entry("wanda", {"pattern": "2:4"}, ("safetensors",)),
    "sparsegpt_2of4": Entry("sparsegpt", {"pattern": "2:4"}, ("safetensors",)),
    "wanda_4of8": Entry("wanda", {"pattern": "4:8"}, ("safetensors",)),
    "ffn_width10": Entry("ffn_width", {"fraction": 0.1}, ("safetensors",)),
    "attention_heads": Entry("attention_heads", {"fraction": 0.34}, ("safetensors",)),
    "depth_influence": Entry("depth", {"num_blocks": 2, "criterion": "block_influence"}, ("gguf",)),
    "depth_angular": Entry("depth", {"num_blocks": 2, "criterion": "angular"}, ("safetensors",)),
}


class Measured(BaseModel):
    """One state of the model."""

    token_kl_nats: float
    top1_agreement: float
    scores: dict[str, float]


class Exported(BaseModel):
    """One export, read back."""

    target: str
    consumer: str
    token_kl_nats: float
    size_bytes: int


class StructureRecord(BaseModel):
    """A row of the table."""

    name: str
    summary: str
    bits_per_weight: float
    sparsity: float
    num_parameters: int
    degrade_seconds: float
    degraded: Measured
    recovered: Measured
    learning_rate: float
    num_tokens: int
    num_trained: int
    optimizer_bytes: int
    repair_seconds: float
    exact: bool
    exports: tuple[Exported, ...]
    refused: dict[str, str]  # target → why it was not written
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Ruler:
    """The undamaged model and what everything is measured with."""

    reference: LanguageModel
    prompts: Path
    calibration: Path
    rollouts: Rollouts

    def measure(self, checkpoint: str, progress: Progress) -> Measured:
        """Token fidelity and two benchmarks."""
        student = load(checkpoint, dtype=torch.bfloat16)
        damage = token_damage(self.reference, student, self.rollouts, num_bootstrap=2, seed=0)
        scores = _scores(student, progress)
        kl, agreement = damage.token_kl_nats.value, damage.top1_agreement.value
        return Measured(token_kl_nats=kl, top1_agreement=agreement, scores=scores)


def make_ruler(progress: Progress) -> Ruler:
    """The reference, prompts and calibration text that it writes once, and its answers to the prompts held out."""
    reference = load("embedded", dtype=torch.bfloat16)
    path, calibration = WORK / "prompts.jsonl", WORK / "calibration.jsonl"
    if not calibration.is_file():
        progress("structures: write prompts", 0, 1)
        WORK.mkdir(parents=True, exist_ok=True)
        prompts = load_prompts("self", reference, NUM_PROMPTS, 0)
        _write_rows(path, ({"prompt": prompt.text} for prompt in prompts))
        answers = sample(reference, [prompt.ids for prompt in prompts], Sampling(CALIBRATION_TOKENS, 1.0))
        rows = zip(answers.tokens_BT, answers.attention_BT, strict=True)
        _write_rows(calibration, ({"text": reference.tokenizer.decode(tokens[real])} for tokens, real in rows))
    held_out = load_prompts(str(path), reference, NUM_HELD_OUT, 0, "held_out")
    rollouts = sample(reference, [prompt.ids for prompt in held_out], Sampling(HELD_OUT_TOKENS))
    return Ruler(reference, path, calibration, rollouts)


def _write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def run(name: str, entry: Entry, ruler: Ruler, progress: Progress) -> StructureRecord:
    """Damage, measure, repair, measure, verify and export."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    calibrated = {"calibration": str(ruler.calibration)} if entry.method != "magnitude" else {}
    damaged = recoup.degrade(
        model="embedded",
        method=entry.method,
        output=folder / "degrade",
        progress=progress,
        **calibrated,
        **entry.settings,
    )
    before = ruler.measure(damaged.checkpoint, progress)
    rate = next(rate for least, rate in RATES if before.token_kl_nats >= least)
    rate = rate if entry.method == "quantize" else PRUNED_RATE
    settings = {"learning_rate": rate, **REPAIR, **entry.repair}
    repair = recoup.recover(
        student=damaged.checkpoint, teacher="embedded", prompts=str(ruler.prompts), output=folder / "recover",
        progress=progress, **settings,
    )  # fmt: skip
    exports, refused = _export(repair.checkpoint, entry.targets, folder, progress)
    record = StructureRecord(
        name=name,
        summary=damaged.summary,
        bits_per_weight=damaged.bits_per_weight or 0.0,
        sparsity=damaged.sparsity,
        num_parameters=damaged.num_parameters,
        degrade_seconds=damaged.seconds,
        degraded=before,
        recovered=ruler.measure(repair.checkpoint, progress),
        learning_rate=settings["learning_rate"],
        num_tokens=repair.num_tokens,
        num_trained=repair.num_trained or 0,
        optimizer_bytes=repair.optimizer_bytes or 0,
        repair_seconds=repair.seconds,
        exact=verify_checkpoint(repair.checkpoint).exact,
        exports=exports,
        refused=refused,
        provenance=environment(),
    )
    shutil.rmtree(folder)
    return record


def _export(
    checkpoint: str, targets: tuple[str, ...], folder: Path, progress: Progress
) -> tuple[tuple[Exported, ...], dict[str, str]]:
    done, refused = [], {}
    for target in targets:
        try:
            result = recoup.export(model=checkpoint, to=target, output=folder / target, progress=progress)
        except RecoupError as error:
            refused[target] = str(error).replace(str(folder), "")
            continue
        done.append(
            Exported(
                target=target,
                consumer=result.consumer,
                token_kl_nats=result.token_kl_nats,
                size_bytes=sum(result.files.values()),
            )
        )
    return tuple(done), refused


def _scores(model: LanguageModel, progress: Progress) -> dict[str, float]:
    found = score(model, Evaluate(tasks=TASKS, limit=NUM_ITEMS), progress)
    return {task.task: sum(task.scores) / len(task.scores) for task in found.tasks}


def main() -> None:
    """Run the entries named, or all that have no record yet."""
    unknown = [name for name in sys.argv[1:] if name not in ENTRIES]
    if unknown:
        sys.exit(f"unknown structure {unknown[0]!r}; known: {', '.join(ENTRIES)}")
    names = sys.argv[1:] or [name for name in ENTRIES if not (RECORDS / f"{name}.json").is_file()]
    RECORDS.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with terminal(console) as progress:
        ruler = make_ruler(progress)
        reference = RECORDS / "reference.json"
        if not reference.is_file():
            write_text(reference, json.dumps(_scores(ruler.reference, progress), indent=2) + "\n")
    for name in names:
        with terminal(console) as progress:
            record = run(name, ENTRIES[name], ruler, progress)
        write_text(RECORDS / f"{name}.json", record.model_dump_json(indent=2) + "\n")
        kl = f"{record.degraded.token_kl_nats:.3f} → {record.recovered.token_kl_nats:.3f} nats"
        console.print(f"{name}: {kl}, {'exact' if record.exact else 'NOT EXACT'}", highlight=False)


if __name__ == "__main__":
    main()
