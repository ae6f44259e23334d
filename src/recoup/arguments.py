"""Arguments and options that verbs of the command line share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Folder, hub id[@revision], GGUF file, adapter folder, or `embedded`.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the stage.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]
RunOutput = Annotated[Path | None, typer.Option("--output", "-o", help="Run folder; `runs/NAME` if not given.")]
Seed = Annotated[int, typer.Option(help="Seeds every random choice.")]
Template = Annotated[str | None, typer.Option(help="Jinja file, or `plain`, for a model without a chat template.")]


class Kind(StrEnum):
    """What `ls` lists."""

    INJURIES = "injuries"
    METHODS = "methods"
    TASKS = "tasks"
    MODELS = "models"
