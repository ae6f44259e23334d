"""The verdict on cases made from the real model, where the right answer is known. Minutes on a CPU.

| case | right answer, and why |
|---|---|
| untouched | nothing significant lost |
| slight noise | nothing significant lost: within what 8-bit rounding costs |
| mild fine-tuning | interpolate with the base: a mix gets most back at once, and training must beat that first |
| 3-bit rounding | re-quantize better: GPTQ on the same grid gets about half back in a minute |
| half of the weights pruned by magnitude | re-quantize better, which for a pruned model means to prune better: SparseGPT |
| blocks in another order | not recoverable at this size: worse than a predictor without context |
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recoup.config import SFT, Degrade, Diagnose, Magnitude, Quantize, Triage
from recoup.data.prompts import load_prompts
from recoup.degrade.run import DegradeInputs
from recoup.degrade.run import run as degrade
from recoup.diagnose.run import DiagnoseInputs
from recoup.diagnose.run import run as diagnose
from recoup.models.load import LanguageModel, load
from recoup.models.save import save
from recoup.triage.run import TriageInputs, run

pytestmark = pytest.mark.slow

TEACHER = "embedded"
NOISE = 0.005  # of each matrix's standard deviation
PLAN = {
    "steps": 40, "batch_size": 8, "micro_batch_size": 8, "warmup_steps": 2, "learning_rate": 1e-4, "rollout": {"max_tokens": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the teacher writes, once for all cases."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    found = load_prompts("self", load(TEACHER, dtype=torch.bfloat16), 96, seed=0)
    path.write_text("".join(json.dumps({"prompt": prompt.text}) + "\n" for prompt in found))
    return path


def noisy(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in model.model.parameters():
        if weight.dim() > 1:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=NOISE * float(weight.std()))


def shuffled(model: LanguageModel) -> None:
    layers = model.model.model.layers
    order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(0)).tolist()
    states = [{name: weight.clone() for name, weight in layer.state_dict().items()} for layer in layers]
    for layer, source in zip(layers, order, strict=True):
        layer.load_state_dict(states[source])


def changed(change: Callable[[LanguageModel], None], folder: Path) -> str:
    model = load(TEACHER)
    with torch.no_grad():
        change(model)
    save(model, model.structure, folder)
    return str(folder)


def tuned(folder: Path) -> Degrade:
    """A narrow task with a form of its own: sums, answered as a call."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Add {a} and {b}."},
                {"role": "assistant", "content": f'<call>{{"tool": "add", "values": [{a}, {b}]}}</call>'},
            ]
        }
        for a, b in ((7 * i % 90, 11 * i % 70) for i in range(64))
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SFT(train_file=str(path), learning_rate=5e-5, batch_size=8, micro_batch_size=8, max_tokens=128)


def student(case: str, folder: Path) -> str:
    if case == "untouched":
        return TEACHER
    if case in ("noise", "shuffled"):
        return changed({"noise": noisy, "shuffled": shuffled}[case], folder / "student")
    steps: dict[str, Degrade] = {
        "int3": Quantize(bits=3, group_size=64, symmetric=True),
        "magnitude50": Magnitude(sparsity=0.5),
        "sft": tuned(folder),
    }
    return degrade(steps[case], DegradeInputs(TEACHER, 0), folder).checkpoint


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ("untouched", "nothing significant lost"),
        ("noise", "nothing significant lost"),
        ("sft", "interpolate with the base"),
        ("int3", "re-quantize better"),
        ("magnitude50", "re-quantize better"),
        ("shuffled", "not recoverable at this size"),
    ],
)
@pytest.mark.timeout(900)
def test_right_on_cases_whose_answer_is_known(case: str, verdict: str, prompts: Path, tmp_path: Path) -> None:
    asked = Diagnose(prompts=str(prompts), num_prompts=12, max_tokens=32, behaviour=False)
    hurt = student(case, tmp_path)
    found = diagnose(asked, DiagnoseInputs(TEACHER, hurt, 0), tmp_path / "diagnosis")
    config = Triage.model_validate({"pilot_steps": 4, "plan": {**PLAN, "terms": [{"prompts": str(prompts)}]}})
    result = run(config, TriageInputs(TEACHER, hurt, found, asked=asked), tmp_path / "triage")
    print(case, result.model_dump_json(indent=1))
    assert result.verdict == verdict, result.reason
