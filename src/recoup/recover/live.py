"""What the terminal says of a repair while it goes on: a label for `recoup.progress`, made of each step's metrics.

The first line of a label is what goes on and how; the second holds the figures:

    recover: on-policy, loss 0.412, KL 0.398 nats
    1,210 tokens/s; sampling 41%, teacher 20%, student 35%, optimizer 4%; learning rate 1.9e-05; CKA 0.981

Metrics that a run does not measure are left out.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

WINDOW = 10  # steps that speed and shares are averaged over
SECONDS = "seconds_"  # metrics of where the time went
# metric, how it is shown
HEADLINE = (("loss", "loss {:.3f}"), ("kl", "KL {:.3f} nats"))
FIGURES = (
    ("learning_rate", "learning rate {:.1e}"),
    ("overlap", "overlap {:.2f}"),
    ("held_out_kl", "held-out KL {:.3f} nats"),
    ("cka", "CKA {:.3f}"),
    ("hidden_loss", "hidden-state term {:.3f}"),
    ("staleness", "{} steps stale"),
)


class LiveView:
    """The last steps of a repair; time counts from when it is made, so make it as the first step begins."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._last = clock, clock()
        self._steps: deque[tuple[float, Mapping[str, Any]]] = deque(maxlen=WINDOW)

    def label(self, metrics: Mapping[str, Any]) -> str:
        """The label after one more step, whose `metrics` are a row of `metrics.jsonl`."""
        now = self._clock()
        self._steps.append((now - self._last, metrics))
        self._last = now
        headline = [str(metrics["phase"]).replace("_", "-"), *_shown(HEADLINE, metrics)]
        figures = [*self._speed(), *_shown(FIGURES, metrics)]
        return f"recover: {', '.join(headline)}\n{'; '.join(figures)}"

    def _speed(self) -> list[str]:
        """Tokens per second, and each part's share of the time that passed: parts that overlap exceed 100% together."""
        passed = sum(seconds for seconds, _ in self._steps)
        if passed <= 0:  # a clock too coarse for the step
            return []
        rows = [row for _, row in self._steps]
        parts = [name for name in rows[-1] if name.startswith(SECONDS)]
        shares = {name: sum(row.get(name) or 0.0 for row in rows) / passed for name in parts}
        words = ", ".join(f"{name.removeprefix(SECONDS)} {share:.0%}" for name, share in shares.items())
        return [f"{sum(row['num_tokens'] for row in rows) / passed:,.0f} tokens/s", *([words] if words else [])]


def _shown(table: tuple[tuple[str, str], ...], metrics: Mapping[str, Any]) -> list[str]:
    return [words.format(metrics[name]) for name, words in table if metrics.get(name) is not None]
