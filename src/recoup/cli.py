"""The command line: arguments → config → pipeline; no logic. Heavy imports wait until a verb needs them.

A mistake of the user's is one line on standard error and exit code 2. Ctrl-C is exit code 130, and the same command goes on
where it stopped.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import recoup
from recoup import show
from recoup.arguments import Kind, Model, Output, RunOutput, Seed, Settings, Template
from recoup.config import METHODS, RunConfig, Sweep
from recoup.config_file import dump_config, load, load_config, settings_tree, shipped_config
from recoup.errors import RecoupError
from recoup.progress import terminal
from recoup.run_folder import RunFolder

app = typer.Typer(
    name="recoup",
    help="Give a damaged language model back what it lost, from its own earlier checkpoints.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
RANK = os.environ.get("RANK", "0")  # of this process under `accelerate launch`, where process 0 speaks for all
out, err = Console(quiet=RANK != "0"), Console(stderr=True, quiet=RANK != "0")


@app.command()
def demo(settings: Settings = None, output: RunOutput = None) -> None:
    """The whole job on the embedded model: damage, diagnose, recover, evaluate, report.

    Example: `recoup demo`
    """
    _run(load_config(shipped_config("demo"), settings or []), output)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file; `configs/` holds one per kind of run.")],
    settings: Settings = None,
    output: RunOutput = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Run every stage of a config; a stopped run goes on where it stopped.

    Example: `recoup run configs/nf4.yaml recover.learning_rate=1e-5 --dry-run`
    """
    resolved = load_config(config, settings or [])
    if dry_run:
        out.print(dump_config(resolved), markup=False, highlight=False, end="", soft_wrap=True)
    else:
        _run(resolved, output)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A YAML file; `configs/sweeps/` holds some.")],
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; `sweeps/NAME` if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Run methods on injuries over seeds, and rank them; a stopped sweep goes on where it stopped.

    Exit code 1 if a run failed.

    Example: `recoup sweep configs/sweeps/forgetting.yaml 'seeds=[0, 1, 2]'`
    """
    from recoup.sweep.expand import dry_run as expanded
    from recoup.sweep.run import run as run_sweep
    from recoup.sweep.table import show_leaderboard

    resolved = load(Sweep, config, settings or [])
    if dry_run:
        show.planned_runs(out, *expanded(resolved))
        return
    folder = output or Path("sweeps") / resolved.name
    with terminal(err) as progress:
        result = run_sweep(resolved, folder, progress)
    show_leaderboard(out, result)
    out.print(f"leaderboard: {escape(str(folder / 'leaderboard.html'))}", soft_wrap=True)
    if result.failed:
        raise typer.Exit(1)


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="A YAML file; `configs/` holds one per kind of run.")],
    settings: Settings = None,
) -> None:
    """Predict memory and time of a run's repair before anything is loaded, and what would need less.

    Example: `recoup plan configs/qwen2.5-7b-science-nf4.yaml recover.train.what=lora`
    """
    from recoup.plan.run import run as predict
    from recoup.plan.show import planned

    planned(out, predict(load_config(config, settings or []), Path("results")))


@app.command()
def degrade(
    model: Model,
    method: Annotated[str, typer.Option(help="See `recoup ls injuries`.")],
    output: Output,
    settings: Settings = None,
    seed: Seed = 0,
    chat_template: Template = None,
) -> None:
    """Damage a model: fine-tune it narrowly, quantize it, or prune it.

    Example: `recoup degrade embedded --method quantize --output int3 bits=3 group_size=64`
    """
    with terminal(err) as progress:
        options = _options(settings, seed, chat_template)
        result = recoup.degrade(model=model, method=method, output=output, progress=progress, **options)
    show.degraded(out, result)


@app.command()
def diagnose(
    teacher: Annotated[str, typer.Option(help="The earlier checkpoint.")],
    student: Annotated[str, typer.Option(help="The damaged model.")],
    output: Output,
    settings: Settings = None,
    history: Annotated[Path | None, typer.Option(help="Folder of checkpoints: which was best at what?")] = None,
    seed: Seed = 0,
) -> None:
    """Measure what was lost and where, try what is cheap, and say what to do about it.

    Settings of the triage begin with `triage.` (`triage=null`: none), those of the history with `history.`; `chat_template=FILE`
    (or `plain`) is for a model without one.

    Example: `recoup diagnose --teacher embedded --student int3/checkpoint --output diagnosis triage.pilot_steps=0`
    """
    from recoup.examine import Patient, examine

    with terminal(err) as progress:
        found = examine(Patient(teacher, student, history, seed), settings_tree(settings or []), output, progress)
    show.examined(out, found)


@app.command()
def recover(
    student: Annotated[str, typer.Option(help="The damaged model.")],
    teacher: Annotated[str, typer.Option(help="Its own earlier checkpoint.")],
    output: Output,
    settings: Settings = None,
    seed: Seed = 0,
    chat_template: Template = None,
) -> None:
    """Repair a model by on-policy self-distillation from its own earlier checkpoint.

    `method=sft` and the other words of `recoup ls methods` repair it in another way, to compare with.

    Example: `recoup recover --student int3/checkpoint --teacher embedded --output repaired prompts=my_prompts.jsonl steps=50`
    """
    with terminal(err) as progress:
        options = _options(settings, seed, chat_template)
        result = recoup.recover(student=student, teacher=teacher, output=output, progress=progress, **options)
    show.recovered(out, result)


@app.command()
def evaluate(
    reference: Annotated[str, typer.Option(help="The undamaged model.")],
    degraded: Annotated[str, typer.Option(help="The damaged model.")],
    output: Output,
    settings: Settings = None,
    recovered: Annotated[str | None, typer.Option(help="The repaired model.")] = None,
    seed: Seed = 0,
) -> None:
    """Compare models on benchmarks and on fidelity to the reference, with paired statistics.

    Example: `recoup evaluate --reference embedded --degraded int3/checkpoint --output proof limit=200 'tasks=[arc_easy, piqa]'`
    """
    with terminal(err) as progress:
        options = {**settings_tree(settings or []), "seed": seed, "progress": progress}
        result = recoup.evaluate(reference=reference, degraded=degraded, recovered=recovered, output=output, **options)
    show.evaluated(out, result)


@app.command()
def verify(model: Model) -> None:
    """Check that every constrained weight lies on its grid or mask, bit for bit; exit code 1 if one does not.

    Example: `recoup verify runs/demo/recover/checkpoint`
    """
    from recoup.models.check import verify_checkpoint

    verification = verify_checkpoint(model)
    show.verified(out, model, verification)
    if not verification.exact:
        raise typer.Exit(1)


@app.command()
def export(
    model: Model,
    to: Annotated[str, typer.Option(help="`safetensors`, `compressed-tensors` (vLLM) or `gguf` (llama.cpp).")],
    output: Output,
    settings: Settings = None,
) -> None:
    """Write a model in another program's format, and keep it only if that program reads the same model back.

    Example: `recoup export runs/demo/recover/checkpoint --to gguf --output repaired-gguf`
    """
    with terminal(err) as progress:
        result = recoup.export(model=model, to=to, output=output, progress=progress, **settings_tree(settings or []))
    show.exported(out, result)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders; several are compared on one page.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Page of the comparison; `comparison.html` if not given.")
    ] = None,
) -> None:
    """Rebuild the report of a run, or compare several runs on one page; needs no GPU and no model.

    Example: `recoup report runs/int3 runs/int3-sft --output comparison.html`
    """
    from recoup.report import write_comparison, write_report

    runs = [RunFolder(folder) for folder in folders]
    page = write_report(runs[0]) if len(runs) == 1 else write_comparison(runs, output or Path("comparison.html"))
    out.print(f"wrote {escape(str(page))}", soft_wrap=True)


@app.command()
def correlate(
    folders: Annotated[list[Path], typer.Argument(help="Run folders whose repairs were probed (`recover.probe`).")],
) -> None:
    """Does CKA predict recovery? Correlation of CKA gain with capability gain over runs, training step partialled out.

    Example: `recoup correlate runs/int3-seed0 runs/int3-seed1 runs/nf4-seed0`
    """
    from recoup.report.correlation import correlate as work_out
    from recoup.report.correlation import correlation_table

    table = correlation_table(work_out([RunFolder(folder) for folder in folders]))
    out.print(table, markup=False, highlight=False, soft_wrap=True)


@app.command()
def ls(kind: Annotated[Kind, typer.Argument(help="What to list.")] = Kind.METHODS) -> None:
    """List injuries, methods of repair, tasks or models, a line each.

    Example: `recoup ls tasks`
    """
    from recoup.degrade import describe_injuries
    from recoup.models.source import describe_models

    if kind is Kind.TASKS:
        from recoup.evaluate.tasks import known_tasks

        show.listed(out, known_tasks())
    else:
        repairs = {str(name): about for name, about in METHODS.items()}
        show.listed(out, {"injuries": describe_injuries(), "methods": repairs, "models": describe_models()}[kind])


def main() -> None:
    """Entry point of the `recoup` command."""
    try:
        app()
    except RecoupError as error:
        who = "recoup" if RANK == "0" else f"recoup (process {RANK})"  # what only one of them met must not stay unsaid
        line = f"{who}: {escape(' '.join(str(error).split()))}"
        Console(stderr=True).print(line, style="red", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("recoup: stopped; the same command goes on where it stopped", soft_wrap=True)
        sys.exit(130)


def _run(config: RunConfig, output: Path | None) -> None:
    from recoup.pipeline import run as run_pipeline

    folder = RunFolder(output or Path("runs") / config.name)
    with terminal(err) as progress:
        result = run_pipeline(config, folder, progress)
    show.evaluated(out, result)
    out.print(f"report: {escape(str(folder.report))}", soft_wrap=True)


def _options(settings: list[str] | None, seed: int, chat_template: str | None) -> dict[str, Any]:
    return {**settings_tree(settings or []), "seed": seed, "chat_template": chat_template}
