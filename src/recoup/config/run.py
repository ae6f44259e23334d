"""A whole run, and the stages that are not an injury or a repair."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recoup.config.degrade import Degrade
from recoup.config.methods import Method, derived, not_possible, task_rows
from recoup.config.node import Node, NonNegative
from recoup.config.recover import Recover


class Diagnose(Node):
    """What was lost, per token and per layer."""

    prompts: str = Field("self", description="Held-out prompts: `self`, a JSONL/text file, or `hub:NAME`.")
    num_prompts: PositiveInt = Field(32, description="Prompts; the reference writes a completion to each.")
    max_tokens: PositiveInt = Field(64, description="Completion length, tokens.")
    behaviour: bool = Field(
        True, description="Both models answer prompts of our own: JSON, tool calls, refusals, length and repetition."
    )
    tasks: tuple[str, ...] = Field((), description="Benchmarks that both models are scored on; see `recoup ls tasks`.")
    limit: PositiveInt | None = Field(100, description="Items per task, chosen by the seed; all when null.")
    data: str | None = Field(
        None, description="Folder with the files that tasks such as tooluse and ifeval name; `$VARIABLES` are expanded."
    )


class Evaluate(Node):
    """Benchmarks, the papers' tasks, and fidelity to the reference."""

    tasks: tuple[str, ...] = Field(
        ("hellaswag", "arc_easy", "piqa"), description="Tasks of `recoup ls tasks`, or any other task of lm-eval."
    )
    limit: PositiveInt | None = Field(None, description="Items per task, chosen by evaluate.seed; all when null.")
    limits: dict[str, PositiveInt] = Field(
        {}, description="Items of single tasks in place of `limit`: fewer where a task writes long answers."
    )
    max_new_tokens: PositiveInt | None = Field(
        None,
        description="Longest answer that a task may ask for, tokens: scores are then not the task's own. Null: as it asks.",
    )
    batch_tokens: PositiveInt = Field(8192, description="Tokens per forward pass, pads included.")
    data: str | None = Field(
        None, description="Folder with the files that tasks such as tooluse and ifeval name; `$VARIABLES` are expanded."
    )
    allow_code: bool = Field(
        False,
        description="Whether humaneval may run the code that the model writes, in a confined process of this machine.",
    )
    fidelity_prompts: str = Field("self", description="Held-out prompts for fidelity, never those trained on.")
    num_fidelity_prompts: PositiveInt = Field(
        64, description="Held-out prompts; the reference writes a completion to each."
    )
    fidelity_tokens: PositiveInt = Field(64, description="Length of those completions, tokens.")
    seed: NonNegative = Field(
        0,
        description="Chooses items and held-out prompts, apart from the run's seed: all seeds are scored on the same.",
    )
    num_bootstrap: PositiveInt = Field(2000, description="Paired bootstrap resamples for the 95% intervals.")
    reference: str | None = Field(
        None,
        description="What is compared with: `model`, or the type of a degrade step. Null: the state before the last injury.",
    )

    def limit_of(self, task: str) -> int | None:
        """Items of a task; null: all."""
        return self.limits.get(task, self.limit)

    def new_tokens(self, asked: int) -> int:
        """Longest answer, tokens, where the task asks for `asked`."""
        return min(asked, self.max_new_tokens or asked)


class Export(Node):
    """A model in the format of the program that runs it, read back by that program before it is kept."""

    to: Literal["safetensors", "compressed-tensors", "gguf"] = Field(
        "safetensors",
        description="Plain floating point for transformers; packed codes for vLLM and transformers; or llama.cpp's format.",
    )
    dtype: Literal["float32", "float16", "bfloat16", "q8_0"] | None = Field(
        None,
        description="Type of the weights that lie on no grid of the target; safetensors: of all. Null: float32; gguf: float16.",
    )
    max_kl_nats: PositiveFloat | None = Field(
        None,
        description="Refuse an export whose mean token KL from the trained model is larger. Null: 0.01; read by llama.cpp: 0.02.",
    )

    @model_validator(mode="after")
    def _q8_0_is_a_gguf_type(self) -> "Export":
        if self.dtype == "q8_0" and self.to != "gguf":
            raise ValueError(f"dtype q8_0 is a GGUF type, and {self.to} does not hold it; use float16, or to: gguf")
        return self


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
    method: Method = Field(
        "onpolicy", description="What repairs: on-policy self-distillation, or a baseline; see `recoup ls methods`."
    )
    task_file: str | None = Field(
        None,
        description=(
            "JSONL rows with prompts and answers of the task, which sft, sft_kl, replay and sdft train on. Null: the train_file "
            "of the last `sft` step of degrade."
        ),
    )
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
        if reason := not_possible(self.method, self.recover, self.task_file, self.degrade):
            raise ValueError(reason)
        return self

    @property
    def repair(self) -> Recover:
        """The settings of the repair, as `method` makes them of `recover`."""
        return derived(self.method, self.recover, task_rows(self.task_file, self.degrade))

    @property
    def before_last_injury(self) -> str:
        """Name of the state that was damaged last: the default teacher and the default reference."""
        return self.degrade[-2].type if len(self.degrade) > 1 else "model"
