"""Sampling by a `vllm.LLM` on the student's own GPU, for one training process per engine.

Weights go to the engine by vLLM's IPC transfer (vLLM, docs/training/weight_transfer/ipc.md): the engine reads the student's
memory, nothing is copied through the host. The engine keeps GPU_SHARE of the GPU throughout. Written from the documentation
of vLLM 0.32 and never run on vLLM itself.
"""

import os
from collections.abc import Sequence
from typing import Any

from recoup.errors import SourceError
from recoup.models.backends.base import Completion, Setup, laid_out, required, row_seeds
from recoup.models.sample import Rollouts, Sampling, end_ids

GPU_SHARE = 0.3  # of the GPU's memory for vLLM's weights and KV cache; training has the rest


class VllmColocated:
    """Sampling by vLLM in this process.

    Raises:
        SourceError: vLLM is not installed, or the student came from no folder that vLLM could load.
    """

    def __init__(self, setup: Setup) -> None:
        vllm = required("vllm", "vllm")
        transfer = required("vllm.distributed.weight_transfer", "vllm")
        ipc = required("vllm.distributed.weight_transfer.ipc_engine", "vllm")
        if setup.student.path is None:
            raise SourceError(f"{setup.student.name}: is in no folder, which vLLM needs; save it first")
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # memory handles go to vLLM's worker pickled
        self._student, self._parameters = setup.student, vllm.SamplingParams
        self._llm = vllm.LLM(
            model=str(setup.student.path),
            dtype=str(setup.dtype).removeprefix("torch."),
            gpu_memory_utilization=GPU_SHARE,
            logprobs_mode="processed_logprobs",  # of the distribution that was drawn from, temperature included
            weight_transfer_config=required("vllm.config", "vllm").WeightTransferConfig(backend="ipc"),
        )
        self._engine = transfer.WeightTransferTrainerFactory.trainer_init(
            init_info=ipc.IPCTrainerInitInfo(rank=0, packed=True),
            client=_Client(self._llm),
            source=transfer.ModuleSource(setup.student.model),
        )

    def follow(self) -> None:
        """Take over the student's present weights, and drop what was cached under the old ones."""
        self._engine.send_weights()
        self._llm.reset_prefix_cache()

    def sample(self, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
        """Complete every prompt; vLLM makes its own batches."""
        ends = sorted(end_ids(self._student))
        parameters = [
            self._parameters(
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                seed=seed,
                stop_token_ids=ends,
                logprobs=0 if settings.logp else None,
                detokenize=False,
            )
            for seed in row_seeds(settings, len(prompts))
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False)
        completions = [_completion(output.outputs[0], logp=settings.logp) for output in outputs]
        return laid_out(prompts, completions, self._student, logp=settings.logp)


class _Client:
    """The four calls that vLLM's trainer engine makes, on an `LLM` in this process (vLLM: VLLMWeightSyncClient)."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._llm.finish_weight_update(weight_version)


def _completion(output: Any, *, logp: bool) -> Completion:
    tokens = list(output.token_ids)
    if not logp:
        return Completion(tokens)
    return Completion(tokens, [float(at[token].logprob) for token, at in zip(tokens, output.logprobs, strict=True)])
