"""What the repair minimises: terms of a divergence or a cross-entropy, and a term on hidden states."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from recoup.config.node import Node, NonNegative, NonNegativeFloat

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
SELF_TEACHERS = ("ema", "start")


class Term(Node):
    """One term of the objective: who teaches what, and how much it counts (dual objective, arXiv 2604.15794)."""

    loss: Literal["distill", "cross_entropy"] = Field(
        "distill",
        description="A divergence from the teacher's distribution, or cross-entropy of the tokens themselves.",
    )
    completions: Literal["student", "teacher", "file"] = Field(
        "student",
        description="Who answers the prompts: the student (on-policy, once it is able), the teacher, or the prompt file's rows.",
    )
    prompts: str = Field("self", description="`self` (the teacher writes them), a JSONL/text file, or `hub:NAME`.")
    group: str | None = Field(None, description="Only rows of the prompt file whose field `group` says this.")
    teacher: str | None = Field(
        None,
        description=(
            "A model, or a state of this run: `model` or a degrade step's type; `ema`: the student's moving average; `start`: "
            "the student as it was. Null: the state before the last injury."
        ),
    )
    demonstration: bool = Field(
        False, description="The teacher sees the row's answer in its prompt, the student does not (SDFT, 2601.19897)."
    )
    demonstration_tokens: PositiveInt = Field(
        1024,
        description="Longest prompt with a demonstration in it; a longer demonstration loses its end, never the question.",
    )
    weight: NonNegativeFloat = Field(
        1.0, description="Weight of the term in the loss; rollouts are split evenly over the terms."
    )
    final_weight: NonNegativeFloat | None = Field(
        None, description="Weight at the last step, reached linearly from `weight`; null: constant."
    )
    num_prompts: PositiveInt = Field(256, description="Prompts drawn from the source.")

    @model_validator(mode="after")
    def _has_answers_where_it_needs_them(self) -> "Term":
        if self.prompts == "self" and (self.completions == "file" or self.demonstration):
            raise ValueError(
                "self-written prompts have no answers: give a JSONL file for `completions: file` and `demonstration`"
            )
        if self.loss == "cross_entropy" and self.completions == "student":
            raise ValueError(
                "cross_entropy on the student's own words teaches nothing; set completions: file, or teacher"
            )
        if self.demonstration and self.loss == "cross_entropy":
            raise ValueError("demonstration is for loss: distill; cross_entropy has no teacher to show it to")
        if self.weight == 0 and not self.final_weight:
            raise ValueError("weight 0 from start to end: remove the term, or give final_weight")
        return self


class HiddenStates(Node):
    """A term on hidden states beside the divergence (arXiv 2606.05682): student against teacher on the same tokens."""

    measure: Literal["cka", "relative_l2"] = Field(
        "cka", description="1 − debiased linear CKA, or ‖H_S − H_T‖² / ‖H_T‖², averaged over the layers."
    )
    weight: PositiveFloat = Field(0.1, description="Weight beside the divergence, which counts 1.")
    balance: Literal["fixed", "loss"] = Field(
        "fixed",
        description="The term counts as `weight` says, or is multiplied by the running ratio of divergence and term.",
    )
    layers: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = Field(
        None, description="Blocks compared, counted from 0; every fourth and the last when null."
    )
