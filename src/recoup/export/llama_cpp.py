"""Ask llama.cpp itself, through llama-cpp-python, an optional package: logits of given tokens, and greedy completions.

llama.cpp runs in a process of its own, `python -m recoup.export.llama_cpp TASK FILE REQUEST ANSWER`: native code that crashes on
a bad file then ends that process, and the user reads one line.

llama.cpp multiplies quantized weights with activations rounded to 8 bits, and keeps its cache of keys and values in float16, so
its logits differ from float32's even where the weights are the same to the last bit. Measured on SmolLM2-135M-Instruct (some 220
completion tokens, mean KL in nats, llama-cpp-python 0.3.36): float32 weights 7e-7, float16 4e-6, bfloat16 1.5e-4, Q8_0 0.0039
(the weights' own rounding 0.0012), and exact int4 weights as Q4_0 0.0030 (the weights' own rounding 0).

Shapes: N completion tokens, V vocabulary.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recoup.errors import ExportError

PACKAGE = "llama-cpp-python"
# the plain build for a machine's own processor does not run on others
INSTALL = (
    'CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON" pip install llama-cpp-python==0.3.36'
)


def installed() -> bool:
    """Whether llama-cpp-python is there."""
    return find_spec("llama_cpp") is not None


def completion_logits(file: Path, sequences: Sequence[tuple[Sequence[int], int]]) -> Float[Tensor, "N V"]:
    """Logits that predict the completion tokens of every sequence, in order.

    Args:
        file: a GGUF file.
        sequences: token ids of prompt and completion, and the number of prompt tokens, at least 1.

    Raises:
        ExportError: llama.cpp is not installed, or cannot load or run the file.
    """
    answer = _ask("logits", file, [[list(tokens), start] for tokens, start in sequences])
    return torch.from_numpy(answer)


def greedy(file: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Greedy completions of `max_tokens` tokens each; the end-of-turn token does not end them.

    Raises:
        ExportError: as for `completion_logits`.
    """
    answer = _ask("greedy", file, [[list(prompt), max_tokens] for prompt in prompts])
    completions: list[list[int]] = answer.tolist()
    return completions


def _ask(task: str, file: Path, request: list[list[Any]]) -> np.ndarray:
    if not installed():
        raise ExportError(f"{PACKAGE} is not installed, so llama.cpp cannot read {file.name}; run: {INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.npy"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", __name__, task, str(file), str(asked), str(answered)]
        # this interpreter, on this module, with paths as separate words
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")  # noqa: S603
        if done.returncode or not answered.is_file():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ExportError(f"llama.cpp cannot run {file.name} ({lines[-1].strip()})")
        answer: np.ndarray = np.load(answered)
        return answer


def _serve(task: str, file: str, request: str, answer: str) -> None:
    """The other process: one job, done, written."""
    from llama_cpp import Llama  # noqa: PLC0415  optional

    pairs = json.loads(Path(request).read_text(encoding="utf-8"))
    longest = max(len(tokens) + (number if task == "greedy" else 0) for tokens, number in pairs)
    threads = torch.get_num_threads()  # so that it is bounded as everything else is, by OMP_NUM_THREADS
    llama = Llama(
        file, n_ctx=longest, n_batch=longest, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
    )
    job = _greedy if task == "greedy" else _logits
    np.save(answer, np.concatenate([job(llama, tokens, number) for tokens, number in pairs]))


def _logits(llama: Any, tokens: list[int], start: int) -> np.ndarray:
    """Logits (n, V) at the positions before each completion token."""
    llama.reset()
    llama.eval(tokens)
    logits: np.ndarray = llama.scores[start - 1 : len(tokens) - 1].copy()
    return logits


def _greedy(llama: Any, prompt: list[int], max_tokens: int) -> np.ndarray:
    """The tokens (1, max_tokens) that follow `prompt`."""
    llama.reset()
    llama.eval(prompt)
    completion: list[int] = []
    for _ in range(max_tokens):
        completion.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(completion[-1:])
    return np.array([completion])


if __name__ == "__main__":
    _serve(*sys.argv[1:])
