"""The frozen configuration tree of a run. Imports no torch, so `--dry-run` and the report start at once.

Every field says what it is, with its unit and, where a paper has one, its symbol. Choices are words. A combination that
cannot work fails here, before anything is loaded. `config_file.py` reads the YAML and the `key=value` overrides.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Fraction = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[int, Field(ge=0)]
Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class Node(BaseModel):
    """A frozen part of the tree; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


# --- degrade: what damages the model -----------------------------------------------------------------------------------


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


class Quantize(Node):
    """Round-to-nearest quantization of every linear layer inside the blocks (embeddings and head stay)."""

    type: Literal["quantize"] = "quantize"
    format: Literal["int", "nf4"] = Field(
        "int", description="Uniform integers, or NF4 as QLoRA defines it (absmax per block)."
    )
    bits: Annotated[int, Field(ge=2, le=8)] = Field(4, description="Bits per weight code.")
    group_size: PositiveInt = Field(64, description="Weights that share one scale, along the input dimension.")
    symmetric: bool = Field(True, description="Codes around zero; otherwise a zero point per group.")

    @model_validator(mode="after")
    def _nf4_is_four_bits(self) -> "Quantize":
        if self.format == "nf4" and (self.bits != 4 or not self.symmetric):  # noqa: PLR2004
            raise ValueError("format nf4 is a 4-bit format without zero points; remove `bits` and `symmetric`")
        return self


class Magnitude(Node):
    """Unstructured magnitude pruning: the smallest weights of each linear layer become zero."""

    type: Literal["magnitude"] = "magnitude"
    sparsity: Fraction = Field(0.5, description="Share of each layer's weights that become zero.")


class FFNWidth(Node):
    """Structured pruning: remove a share of each block's feed-forward neurons."""

    type: Literal["ffn_width"] = "ffn_width"
    fraction: Fraction = Field(0.1, description="Share of intermediate neurons removed (10% in arXiv 2604.15794).")
    calibration: str = Field(
        "self", description="Text that neurons are ranked on: `self` (the model writes it) or a text/JSONL file."
    )
    calibration_tokens: PositiveInt = Field(8192, description="Tokens of calibration text.")


Degrade = Annotated[SFT | Quantize | Magnitude | FFNWidth, Field(discriminator="type")]


# --- diagnose ----------------------------------------------------------------------------------------------------------


class Diagnose(Node):
    """What was lost, per token and per layer."""

    prompts: str = Field("self", description="Held-out prompts: `self`, a JSONL/text file, or `hub:NAME`.")
    num_prompts: PositiveInt = Field(32, description="Prompts; the reference writes a completion to each.")
    max_tokens: PositiveInt = Field(64, description="Completion length, tokens.")


# --- recover -----------------------------------------------------------------------------------------------------------


class Term(Node):
    """One term of the objective: who teaches what, and how much it counts (dual objective, arXiv 2604.15794)."""

    prompts: str = Field("self", description="`self` (the teacher writes them), a JSONL/text file, or `hub:NAME`.")
    teacher: str | None = Field(
        None,
        description="A model, or a state of this run: `model` or a degrade step's type. Null: the state before the last injury.",
    )
    weight: PositiveFloat = Field(
        1.0, description="Weight of the term in the loss; rollouts are split evenly over the terms."
    )
    num_prompts: PositiveInt = Field(256, description="Prompts drawn from the source.")


class Bootstrap(Node):
    """Off-policy start: train on teacher-written completions until the student is able (METHOD section 1).

    Competence is the overlap sum_v min(p_T, p_S), averaged over the tokens of completions that the student sampled: the
    chance that the teacher would have accepted the student's token (the acceptance rate of speculative decoding).
    """

    overlap: Annotated[float, Field(ge=0, le=1)] = Field(
        0.6, description="Go on-policy at this overlap; 0 starts on-policy."
    )
    check_every: PositiveInt = Field(5, description="Steps between measurements of the overlap.")
    max_steps: NonNegative = Field(
        50, description="Go on-policy after this many steps whatever the overlap; 0 starts on-policy."
    )


class Rollout(Node):
    """How completions are sampled."""

    max_tokens: PositiveInt = Field(64, description="Completion length, tokens.")
    temperature: PositiveFloat = Field(0.8, description="Sampling temperature.")
    max_prompt_tokens: PositiveInt = Field(256, description="Prompts longer than this are left out, not truncated.")


class Train(Node):
    """What trains. Whatever it is, the student stays on its structure."""

    what: Literal["weights", "lora", "scales", "norms"] = Field(
        "weights",
        description="Every weight; a low-rank update inside the structure; the grid's scales; or norms and biases.",
    )
    layers: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = Field(
        None, description="Blocks that train, counted from 0; the whole model when null."
    )
    lora_rank: PositiveInt = Field(16, description="Rank r of the low-rank update.")


