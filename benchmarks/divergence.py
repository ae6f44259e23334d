"""The fused divergence against TRL's and Liger's: hidden states and heads in, loss and gradients of both out, on one CPU thread.

Run: `python -m benchmarks.divergence` for width 576 and vocabulary 49,152; `--large` for 2,048 and 151,936 (bfloat16, minutes);
`--tokens 4096` for another number of tokens; `--repeats`. Peers that are not installed are said to be.

Every cell is a process of its own, in which the loss and the four matrix products it cannot do without (two heads' logits,
two gradients; whole, in the inputs' type) take turns. Seconds are of the processor, so that other work on the machine counts
less; medians are printed. `limit` is the four products' seconds over the loss's. MB is the peak above the inputs. `error` is
the gradients' relative distance from float64, over 48 tokens of the small shape. TRL's GKD and SDFT get logits from torch's
`linear`, as in their trainers.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from recoup.divergence import Head, HiddenTargets, Rule, compare

SMALL, LARGE = (576, 49_152), (2048, 151_936)  # SmolLM2-135M, Qwen2.5-3B
RULES = {"forward_kl": 0.0, "jensen_shannon": 0.5}  # as all peers name them: the mixture's share of the teacher
ERROR_TOKENS = 48
LIGER_CHUNK = 256  # its default of 1,024 tokens makes all logits of this benchmark at once
PACKAGES = {"recoup": "recoup", "gkd": "trl", "sdft": "trl", "tiled": "trl", "liger": "liger_kernel"}
NAMES = {"gkd": "TRL GKD", "sdft": "TRL SDFT", "tiled": "TRL Distillation", "liger": "Liger chunked"}


@dataclass(frozen=True)
class Inputs:
    """Hidden states and heads of a student and of a teacher near it."""

    hidden_ND: Tensor
    weight_VD: Tensor
    taught_ND: Tensor
    taught_VD: Tensor

    def to(self, kind: torch.dtype) -> "Inputs":
        """The same values, trainable where the student's."""
        hidden_ND, weight_VD = (part.detach().to(kind).requires_grad_() for part in (self.hidden_ND, self.weight_VD))
        return Inputs(hidden_ND, weight_VD, self.taught_ND.to(kind), self.taught_VD.to(kind))


def inputs(tokens: int, shape: tuple[int, int], kind: torch.dtype) -> Inputs:
    """Logits of standard deviation 3, the teacher's 0.3 apart; made without a larger peak than themselves."""
    generator = torch.Generator().manual_seed(0)
    width, vocabulary = shape
    hidden_ND = torch.randn(tokens, width, generator=generator).to(kind)
    taught_ND = (hidden_ND + 0.1 * torch.randn(tokens, width, generator=generator)).to(kind)
    weight_VD, taught_VD = (torch.empty(vocabulary, width, dtype=kind) for _ in range(2))
    for ours, theirs in zip(weight_VD.split(1024), taught_VD.split(1024), strict=True):
        ours.copy_(torch.randn(ours.shape, generator=generator) * 3 / width**0.5)
        theirs.copy_(ours + torch.randn(ours.shape, generator=generator) * 0.3 / width**0.5)
    return Inputs(hidden_ND.requires_grad_(), weight_VD.requires_grad_(), taught_ND, taught_VD)


def logits(of: Inputs) -> tuple[Tensor, Tensor]:
    """What a trainer gets from both models."""
    with torch.no_grad():
        teacher_NV = functional.linear(of.taught_ND, of.taught_VD)
    return functional.linear(of.hidden_ND, of.weight_VD), teacher_NV


def recoup(of: Inputs, rule: str) -> Tensor:
    """Ours."""
    tokens = of.hidden_ND.shape[0]
    targets = HiddenTargets(of.taught_ND, Head(of.taught_VD))
    known = Rule("forward_kl") if rule == "forward_kl" else Rule("jensen_shannon", RULES[rule])
    return compare(of.hidden_ND, Head(of.weight_VD), targets, known, torch.full((tokens,), 1 / tokens)).loss


def gkd(of: Inputs, rule: str) -> Tensor:
    """`generalized_jsd_loss` of TRL's import_module("trl.experimental.gkd").GKDTrainer."""
    student_NV, teacher_NV = logits(of)
    loss: Tensor = import_module("trl.experimental.gkd").GKDTrainer.generalized_jsd_loss(
        student_NV[None], teacher_NV[None], beta=RULES[rule]
    )
    return loss / of.hidden_ND.shape[0]


def sdft(of: Inputs, rule: str) -> Tensor:
    """`compute_divergence` of TRL's SDFTTrainer."""
    student_NV, teacher_NV = logits(of)
    loss: Tensor = (
        import_module("trl.experimental.sdft.loss_utils")
        .compute_divergence(student_NV.log_softmax(-1), teacher_NV.log_softmax(-1), RULES[rule])
        .mean()
    )
    return loss


