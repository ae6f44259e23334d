"""When a student that is too damaged to learn from its own words goes on-policy (METHOD section 1, "small LLMs").

Until then it trains on teacher-written completions. Competence is the overlap sum_v min(p_T, p_S) averaged over the tokens of
completions the student sampled itself: the chance that the teacher would have accepted the student's token. It is high
only where the student, left alone, stays in places that the teacher knows; a student that rambles is caught, which its
loss on teacher-written text would not show.
"""

from dataclasses import dataclass, replace

from recoup.config import Bootstrap


@dataclass(frozen=True)
class Phase:
    """Where the run stands: `on_policy_from` is the step at which the student began to write, null before."""

    on_policy_from: int | None = None

    def must_measure(self, rule: Bootstrap, step: int) -> bool:
        """Whether the overlap decides at this step."""
        return self.on_policy_from is None and not _forced(rule, step) and step % rule.check_every == 0

    def after(self, rule: Bootstrap, step: int, overlap: float | None) -> "Phase":
        """The phase of `step`, given the overlap measured there, if any."""
        if self.on_policy_from is not None:
            return self
        able = overlap is not None and overlap >= rule.overlap
        return replace(self, on_policy_from=step) if able or _forced(rule, step) else self


def _forced(rule: Bootstrap, step: int) -> bool:
    return step >= rule.max_steps or rule.overlap == 0
