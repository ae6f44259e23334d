"""What a recovery writes while it goes on: a line per step, a line per rollout."""

import json
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from recoup.models.load import LanguageModel
from recoup.recover.objective import TermBatch
from recoup.results import RecoverStep
from recoup.run_folder import read_jsonl, write_text


class Record:
    """`metrics.jsonl` and `rollouts.jsonl` of a stage's folder."""

    def __init__(self, folder: Path) -> None:
        self._metrics, self._rollouts = folder / "metrics.jsonl", folder / "rollouts.jsonl"

    def add(self, metrics: RecoverStep, rollouts: Sequence[dict[str, object]]) -> None:
        """One step, and its rollouts as `texts` wrote them."""
        _append(self._metrics, [metrics.model_dump()])
        _append(self._rollouts, sorted(rollouts, key=itemgetter("term")))

    def keep(self, before_step: int) -> None:
        """Drop the lines of steps that are about to be taken again, and a line that was cut off in the middle."""
        for path in (self._metrics, self._rollouts):
            if path.is_file():
                write_text(path, "".join(_kept(path.read_text(encoding="utf-8"), before_step)))

    def steps(self) -> list[RecoverStep]:
        """Every step so far."""
        return [RecoverStep.model_validate(row) for row in read_jsonl(self._metrics)]


def texts(student: LanguageModel, batch: Sequence[TermBatch], metrics: RecoverStep) -> list[dict[str, object]]:
    """The step's rollouts as text."""
    rows: list[dict[str, object]] = []
    for term in batch:
        rollouts = term.rollouts
        prompt_BT = rollouts.attention_BT & ~rollouts.completion_BT
        for tokens, mask, answer in zip(rollouts.tokens_BT, prompt_BT, rollouts.completions(), strict=True):
            prompt, completion = student.tokenizer.decode(tokens[mask]), student.tokenizer.decode(answer)
            place = {"step": metrics.step, "phase": metrics.phase, "term": term.index}
            rows.append({**place, "prompt": prompt, "completion": completion})
    return rows


def _append(path: Path, rows: Sequence[dict[str, object]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _kept(text: str, before_step: int) -> list[str]:
    *whole, _cut_off = text.split("\n")  # not splitlines: a rollout's text may hold other line ends
    return [f"{line}\n" for line in whole if json.loads(line)["step"] < before_step]
