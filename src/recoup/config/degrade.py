"""The injuries: what damages a model, a class a method."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recoup.config.node import Fraction, Node

Format = Literal[
    "int", "nf4", "fp8", "mxfp4", "nvfp4",
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
]  # fmt: skip
FORMAT_DEFAULTS: dict[str, dict[str, Any]] = {"int": {"bits": 4, "group_size": 64}, "nf4": {"group_size": 64}}


class SFT(Node):
    """Supervised fine-tuning on a narrow task: the injury is catastrophic forgetting."""

    type: Literal["sft"] = "sft"
    train_file: str = Field(description="JSON lines with chat-format rows; `$VARIABLES` are expanded.")
    num_rows: PositiveInt | None = Field(None, description="Use this many rows, chosen by the seed; all when null.")
    epochs: PositiveInt = Field(1, description="Passes over the rows.")
    steps: PositiveInt | None = Field(None, description="Stop after this many optimizer steps, whatever `epochs` says.")
    learning_rate: PositiveFloat = Field(
        2e-5, description="Peak AdamW learning rate; linear warm-up, then cosine to 0."
    )
    batch_size: PositiveInt = Field(16, description="Rows per optimizer step.")
    micro_batch_size: PositiveInt = Field(4, description="Rows per forward pass; lower it when memory runs out.")
    max_tokens: PositiveInt = Field(
        1024, description="Longest prompt plus completion, in tokens; longer prompts lose their start."
    )
    adapter: Literal["full", "lora"] = Field(
        "full", description="Train every weight, or a LoRA that is merged at the end."
    )
    lora_rank: PositiveInt = Field(16, description="Rank r of the LoRA product.")


class Calibrated(Node):
    """What a method that looks at activations is run on."""

    calibration: str = Field(
        "self", description="Text the model is run on: `self` (the model writes it) or a text/JSONL file."
    )
    calibration_tokens: PositiveInt = Field(
        8192, description="Tokens of that text; GPTQ and SparseGPT need several times as many as a layer has inputs."
    )


class Quantize(Calibrated):
    """Quantization of every linear layer inside the blocks: rounded to nearest, or starting from GPTQ or AWQ."""

    type: Literal["quantize"] = "quantize"
    format: Format = Field(
        "int", description="Uniform integers, bitsandbytes' NF4, FP8 (E4M3), MXFP4, NVFP4, or a llama.cpp block format."
    )
    bits: Annotated[int, Field(ge=2, le=8)] | None = Field(
        None, description="Bits per code of int, where 4 is the default; null for every other format."
    )
    group_size: PositiveInt | None = Field(
        None,
        description="Inputs that share a scale: 64 by default for int and nf4. Null: per output channel, or as the format fixes.",
    )
    symmetric: bool = Field(True, description="int codes around zero; otherwise a zero point per group.")
    double_quantized: bool = Field(False, description="nf4 scales quantized to 8 bits themselves.")
    start: Literal["round", "gptq", "awq"] = Field(
        "round", description="To nearest; or GPTQ's or AWQ's rounding, which uses the calibration text."
    )
    embeddings: bool = Field(False, description="Whether token embeddings and head are rounded (to nearest) as well.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_format(cls, values: Any) -> Any:
        given = isinstance(values, dict)
        return {**FORMAT_DEFAULTS.get(values.get("format", "int"), {}), **values} if given else values

    @model_validator(mode="after")
    def _fits_the_format(self) -> "Quantize":
        kind = "a 4-bit format without zero points" if self.format == "nf4" else "a format that fixes its own codes"
        if self.format != "int" and (self.bits is not None or not self.symmetric):
            raise ValueError(f"format {self.format} is {kind}; remove `bits` and `symmetric`, or take format: int")
        if self.format == "int" and self.bits is None:
            raise ValueError("format int needs `bits`, from 2 to 8; give a number")
        if self.format == "nf4" and self.group_size is None:
            raise ValueError("format nf4 scales blocks of weights; give a group_size such as 64")
        if self.format not in ("int", "nf4", "fp8") and self.group_size is not None:
            raise ValueError(f"format {self.format} fixes its group size; remove `group_size`")
        if self.double_quantized and self.format != "nf4":
            raise ValueError(f"double_quantized is a part of nf4, not of {self.format}; remove it, or take format: nf4")
        return self


class Sparse(Node):
    """How many weights of a layer become zero, and in which pattern."""

    pattern: Annotated[str, Field(pattern=r"^(unstructured|[1-9]\d*:[1-9]\d*)$")] = Field(
        "unstructured", description="Anywhere; or N:M such as 2:4 or 4:8, N weights kept of every M consecutive inputs."
    )
    sparsity: Fraction = Field(
        0.5, description="Share of each layer's weights that become zero; an N:M pattern decides it."
    )

    @model_validator(mode="before")
    @classmethod
    def _sparsity_of_the_pattern(cls, values: Any) -> Any:
        decided = _decided_sparsity(str(values.get("pattern"))) if isinstance(values, dict) else 0
        return {"sparsity": decided, **values} if decided else values

    @model_validator(mode="after")
    def _agrees_with_the_pattern(self) -> "Sparse":
        if self.pattern == "unstructured":
            return self
        decided = _decided_sparsity(self.pattern)
        if decided <= 0:
            raise ValueError(f"pattern {self.pattern} keeps every weight; keep fewer than all, such as 2:4")
        if self.sparsity != decided:
            raise ValueError(
                f"pattern {self.pattern} makes {decided:.4g} of the weights zero; remove sparsity {self.sparsity}"
            )
        return self


def _decided_sparsity(pattern: str) -> float:
    """1 − N/M of an N:M pattern; 0 for any other word."""
    kept, _, group = pattern.partition(":")
    return max(0.0, 1 - int(kept) / max(1, int(group))) if kept.isdigit() and group.isdigit() else 0.0


class Magnitude(Sparse):
    """Magnitude pruning: the smallest weights of each linear layer become zero."""

    type: Literal["magnitude"] = "magnitude"


class Wanda(Sparse, Calibrated):
    """Wanda: the weights of smallest |W| ‖x‖₂ of each output become zero; none is updated."""

    type: Literal["wanda"] = "wanda"


class SparseGPT(Sparse, Calibrated):
    """SparseGPT: weights are removed by what they cost, and the others are updated to make up for them."""

    type: Literal["sparsegpt"] = "sparsegpt"


class FFNWidth(Calibrated):
    """Structured pruning: remove a share of each block's feed-forward neurons."""

    type: Literal["ffn_width"] = "ffn_width"
    fraction: Fraction = Field(0.1, description="Share of intermediate neurons removed (10% in arXiv 2604.15794).")


class AttentionHeads(Calibrated):
    """Structured pruning: remove whole attention heads, the same number from every block."""

    type: Literal["attention_heads"] = "attention_heads"
    unit: Literal["group", "query"] = Field(
        "group", description="Remove key/value heads with their query heads, or as many query heads from every group."
    )
    fraction: Fraction = Field(
        0.25, description="Share removed of the groups (`group`), or of each group's query heads (`query`)."
    )


class Depth(Calibrated):
    """Structured pruning: remove whole blocks."""

    type: Literal["depth"] = "depth"
    num_blocks: PositiveInt = Field(description="Blocks removed.")
    criterion: Literal["block_influence", "angular"] = Field(
        "block_influence",
        description="The blocks that turn hidden states least (ShortGPT), or the run of consecutive ones that does.",
    )


Degrade = Annotated[
    SFT | Quantize | Magnitude | Wanda | SparseGPT | FFNWidth | AttentionHeads | Depth, Field(discriminator="type")
]
