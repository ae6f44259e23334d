"""What this machine does: matrix products and memory, measured in about two seconds, once a process."""

import time
from collections.abc import Callable
from functools import cache

import torch

from recoup.plan.record import MachineRates

GEMM_SIZE = {"cpu": 1024, "cuda": 4096}  # a square of this side keeps the device busy
COPY_NUMBERS = {"cpu": 2**25, "cuda": 2**28}  # float32: 128 MiB and 1 GiB, far more than any cache
MEASURE_SECONDS = 0.7
WARM_UPS = 2


@cache
def machine_rates(dtype: torch.dtype) -> MachineRates:
    """Rates of the device that the models would be on, with the present number of threads."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = GEMM_SIZE[device]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2))
    source = torch.ones(COPY_NUMBERS[device], device=device)
    target = torch.empty_like(source)
    gemm = best_seconds(lambda: a @ b, device)
    copy = best_seconds(lambda: target.copy_(source), device)
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    moved = 2 * source.numel() * source.element_size()
    return MachineRates(device=name, gemm_flops=2 * side**3 / gemm, bytes_per_second=moved / copy)


def best_seconds(work: Callable[[], object], device: str) -> float:
    """Shortest time of many calls: what the machine can do when nothing is in the way."""
    best, began = float("inf"), time.perf_counter()
    for call in range(10**6):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        end = time.perf_counter()
        if call >= WARM_UPS:
            best = min(best, end - start)
            if end - began > MEASURE_SECONDS:
                break
    return best
