"""Read an export back by the program it is for, and measure how far its answers are from the trained model's.

The trained model completes a few fixed texts greedily; both models then score those completions, and every next-token
distribution is compared over the whole vocabulary. transformers computes in float32 here, so what is measured is what the
files hold, not the type they will be run in.

Shapes: N completion tokens, V vocabulary.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from recoup.divergence import forward_kl
from recoup.errors import ExportError
from recoup.export import llama_cpp
from recoup.models.load import LanguageModel
from recoup.models.logits import completion_logits
from recoup.models.messages import quiet
from recoup.models.sample import Rollouts, Sampling, sample

TEXTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "The three primary colours are",
    "To make a cup of tea, first",
    "12 + 30 = 42, and 17 + 25 =",
    "Dear Sir or Madam,\n\nI am writing to",
)
COMPLETION_TOKENS = 32
NOT_BY_LLAMA_CPP = (
    f"llama.cpp itself has not read this file: {llama_cpp.PACKAGE} is not installed; to have it checked, run "
    f"`{llama_cpp.INSTALL}` and export again"
)


@dataclass(frozen=True)
class Probe:
    """Completions, and what the trained model says at each of their tokens."""

    rollouts: Rollouts
    logits_NV: Float[Tensor, "N V"]


@dataclass(frozen=True)
class Answer:
    """What a program that read the files back says at the same tokens, and which program that was."""

    logits_NV: Float[Tensor, "N V"]
    consumer: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """An exported model against the trained one."""

    token_kl_nats: float  # mean KL(trained ‖ exported) over completion tokens
    max_logit_difference: float
    top1_agreement: float


def probe(model: LanguageModel) -> Probe:
    """Complete `TEXTS` greedily and score the completions."""
    prompts = [list(model.tokenizer(text).input_ids) for text in TEXTS]
    rollouts = sample(model, prompts, Sampling(max_tokens=COMPLETION_TOKENS))
    return Probe(rollouts, _logits(model.model, rollouts))


def compare(trained_NV: Float[Tensor, "N V"], exported_NV: Float[Tensor, "N V"]) -> Difference:
    """Mean KL, largest difference of two logits, and top-1 agreement; padding of a vocabulary's end is left out.

    Raises:
        ExportError: the exported model answers NaN or infinity.
    """
    if not torch.isfinite(exported_NV).all():
        raise ExportError(
            "the exported model answers NaN or infinity; its weights overflow the type they are stored in"
        )
    vocabulary = min(trained_NV.shape[1], exported_NV.shape[1])
    trained_NV, exported_NV = trained_NV[:, :vocabulary].float(), exported_NV[:, :vocabulary].float()
    return Difference(
        token_kl_nats=float(forward_kl(exported_NV, trained_NV).mean().clamp_min(0)),
        max_logit_difference=float((exported_NV - trained_NV).abs().max()),
        top1_agreement=float((exported_NV.argmax(-1) == trained_NV.argmax(-1)).float().mean()),
    )


def by_transformers(folder: Path, rollouts: Rollouts, also: Sequence[str] = (), gguf_file: str | None = None) -> Answer:
    """What transformers says after loading `folder` in float32.

    Args:
        folder: what was exported.
        rollouts: completions to score.
        also: names of packages that transformers reads this format with, for the record.
        gguf_file: name of a GGUF file in `folder`, when that is the model.

    Raises:
        ExportError: transformers cannot load it.
    """
    try:
        with quiet(), redirect_stderr(io.StringIO()):  # bars that no switch of the libraries turns off
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True, gguf_file=gguf_file
            )
            logits_NV = _logits(model.to(rollouts.tokens_BT.device).eval(), rollouts)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        raise ExportError(f"transformers cannot read the export back ({' '.join(str(error).split())})") from None
    names = ("transformers", *also)
    return Answer(logits_NV, " with ".join(f"{name} {metadata.version(name)}" for name in names))


def by_llama_cpp(file: Path, rollouts: Rollouts) -> Answer:
    """What llama.cpp says after loading `file`; without llama.cpp, what transformers says, and a note.

    Raises:
        ExportError: the program cannot load it.
    """
    if not llama_cpp.installed():
        answer = by_transformers(file.parent, rollouts, ("gguf",), file.name)
        return Answer(answer.logits_NV, answer.consumer, (NOT_BY_LLAMA_CPP,))
    rows = zip(rollouts.tokens_BT, rollouts.attention_BT, rollouts.completion_BT, strict=True)
    sequences = [(tokens[real].tolist(), int((real & ~completion).sum())) for tokens, real, completion in rows]
    consumer = f"llama.cpp ({llama_cpp.PACKAGE} {metadata.version(llama_cpp.PACKAGE)})"
    return Answer(llama_cpp.completion_logits(file, sequences), consumer)


@torch.inference_mode()
def _logits(model: PreTrainedModel, rollouts: Rollouts) -> Float[Tensor, "N V"]:
    return completion_logits(model, rollouts).float().cpu()