def tiled(of: Inputs, rule: str) -> Tensor:
    """The kernel of TRL's DistillationTrainer, on its path for devices without Triton."""
    student, teacher = (of.hidden_ND, of.weight_VD, None), (of.taught_ND, of.taught_VD, None)
    loss: Tensor = (
        import_module("trl.kernels.chunked_divergence")
        .ChunkedDivergenceFunction.apply(*student, *teacher, RULES[rule])[0]
        .mean()
    )
    return loss


def liger(of: Inputs, rule: str) -> Tensor:
    """Liger's chunked loss, the torch path, uncompiled."""
    module = import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        0.0, 1.0, beta=RULES[rule], compiled=False, chunk_size=LIGER_CHUNK
    )
    labels_N = torch.zeros(of.hidden_ND.shape[0], dtype=torch.long)
    loss: Tensor = module(of.hidden_ND, of.weight_VD, of.taught_ND, of.taught_VD, labels_N)
    return loss


METHODS: dict[str, Callable[[Inputs, str], Tensor]] = {
    "recoup": recoup,
    "gkd": gkd,
    "sdft": sdft,
    "tiled": tiled,
    "liger": liger,
}


def gradients(method: str, of: Inputs, rule: str) -> tuple[Tensor, ...]:
    """D loss / d hidden states and head."""
    return torch.autograd.grad(METHODS[method](of, rule), (of.hidden_ND, of.weight_VD))


@torch.no_grad()
def four_products(of: Inputs, whole_NV: Tensor) -> None:
    """What no exact method can do without."""
    torch.mm(of.taught_ND, of.taught_VD.T, out=whole_NV)
    torch.mm(of.hidden_ND, of.weight_VD.T, out=whole_NV)
    torch.mm(whole_NV, of.weight_VD)
    torch.mm(whole_NV.T, of.hidden_ND)


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one thread."""
    began = time.process_time()
    work()
    return time.process_time() - began


def cell(method: str, rule: str, kind: torch.dtype, arguments: argparse.Namespace) -> dict[str, float]:
    """Time, memory and error of one method; run in a process of its own."""
    torch.set_num_threads(1)
    shape = LARGE if arguments.large else SMALL
    gradients(method, inputs(2, (8, 16), kind), rule)  # imports and code are not its memory
    of = inputs(arguments.tokens, shape, kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [seconds(lambda: gradients(method, of, rule))]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    whole_NV = torch.zeros(arguments.tokens, shape[1], dtype=kind)
    four_products(of, whole_NV)
    limits = []
    for _ in range(arguments.repeats):
        limits.append(seconds(lambda: four_products(of, whole_NV)))
        times.append(seconds(lambda: gradients(method, of, rule)))
    found = {"seconds": statistics.median(times[1:]), "limit": statistics.median(limits), "peak": peak}
    return found if arguments.large else found | {"error": error(method, rule, inputs(ERROR_TOKENS, shape, kind))}


def error(method: str, rule: str, of: Inputs) -> float:
    """The larger relative distance from float64 of the two gradients."""
    exact = gradients("recoup", of.to(torch.float64), rule)  # float64 autograd agrees: tests/divergence
    pairs = zip(gradients(method, of, rule), exact, strict=True)
    return max(float((found.double() - true).norm() / true.norm()) for found, true in pairs)


def table(rule: str, kind: str, arguments: argparse.Namespace) -> None:
    """Print every method's line for one rule and type."""
    print(f"{rule}, {kind}", flush=True)
    cells: dict[str, dict[str, float]] = {}
    for method in METHODS:
        if find_spec(PACKAGES[method]) is None:
            print(f"  {NAMES[method]}: not installed")
            continue
        forwarded = ["--tokens", str(arguments.tokens), "--repeats", str(arguments.repeats)]
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.divergence",
            "--cell",
            method,
            rule,
            kind,
            *forwarded,
        ]
        done = subprocess.run(command + ["--large"] * arguments.large, check=True, capture_output=True, text=True)
        found = cells[method] = json.loads(done.stdout.splitlines()[-1])
        ours = cells["recoup"]
        # each against the limit timed beside it, so that a machine whose speed drifts drifts for both
        times = (found["seconds"] / found["limit"]) / (ours["seconds"] / ours["limit"])
        accuracy = f", error {found['error']:.2%}" if "error" in found else ""
        print(
            f"  {NAMES.get(method, method):17} {found['seconds']:6.2f} s, limit {found['limit'] / found['seconds']:4.0%}, "
            f"{found['peak']:5.0f} MB{accuracy}, {times:.2f} times ours",
            flush=True,
        )


def main(words: list[str] | None = None) -> None:
    """Print the tables; or one cell as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cell", nargs=3, metavar=("METHOD", "RULE", "TYPE"))
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(words)
    if arguments.cell:
        method, rule, kind = arguments.cell
        print(json.dumps(cell(method, rule, getattr(torch, kind), arguments)))
        return
    width, vocabulary = LARGE if arguments.large else SMALL
    print(f"{arguments.tokens:,} tokens, {width:,} → {vocabulary:,}")
    for kind in ("bfloat16",) if arguments.large else ("float32", "bfloat16"):
        for rule in RULES:
            table(rule, kind, arguments)


if __name__ == "__main__":
    main()
