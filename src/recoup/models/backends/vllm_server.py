"""Sampling by a vLLM server, over vLLM's own HTTP interface (vLLM 0.28 and later; written from the documentation of 0.32).

Prompts go as token ids to `/v1/completions`, one request each, because a request has one seed for all of its prompts; vLLM
batches them itself. Around a change of weights: `/pause?mode=wait`, the transfer (see `vllm_weights`), `/reset_prefix_cache`,
`/resume`. The server needs VLLM_SERVER_DEV_MODE=1 for these. See docs/vllm.md for the commands.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

from recoup.errors import SourceError
from recoup.models.backends.base import Completion, Setup, laid_out, row_seeds
from recoup.models.backends.vllm_http import Server
from recoup.models.backends.vllm_weights import Sender, process, sender, together
from recoup.models.sample import Rollouts, Sampling, end_ids

MAX_REQUESTS = 64  # at once; vLLM's scheduler makes batches of what has arrived
SAMPLE_SECONDS = 1800.0  # for one completion, the wait in the server's queue included


class VllmServer:
    """Sampling by a vLLM server.

    Raises:
        SourceError: the server cannot be reached or refuses.
    """

    def __init__(self, setup: Setup) -> None:
        assert setup.server is not None, "the config asks for an address"
        self._setup, self._server = setup, Server(setup.server)
        self._model = _served_model(self._server)

    def follow(self) -> None:
        """Send the student's present weights; the server drops what it cached under the old ones.

        Every training process calls it; the first one speaks to the server. After an error the server stays paused: what
        it holds may be half a student.
        """
        together()  # no process still samples
        first = process() == 0
        if first:
            self._server.post("/pause?mode=wait")
        self._sender.send()
        if first:
            self._server.post("/reset_prefix_cache")
            self._server.post("/resume")
        together()  # none samples before the weights are there

    def sample(self, prompts: Sequence[Sequence[int]], settings: Sampling) -> Rollouts:
        """Complete every prompt, up to MAX_REQUESTS at once."""
        if settings.logp:
            _ = self._log_probabilities_are_of_draws
        ask = partial(self._complete, settings=settings, ends=sorted(end_ids(self._setup.student)))
        with ThreadPoolExecutor(min(MAX_REQUESTS, len(prompts))) as pool:
            completions = list(pool.map(ask, prompts, row_seeds(settings, len(prompts))))
        return laid_out(prompts, completions, self._setup.student, logp=settings.logp)

    @cached_property
    def _sender(self) -> Sender:
        return sender(self._server, self._setup)

    @cached_property
    def _log_probabilities_are_of_draws(self) -> bool:
        """Whether the server reports the log-probabilities that tokens were drawn with; asked once.

        Raises:
            SourceError: it reports those of the raw logits, which are not the sampler's at a temperature other than 1.
        """
        info = self._server.get("/server_info?config_format=json")
        mode = info.get("vllm_config", {}).get("model_config", {}).get("logprobs_mode")
        if mode != "processed_logprobs":
            raise SourceError(
                f"{self._server.address}: reports {mode or 'unknown log-probabilities'}; importance_cap needs the server "
                "started with --logprobs-mode processed_logprobs"
            )
        return True

    def _complete(self, prompt: Sequence[int], seed: int, settings: Sampling, ends: list[int]) -> Completion:
        request = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": seed,
            "stop_token_ids": ends,
            "return_token_ids": True,
            "logprobs": 0 if settings.logp else None,  # 0: of the drawn token alone
            **PLAIN,
        }
        answer = self._server.post("/v1/completions", request, SAMPLE_SECONDS)
        return _completion(answer, self._server.address, logp=settings.logp)


# what a model's generation_config.json may set on the server, and recoup's sampling does not do
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def _served_model(server: Server) -> str:
    """The name that the server gives its model."""
    models = server.get("/v1/models").get("data")
    if not models:
        raise SourceError(f"{server.address}: serves no model; start it with `vllm serve FOLDER`")
    return str(models[0]["id"])


def _completion(answer: dict[str, Any], address: str, *, logp: bool) -> Completion:
    choice = answer["choices"][0] if answer.get("choices") else {}
    tokens = choice.get("token_ids")
    drawn = (choice.get("logprobs") or {}).get("token_logprobs") if logp else None
    if not tokens or (logp and (drawn is None or len(drawn) != len(tokens))):
        missing = "log-probabilities" if tokens else "token ids"
        raise SourceError(f"{address}: its answer has no {missing}; recoup needs vLLM 0.28 or later")
    return Completion(tokens, drawn)
