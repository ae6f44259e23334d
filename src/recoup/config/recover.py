"""The repair: terms, sampling, what trains, how a step is taken."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recoup.config.node import Fraction, Node, NonNegative

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


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
