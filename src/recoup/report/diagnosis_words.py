"""What a diagnosis says in sentences, built from its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from recoup.report.diagnosis_grids import perplexities
from recoup.report.gather import Diagnosis
from recoup.report.words import counted, interval, significant, significant_interval
from recoup.results import DiagnoseResult, LayerDamage

HOW_TO_READ_CKA = (
    "Linear CKA compares the geometry of two models' hidden states on the same tokens: 1 means equal up to rotation and scale, "
    "0 means unrelated.",
    "Read it between its ceiling (the teacher against itself in another precision) and its floor (the teacher against a "
    "re-initialised model), and without sink tokens: the first token and a few massive dimensions can hold nearly all of the "
    "variance, and with them a wrecked model still reads close to 1.",
    "It says where a model changed, not how much worse it became: higher CKA is not always higher accuracy, so token KL and "
    "the benchmarks decide.",
)


@dataclass(frozen=True)
class Tile:
    """A number that matters."""

    name: str
    value: str
    detail: str


def title(diagnosis: Diagnosis) -> str:
    """The verdict; without a triage, the damage."""
    if diagnosis.triage is not None:
        verdict = diagnosis.triage.verdict
        return verdict[0].upper() + verdict[1:]
    return (
        f"Token KL from the teacher to the student is {significant(diagnosis.result.tokens.token_kl_nats.value)} nats"
    )


def tiles(result: DiagnoseResult) -> tuple[Tile, ...]:
    """Token KL, agreement, perplexity."""
    tokens = result.tokens
    return (
        Tile("token KL, nats", significant_interval(tokens.token_kl_nats), "0 is the teacher itself"),
        Tile(
            "top-1 agreement", interval(tokens.top1_agreement), "of the likeliest next token; 1 is the teacher itself"
        ),
        Tile("perplexity, teacher → student", perplexities(tokens), "on the teacher's own words"),
    )


def lowest_layer(layers: Sequence[LayerDamage]) -> str:
    """Where CKA is lowest."""
    worst = min(layers, key=lambda layer: layer.linear_cka)
    return f"Lowest: {worst.linear_cka:.3f} at layer {worst.layer}."


def moved_sinks(result: DiagnoseResult) -> str:
    """That attention rests on other tokens in one model than in the other, which CKA leaves out."""
    if not result.num_moved_sinks:
        return ""
    tokens = counted(result.num_moved_sinks, "token")
    return f"Attention settles on {tokens} in one of the models alone: a change that CKA, which leaves them out, does not show."


def map_sentence(result: DiagnoseResult) -> str:
    """Whether layers still stand in their places."""
    if len(result.cka_map) != len(result.layers):
        return ""
    partners = [x.layer if x.teacher_layer is None else x.teacher_layer for x in result.layers]
    at_home = sum(
        max(range(len(row)), key=row.__getitem__) == home for row, home in zip(result.cka_map, partners, strict=True)
    )
    return f"{at_home} of {counted(len(partners), 'student layer')} are most like their own partner."


def left_out(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What the diagnosis does not hold, and so the page does not show."""
    result, layers = diagnosis.result, diagnosis.result.layers
    absent = {
        "advice, repairs and pilot: the triage was not run on these models": diagnosis.triage is None,
        "groups of prompts: the prompts name none": not result.groups,
        "damage by place in the completion": not result.positions,
        "benchmarks: none was asked for (setting: tasks)": not result.tasks,
        "intervals of CKA": all(x.cka_interval is None for x in layers),
        "ceiling and floor of CKA": all(x.ceiling is None and x.floor is None for x in layers),
        "relative L2 and Procrustes distance": all(x.relative_l2 is None and x.procrustes is None for x in layers),
        "effective rank": all(x.student_rank is None for x in layers),
        "weight drift: no layer has the teacher's shape, or it was not measured": all(
            x.relative_drift is None for x in layers
        ),
        "drift of attention, feed-forward parts and heads": all(
            x.attention_drift is None and x.ffn_drift is None and not x.head_drift for x in layers
        ),
        "the layer by layer map of CKA": not result.cka_map,
        "the most changed tokens": not result.changed_tokens,
        "generations": not result.generations,
        "behaviour: JSON, tool calls, refusals, length, repetition": not result.behaviour,
        "a history of checkpoints: none was given (option: --history)": diagnosis.history is None,
    }
    return tuple(words for words, missing in absent.items() if missing)
