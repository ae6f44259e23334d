"""CKA of hidden states against the PyPI peers: layer × layer map, minibatches, diagonal; and who is right.

Run: `python -m benchmarks.cka` for 30 × 30 layers of width 576 and 4,096 tokens (minutes); `--large` for 16,384 tokens, where
pytorch-cka's n × n matrices of all layers do not fit; `--layers 4 --tokens 512` for a look. Peers that are not installed are
said to be: `pip install --no-deps torch-cka==0.21 ckatorch==1.0.3 pytorch-cka==1.1.3 repsim==0.1.5 tqdm seaborn`.

Every contender is a process of its own on one thread, in which it and a matrix product of this machine's take turns. Seconds
are of the processor, so that other work on the machine counts less; medians are printed. MB is the peak above the features.
`GEMM` is the share of the product's rate, in float32, that the operations of the cheapest exact form (`recoup.cka.sums`) come
to. Peers that take n³ operations are timed on 2 × 2 layers at 512 and 1,024 tokens and extrapolated by the exponent found, which
is below 3 there, so that they come off too well.
"""

import argparse
import io
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cka_peers import BATCH, TASKS, WHOLE, Layers, Work
from recoup.cka import debiased_cka

FEW = 512  # tokens of the n³ peers, and twice as many
FEW_LAYERS = 2
KIB = 1024


def features(number: int, layers: int, width: int, seed: int, near: Layers | None = None) -> list[Tensor]:
    """Layers of a model, each near the one before it, or near another model's."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for layer in range(layers):
        base = near[layer] if near else found[-1] if found else 0
        found.append(torch.randn(number, width, generator=generator).mul_(0.5 if layer or near else 1.0).add_(base))
    return found


def operations(task: str, arguments: argparse.Namespace) -> float:
    """Of the cheapest exact form."""
    n, L, D = arguments.tokens, arguments.layers, arguments.width
    if task == "minibatch":
        return n * min(n, BATCH) * D * 2 * L + n * min(n, BATCH) * L**2
    if task == "diagonal":
        return min(2 * n**2 * D, 6 * n * D**2) * L
    return min(2 * n**2 * D * L + n**2 * L**2, 2 * n * D**2 * (L**2 + 2 * L))


def cell(task: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Time and memory of one contender; run in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _, work, few = TASKS[task][name]
    with torch.inference_mode():
        work(features(BATCH, 2, 4, 0), features(BATCH, 2, 4, 1))  # imports and code are not its memory
        if few:
            return extrapolated(work, arguments)
        X = features(arguments.tokens, arguments.layers, arguments.width, 0)
        Y = features(arguments.tokens, arguments.layers, arguments.width, 1, near=X)
        before = memory("VmRSS")
        times = [seconds(lambda: work(X, Y))]
        peak = memory("VmHWM") - before
        square = torch.randn(2048, 2048)
        rates = []
        for _ in range(arguments.repeats):
            rates.append(2 * 2048**3 / seconds(lambda: square @ square))
            times.append(seconds(lambda: work(X, Y)))
    time_s = statistics.median(times[1:])
    return {"seconds": time_s, "peak": peak, "share": operations(task, arguments) / time_s / statistics.median(rates)}


def extrapolated(work: Work, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds for all tokens and layers, from few."""
    times = []
    for number in (FEW, 2 * FEW):
        X, Y = (features(number, FEW_LAYERS, arguments.width, seed) for seed in (0, 1))
        work(X, Y)
        times.append(min(seconds(lambda X=X, Y=Y: work(X, Y)) for _ in range(3)))  # type: ignore[misc]
    exponent = math.log2(times[1] / times[0])
    scale = (arguments.layers / FEW_LAYERS) ** 2 * (arguments.tokens / (2 * FEW)) ** exponent
    return {"seconds": times[1] * scale, "exponent": exponent}


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one thread."""
    began = time.process_time()
    work()
    return time.process_time() - began


def memory(field: str) -> float:
    """MB in use, or the most that ever were; the peak on other systems than Linux."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) / KIB for line in status.read_text().splitlines() if line.startswith(field))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB**2  # bytes on macOS


