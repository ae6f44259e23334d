"""Settings that need less memory, each with its predicted peak: alone, and added up until the run fits."""

from collections.abc import Callable
from typing import Any

from recoup.config import Recover
from recoup.plan.record import Alternative

Predict = Callable[[Recover], int]  # settings → peak bytes


def alternatives(recover: Recover, predict: Predict, available: int) -> tuple[Alternative, ...]:
    """Every single change that lowers the peak; then, where none is enough, changes added up in this order, cheapest first.

    Args:
        recover: the settings as they are.
        predict: peak memory of settings, bytes.
        available: bytes that are free; 0 where nobody knows.
    """
    now, found = predict(recover), []
    added: list[str] = []
    together = recover
    for settings in _changes(recover):
        alone = predict(changed(recover, settings))
        if alone < now:
            found.append(_alternative(settings, alone, available))
        if predict(changed(together, settings)) < predict(together):
            together, added = changed(together, settings), added + list(settings)
    enough = available and min([now, *(choice.peak_bytes for choice in found)]) <= available
    if len(found) > 1 and not enough:
        found.append(_alternative(tuple(added), predict(together), available))
    return tuple(found)


def changed(recover: Recover, settings: tuple[str, ...]) -> Recover:
    """The settings after `recover.part.key=value` each."""
    tree = recover.model_dump()
    for setting in settings:
        path, value = setting.split("=")
        *parents, key = path.split(".")[1:]
        node: dict[str, Any] = tree
        for parent in parents:
            node = node[parent]
        node[key] = {"true": True}.get(value, value)
    return Recover.model_validate(tree)


def _changes(recover: Recover) -> list[tuple[str, ...]]:
    """What can be changed, what costs least first."""
    changes: list[tuple[str, ...]] = []
    if recover.micro_batch_size > 1:
        changes.append((f"recover.micro_batch_size={max(1, recover.micro_batch_size // 4)}",))
    changes.append(("recover.memory.gradient_checkpointing=true",))
    changes.append(("recover.memory.optimizer=adamw_8bit",))
    changes.append(("recover.memory.optimizer=adafactor",))
    changes.append(("recover.teachers.hold=int8",))
    changes.append(("recover.train.what=lora",))
    return changes


def _alternative(settings: tuple[str, ...], peak: int, available: int) -> Alternative:
    return Alternative(settings=settings, peak_bytes=peak, fits=peak <= available if available else None)
