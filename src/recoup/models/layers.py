"""Find blocks, linear layers, feed-forward parts and the head by structure, not by one architecture's names.

- Blocks: the longest `ModuleList` of the backbone whose every element holds linear layers.
- Linear: `nn.Linear`, or GPT-2's `Conv1D`, whose weight is transposed (input × output).
- Feed-forward part: a child of a block whose linear layers all map width → intermediate but one, which maps back, where
  `intermediate` is the size the model's config names. Fused gate-up projections and experts are refused by name.
- Attention part: a child of a block with four linear layers, of which three are named as query, key and value. Names are
  needed here: with as many key/value heads as query heads all four have one shape, and their order differs.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recoup.errors import StructureError

INTERMEDIATE_FIELDS = ("intermediate_size", "n_inner", "ffn_dim")  # Llama and kin; GPT-2; OPT
FFN_LINEAR_COUNTS = (2, 3)  # plain, gated
QKV_NAMES = ("q_proj", "k_proj", "v_proj")  # transformers' own, in every architecture that keeps them apart


@dataclass(frozen=True)
class FeedForward:
    """One block's feed-forward part: names of the layers that widen (D → F) and of the one that narrows (F → D)."""

    block: int
    up: tuple[str, ...]
    down: str


@dataclass(frozen=True)
class Attention:
    """One block's attention part: names of its query, key, value and output projections."""

    block: int
    query: str
    key: str
    value: str
    output: str


@dataclass(frozen=True)
class HeadCounts:
    """Heads of every block: H query heads and G key/value heads of `dim` each; head h reads group h // (H / G)."""

    query: int
    group: int
    dim: int


def is_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies by a weight matrix."""
    return isinstance(module, nn.Linear | Conv1D)


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored input × output."""
    return isinstance(module, Conv1D)


def shape_OI(module: nn.Module) -> tuple[int, int]:
    """Output and input width of a linear layer."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    rows, columns = weight.shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, in order.

    Raises:
        StructureError: no list of blocks with linear layers is found.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and all(map(_holds_linear, m))]
    if not lists:
        raise StructureError(
            f"{type(model).__name__}: no list of transformer blocks found; recoup needs a decoder-only model"
        )
    return max(lists, key=len)


def paired_blocks(num_student: int, num_teacher: int) -> tuple[int, ...]:
    """The teacher's block for each of the student's: the one at the same relative depth, the last with the last.

    Equal depths pair one to one; when 4 blocks were pruned to 2, student blocks 0 and 1 pair with teacher blocks 1 and 3.
    """
    return tuple(-(-(index + 1) * num_teacher // num_student) - 1 for index in range(num_student))


def block_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer inside the blocks, by its full name; embeddings and head are not among them."""
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    return {name: module for name, module in model.named_modules() if is_linear(module) and id(module) in inside}


def feed_forwards(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The feed-forward part of every block.

    Raises:
        StructureError: a block has none of the known form (mixture of experts, fused projections).
    """
    names = {id(module): name for name, module in model.named_modules()}
    width = intermediate_size(model)
    found = []
    for index, block in enumerate(blocks(model)):
        parts = [part for child in block.children() if (part := _feed_forward(child, width))]
        if len(parts) != 1:
            raise StructureError(
                f"block {index} of {type(model).__name__}: no plain or gated feed-forward part of width {width} found; "
                "FFN pruning does not fit this architecture"
            )
        up, down = parts[0]
        found.append(FeedForward(index, tuple(names[id(module)] for module in up), names[id(down)]))
    return tuple(found)


def head_counts(model: PreTrainedModel) -> HeadCounts:
    """Numbers of heads and their width, as the config names them.

    Raises:
        StructureError: it names none, as that of a model without attention.
    """
    config = model.config
    if not getattr(config, "num_attention_heads", None):
        raise StructureError(
            f"{type(model).__name__}: its config names no num_attention_heads, so it has none to look at"
        )
    query = int(config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // query
    return HeadCounts(query, int(getattr(config, "num_key_value_heads", None) or query), int(dim))


def attentions(model: PreTrainedModel) -> tuple[Attention, ...]:
    """The attention part of every block.

    Raises:
        StructureError: a block has none of the known form (fused projections, other parameters that belong to single heads).
    """
    names = {id(module): name for name, module in model.named_modules()}
    heads = head_counts(model)
    found = []
    for index, block in enumerate(blocks(model)):
        parts = [part for child in block.children() if (part := _attention(child, heads))]
        if len(parts) != 1:
            raise StructureError(
                f"block {index} of {type(model).__name__}: no attention part with separate {', '.join(QKV_NAMES)} for "
                f"{heads.query} query and {heads.group} key/value heads found; head pruning does not fit this architecture"
            )
        found.append(Attention(index, *(names[id(module)] for module in parts[0])))
    return tuple(found)


def intermediate_field(model: PreTrainedModel) -> str:
    """Name of the config field that holds the feed-forward width.

    Raises:
        StructureError: the config has none of the known names.
    """
    for field in INTERMEDIATE_FIELDS:
        if hasattr(model.config, field):
            return field
    raise StructureError(
        f"{type(model).__name__}: the config names no feed-forward width ({', '.join(INTERMEDIATE_FIELDS)})"
    )


def intermediate_size(model: PreTrainedModel) -> int:
    """Feed-forward width F; GPT-2 writes null for 4 D."""
    size = getattr(model.config, intermediate_field(model))
    return int(4 * model.config.hidden_size if size is None else size)


def _holds_linear(module: nn.Module) -> bool:
    return any(map(is_linear, module.modules()))


def _feed_forward(module: nn.Module, width: int) -> tuple[list[nn.Module], nn.Module] | None:
    linears = [m for m in module.modules() if is_linear(m)]
    up = [m for m in linears if shape_OI(m)[0] == width]
    down = [m for m in linears if shape_OI(m)[1] == width]
    fits = len(linears) in FFN_LINEAR_COUNTS and len(down) == 1 and len(up) == len(linears) - 1 and down[0] not in up
    return (up, down[0]) if fits else None


def _attention(module: nn.Module, heads: HeadCounts) -> list[nn.Module] | None:
    """Query, key, value and output projection of an attention part; null for any other module."""
    linears = {name: child for name, child in module.named_children() if is_linear(child)}
    outputs = [child for name, child in linears.items() if name not in QKV_NAMES]
    if len(outputs) != 1 or not all(name in linears for name in QKV_NAMES):
        return None
    parts = [*(linears[name] for name in QKV_NAMES), outputs[0]]
    outer, inner = heads.query * heads.dim, heads.group * heads.dim
    fits = [shape_OI(part)[0] for part in parts[:3]] == [outer, inner, inner] and shape_OI(parts[3])[1] == outer
    # beside the projections only norms that every head shares: anything else would have to be cut too
    of_projections = {id(parameter) for part in parts for parameter in part.parameters()}
    others = [(name, p) for name, p in module.named_parameters() if id(p) not in of_projections]
    shared = all("." in name and p.shape == (heads.dim,) for name, p in others)
    return parts if fits and shared else None
