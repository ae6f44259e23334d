"""What a diagnosis tries before it advises: repairs without training, a short pilot, the checkpoints of a history."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recoup.config.node import Node, NonNegative
from recoup.config.recover import Recover, Rollout

FreeRepair = Literal["interpolate", "svd_repair", "rounding", "norms"]
FREE_REPAIRS: tuple[FreeRepair, ...] = ("interpolate", "svd_repair", "rounding", "norms")


class Plan(Recover):
    """The repair that would be run: every setting of `recover`, with a short run's defaults."""

    steps: PositiveInt = Field(60, description="Optimizer steps.")
    batch_size: PositiveInt = Field(8, description="Rollouts per optimizer step.")
    micro_batch_size: PositiveInt = Field(8, description="Rollouts per forward pass; lower it when memory runs out.")
    learning_rate: PositiveFloat = Field(1e-4, description="Peak learning rate.")
    warmup_steps: NonNegative = Field(2, description="Linear warm-up.")
    rollout: Rollout = Field(Rollout(max_tokens=48), description="Sampling.")


class Triage(Node):
    """What is tried before anything is advised."""

    repairs: tuple[FreeRepair, ...] = Field(
        FREE_REPAIRS,
        description=(
            "Repairs without training, in order: weights between student and base, the fine-tuning delta's leading singular "
            "values, better rounding (or pruning) to the same format, and, where that does not apply, norms and biases fitted "
            "to the teacher's activations."
        ),
    )
    keep: bool = Field(True, description="Whether the best repair without training is saved as a checkpoint.")
    pilot_steps: NonNegative = Field(
        4, description="Optimizer steps of the pilot, from which the planned repair is predicted; 0: no pilot."
    )
    plan: Plan = Field(Plan(), description="The repair that would be run, of which the pilot is the beginning.")

    @model_validator(mode="after")
    def _the_pilot_is_shorter(self) -> "Triage":
        if self.pilot_steps >= self.plan.steps:
            raise ValueError(
                f"pilot_steps {self.pilot_steps} is not less than plan.steps {self.plan.steps}; lower it, or run `recoup recover`"
            )
        return self


class History(Node):
    """Which checkpoint of a history was best at what."""

    tasks: tuple[str, ...] = Field((), description="Benchmarks (`recoup ls tasks`), each a capability.")
    limit: PositiveInt | None = Field(100, description="Items per task, chosen by the seed; all when null.")
    data: str | None = Field(
        None, description="Folder with the files that tasks such as tooluse and ifeval name; `$VARIABLES` are expanded."
    )
    prompts: str | None = Field(
        None,
        description=(
            "A JSONL file with answers and a `group` in its rows: each group is a capability, scored by the mean "
            "log-probability of the answers' tokens."
        ),
    )
    num_prompts: PositiveInt = Field(64, description="Rows of that file.")
    last: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Only the last so many checkpoints; all when null."
    )

    @model_validator(mode="after")
    def _has_capabilities(self) -> "History":
        if not self.tasks and self.prompts is None:
            raise ValueError("a history needs capabilities: give `tasks`, or `prompts` with answers and groups")
        return self
