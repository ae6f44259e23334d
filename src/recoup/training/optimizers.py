"""The optimizers a user can choose from, and their state as plain tensors.

- `adamw`: torch's fused AdamW, 8 bytes of state a number.
- `adamw_8bit`: torchao's AdamW with both moments in 8 bits a block of 256 (arXiv 2110.02861), 2.03 bytes; an optional extra. On
  an accelerator it compiles its step; on a CPU it runs eagerly, which needs no C++ compiler but takes about 160 times as
  long as the fused AdamW (measured: 7 M numbers, 1 thread, 1.55 s against 0.0096 s): take Adafactor there.
- `adafactor`: torch's Adafactor (arXiv 1804.04235), whose second moment is a row and a column: 4 (O + I) bytes for an O × I
  matrix, and no first moment. About 4 times as long as the fused AdamW.

Adafactor's own learning rate is relative: it is multiplied by the root mean square of the weight, and by at least
eps2. Here eps2 is 1, so a weight tensor whose RMS is at most 1 takes a step whose RMS is at most the learning rate, as
with AdamW, and a config's learning rate means the same in both; tensors of a larger RMS (some norms) step further in
proportion. torch's default eps1, 1.2e-7, is a floor under the *mean squared* gradient: gradients clipped to norm 1 over
10^8 numbers have 1e-8, the floor decides, and every number of a matrix ends with the same step per gradient. So eps1 is
as small as float32 allows.
"""

import importlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recoup.errors import ConfigError

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor"]

ADAM_BETAS = (0.9, 0.999)  # AdamW as SDFT trains (2601.19897, appendix)
ADAFACTOR_EPS = (1e-18, 1.0)  # its square is still a normal float32 (1.2e-38): see above
CODED_PARTS = ("codes", "scale", "qmap")  # what torchao keeps of an 8-bit moment


def build(name: OptimizerName, parameters: Iterable[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """An optimizer whose learning rate is 0 until `set_learning_rate`.

    Raises:
        ConfigError: `adamw_8bit` without torchao.
    """
    parameters = list(parameters)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, betas=ADAM_BETAS, weight_decay=weight_decay, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(parameters, lr=0.0, eps=ADAFACTOR_EPS, weight_decay=weight_decay)
    optimizer: torch.optim.Optimizer = _torchao("torchao.optim").AdamW8bit(
        parameters, lr=0.0, betas=ADAM_BETAS, weight_decay=weight_decay
    )
    if parameters[0].device.type == "cpu":  # for the length of a step, torch.compile does nothing
        optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of every group; torchao keeps it in a tensor, which must stay the same one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `{position.key: tensor}`, or `{position.key.part: tensor}` of an 8-bit moment.

    The tensors are the optimizer's own, not copies. Empty before the first step.
    """
    flat: dict[str, Tensor] = {}
    for position, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if _is_coded(value):
                flat |= {f"{position}.{key}.{part}": getattr(value, part) for part in CODED_PARTS}
            else:
                flat[f"{position}.{key}"] = value
    return flat


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Continue from `state_tensors`, exactly; the tensors are taken over where they already fit type and device.

    Raises:
        ConfigError: 8-bit moments without torchao.
    """
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        position, key, *part = name.split(".")
        entry = state.setdefault(int(position), {})
        if part:
            entry.setdefault(key, {})[part[0]] = tensor
        else:
            entry[key] = tensor
    for entry in state.values():
        entry.update({key: _coded(parts) for key, parts in entry.items() if isinstance(parts, dict)})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Memory of the state, once a step was taken."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(optimizer).values())


def _coded(parts: dict[str, Tensor]) -> Tensor:
    """An 8-bit moment from its parts; the first moment is the one whose map has negative values."""
    kind = _torchao("torchao.optim.subclass_8bit").OptimState8bit
    coded: Tensor = kind(*(parts[part] for part in CODED_PARTS), bool((parts["qmap"] < 0).any()), torch.float32)
    return coded


def _is_coded(value: object) -> bool:
    return all(hasattr(value, part) for part in CODED_PARTS)


def _torchao(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(
            "memory.optimizer adamw_8bit needs torchao: pip install recoup[torchao], or take adafactor"
        ) from None
