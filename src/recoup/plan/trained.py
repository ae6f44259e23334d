"""What of a student trains and what its structure keeps, in numbers of weights: from the config and the names alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from recoup.config import Train
from recoup.config.degrade import FORMAT_DEFAULTS, Degrade, Magnitude, Quantize, SparseGPT, Wanda
from recoup.models.source import EMBEDDED, resolve
from recoup.plan.shapes import ModelShape, Weight
from recoup.structure.spec import JSON_NAME

SCALE_BYTES = 8  # of a group: a scale and a zero point or minimum, float32
USUAL_GROUP = 32  # weights that share a scale, where a format fixes it and nothing else is known
NO_GROUP = 1024  # about a matrix's inputs: one scale for each output channel


@dataclass(frozen=True)
class Kept:
    """What one weight keeps."""

    group_size: int | None = None  # of its grid; null: no grid
    masked: bool = False


@dataclass(frozen=True)
class Trained:
    """Numbers that the optimizer moves, and what the guard holds beside the model for them."""

    numbers: int
    factored: int  # numbers in Adafactor's state
    latent: int  # numbers in latent copies
    start: int  # numbers in the copies that LoRA's update or trained scales start from
    moved: int  # numbers of the model's own weights that change
    largest: int  # numbers in the largest tensor that the optimizer moves
    largest_on_grid: int  # numbers in the largest matrix that is projected onto a grid


def kept_after(shape: ModelShape, injuries: Sequence[Degrade]) -> dict[str, Kept]:
    """What each weight keeps after the injuries of a run, by name."""
    kept: dict[str, Kept] = {}
    for injury in injuries:
        names = [weight.name for weight in shape.weights if weight.is_linear]
        if isinstance(injury, Quantize):
            size = injury.group_size or FORMAT_DEFAULTS.get(injury.format, {}).get("group_size") or USUAL_GROUP
            if injury.embeddings:
                names = [weight.name for weight in shape.weights if not weight.is_vector]
            kept |= {name: Kept(size, kept.get(name, Kept()).masked) for name in names}
        elif isinstance(injury, Magnitude | Wanda | SparseGPT):
            kept |= {name: Kept(kept.get(name, Kept()).group_size, masked=True) for name in names}
    return kept


def kept_by(name: str, config: PretrainedConfig, shape: ModelShape) -> dict[str, Kept]:
    """What each weight of a model that a user has keeps: as it declares, or every linear layer's of a compressed one.

    Masks that a model does not declare would be found in its weights, which are not read here.
    """
    source = resolve(name)
    declared = Path(source.location) / JSON_NAME
    if declared.is_file():
        weights = json.loads(declared.read_text(encoding="utf-8"))["weights"]
        return {weight: _declared(entry) for weight, entry in weights.items()}
    compressed = getattr(config, "quantization_config", None) is not None
    if name == EMBEDDED or not (compressed or source.kind == "gguf"):
        return {}
    return {weight.name: Kept(USUAL_GROUP) for weight in shape.weights if weight.is_linear}


def trained(shape: ModelShape, train: Train, kept: Mapping[str, Kept]) -> Trained:
    """Count what trains (see `training.plan`)."""
    inside = [w for w in shape.weights if train.layers is None or w.block in train.layers]
    grids = [w for w in inside if kept.get(w.name, Kept()).group_size]
    on_grid = max((w.size for w in grids), default=0)
    if train.what == "lora":
        linears, rank = [w for w in inside if w.is_linear], train.lora_rank
        sizes = [rank * (w.rows + w.columns) for w in linears]
        factored = sum(w.rows + w.columns + 2 * rank for w in linears)
        start = sum(w.size for w in linears)
        return Trained(sum(sizes), factored, 0, start, start, max(sizes, default=0), on_grid)
    if train.what == "scales":
        groups = [w.size // (kept[w.name].group_size or 1) for w in grids]
        factored = sum(w.rows + group // w.rows for w, group in zip(grids, groups, strict=True))
        start = sum(w.size for w in grids)
        return Trained(sum(groups), factored, 0, start, start, max(groups, default=0), on_grid)
    chosen = [w for w in inside if train.what == "weights" or w.is_vector]
    names = {w.name for w in grids}
    latent = sum(w.size for w in chosen if w.name in names)
    largest = max((w.size for w in chosen), default=0)
    numbers = sum(w.size for w in chosen)
    return Trained(numbers, sum(map(_factored, chosen)), latent, 0, numbers, largest, on_grid)


def structure_bytes(shape: ModelShape, kept: Mapping[str, Kept]) -> int:
    """Masks, a byte for each weight, and the parameters of grids."""
    sizes = {weight.name: weight.size for weight in shape.weights}
    masks = sum(sizes.get(name, 0) for name, keeps in kept.items() if keeps.masked)
    groups = sum(sizes.get(name, 0) // keeps.group_size for name, keeps in kept.items() if keeps.group_size)
    return masks + SCALE_BYTES * groups


def _factored(weight: Weight) -> int:
    return weight.rows if weight.is_vector else weight.rows + weight.columns


def _declared(entry: Mapping[str, object]) -> Kept:
    grid = entry["grid"]
    group = (grid.get("group_size") or NO_GROUP) if isinstance(grid, dict) else None
    return Kept(group, entry["mask_shape"] is not None)