class Recover(Node):
    """On-policy self-distillation from a historical checkpoint."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1)] = Field((Term(),), description="Terms of the objective.")
    divergence: Divergence = Field("forward_kl", description="Full-vocabulary divergence per token, nats.")
    jensen_shannon_beta: Fraction = Field(0.5, description="beta in m = (1-beta) p_S + beta p_T.")
    skip_tokens: NonNegative = Field(0, description="First completion tokens left out of the loss (SDFT masks 3).")
    train: Train = Field(Train(), description="What trains.")
    steps: PositiveInt = Field(100, description="Optimizer steps.")
    batch_size: PositiveInt = Field(16, description="Rollouts per optimizer step.")
    micro_batch_size: PositiveInt = Field(8, description="Rollouts per forward pass; lower it when memory runs out.")
    learning_rate: PositiveFloat = Field(2e-5, description="Peak AdamW learning rate.")
    min_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="Cosine decays to this share of the peak."
    )
    warmup_steps: NonNegative = Field(5, description="Linear warm-up.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this global norm.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Autocast type; the weights that train are fp32 always."
    )
    rollout: Rollout = Field(Rollout(), description="Sampling.")
    bootstrap: Bootstrap = Field(Bootstrap(), description="Off-policy start.")
    checkpoint_every: PositiveInt = Field(
        20, description="Steps between checkpoints that a stopped run continues from."
    )

    @model_validator(mode="after")
    def _some_tokens_are_scored(self) -> "Recover":
        if self.skip_tokens >= self.rollout.max_tokens:
            raise ValueError(
                f"skip_tokens {self.skip_tokens} leaves nothing of rollout.max_tokens {self.rollout.max_tokens}; lower it"
            )
        return self


# --- evaluate ----------------------------------------------------------------------------------------------------------


class Evaluate(Node):
    """Benchmarks, the papers' tasks, and fidelity to the reference."""

    tasks: tuple[str, ...] = Field(
        ("hellaswag", "arc_easy", "piqa"), description="lm-eval task names, or `tooluse`, `science`."
    )
    limit: PositiveInt | None = Field(None, description="Items per task, chosen by the seed; all when null.")
    batch_tokens: PositiveInt = Field(8192, description="Tokens per forward pass, pads included.")
    data: str | None = Field(
        None, description="Folder that holds tooluse_sdft/ and science_sdft/; `$VARIABLES` are expanded."
    )
    fidelity_prompts: str = Field("self", description="Held-out prompts for fidelity, never those trained on.")
    num_fidelity_prompts: PositiveInt = Field(
        64, description="Held-out prompts; the reference writes a completion to each."
    )
    fidelity_tokens: PositiveInt = Field(64, description="Length of those completions, tokens.")
    num_bootstrap: PositiveInt = Field(2000, description="Paired bootstrap resamples for the 95% intervals.")
    reference: str | None = Field(
        None,
        description="What is compared with: `model`, or the type of a degrade step. Null: the state before the last injury.",
    )


class RunConfig(Node):
    """A whole run: damage → diagnose → recover → evaluate → report."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = Field(description="Name of the run and of its folder.")
    model: str = Field(
        "embedded",
        description="The undamaged model: folder, hub id[@revision], GGUF file, PEFT adapter folder, or `embedded`.",
    )
    student: str | None = Field(None, description="A damaged model you already have; then `degrade` stays empty.")
    chat_template: Path | Literal["plain"] | None = Field(
        None, description="Jinja file for a model without one; `plain` sends the text as it is."
    )
    seed: NonNegative = Field(0, description="Seeds every random choice of the run.")
    degrade: tuple[Degrade, ...] = Field((), description="Injuries, in order.")
    diagnose: Diagnose = Field(Diagnose(), description="Diagnosis before and after.")
    recover: Recover = Field(Recover(), description="The repair.")
    evaluate: Evaluate = Field(Evaluate(), description="The proof.")

    @model_validator(mode="after")
    def _one_damaged_model(self) -> "RunConfig":
        if bool(self.degrade) == (self.student is not None):
            raise ValueError(
                "give exactly one of `degrade` (recoup makes the damage) and `student` (you have a damaged model)"
            )
        types = [step.type for step in self.degrade]
        if len(set(types)) != len(types):
            raise ValueError(f"degrade lists {types}; each type may stand once, since steps are named by type")
        known = {"model", *types}
        if self.evaluate.reference is not None and self.evaluate.reference not in known:
            raise ValueError(
                f"evaluate.reference {self.evaluate.reference!r} is not a state of this run; known: {', '.join(sorted(known))}"
            )
        return self

    @property
    def before_last_injury(self) -> str:
        """Name of the state that was damaged last: the default teacher and the default reference."""
        return self.degrade[-2].type if len(self.degrade) > 1 else "model"
