"""The looks of a repair (`recover.probe`) at any model that a transformers `Trainer` trains, TRL's trainers included.

    callback = RecoupCallback("path/to/the/earlier/checkpoint", every=20)
    trainer = SFTTrainer(..., callbacks=[callback])

How far is the model from an earlier checkpoint of itself, on held-out prompts that the checkpoint answered? Each look is a line
of `probe.jsonl`, and token KL, mean and smallest CKA over the blocks stand in the trainer's log (`state.log_history`, and what
the trainer prints). Trackers (TensorBoard, wandb) are asked before a user's callbacks; to have the figures there as well, hand
the callback over with `callback.attach(trainer)` instead of `callbacks=[callback]`.

Adapters (peft) and quantized models are looked at as they compute. Models that are divided over processes (FSDP, DeepSpeed) are
refused: no process has a whole one.
"""

from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import extract_model_from_parallel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from recoup.config import Probe
from recoup.config_file import parse
from recoup.errors import ConfigError
from recoup.models.load import LanguageModel, load
from recoup.models.logits import shared_vocabulary
from recoup.recover.held_out import written
from recoup.recover.looks import Looks
from recoup.recover.probe import Prober
from recoup.recover.teachers.frozen import Frozen
from recoup.recover.yardstick import take
from recoup.run_folder import make_folder
from recoup.training.processes import Processes, all_processes

MAX_PROMPT_TOKENS = 1024  # longer prompts are left out


class RecoupCallback(TrainerCallback):
    """Looks at what a `Trainer` trains, at the start, every so many optimizer steps, and at the end.

    Args:
        teacher: the earlier checkpoint: a loaded model, or what `recoup.load` takes; of that, only the head stays in memory.
        output: the file of looks. A training that is resumed goes on with it.
        stop: stop the training where a look says so: recovered (`recovered_at`) or newly damaged for `patience` looks.
        seed: decides the prompts.
        chat_template: of the teacher, as for `recoup.load`.
        settings: of `recoup.config.Probe`: every, prompts, num_prompts, max_tokens, tasks, limit, data, recovered_at, patience.

    Raises:
        ConfigError: an unknown setting, or `keep_best`, which is the trainer's (`load_best_model_at_end`).
    """

    def __init__(
        self,
        teacher: str | LanguageModel,
        output: str | Path = "probe.jsonl",
        *,
        stop: bool = False,
        seed: int = 0,
        chat_template: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._settings = parse(Probe, {"keep_best": False, **settings}, "RecoupCallback")
        if self._settings.keep_best:
            raise ConfigError("RecoupCallback: keep_best is for recoup's own repair; use load_best_model_at_end")
        self._teacher, self._chat_template = teacher, chat_template
        self._output, self._stop, self._seed = Path(output), stop, seed
        self._prober: Prober | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None  # the student's
        self._looks = Looks()
        self._trainer: Trainer | None = None
        self._figures: dict[str, float] = {}

    @property
    def looks(self) -> Looks:
        """What the looks so far say: the best step, why training should stop."""
        return self._looks

    def attach(self, trainer: Trainer) -> None:
        """Become a callback of `trainer`, and log through it, so that trackers get the figures too."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the teacher answer the prompts, and look for the first time.

        Raises:
            ConfigError: the model is divided over processes, or has virtual tokens.
            SourceError: the teacher cannot be loaded, or has another tokenizer.
            DataError: there is no usable held-out prompt.
        """
        del args
        processes = all_processes()
        if processes.sharded:
            raise ConfigError("RecoupCallback looks at whole models, and FSDP leaves no process one; use DDP")
        self._tokenizer = _tokenizer(kwargs.get("processing_class"))
        found: list[Prober] = []
        processes.on_main(lambda: found.append(self._prepared(_unwrapped(kwargs["model"]), processes)))
        self._prober = found[0] if found else Prober(self._settings, self._output, self._seed, processes)
        self._prober.keep(state.global_step - 1)  # a look at the step that is resumed from is taken anew
        self._looks = Looks()
        self._look(state, control, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look, if it is time."""
        del args
        if self._prober is not None and self._prober.due(self._looks, state.global_step, state.max_steps):
            self._look(state, control, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look for the last time, unless that was done."""
        del args
        if self._looks.last != state.global_step:
            self._look(state, control, kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the last look's figures to what is logged next, once."""
        del args, state, control
        kwargs["logs"].update(self._figures)
        self._figures = {}

    def _prepared(self, model: PreTrainedModel, processes: Processes) -> Prober:
        """Prompts, answers, and what the teacher says of them."""
        teacher = self._teacher
        if isinstance(teacher, str):
            teacher = load(teacher, dtype=model.dtype, chat_template=self._chat_template)
        self._tokenizer = self._tokenizer or teacher.tokenizer
        student = LanguageModel("student", model, self._tokenizer, None)
        frozen = Frozen(teacher, shared_vocabulary(student, teacher))
        held_out = written(self._settings, frozen, self._seed, MAX_PROMPT_TOKENS)
        by = take(frozen, held_out.rollouts(frozen))
        make_folder(self._output.absolute().parent)
        groups = tuple(prompt.group for prompt in held_out.prompts)
        return Prober(self._settings, self._output, self._seed, processes, groups=groups, yardstick=by)

    def _look(self, state: TrainerState, control: TrainerControl, kwargs: dict[str, Any]) -> None:
        assert self._prober is not None, "training has begun"
        student = LanguageModel("student", _unwrapped(kwargs["model"]), self._tokenizer, None)
        self._looks, seen = self._prober.look(student, self._looks, state.global_step)
        self._figures = {
            "recoup/token_kl": seen.token_kl_nats.value,
            "recoup/cka_mean": fmean(seen.linear_cka),
            "recoup/cka_min": min(seen.linear_cka),
        }
        self._log(state, control)
        if self._stop and self._looks.stopped is not None:
            control.should_training_stop = True

    def _log(self, state: TrainerState, control: TrainerControl) -> None:
        if self._trainer is None:
            state.log_history.append({**self._figures, "epoch": state.epoch, "step": state.global_step})
            return
        due = control.should_log  # of the trainer's own figures, which logging would take as done
        Trainer.log(self._trainer, dict(self._figures))  # TRL's own would hand out its averages before their time
        control.should_log = due


def _unwrapped(model: Any) -> PreTrainedModel:
    """The model itself: without what spreads it over devices, and out of an adapter's wrapper, its layers adapted.

    Raises:
        ConfigError: an adapter of virtual tokens, which stand in no prompt.
    """
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    if not hasattr(inner, "get_base_model"):
        return inner
    if inner.active_peft_config.is_prompt_learning:
        raise ConfigError("RecoupCallback cannot look at an adapter of virtual tokens; use LoRA or another kind")
    return inner.get_base_model()


def _tokenizer(processing: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the trainer was given, on its own or in a processor."""
    return getattr(processing, "tokenizer", processing)
