"""What repairs: on-policy self-distillation, or one of the baselines that it is measured against, one word each.

Every method starts from the damaged student. A trained one is the run's own `recover` with another objective, so that steps,
batch, learning rate, sampling and budget are the same for all of them (`derived`). Here G are the terms of `recover`, and T the
rows of the task, with answers (`task_rows`).

What the student would have written, the teacher writes in the methods that are off-policy; a term whose answers stand in a file
keeps them. Cross-entropy is forward KL from the token that stands there, so methods that have it take that divergence. Answers
of T are cut at `rollout.max_tokens`, as everything is that is trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from recoup.config.degrade import SFT, Degrade
from recoup.config.objective import SELF_TEACHERS, HiddenStates, Term
from recoup.config.recover import Bootstrap, Recover

Method = Literal[
    "none", "interpolate", "svd_repair", "rounding",
    "sft", "sft_kl", "replay", "lora", "kd_offpolicy", "sdft", "onpolicy", "onpolicy_cka",
    "onpolicy_interpolated", "onpolicy_rounded",
]  # fmt: skip
METHODS: dict[Method, str] = {
    "none": "Nothing: the damaged student as it is.",
    "interpolate": "No training: weights between the student's and its base's (WiSE-FT, arXiv 2109.01903).",
    "svd_repair": "No training: only the leading directions of what fine-tuning changed (arXiv 2412.00081).",
    "rounding": "No training: the earlier model compressed anew to the same format, by GPTQ or SparseGPT.",
    "sft": "Cross-entropy on the task's answers; without a task file, on what the teachers write.",
    "sft_kl": "As sft, held near the undamaged model by a divergence on the same prompts.",
    "replay": "Cross-entropy on the task's answers and on what the teachers write (rehearsal: SSR, arXiv 2403.01244).",
    "lora": "As onpolicy, with a low-rank update only.",
    "kd_offpolicy": "As onpolicy, on what the teachers write and never on the student's words.",
    "sdft": "On-policy from its own moving average, which sees the task's answers (SDFT, arXiv 2601.19897).",
    "onpolicy": "On-policy self-distillation from an earlier checkpoint (arXiv 2604.15794).",
    "onpolicy_cka": "As onpolicy, with a term on hidden states (arXiv 2606.05682).",
    "onpolicy_interpolated": "As onpolicy, from the student that interpolate leaves; both are paid from one budget.",
    "onpolicy_rounded": "As onpolicy, from the student that rounding leaves; both are paid from one budget.",
}
FREE: tuple[Method, ...] = ("none", "interpolate", "svd_repair", "rounding")
TRAINED: tuple[Method, ...] = tuple(method for method in METHODS if method not in FREE)
AFTER: dict[Method, Method] = {
    "onpolicy_interpolated": "interpolate",
    "onpolicy_rounded": "rounding",
}  # what comes first
UNDAMAGED = "model"  # the state of a run before its first injury
SKIPPED_TOKENS = 3  # SDFT leaves out the first three, which repeat how demonstrations begin (2601.19897)
ON_POLICY_AT_ONCE = Bootstrap(max_steps=0)
UNUSED_ROLLOUT = {
    "backend": "native",
    "server": None,
    "ahead": 1,
    "uses": 1,
    "asynchronous": False,
    "importance_cap": None,
}
RESHAPING = ("ffn_width", "attention_heads", "depth")
COMPRESSING = ("quantize", "magnitude", "wanda", "sparsegpt")


@dataclass(frozen=True)
class _Given:
    """What a method is derived from."""

    recover: Recover
    task_file: str | None  # T
    base: str

    @property
    def terms(self) -> tuple[Term, ...]:
        """G."""
        return self.recover.terms

    def on_task(self, **settings: Any) -> Term:
        """A term on T, with as many prompts as the largest of G."""
        if self.task_file is None:
            raise ValueError(
                "needs rows of the task with their answers: set task_file, or fine-tune in degrade (type sft)"
            )
        most = max(term.num_prompts for term in self.terms)
        return Term.model_validate({"prompts": self.task_file, "num_prompts": most} | settings)

    def answers(self) -> Term:
        """Cross-entropy on T's answers."""
        return self.on_task(loss="cross_entropy", completions="file")


def task_rows(task_file: str | None, degrade: Sequence[Degrade]) -> str | None:
    """T: the file that is given, else what the last `sft` step of `degrade` was trained on; null where there is none."""
    trained_on = [step.train_file for step in degrade if isinstance(step, SFT)]
    return task_file or (trained_on[-1] if trained_on else None)


def derived(method: Method, recover: Recover, task_file: str | None = None, base: str = UNDAMAGED) -> Recover:
    """The settings that `method` trains with.

    Args:
        method: one of `TRAINED`; for the others, which do not train, the settings come back as they are.
        recover: the run's own.
        task_file: T (`task_rows`).
        base: the undamaged model, near which `sft_kl` stays.

    Raises:
        ValueError: the method needs T, or these settings make no sense with it.
    """
    changes = _CHANGES[method](_Given(recover, task_file, base))
    return Recover.model_validate(dict(recover) | changes) if changes else recover


