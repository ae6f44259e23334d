"""The prompts that a repair is watched on: none that it trains on, answered once by a teacher, greedily."""

import json
from dataclasses import dataclass
from pathlib import Path

from recoup.config import Probe
from recoup.data.prompts import Prompt, fitting, load_prompts
from recoup.models.sample import Rollouts, Sampling, pack, pad_id, sample
from recoup.recover.draws import known
from recoup.recover.teachers import Teacher
from recoup.run_folder import read_jsonl, write_text

# other prompts and benchmark items than the same seed gives the stages whose figures are reported: a student that is chosen
# by its looks must not be reported on them
SEED_OFFSET = 10_007


@dataclass(frozen=True)
class HeldOut:
    """Prompts and a teacher's answers to them, row by row."""

    prompts: tuple[Prompt, ...]
    completions: tuple[tuple[int, ...], ...]

    def rollouts(self, teacher: Teacher) -> Rollouts:
        """Laid out for a forward pass where the teacher is."""
        with teacher.model() as model:
            prompts = [prompt.ids for prompt in self.prompts]
            return pack(prompts, self.completions, pad_id(model), model.device)


def written(settings: Probe, teacher: Teacher, seed: int, max_prompt_tokens: int) -> HeldOut:
    """Held-out prompts as `settings` names them, and the teacher's answers.

    Raises:
        DataError: there is no usable held-out prompt.
    """
    with teacher.model() as writer:
        found = load_prompts(settings.prompts, writer, settings.num_prompts, seed + SEED_OFFSET, "held_out")
        prompts = fitting(found, max_prompt_tokens)
        answers = sample(writer, [prompt.ids for prompt in prompts], Sampling(settings.max_tokens, seed=seed))
    completions = [tuple(known(ids, teacher.num_shared)) for ids in answers.completions()]
    return HeldOut(tuple(prompts), tuple(completions))


def kept(path: Path, settings: Probe, teacher: Teacher, seed: int, max_prompt_tokens: int) -> HeldOut:
    """What stands in `path`; if nothing does, `written`, and kept there, so that a run that continues looks at the same.

    Raises:
        DataError: there is no usable held-out prompt.
        RunFolderError: the file cannot be written.
    """
    if not path.is_file():
        made = written(settings, teacher, seed, max_prompt_tokens)
        pairs = zip(made.prompts, made.completions, strict=True)
        rows = [{**prompt.to_row(), "completion": completion} for prompt, completion in pairs]
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    rows = read_jsonl(path)
    return HeldOut(tuple(map(Prompt.from_row, rows)), tuple(tuple(row["completion"]) for row in rows))
