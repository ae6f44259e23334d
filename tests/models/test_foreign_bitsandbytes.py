"""NF4 checkpoints of bitsandbytes, read without it: values by hand, whole models, and against the library where it is there."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from recoup.errors import SourceError
from recoup.models.load import load
from recoup.models.sample import Sampling, sample
from recoup.structure.grids import NF4_CODES, NF4Grid
from recoup.structure.grids.nf4 import dynamic_map
from recoup.structure.guard import Guard
from recoup.structure.trainable import LoRA
from recoup.structure.verify import verify
from tests.conftest import save_tiny
from tests.models.conftest import Parts, rewritten

CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
BLOCK = 64


def as_nf4(double: bool, blocksize: int = BLOCK, kind: str = "nf4") -> Callable[[str, Tensor], Parts]:
    """Random codes. Absmax is 0.25, 0.5, 0.25, … of each block; doubly quantized: 0.25 + 0.5 · 0 and 0.25 + 0.5 · 1."""

    def parts(module: str, weight_OI: Tensor) -> Parts:
        blocks = weight_OI.numel() // blocksize
        generator = torch.Generator().manual_seed(len(module))
        state: dict = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16", "shape": list(weight_OI.shape)}
        tensors = {
            "weight": torch.randint(0, 256, (weight_OI.numel() // 2, 1), generator=generator, dtype=torch.uint8),
            "weight.quant_map": torch.tensor(NF4_CODES),
        }
        if double:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}
            zero, one = int((dynamic_map() == 0).nonzero()), 255
            tensors["weight.absmax"] = torch.tensor([zero, one], dtype=torch.uint8).repeat(blocks // 2)
            tensors["weight.nested_absmax"] = torch.full((-(-blocks // 256),), 0.5)
            tensors["weight.nested_quant_map"] = dynamic_map()
        else:
            tensors["weight.absmax"] = torch.tensor([0.25, 0.75]).repeat(blocks // 2)
        text = json.dumps(state).encode()
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
        return tensors

    return parts


@pytest.mark.parametrize("double", [False, True])
def test_values_and_grid(wide_model: Path, tmp_path: Path, double: bool) -> None:
    student = load(str(rewritten(wide_model, tmp_path / "student", CONFIG, as_nf4(double))))
    assert "bitsandbytes" not in sys.modules
    name = "model.layers.0.self_attn.k_proj"
    weight_OI = student.model.get_submodule(name).weight
    packed = as_nf4(double)(name, weight_OI)["weight"].flatten().tolist()
    # two codes a byte, the first in the high nibble; blocks of 64 weights are blocks of 32 bytes
    expected = [
        NF4_CODES[nibble] * (0.25, 0.75)[index // 32 % 2]
        for index, byte in enumerate(packed)
        for nibble in (byte >> 4, byte & 15)
    ]
    assert torch.equal(weight_OI.flatten(), torch.tensor(expected, dtype=torch.float64).float())
    assert {constraint.grid for constraint in student.structure.constraints.values()} == {NF4Grid(64, double)}
    assert len(student.structure.constraints) == 14
    assert verify(student.model, student.structure).exact
    doubly = ", double-quantized" if double else ""
    assert student.structure_origin == f"read from bitsandbytes: NF4, blocks of 64{doubly} (14 matrices)"


def test_blocks_over_row_ends(tiny_model: Path, tmp_path: Path) -> None:
    # 32 inputs, blocks of 64: scales are a flat list
    student = load(str(rewritten(tiny_model, tmp_path / "student", CONFIG, as_nf4(double=True))))
    assert verify(student.model, student.structure).exact
    constraint = student.structure.constraints["model.layers.0.self_attn.q_proj.weight"]
    assert constraint.parameters["scale"].shape == (32 * 32 // 64,)


def test_lora_trains_after_sampling(wide_model: Path, tmp_path: Path) -> None:
    """bitsandbytes 0.50 loses these gradients after a rollout on a CPU with AVX512-BF16; ours is an ordinary model."""
    student = load(str(rewritten(wide_model, tmp_path / "student", CONFIG, as_nf4(double=False))))
    sample(student, [[1, 2, 3]], Sampling(max_tokens=4))
    guard = Guard(student.model, student.structure, dict.fromkeys(student.structure.constraints, "lora"), LoRA(rank=2))
    student.model(torch.tensor([[1, 2, 3, 4]])).logits.logsumexp(-1).sum().backward()
    gradients = [parameter.grad for parameter in list(guard.parameters())[1::2]]  # of B; A's are zero while B is
    assert len(gradients) == 14
    assert all(gradient is not None and (gradient != 0).any() for gradient in gradients)


def spoiled(what: str) -> Callable[[str, Tensor], Parts]:
    def parts(module: str, weight_OI: Tensor) -> Parts:
        tensors = as_nf4(double=False, kind="fp4" if what == "fp4" else "nf4")(module, weight_OI)
        if what == "int8":
            return {"weight": torch.zeros(weight_OI.shape, dtype=torch.int8), "SCB": torch.ones(len(weight_OI))}
        if what == "values":
            tensors["weight.quant_map"] = torch.linspace(-1, 1, 16)
        if what == "absmax":
            del tensors["weight.absmax"]
        return tensors

    return parts


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("fp4", "bitsandbytes FP4 weights"),
        ("int8", "bitsandbytes 8-bit weights"),
        ("values", "has other values than NF4's"),
        ("absmax", r"lacks the tensor model\.layers\.0\.mlp\.down_proj\.weight\.absmax"),
    ],
)
def test_what_cannot_be_read_is_one_line(wide_model: Path, tmp_path: Path, what: str, says: str) -> None:
    folder = rewritten(wide_model, tmp_path / "student", CONFIG, spoiled(what))
    with pytest.raises(SourceError, match=says) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


QUANTIZE = """
import sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
import bitsandbytes
source, folder, double = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
model.save_pretrained(folder)
weights = {
    name + ".weight": bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    for name, module in model.named_modules()
    if isinstance(module, bitsandbytes.nn.Linear4bit)
}
torch.save(weights, folder + "/expected.pt")
"""


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_equal_to_bitsandbytes_element_by_element(tmp_path: Path, layout: str, double: bool) -> None:
    """In a process of its own: once imported, bitsandbytes stays, and other tests must run without it.

    Widths are multiples of 64: at others its AVX512 kernel takes the scales of the wrong blocks (see `grids/nf4.py`).
    """
    pytest.importorskip("bitsandbytes")
    widths = {"n_embd": 64} if layout == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    source, folder = save_tiny(layout, tmp_path / "source", **widths), tmp_path / "student"
    subprocess.run(
        [sys.executable, "-c", QUANTIZE, str(source), str(folder), str(double)], check=True, capture_output=True
    )
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    expected = torch.load(folder / "expected.pt", weights_only=True)
    student = load(str(folder))
    assert set(student.structure.constraints) == set(expected)
    assert all(constraint.transposed == (layout == "gpt2") for constraint in student.structure.constraints.values())
    for name, weight_OI in expected.items():
        weight = student.model.get_parameter(name)
        assert torch.equal(weight.T if layout == "gpt2" else weight, weight_OI), name
    assert verify(student.model, student.structure).exact


def test_the_converted_folder_is_ordinary(wide_model: Path, tmp_path: Path) -> None:
    student = load(str(rewritten(wide_model, tmp_path / "student", CONFIG, as_nf4(double=True))))
    assert student.path is not None
    assert student.path.parent.name == "converted"
    plain = AutoModelForCausalLM.from_pretrained(student.path)
    ids = torch.arange(8)[None]
    assert torch.equal(plain(ids).logits, student.model(ids).logits)
    again = load(str(student.path))
    assert again.structure_origin == student.structure_origin
    assert again.structure.constraints.keys() == student.structure.constraints.keys()
