"""Each method's settings, derived by hand; and which methods are refused, with the reason and a way out."""

import subprocess
import sys
from typing import Any, get_args

import pytest

from recoup.config import Recover, RunConfig, Term
from recoup.config.methods import AFTER, FREE, METHODS, TRAINED, Method, derived, not_possible, task_rows
from recoup.config_file import parse
from recoup.errors import ConfigError

TASK = "rows.jsonl"
BOTH = Recover.model_validate({
    "terms": [
        {"prompts": "self", "teacher": "model", "num_prompts": 64, "weight": 2.0},
        {"prompts": "task.jsonl", "teacher": "sft", "num_prompts": 192, "demonstration": True},
    ],
    "steps": 7, "learning_rate": 3e-4, "skip_tokens": 1, "divergence": "reverse_kl",
    "hidden_states": {"measure": "relative_l2"}, "probe": {"recovered_at": 0.1},
    "rollout": {"ahead": 2, "uses": 2, "asynchronous": True, "importance_cap": 2.0, "temperature": 1.0},
    "bootstrap": {"overlap": 0.5},
})  # fmt: skip
SFT_STEP = {"type": "sft", "train_file": TASK}
INT3 = {"type": "quantize", "bits": 3}


def terms(method: Method, task: str | None = TASK) -> list[dict[str, Any]]:
    """What differs from a term's defaults."""
    found = derived(method, BOTH, task).terms
    return [{k: v for k, v in term.model_dump().items() if v != Term.model_fields[k].default} for term in found]


def config(method: str, degrade: list[dict[str, Any]], **settings: Any) -> RunConfig:
    return parse(RunConfig, {"name": "x", "method": method, "degrade": degrade, **settings}, "test")


def test_every_method_is_described_and_is_either_kind() -> None:
    assert set(METHODS) == set(get_args(Method)) == {*FREE, *TRAINED}
    assert not {*FREE} & {*TRAINED}


@pytest.mark.parametrize("method", ["onpolicy", *AFTER, *FREE])
def test_as_given(method: Method) -> None:
    assert derived(method, BOTH, TASK) == BOTH


def test_onpolicy_cka() -> None:
    assert derived("onpolicy_cka", BOTH) == BOTH, "the measure that was asked for stays"
    plain = Recover(teachers={"cache": "top_k"})
    with_term = derived("onpolicy_cka", plain)
    assert with_term.hidden_states is not None
    assert with_term.hidden_states.measure == "cka"
    assert with_term.teachers.cache == "none"
    assert with_term == derived("onpolicy_cka", with_term)
    assert with_term.terms == plain.terms


def test_lora() -> None:
    given = Recover(train={"layers": [1], "lora_rank": 4})
    found = derived("lora", given)
    assert found.train.model_dump() == {"what": "lora", "layers": (1,), "lora_rank": 4}
    assert found == Recover.model_validate(given.model_dump() | {"train": found.train})


def test_kd_offpolicy() -> None:
    general, task = terms("kd_offpolicy")
    assert general == {"teacher": "model", "num_prompts": 64, "weight": 2.0, "completions": "teacher"}
    assert task == {
        "prompts": "task.jsonl", "teacher": "sft", "num_prompts": 192, "demonstration": True, "completions": "teacher",
    }  # fmt: skip
    found = derived("kd_offpolicy", BOTH)
    assert found.divergence == "reverse_kl"
    assert found.hidden_states == BOTH.hidden_states
    assert found.probe == BOTH.probe, "its terms have a teacher to come near to"


ANSWERS = {"prompts": TASK, "num_prompts": 192, "loss": "cross_entropy", "completions": "file"}
IMITATED = [
    {"teacher": "model", "num_prompts": 64, "weight": 2.0, "loss": "cross_entropy", "completions": "teacher"},
    {"prompts": "task.jsonl", "teacher": "sft", "num_prompts": 192, "loss": "cross_entropy", "completions": "teacher"},
]


def test_sft() -> None:
    assert terms("sft") == [ANSWERS]  # as many prompts as the larger of 64 and 192
    assert terms("sft", None) == IMITATED


def test_sft_kl() -> None:
    assert terms("sft_kl") == [
        ANSWERS,
        {"prompts": TASK, "num_prompts": 192, "completions": "file", "teacher": "model"},
    ]
    general, task = IMITATED
    near = [
        {"teacher": "model", "num_prompts": 64, "weight": 2.0, "completions": "teacher"},
        {"prompts": "task.jsonl", "teacher": "model", "num_prompts": 192, "completions": "teacher"},
    ]
    assert terms("sft_kl", None) == [general, task, *near]
    assert derived("sft_kl", BOTH, TASK, base="first").terms[1].teacher == "first"


def test_replay() -> None:
    assert terms("replay") == [ANSWERS, *IMITATED]