def not_possible(method: Method, recover: Recover, task_file: str | None, degrade: Sequence[Degrade]) -> str | None:
    """Why a run cannot take this method, and what to do, in one line; null where it can.

    A student that a user has may lie on a structure that no config knows of; then the run finds out.

    Args:
        method: any.
        recover: the run's own settings.
        task_file: as the run names it; null: `task_rows` of the injuries.
        degrade: the run's injuries, in order.
    """
    kept = [step.type for step in degrade if step.type != "sft"]  # what fine-tuning after it keeps as well
    without_training = AFTER.get(method, method)
    if without_training == "rounding" and degrade and degrade[-1].type not in COMPRESSING:
        return (
            f"method {method} compresses the earlier model anew, and {degrade[-1].type} leaves nothing to compress it to; it is "
            f"for {', '.join(COMPRESSING)}; choose another method"
        )
    if kept and without_training in ("interpolate", "svd_repair"):
        how = "has other shapes" if kept[-1] in RESHAPING else "lies on a grid or mask"
        return (
            f"method {method} moves weights back towards the earlier model's, and after {kept[-1]} the student {how}, which "
            "they would leave; choose a method that trains, or none"
        )
    try:
        derived(method, recover, task_rows(task_file, degrade))
    except ValidationError as error:
        return f"method {method}: {'; '.join(_said(one['msg']) for one in error.errors())}"
    except ValueError as error:
        return f"method {method} {error}"
    return None


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


def _as_given(_given: _Given) -> dict[str, Any]:
    return {}


def _on_policy_cka(given: _Given) -> dict[str, Any]:
    """Cached scores hold no hidden states of inner blocks; they save time and nothing else."""
    return {
        "hidden_states": given.recover.hidden_states or HiddenStates(),
        "teachers": given.recover.teachers.model_copy(update={"cache": "none"}),
    }


def _lora(given: _Given) -> dict[str, Any]:
    return {"train": given.recover.train.model_copy(update={"what": "lora"})}


def _kd_offpolicy(given: _Given) -> dict[str, Any]:
    return _off_policy(given, [_written(term) for term in given.terms])


def _sft(given: _Given) -> dict[str, Any]:
    terms = [given.answers()] if given.task_file else [_imitating(term) for term in given.terms]
    return _off_policy(given, terms) | _supervised(given)


def _sft_kl(given: _Given) -> dict[str, Any]:
    """Divergence from the base on the same prompts: on T's answers, or on what the base writes there."""
    supervised = [given.answers()] if given.task_file else [_imitating(term) for term in given.terms]
    near = [_changed(term, loss="distill", teacher=given.base) for term in supervised]
    return _off_policy(given, supervised + near) | _supervised(given) | {"probe": given.recover.probe}


def _replay(given: _Given) -> dict[str, Any]:
    """Rehearsal without old data, with answers that a model wrote itself.

    SSR (Huang et al., 2403.01244) has the base write instances and the latest model refine their answers; here each term's
    prompts are answered by its teacher.
    """
    return _off_policy(given, [given.answers(), *map(_imitating, given.terms)]) | _supervised(given)


def _sdft(given: _Given) -> dict[str, Any]:
    """As published: on-policy from the first step, since the teacher, too, is the student."""
    return {
        "terms": (given.on_task(teacher="ema", demonstration=True),),
        "skip_tokens": max(SKIPPED_TOKENS, given.recover.skip_tokens),
        "bootstrap": ON_POLICY_AT_ONCE,
        "hidden_states": None,
        "probe": _only_watching(given.recover),
    }


def _off_policy(given: _Given, terms: Sequence[Term]) -> dict[str, Any]:
    """The student writes nothing, so nothing is drawn ahead, used twice or corrected for who drew it."""
    rollout = given.recover.rollout.model_copy(update=UNUSED_ROLLOUT)
    return {"terms": tuple(terms), "rollout": rollout, "bootstrap": ON_POLICY_AT_ONCE}


def _supervised(given: _Given) -> dict[str, Any]:
    return {"divergence": "forward_kl", "hidden_states": None, "probe": _only_watching(given.recover)}


def _only_watching(recover: Recover) -> Any:
    """A probe that decides nothing: no teacher is distilled as it is, so a larger KL is no damage."""
    return recover.probe and recover.probe.model_copy(update={"keep_best": False, "recovered_at": 0.0})


def _written(term: Term) -> Term:
    """The term on what its teacher writes."""
    return _changed(term, completions="teacher") if term.completions == "student" else term


def _imitating(term: Term) -> Term:
    """Cross-entropy on what the term's teacher writes."""
    if term.teacher in SELF_TEACHERS and term.completions != "file":
        raise ValueError(
            f"has the student imitate its own words (teacher: {term.teacher}); name a checkpoint as teacher"
        )
    return _changed(_written(_changed(term, demonstration=False)), loss="cross_entropy")


def _changed(term: Term, **settings: Any) -> Term:
    return Term.model_validate(dict(term) | settings)


_CHANGES: dict[Method, Callable[[_Given], dict[str, Any]]] = {
    "none": _as_given,
    "interpolate": _as_given,
    "svd_repair": _as_given,
    "sft": _sft,
    "sft_kl": _sft_kl,
    "replay": _replay,
    "lora": _lora,
    "kd_offpolicy": _kd_offpolicy,
    "sdft": _sdft,
    "onpolicy": _as_given,
    "onpolicy_cka": _on_policy_cka,
    "onpolicy_interpolated": _as_given,
    "onpolicy_rounded": _as_given,
    "rounding": _as_given,
}
