"""recoup's models as an lm-eval model. Imports lm-eval, which is slow: only `harness.py` imports this.

Differences to lm-eval's own `HFLM`, with equal results: contexts shared by several answers are read once, the head runs
over answers alone (see `continuations.py`), and the softmax is float32 under a bf16 model.
"""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from recoup.evaluate.completion import complete
from recoup.evaluate.continuations import context_length, continuation_logp
from recoup.evaluate.items import Report, silent
from recoup.models.load import LanguageModel
from recoup.models.sample import Sampling


class BatchedLM(TemplateLM):
    """An lm-eval model over a recoup model; `batch_tokens` tokens per forward pass, pads included."""

    def __init__(self, model: LanguageModel, batch_tokens: int, report: Report = silent) -> None:
        super().__init__()
        self.language_model, self.batch_tokens, self.report = model, batch_tokens, report
        self.tokenizer = model.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a text that already begins with the prefix token gets no second one."""
        del kwargs
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Find log p(continuation | context), nats, and whether greedy decoding would write it."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        del kwargs
        pairs = [(context, continuation) for _, context, continuation in requests]
        return continuation_logp(self.language_model, pairs, self.batch_tokens, self.report)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Find log p(text), nats, over windows of the model's context that do not overlap."""
        del disable_tqdm
        windows = [(number, window) for number, request in enumerate(requests) for window in self._windows(request)]
        scores = continuation_logp(self.language_model, [w for _, w in windows], self.batch_tokens, self.report)
        totals = [0.0] * len(requests)
        for (number, _), (logp, _greedy) in zip(windows, scores, strict=True):
            totals[number] += logp
        return totals

    def _windows(self, request: Instance) -> list[tuple[list[int], list[int]]]:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(request.args[0]),
            prefix_token=self.prefix_token_id,
            max_seq_len=context_length(self.language_model),
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Completions, cut at the first stop sequence of each request."""
        del disable_tqdm
        settings = [normalize_gen_kwargs(dict(request.args[1])) for request in requests]
        groups: dict[tuple[int, float, tuple[str, ...]], list[int]] = {}
        for number, wanted in enumerate(settings):
            stops = tuple(handle_stop_sequences(wanted.get("until"), eos=None))
            kind = int(wanted["max_gen_toks"]), float(wanted.get("temperature", 0.0)), stops
            groups.setdefault(kind, []).append(number)
        texts = [""] * len(requests)
        for (max_tokens, temperature, stops), numbers in groups.items():
            room = max(1, context_length(self.language_model) - max_tokens)
            prompts = [(self.tok_encode(requests[n].args[0]) or [self.prefix_token_id])[-room:] for n in numbers]
            sampling = Sampling(max_tokens, temperature)
            written = complete(self.language_model, prompts, sampling, self.batch_tokens, self.report, stops)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = postprocess_generated_text(text, list(stops), None)
        return texts
