"""From choices to terms: weights by hand, anchors, and nothing where nothing was lost."""

from recoup.config import Recover
from recoup.history.choose import Choice
from recoup.history.score import Capability
from recoup.history.terms import assign
from recoup.results import Estimate

GAIN = Estimate(value=0.1, low=0.05, high=0.15)
FILE = "all.jsonl"


def choice(name: str, checkpoint: str, lost: float | None) -> Choice:
    return Choice(name, checkpoint, GAIN, lost is not None, lost or 0.0)


def task(name: str) -> Capability:
    return Capability(name, is_task=True)


def group(name: str) -> Capability:
    return Capability(name, is_task=False, group=name)


def test_the_dual_objective() -> None:
    # benchmarks lost 0.1 and 0.2, both best at `base`: together 0.15. The group lost 0.3. Mean of 0.15 and 0.3: 0.225.
    # Weights 0.15 / 0.225 = 0.667 and 0.3 / 0.225 = 1.333
    choices = [choice("arc", "base", 0.1), choice("piqa", "base", 0.2), choice("tools", "expert", 0.3)]
    chosen, terms = assign(choices, [task("arc"), task("piqa"), group("tools")], FILE)
    assert terms == (
        {"prompts": "self", "teacher": "base", "weight": 0.667},
        {"prompts": FILE, "group": "tools", "teacher": "expert", "weight": 1.333},
    )
    assert [teacher.weight for teacher in chosen] == [0.667, 0.667, 1.333]
    assert [teacher.checkpoint for teacher in chosen] == ["base", "base", "expert"]
    assert Recover.model_validate({"terms": terms}).terms[1].teacher == "expert"


def test_benchmarks_are_shared_out_among_their_teachers() -> None:
    # three benchmarks lost 0.3 each: two to `a`, (0.3 + 0.3) / 3 = 0.2, one to `b`, 0.1; the mean is 0.15. One was not lost
    choices = [choice(name, teacher, 0.3) for name, teacher in (("x", "a"), ("y", "b"), ("z", "a"))]
    chosen, terms = assign([*choices, choice("w", "b", None)], [task(name) for name in "xyzw"], None)
    assert terms == (
        {"prompts": "self", "teacher": "a", "weight": 1.333},
        {"prompts": "self", "teacher": "b", "weight": 0.667},
    )
    assert [teacher.weight for teacher in chosen] == [1.333, 0.667, 1.333, 0.0]
    assert not chosen[3].significant


def test_what_was_not_lost_is_anchored() -> None:
    choices = [choice("arc", "base", None), choice("tools", "expert", 0.4), choice("chat", "base", None)]
    chosen, terms = assign(choices, [task("arc"), group("tools"), group("chat")], FILE)
    assert terms == (
        {"prompts": "self", "teacher": "start", "weight": 1.0},
        {"prompts": FILE, "group": "tools", "teacher": "expert", "weight": 1.0},
        {"prompts": FILE, "group": "chat", "teacher": "start", "weight": 1.0},
    )
    assert [teacher.weight for teacher in chosen] == [1.0, 1.0, 1.0]
    assert [teacher.checkpoint for teacher in chosen] == ["base", "expert", "base"]  # where it peaked, whoever teaches


def test_without_benchmarks_nothing_is_known_of_general_ability() -> None:
    whole_file = Capability("all", is_task=False)
    _, terms = assign([choice("all", "base", 0.4)], [whole_file], FILE)
    assert terms == ({"prompts": FILE, "teacher": "base", "weight": 1.0},)


def test_nothing_lost_nothing_to_repair() -> None:
    chosen, terms = assign(
        [choice("arc", "base", None), choice("chat", "base", None)], [task("arc"), group("chat")], FILE
    )
    assert terms == ()
    assert [teacher.weight for teacher in chosen] == [0.0, 0.0]


def test_no_term_gets_the_weight_nought() -> None:
    _, terms = assign([choice("a", "x", 1e-9), choice("b", "y", 1.0)], [group("a"), group("b")], FILE)
    assert [term["weight"] for term in terms] == [0.001, 2.0]
