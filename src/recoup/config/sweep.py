"""A sweep: injuries × variants × methods × seeds, each a run; `recoup.sweep.expand` makes the runs' configs of it."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt, field_validator, model_validator

from recoup.config.methods import Method
from recoup.config.node import Node, NonNegative

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
Settings = dict[str, Any]  # a part of a run's settings, as a config file holds them


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"lists {', '.join(map(str, values))}; each may stand once")
    return values


Methods = Annotated[tuple[Method, ...], Field(min_length=1), AfterValidator(_each_once)]

OF_THE_SWEEP = {  # what a run is named and told apart by: here it stands elsewhere
    "name": "runs are named by injury, variant, method and seed",
    "method": "list it in `methods`",
    "seed": "list it in `seeds`",
}
OF_A_VARIANT = ("recover", "task_file")  # all variants of an injury share its damage and the proof of it


class Injury(Node):
    """One kind of damage."""

    task: str | None = Field(
        None,
        description="The benchmark that a damaging step taught, of evaluate.tasks; scored apart from general ability.",
    )
    task_score: str | None = Field(
        None, description="Which of that benchmark's scores counts, such as right_tool of tooluse; null: its first."
    )
    methods: Methods | None = Field(None, description="What repairs this damage; null: the sweep's.")
    settings: Settings = Field(description="Settings of a run, laid over `base`: `degrade`, or `student`, and more.")

    @field_validator("settings")
    @classmethod
    def _leaves_the_sweeps_words(cls, settings: Settings) -> Settings:
        return _without_the_sweeps_words(settings)

    @model_validator(mode="after")
    def _has_a_task_to_score(self) -> "Injury":
        if self.task_score is not None and self.task is None:
            raise ValueError(f"task_score {self.task_score!r} is a score of `task`, which is not given")
        return self


class Sweep(Node):
    """Methods × injuries × seeds, one run each, and a leaderboard of them."""

    name: Name = Field(description="Name of the sweep and of its folder.")
    base: Settings = Field({}, description="Settings that every run has; a run's config without its name.")
    injuries: Annotated[dict[Name, Injury], Field(min_length=1)] = Field(description="Kinds of damage, by name.")
    variants: dict[Name, Settings] = Field(
        {},
        description=(
            "Ways to set up the repair (teachers, ablations), by name: `recover` and `task_file`, laid over. The others are held "
            "against the first."
        ),
    )
    methods: Methods = Field(
        ("onpolicy",),
        description=(
            "What repairs; `none` is always among them, since all others are compared with it. The first on-policy one is what "
            "the others are held against."
        ),
    )
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1), AfterValidator(_each_once)] = Field(
        (0,),
        description="Each is a run's `seed`; items are drawn by evaluate.seed, so all seeds are scored on the same.",
    )
    workers: PositiveInt = Field(1, description="Runs at a time, each on its own GPU where there are GPUs.")
    keep_weights: bool = Field(
        True,
        description=(
            "Keep the models. False: a repair's are removed once its run is finished, those of the damage with the last run."
        ),
    )

    @field_validator("base")
    @classmethod
    def _leaves_the_sweeps_words(cls, settings: Settings) -> Settings:
        return _without_the_sweeps_words(settings)

    @model_validator(mode="after")
    def _variants_change_the_repair_alone(self) -> "Sweep":
        for name, settings in self.variants.items():
            other = [key for key in settings if key not in OF_A_VARIANT]
            if other:
                raise ValueError(
                    f"variants.{name} sets {', '.join(other)}; a variant changes {' and '.join(OF_A_VARIANT)} alone, since all "
                    "variants share one damaged model and its scores: make an injury of it"
                )
        return self


def _without_the_sweeps_words(settings: Settings) -> Settings:
    for key, instead in OF_THE_SWEEP.items():
        if key in settings:
            raise ValueError(f"{key!r} is the sweep's to set; {instead}")
    return settings