def table(task: str, arguments: argparse.Namespace) -> None:
    """Print every contender's line."""
    print(f"{task}", flush=True)
    ours: dict[str, float] = {}
    forwarded = [f"--{key}={getattr(arguments, key)}" for key in ("tokens", "layers", "width", "repeats")]
    for name, (package, _, few) in TASKS[task].items():
        if find_spec(package) is None:
            print(f"  {name:22} not installed")
            continue
        if arguments.large and name in WHOLE and not few and task == "map":
            print(f"  {name:22} left out: n × n matrices of all layers do not fit")
            continue
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cka", "--cell", task, name, *forwarded]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ours = ours or found
        line = f"  {name:22} {found['seconds']:9.2f} s, {found['seconds'] / ours['seconds']:7.2f} times ours in fp32"
        if few:
            print(f"{line}; extrapolated as n^{found['exponent']:.1f}", flush=True)
        else:
            print(f"{line}, {found['peak']:6.0f} MB, GEMM {found['share']:4.0%}", flush=True)


def exact(x_ND: Tensor, y_NE: Tensor) -> float:
    """HSIC_1 of Song et al. 2012 from whole Gram matrices in float64."""
    n = len(x_ND)
    K, L = ((side.double() @ side.double().T).fill_diagonal_(0) for side in (x_ND, y_NE))

    def hsic(A: Tensor, B: Tensor) -> Tensor:
        rows = A.sum(1) @ B.sum(1)
        return (A * B).sum() + A.sum() * B.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows

    return float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


def rightness() -> None:
    """Print what each contender makes of cases with a known answer."""
    x, shared = features(400, 1, 96, 0)[0], features(400, 1, 96, 1)[0]
    y = x + 0.7 * shared
    pads = torch.arange(400) % 4 == 0
    padded = [torch.where(pads[:, None], 20.0, side) for side in (x, y)]
    cases = {
        "plain": (x, y),
        "mean 30": (x + 30, y + 30),
        "n < D, unrelated": (x[:48], shared[:48]),
        "bfloat16": (x.bfloat16(), y.bfloat16()),
        "pads": (padded[0], padded[1]),
    }
    print("debiased CKA of single layers, less float64's", flush=True)
    for case, (first, second) in cases.items():
        kept = ~pads if case == "pads" else torch.ones(len(first), dtype=torch.bool)
        truth = exact(first[kept], second[kept])
        line = [f"ours {debiased_cka(first, second, kept) - truth:+.0e}"]
        for name, (package, work, _) in TASKS["map"].items():
            if package != "recoup" and find_spec(package) is not None:
                line.append(f"{name} {answer(work, first, second, truth)}")
        print(f"  {case:17} {truth:+.4f}: {', '.join(line)}", flush=True)


def answer(work: Work, first: Tensor, second: Tensor, truth: float) -> str:
    """How far a peer is off, or how it fails."""
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), torch.inference_mode():  # progress bars
            warnings.simplefilter("ignore")
            found = work([first], [second])
            return f"{float(torch.as_tensor(found).flatten()[0]) - truth:+.0e}"
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        return type(error).__name__


def main(words: list[str] | None = None) -> None:
    """Print the tables; or one cell as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cell", nargs=2, metavar=("TASK", "CONTENDER"))
    parser.add_argument("--large", action="store_true")
    for name, value in (("tokens", 4096), ("layers", 30), ("width", 576), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args(words)
    if arguments.large:
        arguments.tokens = 16_384
    if arguments.cell:
        print(json.dumps(cell(arguments.cell[0], arguments.cell[1], arguments)))
        return
    print(f"{arguments.layers} × {arguments.layers} layers of width {arguments.width}, {arguments.tokens:,} tokens")
    for task in TASKS:
        table(task, arguments)
    rightness()


if __name__ == "__main__":
    main()
