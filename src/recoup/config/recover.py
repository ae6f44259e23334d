"""The repair: sampling, what trains, teachers, how a step is taken, and what ends it. Its objective is in `objective`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recoup.config.node import Fraction, Node, NonNegative, NonNegativeFloat, Share
from recoup.config.objective import Divergence, HiddenStates, Term


class Bootstrap(Node):
    """Off-policy start: train on teacher-written completions until the student is able (METHOD section 1).

    Competence is the overlap sum_v min(p_T, p_S), averaged over the tokens of completions that the student sampled: the
    chance that the teacher would have accepted the student's token (the acceptance rate of speculative decoding).
    """

    overlap: Share = Field(0.6, description="Go on-policy at this overlap; 0 starts on-policy.")
    check_every: PositiveInt = Field(5, description="Steps between measurements of the overlap.")
    max_steps: NonNegative = Field(
        50, description="Go on-policy after this many steps whatever the overlap; 0 starts on-policy."
    )


class Rollout(Node):
    """How completions are sampled."""

    backend: Literal["native", "transformers", "vllm", "vllm_server"] = Field(
        "native", description="Who samples: recoup, `model.generate`, vLLM in this process, or a vLLM server."
    )
    server: str | None = Field(None, description="Address of the vLLM server, such as http://localhost:8000.")
    max_tokens: PositiveInt = Field(64, description="Completion length, tokens.")
    start_tokens: PositiveInt | None = Field(
        None, description="Length at the first step (short-to-long rollouts); null: `max_tokens` throughout."
    )
    grow_until: Share = Field(
        0.5, description="Share of the steps after which `start_tokens` has grown to `max_tokens`."
    )
    temperature: PositiveFloat = Field(0.8, description="Sampling temperature.")
    max_prompt_tokens: PositiveInt = Field(256, description="Prompts longer than this are left out, not truncated.")
    ahead: PositiveInt = Field(
        1,
        description="Batches (of `uses` steps each) sampled at once; the last step is up to ahead × uses − 1 steps stale.",
    )
    uses: PositiveInt = Field(1, description="Optimizer steps that each rollout serves.")
    asynchronous: bool = Field(
        False,
        description="Sample the next rollouts while the student trains: their writer is ahead × uses steps older.",
    )
    importance_cap: PositiveFloat | None = Field(
        None,
        description="Weigh each token by min(cap, p_student / p_sampler), for stale or foreign samplers; null: no correction.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Rollout":
        if self.start_tokens is not None and self.start_tokens > self.max_tokens:
            raise ValueError(f"start_tokens {self.start_tokens} is more than max_tokens {self.max_tokens}; lower it")
        if (self.backend == "vllm_server") != (self.server is not None):
            raise ValueError("backend vllm_server needs `server`, its address; no other backend takes one")
        return self


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


class Teachers(Node):
    """How teachers are held and what is kept of what they said."""

    hold: Literal["plain", "int8", "offload"] = Field(
        "plain",
        description="Weights as they are, in 8 bits, or in main memory and moved to the accelerator block by block.",
    )
    ema_rate: Fraction = Field(0.02, description="Share of the student that enters the moving average at each update.")
    ema_every: PositiveInt = Field(1, description="Steps between updates of the moving average.")
    cache: Literal["none", "hidden_states", "top_k"] = Field(
        "none",
        description="Keep scores of fixed completions on disk: exactly, or the k likeliest tokens and the sum of the rest.",
    )
    top_k: PositiveInt = Field(128, description="k of `cache: top_k`.")


class Guards(Node):
    """What counts as a collapse; the run then goes back to its last checkpoint with a smaller learning rate."""

    min_length: Share = Field(
        0.25,
        description="Least mean completion length, as a share of the first on-policy steps'; 0: unguarded.",
    )
    max_repetition: Share = Field(
        0.6,
        description="Largest share of 4-grams that repeat within their completion, or half-way from the run's least to all of "
        "them where that is more; 1: unguarded.",
    )
    min_entropy: Share = Field(
        0.1,
        description="Least mean entropy of the drawn tokens, as a share of the first on-policy steps'; 0: unguarded.",
    )
    window: PositiveInt = Field(4, description="Steps over which these are averaged.")
    max_roll_backs: NonNegative = Field(2, description="Times to go back before giving up with an error.")
    learning_rate_factor: Fraction = Field(
        0.5, description="The learning rate is multiplied by this at each roll-back."
    )


class Memory(Node):
    """What is spent to fit."""

    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw",
        description="AdamW; AdamW with 8-bit moments (torchao; slow on a CPU); Adafactor, whose second moment is factored.",
    )
    gradient_checkpointing: bool = Field(False, description="Work blocks out again in the backward pass.")
    offload_activations: bool = Field(
        False, description="Keep activations in main memory between forward and backward."
    )
    shrink_micro_batch: bool = Field(True, description="Halve micro_batch_size and go on when memory runs out.")


class Budget(Node):
    """What a repair may cost, so that methods are compared at equal cost; whichever is spent first ends it."""

    tokens: PositiveInt | None = Field(None, description="Completion tokens trained on.")
    seconds: PositiveFloat | None = Field(
        None, description="Seconds of sampling, teacher, student and optimizer; loading and saving are not counted."
    )

    @model_validator(mode="after")
    def _limits_something(self) -> "Budget":
        if self.tokens is None and self.seconds is None:
            raise ValueError("a budget needs tokens, seconds or both; set recover.budget to null for none")
        return self


class Probe(Node):
    """The student on a fixed set of held-out prompts, watched while it trains."""

    every: PositiveInt = Field(
        20, description="Optimizer steps between looks; the start and the end are looked at too."
    )
    prompts: str = Field("self", description="`self` (the teacher writes them), a JSONL/text file, or `hub:NAME`.")
    num_prompts: PositiveInt = Field(
        16, description="Prompts; the first teacher that a term distils as it is answers them once."
    )
    max_tokens: PositiveInt = Field(32, description="Length of those answers, tokens.")
    tasks: tuple[str, ...] = Field((), description="Benchmarks scored at every look; they cost what they cost.")
    limit: PositiveInt = Field(50, description="Items per task.")
    data: str | None = Field(
        None, description="Folder with the files that tasks such as tooluse and ifeval name; `$VARIABLES` are expanded."
    )
    recovered_at: Share = Field(
        0.0, description="Stop when token KL has fallen to this share of what it was at the start; 0: never."
    )
    patience: PositiveInt = Field(
        3,
        description="Looks in a row at which a group or task is significantly worse than at the start before the run stops.",
    )
    keep_best: bool = Field(
        True,
        description=(
            "End with the student of the look with the lowest token KL among those at which nothing was newly damaged; its "
            "checkpoint is kept on disk."
        ),
    )


class Recover(Node):
    """On-policy self-distillation from a historical checkpoint."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1)] = Field((Term(),), description="Terms of the objective.")
    divergence: Divergence = Field("forward_kl", description="Full-vocabulary divergence per token, nats.")
    jensen_shannon_beta: Fraction = Field(0.5, description="beta in m = (1-beta) p_S + beta p_T.")
    hidden_states: HiddenStates | None = Field(None, description="A term on hidden states beside the divergence.")
    balance: Literal["fixed", "gradient_norm"] = Field(
        "fixed",
        description="Terms count as their weights say, or so that their gradients' norms stand in that proportion.",
    )
    skip_tokens: NonNegative = Field(0, description="First completion tokens left out of the loss (SDFT masks 3).")
    token_weights: Literal["uniform", "by_rollout"] = Field(
        "uniform", description="Every token counts the same, or every rollout does, whatever its length."
    )
    train: Train = Field(Train(), description="What trains.")
    steps: PositiveInt = Field(100, description="Optimizer steps; the most there can be where there is a budget.")
    budget: Budget | None = Field(
        None, description="Ends the repair with the step that spends it; the learning rate decays with what is spent."
    )
    batch_size: PositiveInt = Field(16, description="Rollouts per optimizer step.")
    micro_batch_size: PositiveInt = Field(8, description="Rollouts per forward pass; lower it when memory runs out.")
    learning_rate: PositiveFloat = Field(2e-5, description="Peak learning rate.")
    min_learning_rate_fraction: Share = Field(0.1, description="Cosine decays to this share of the peak.")
    warmup_steps: NonNegative = Field(5, description="Linear warm-up.")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW decoupled weight decay.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this global norm.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Type that student and teachers compute in; the weights that train are fp32 always."
    )
    rollout: Rollout = Field(Rollout(), description="Sampling.")
    bootstrap: Bootstrap = Field(Bootstrap(), description="Off-policy start.")
    teachers: Teachers = Field(Teachers(), description="How teachers are held.")
    guards: Guards = Field(Guards(), description="What counts as a collapse.")
    memory: Memory = Field(Memory(), description="What is spent to fit.")
    probe: Probe | None = Field(
        None, description="Looks at the student on held-out prompts while it trains; null: none."
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="Experiment trackers that get every step's metrics, besides metrics.jsonl."
    )
    checkpoint_every: PositiveInt = Field(
        20, description="Steps between checkpoints that a stopped run continues from."
    )

    @model_validator(mode="after")
    def _teachers_can_do_what_is_asked(self) -> "Recover":
        if self.rollout.asynchronous and any(term.completions == "teacher" for term in self.terms):
            raise ValueError(
                "rollout.asynchronous: a teacher cannot write and score at once; set it to false, or completions: student"
            )
        if self.hidden_states is not None and self.teachers.cache != "none":
            raise ValueError("teachers.cache keeps no hidden states of inner blocks; remove it, or `hidden_states`")
        return self

    @model_validator(mode="after")
    def _nothing_waits_for_the_last_step(self) -> "Recover":
        grows = self.rollout.start_tokens is not None or any(term.final_weight is not None for term in self.terms)
        if self.budget is not None and grows:
            raise ValueError(
                "rollout.start_tokens and a term's final_weight change with the steps, of which a budget does not know the last; "
                "remove them, or the budget"
            )
        return self

    @model_validator(mode="after")
    def _some_tokens_are_scored(self) -> "Recover":
        field = "max_tokens" if self.rollout.start_tokens is None else "start_tokens"
        shortest = getattr(self.rollout, field)
        if self.skip_tokens >= shortest:
            raise ValueError(f"skip_tokens {self.skip_tokens} leaves nothing of rollout.{field} {shortest}; lower it")
        return self
