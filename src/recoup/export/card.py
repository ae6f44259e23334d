"""A model card, README.md: what was damaged, what came back and at what cost, from the run folder that the model lies in.

A model outside a run gets a short card: its structure, and how close the export is. Whatever comes from models, data and users
is escaped: on the hub a card is a web page.
"""

import re
from pathlib import Path

import yaml

from recoup.errors import DataError
from recoup.report.gather import Run, gather
from recoup.report.headline import headline
from recoup.report.table import score_table_markdown
from recoup.report.words import counted, duration, one_line, significant
from recoup.results import ExportResult, RecoverResult
from recoup.run_folder import RunFolder, result_path

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_ID = re.compile(r"^\w[\w.-]*/\w[\w.-]*$")
SIGNS = re.compile(r"([\\`*_\[\]|#])")
GIB, MIB = 2**30, 2**20
USES = {
    "safetensors": "It loads with `AutoModelForCausalLM.from_pretrained`.",
    "compressed-tensors": "It loads with `AutoModelForCausalLM.from_pretrained` where compressed-tensors is installed; "
    "vLLM reads the same files.",
    "gguf": "It runs with `llama-cli -m model.gguf`.",
}


def model_card(result: ExportResult) -> str:
    """The card of an export, as Markdown with a YAML header."""
    run = run_of(result.source)
    parts = [_header(result, run), f"# {plain(_title(result, run))}", _repair(run) if run else "", _export(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def run_of(source: str) -> Run | None:
    """The run that a checkpoint lies in (RUN/recover/checkpoint, RUN/degrade/STEP/checkpoint), or what repaired it."""
    path = Path(source).expanduser().resolve()
    for root in path.parents[1:3]:
        try:
            run = gather(RunFolder(root))
        except DataError:
            continue
        if path in _checkpoints(root):
            return run
    try:
        recovery = RecoverResult.read(result_path(path.parent))
    except DataError:
        return None
    return Run(path.parent.name, "", {}, (), None, None, recovery, (), None)


def plain(text: str) -> str:
    """Foreign text on one line, with nothing left that Markdown or HTML would act on."""
    return SIGNS.sub(r"\\\1", one_line(text))


def _checkpoints(root: Path) -> list[Path]:
    return [*root.glob("recover/checkpoint"), *root.glob("degrade/*/checkpoint")]


def _header(result: ExportResult, run: Run | None) -> str:
    """What the hub reads; strings are quoted by the YAML library."""
    tree: dict[str, object] = {}
    origin = _origin(result, run)
    if origin:
        tree["base_model"] = origin
    tree["library_name"] = "gguf" if result.target == "gguf" else "transformers"
    tree["pipeline_tag"] = "text-generation"
    tree["tags"] = ["recoup", *([result.target] if result.target != "safetensors" else [])]
    return f"---\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}---"


def _origin(result: ExportResult, run: Run | None) -> str | None:
    """The undamaged model's name on the hub, where it has one."""
    candidates = [result.source]
    if run:
        candidates = [*(injury.source for injury in run.injuries), *(run.recovery.teachers if run.recovery else ())]
    for name in (candidate.partition("@")[0] for candidate in candidates):
        if name == "embedded":
            return EMBEDDED_HUB_ID
        if HUB_ID.match(name) and not Path(name).exists():
            return name
    return None


def _title(result: ExportResult, run: Run | None) -> str:
    path = Path(result.source)
    name = run.name if run else (path.parent if path.name == "checkpoint" else path).name
    return f"{name}, repaired by recoup" if run and run.recovery else f"{name}, exported by recoup"


def _repair(run: Run) -> str:
    """Damage, what came back, cost, origin."""
    said = headline(run)
    lines = [plain(said.title), *map(plain, said.sentences)]
    parts = [" ".join(lines)]
    if run.injuries:
        parts.append("\n".join(["Damage:", "", *(f"- {plain(injury.summary)}" for injury in run.injuries)]))
    if run.evaluation:
        intervals = f"Values with 95% intervals (paired bootstrap, {run.evaluation.num_bootstrap} resamples)."
        parts.append(f"{score_table_markdown(run.evaluation)}\n{intervals}")
    if run.recovery:
        parts.append(_cost(run.recovery))
    return "\n\n".join(parts)


def _cost(recovery: RecoverResult) -> str:
    kept = "kept bit for bit" if recovery.structure_exact else "not kept"
    teachers = ", ".join(map(plain, recovery.teachers))
    return (
        f"Repaired by on-policy self-distillation from {teachers}: {counted(recovery.steps, 'step')}, "
        f"{counted(recovery.num_tokens, 'token')} of {counted(recovery.num_prompts, 'prompt')}, {duration(recovery.seconds)}, "
        f"peak memory {recovery.peak_memory_bytes / GIB:.1f} GiB. Structure {kept}: {plain(recovery.structure)}."
    )


def _export(result: ExportResult) -> str:
    types = ", ".join(f"{count} × {plain(kind)}" for kind, count in result.tensor_types.items())
    size = sum(result.files.values()) / MIB
    lines = [
        f"Format: {result.target}, {size:.1f} MiB; weights: {types}. {USES[result.target]}",
        f"Structure of the trained model: {plain(result.structure)}.",
        f"Read back by {plain(result.consumer)} on {counted(result.num_tokens, 'token')}: {_difference(result)}.",
    ]
    notes = "\n".join(f"- {plain(note)}" for note in result.notes)
    return "\n\n".join(["## Export", *lines, *([notes] if notes else [])])


def _difference(result: ExportResult) -> str:
    if result.max_logit_difference == 0:
        return "every logit equals the trained model's, bit for bit"
    return (
        f"mean KL from the trained model {significant(result.token_kl_nats)} nats per token, top-1 agreement "
        f"{result.top1_agreement:.4f}, largest difference of two logits {significant(result.max_logit_difference)}"
    )
