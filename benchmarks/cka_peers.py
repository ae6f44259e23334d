"""What `benchmarks.cka` times: ours and the PyPI peers, each given two models' features as it wants them."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recoup.cka import MinibatchCka, cka_map, cka_pairs

Layers = Sequence[Tensor]
Work = Callable[[Layers, Layers], object]
BATCH = 256
PROMPT = 64  # tokens of a cluster of the bootstrap


class Replay(nn.Module):
    """A model whose layers put out given features of the tokens it is asked for, which stand side by side."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers, self.outputs = layers, nn.ModuleList(nn.Identity() for _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Features of tokens x, through as many identities as there are layers."""
        for layer_ND, output in zip(self.layers, self.outputs, strict=True):
            output(layer_ND[int(x[0]) : int(x[-1]) + 1])
        return x

    @property
    def names(self) -> list[str]:
        """The layers' names."""
        return [f"outputs.{number}" for number in range(len(self.layers))]


def tokens(X: Layers, batch: int) -> DataLoader[Any]:
    """Numbers of all tokens, in batches."""
    return DataLoader(TensorDataset(torch.arange(len(X[0]))), batch_size=batch)


def ours_map(products: Any) -> Work:
    """Ours, exact."""
    return lambda X, Y: cka_map(X, Y, products=products)


def ours_minibatch(products: Any) -> Work:
    """Ours, in minibatches."""

    def work(X: Layers, Y: Layers) -> Tensor:
        minibatches = MinibatchCka(products)
        for start in range(0, len(X[0]), BATCH):
            minibatches.update([x[start : start + BATCH] for x in X], [y[start : start + BATCH] for y in Y])
        return minibatches.map()

    return work


def ours_bootstrap(X: Layers, Y: Layers) -> object:
    """Ours, layer by layer, 1,000 draws."""
    return cka_pairs(X, Y, clusters_N=torch.arange(len(X[0])) // PROMPT, num_bootstrap=1000)


def pytorch_cka(X: Layers, Y: Layers) -> Tensor:
    """pytorch-cka, whole."""
    found: Tensor = import_module("cka").cka_from_features(X, Y)
    return found


def pytorch_cka_minibatch(X: Layers, Y: Layers) -> Tensor:
    """pytorch-cka, in minibatches."""
    first, second = Replay(X), Replay(Y)
    options = {"layers": first.names, "model2_layers": second.names, "progress": False}
    found: Tensor = import_module("cka").compute_cka(first, second, tokens(X, BATCH), **options)[0]
    return found


def torch_cka(batch: int) -> Work:
    """torch-cka; one batch of all tokens is the whole map."""

    def work(X: Layers, Y: Layers) -> Tensor:
        first, second = Replay(X), Replay(Y)
        cka = import_module("torch_cka").CKA(first, second, "X", "Y", first.names, second.names)
        cka.compare(tokens(X, batch or len(X[0])))
        found: Tensor = cka.export()["CKA"]
        return found

    return work


def ckatorch(X: Layers, Y: Layers) -> Tensor:
    """ckatorch: its minibatch form on one batch of all tokens (of several it keeps the last)."""
    pair = import_module("ckatorch.core").cka_batch
    return torch.tensor([[float(pair(x[None], y[None])) for y in Y] for x in X])


def repsim(X: Layers, Y: Layers) -> Tensor:
    """HSIC by repsim, after Song et al.; of all pairs, also those within a model."""
    found = import_module("repsim").cka([layer.double().numpy() for layer in (*X, *Y)], "linear", "song")
    return torch.as_tensor(found)[: len(X), len(X) :]


# task → contender → package, work, and whether it is timed on few tokens and layers and extrapolated
TASKS: dict[str, dict[str, tuple[str, Work, bool]]] = {
    "map": {
        "ours, fp32": ("recoup", ours_map("fp32"), False),
        "ours, bf16": ("recoup", ours_map("bf16"), False),
        "pytorch-cka": ("cka", pytorch_cka, False),
        "torch-cka": ("torch_cka", torch_cka(0), True),
        "ckatorch": ("ckatorch", ckatorch, True),
        "repsim": ("repsim", repsim, True),
    },
    "minibatch": {
        "ours, fp32": ("recoup", ours_minibatch("fp32"), False),
        "ours, bf16": ("recoup", ours_minibatch("bf16"), False),
        "pytorch-cka": ("cka", pytorch_cka_minibatch, False),
        "torch-cka": ("torch_cka", torch_cka(BATCH), False),
    },
    "diagonal": {
        "ours, fp32": ("recoup", cka_pairs, False),
        "ours, with 1,000 draws": ("recoup", ours_bootstrap, False),
    },
}
WHOLE = ("pytorch-cka", "torch-cka", "ckatorch", "repsim")  # hold n × n matrices
