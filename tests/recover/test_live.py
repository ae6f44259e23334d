"""The terminal view: speed and shares by hand, a bar with figures on a terminal, plain lines elsewhere, no markup."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from recoup.progress import plain, terminal
from recoup.recover.live import LiveView
from recoup.results import RecoverStep


def clock(*times: float):
    ticks: Iterator[float] = iter(times)
    return lambda: next(ticks)


def row(**changes: object) -> dict[str, object]:
    return {
        "step": 0, "phase": "on_policy", "loss": 0.5, "grad_norm": 1.0, "learning_rate": 1.9e-5, "num_tokens": 480,
        "completion_tokens_mean": 40.0, "overlap": None, "seconds_sampling": 2.0, "seconds_teacher": 1.0, "seconds_student": 5.0,
    } | changes  # fmt: skip


def test_speed_and_shares_by_hand() -> None:
    view = LiveView(clock(100.0, 110.0, 130.0))
    # 480 tokens in 10 s; sampling took 2 of them
    assert view.label(row()) == (
        "recover: on-policy, loss 0.500\n48 tokens/s; sampling 20%, teacher 10%, student 50%; learning rate 1.9e-05"
    )
    # 480 + 1,200 tokens in 30 s; sampling took 2 + 10 of them, the teacher 1 + 2, the student 5 + 6
    second = row(num_tokens=1200, seconds_sampling=10.0, seconds_teacher=2.0, seconds_student=6.0)
    assert "56 tokens/s; sampling 40%, teacher 10%, student 37%;" in view.label(second)


def test_only_the_last_steps_count() -> None:
    view = LiveView(clock(0, 1000, *range(1001, 1011)))
    labels = [view.label(row()) for _ in range(11)]
    # the first step took 1000 s and has left the window of ten: 10 steps of 480 tokens in 10 s
    assert "\n480 tokens/s" in labels[-1]
    assert "\n5 tokens/s" in labels[-2]  # 4,800 tokens in 1,009 s


def test_what_a_run_measures_is_shown() -> None:
    every = row(kl=0.25, cka=0.9812, hidden_loss=0.02, staleness=3, overlap=0.7, seconds_optimizer=1.0)
    label = LiveView(clock(0, 10)).label(every)
    assert label.startswith("recover: on-policy, loss 0.500, KL 0.250 nats\n")
    assert label.endswith(
        "optimizer 10%; learning rate 1.9e-05; overlap 0.70; CKA 0.981; hidden-state term 0.020; 3 steps stale"
    )


def test_a_coarse_clock_shows_no_speed() -> None:
    label = LiveView(clock(5.0, 5.0)).label(row())
    assert label == "recover: on-policy, loss 0.500\nlearning rate 1.9e-05"


def test_a_row_of_the_metrics_file_is_shown() -> None:
    label = LiveView(clock(0, 10)).label(RecoverStep.model_validate(row()).model_dump())
    assert "48 tokens/s; sampling 20%, teacher 10%, student 50%" in label


@pytest.mark.parametrize("is_terminal", [True, False])
def test_labels_are_escaped(is_terminal: bool) -> None:
    console = Console(record=True, file=io.StringIO(), width=120, force_terminal=is_terminal)
    label = "prompts: [red]my[/red] [file\\\nfigures [/] [bold]"
    with terminal(console) as progress:
        progress(label, 1, 2)
    text = console.export_text()
    assert "prompts: [red]my[/red] [file\\" in text
    assert "figures [/] [bold]" in text


def test_a_terminal_shows_a_bar_and_the_latest_figures() -> None:
    console = Console(record=True, file=io.StringIO(), width=120, force_terminal=True)
    with terminal(console) as progress:
        progress("recover: loss 2.000\n11 tokens/s", 1, 4)
        progress("recover: loss 1.000\n22 tokens/s", 2, 4)
    last = console.export_text().splitlines()[-2:]  # the live view is drawn over and over; these lines stay
    assert "recover: loss 1.000" in last[0]
    assert "2/4" in last[0]
    assert last[1].strip() == "22 tokens/s"


def test_figures_leave_when_something_else_goes_on() -> None:
    console = Console(record=True, file=io.StringIO(), width=120, force_terminal=True)
    with terminal(console) as progress:
        progress("recover: loss 1.000\n22 tokens/s", 2, 2)
        progress("piqa", 1, 5)
    last = console.export_text().splitlines()[-2:]
    assert "recover: loss 1.000" in last[0]
    assert "piqa" in last[1]


def test_plain_lines_come_now_and_then_with_the_time_left() -> None:
    console = Console(record=True, file=io.StringIO(), width=20)
    show = plain(console, clock(0, 4, 12, 18, 24, 30))
    for done in (1, 2, 3, 4, 5):
        show(f"recover: loss {done}\n22 tokens/s", done, 5)
    show("recover: again", 1, 2)
    assert console.export_text().splitlines() == [
        "recover: loss 1 | 22 tokens/s | 1/5",
        # two steps since the first line took 12 s: 6 s each, and two are left; the call at 4 s came too soon
        "recover: loss 3 | 22 tokens/s | 3/5, 0:12 left",
        "recover: loss 5 | 22 tokens/s | 5/5",  # the end is always told; the call at 18 s came too soon
        "recover: again | 1/2",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(59.6, "1:00"), (750, "12:30"), (7500, "2:05:00")])
def test_time_left_reads_like_a_clock(seconds: float, words: str) -> None:
    console = Console(record=True, file=io.StringIO())
    show = plain(console, clock(0, seconds))
    show("work", 0, 2)
    show("work", 1, 2)  # one in `seconds`, and one is left
    assert console.export_text().splitlines()[-1] == f"work | 1/2, {words} left"