def test_sdft() -> None:
    assert terms("sdft") == [{"prompts": TASK, "num_prompts": 192, "teacher": "ema", "demonstration": True}]
    found = derived("sdft", BOTH, TASK)
    assert found.skip_tokens == 3  # 1 was asked for
    assert derived("sdft", Recover(skip_tokens=5), TASK).skip_tokens == 5
    assert found.bootstrap.max_steps == 0
    assert found.rollout == BOTH.rollout, "it is on-policy"
    assert found.hidden_states is None


@pytest.mark.parametrize("method", ["sft", "sft_kl", "replay", "kd_offpolicy"])
def test_what_only_a_students_own_words_need_is_left_out(method: Method) -> None:
    rollout = derived(method, BOTH, TASK).rollout
    assert (rollout.asynchronous, rollout.ahead, rollout.uses, rollout.importance_cap) == (False, 1, 1, None)
    assert (rollout.temperature, rollout.max_tokens) == (1.0, 64), "the rest is as given"


@pytest.mark.parametrize("method", TRAINED)
def test_what_a_method_spends_is_as_given(method: Method) -> None:
    found = derived(method, BOTH, TASK)
    assert (found.steps, found.batch_size, found.learning_rate) == (7, 16, 3e-4)
    assert Recover.model_validate(found.model_dump()) == found, "it is a config that loads"


@pytest.mark.parametrize("method", ["sft", "sft_kl", "replay"])
def test_cross_entropy_is_forward_kl(method: Method) -> None:
    assert derived(method, BOTH, TASK).divergence == "forward_kl"


@pytest.mark.parametrize(("method", "decides"), [("sft", False), ("replay", False), ("sdft", False), ("sft_kl", True)])
def test_a_probe_decides_only_where_a_teacher_is_distilled(method: Method, decides: bool) -> None:
    probe = derived(method, BOTH, TASK).probe
    assert probe is not None
    assert (probe.keep_best, probe.recovered_at) == ((True, 0.1) if decides else (False, 0.0))


def test_answers_that_stand_in_a_file_stay() -> None:
    given = Recover(terms=({"prompts": TASK, "completions": "file"},))
    assert derived("kd_offpolicy", given).terms == given.terms
    assert derived("sft", given).terms == (Term(prompts=TASK, completions="file", loss="cross_entropy"),)


def test_the_rows_of_the_task() -> None:
    degrade = config("none", [SFT_STEP, INT3]).degrade
    assert task_rows(None, degrade) == TASK
    assert task_rows("other.jsonl", degrade) == "other.jsonl"
    assert task_rows(None, degrade[1:]) is None


@pytest.mark.parametrize("method", ["interpolate", "svd_repair", "onpolicy_interpolated"])
def test_weights_do_not_move_back_to_the_base_from_a_structure(method: str) -> None:
    assert config(method, [SFT_STEP]).method == method
    refused: list[tuple[list[dict[str, Any]], str]] = [
        ([SFT_STEP, INT3], "after quantize the student lies on a grid or mask"),
        ([{"type": "magnitude"}, SFT_STEP], "after magnitude the student lies on a grid or mask"),  # zeros stay zero
        ([{"type": "ffn_width"}], "after ffn_width the student has other shapes"),
    ]
    for degrade, reason in refused:
        with pytest.raises(ConfigError, match=reason):
            config(method, degrade)


@pytest.mark.parametrize("method", ["rounding", "onpolicy_rounded"])
def test_only_what_was_compressed_is_compressed_anew(method: str) -> None:
    assert config(method, [SFT_STEP, INT3]).method == method
    for last in (SFT_STEP, {"type": "ffn_width"}):
        with pytest.raises(
            ConfigError, match=f"{last['type']} leaves nothing to compress it to; it is for quantize, magnitude"
        ):
            config(method, [{"type": "magnitude"}, last])


@pytest.mark.parametrize("method", ["replay", "sdft"])
def test_a_task_is_needed(method: str) -> None:
    with pytest.raises(ConfigError, match=f"{method} needs rows of the task.*set task_file"):
        config(method, [INT3])
    assert config(method, [INT3], task_file=TASK).repair.terms[0].prompts == TASK
    assert config(method, [SFT_STEP, INT3]).repair.terms[0].prompts == TASK


def test_settings_that_a_method_cannot_have_say_so_in_one_line() -> None:
    degrade = config("none", [SFT_STEP]).degrade
    short = Recover(rollout={"max_tokens": 3})
    reason = not_possible("sdft", short, None, degrade)
    assert reason == "method sdft: skip_tokens 3 leaves nothing of rollout.max_tokens 3; lower it"
    own_words = Recover(terms=({"teacher": "start"},))
    assert "imitate its own words" in str(not_possible("sft", own_words, None, ()))
    refused = ("sdft", "rounding", "onpolicy_rounded")  # the last two want a compressed student
    assert all(not_possible(method, short, None, degrade) is None for method in METHODS if method not in refused)


def test_imports_no_torch() -> None:
    program = "import sys, recoup.config.methods; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
