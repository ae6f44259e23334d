"""The table of docs/structures.md, from the records that `tools.structures` keeps."""

import json
from pathlib import Path

from tools.structures import (
    ENTRIES,
    HELD_OUT_TOKENS,
    NUM_HELD_OUT,
    NUM_ITEMS,
    PRUNED_RATE,
    RATES,
    RECORDS,
    REPAIR,
    TASKS,
    Exported,
    StructureRecord,
)

MIB = 2**20
TRAINED = {"weights": "int3", "lora": "int3_lora", "scales": "int3_scales", "norms": "int3_norms"}


def structure_table() -> str:
    """A row per structure that was measured, in the order of `ENTRIES`; those without a record are named below."""
    reference = json.loads((RECORDS / "reference.json").read_text(encoding="utf-8"))
    records = [(name, _read(RECORDS / f"{name}.json")) for name in ENTRIES]
    lines = [
        f"| structure | bits per weight | token KL, nats | {' | '.join(TASKS)} | exact | export, read back by, KL |",
        f"|---|---|---|{'---|' * len(TASKS)}---|---|",
        f"| undamaged | 16 | 0 | {' | '.join(f'{reference[task]:.2f}' for task in TASKS)} | | |",
        *(_row(record) for _, record in records if record),
        "",
        _legend(),
    ]
    missing = [name for name, record in records if record is None]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def trained_table() -> str:
    """What trained on the same damaged model for the same steps, its memory, and what it gave back."""
    rows = [(what, _read(RECORDS / f"{name}.json")) for what, name in TRAINED.items()]
    known = {what: record for what, record in rows if record}
    whole = _gain(known["weights"])
    lines = [
        "| `train.what` | numbers that move | AdamW's moments | token KL, nats | of the gain with `weights` |",
        "|---|---|---|---|---|",
    ]
    for what, record in known.items():
        kl = f"{record.degraded.token_kl_nats:.2f} → {record.recovered.token_kl_nats:.2f}"
        size, share = f"{record.optimizer_bytes / MIB:.1f} MiB", f"{_gain(record) / whole:.0%}"
        lines.append(f"| `{what}` | {record.num_trained:,} | {size} | {kl} | {share} |")
    return "\n".join(lines) + "\n"


def _gain(record: StructureRecord) -> float:
    return record.degraded.token_kl_nats - record.recovered.token_kl_nats


def _row(record: StructureRecord) -> str:
    before, after = record.degraded, record.recovered
    cells = [
        f"`{record.name}`: {_what(record)}",
        f"{record.bits_per_weight:.2f}",
        f"{before.token_kl_nats:.3f} → {after.token_kl_nats:.3f}",
        *(f"{before.scores[task]:.2f} → {after.scores[task]:.2f}" for task in TASKS),
        "yes" if record.exact else "**no**",
        "; ".join([*map(_export, record.exports), *(f"{target}: {why}" for target, why in record.refused.items())]),
    ]
    return f"| {' | '.join(cells)} |"


def _what(record: StructureRecord) -> str:
    """The summary, without the stand-ins of llama.cpp's formats: the structure itself names them."""
    return "; ".join(part for part in record.summary.split("; ") if " took " not in part)


def _export(export: Exported) -> str:
    return f"{export.target} ({export.size_bytes / MIB:.0f} MiB), {export.consumer}, {export.token_kl_nats:.1e}"


def _legend() -> str:
    return (
        f"Damage → after the same small repair for all: {REPAIR['steps']} steps of {REPAIR['batch_size']} rollouts of "
        f"{REPAIR['rollout']['max_tokens']} tokens. Only the learning rate goes by the damage (grids: "
        f"{', '.join(f'{rate:g} from {least:g} nats' for least, rate in RATES)}; pruned: {PRUNED_RATE:g}), and `lora`, "
        "`scales` and `norms` train that part alone. Token KL to the undamaged model on its answers to "
        f"{NUM_HELD_OUT} held-out prompts, {HELD_OUT_TOKENS} tokens each; benchmarks with {NUM_ITEMS} items each, so "
        "differences under 0.1 are noise. Bits per weight count embeddings and head. Exact: every constrained weight of the "
        "repaired model lies on its grid or mask, bit for bit. The last column's KL is between the repaired and the exported "
        "model as the consumer computes it."
    )


def _read(path: Path) -> StructureRecord | None:
    return StructureRecord.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None
