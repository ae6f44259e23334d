"""Time two ways of doing the same thing in turn, so that a machine whose speed drifts drifts for both."""

import statistics
import time
from collections.abc import Callable

REPEATS = 5


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], peer: str) -> None:
    """Print the median seconds of each and how many times faster ours is; one warm-up of each is not counted."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(REPEATS + 1):
        for who, work in (("ours", ours), ("theirs", theirs)):
            began = time.perf_counter()
            work()
            if repeat:
                seconds[who].append(time.perf_counter() - began)
    mine, other = (statistics.median(seconds[who]) for who in ("ours", "theirs"))
    print(f"{name}: {mine:.3f} s, {peer} {other:.3f} s, {other / mine:.2f} times as fast", flush=True)
