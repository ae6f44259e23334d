"""The rollout buffer: who writes what when, exactly, whatever the timing and however often the run is killed."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recoup.config import Rollout
from recoup.models.backends import BACKENDS, Setup
from recoup.models.load import load
from recoup.models.sample import Rollouts, Sampling, pack
from recoup.recover import buffer as buffer_module
from recoup.recover.buffer import Batch, RolloutBuffer

SETTINGS = st.builds(
    Rollout,
    ahead=st.integers(1, 4),
    uses=st.integers(1, 3),
    asynchronous=st.booleans(),
)


class Student:
    """A student whose weights are a number, the steps it has taken; its rollouts say who wrote them for which step."""

    def __init__(self) -> None:
        self.steps = 0
        self.followed = 0
        self.drawn: list[int] = []
        self.under_way = 0

    def follow(self) -> None:
        assert self.under_way == 0, "weights changed under a draw"
        self.followed = self.steps

    def draw(self, steps: range) -> dict[int, Batch]:
        self.under_way += 1
        self.drawn += steps
        batches: dict[int, Batch] = {step: [written(step, self.followed), None] for step in steps}
        self.under_way -= 1
        return batches


def written(step: int, writer: int) -> Rollouts:
    return pack([[1, 2]], [[step, writer]], 0)


def read(batch: Batch) -> tuple[int, int]:
    """Step and writer of a batch of `Student`."""
    assert batch[1] is None
    assert batch[0] is not None
    ((step, writer),) = batch[0].completions()
    return step, writer


def take(buffer: RolloutBuffer, student: Student, steps: range) -> list[tuple[int, int, int]]:
    """Take steps; of each, the batch that served it, its writer, and its staleness."""
    taken = []
    for step in steps:
        student.steps = step
        taken.append((*read(buffer.rollouts_of(step)), buffer.staleness_of(step)))
    return taken


def run(settings: Rollout, num_steps: int, first: int = 0) -> tuple[list[tuple[int, int, int]], Student]:
    student = Student()
    buffer = RolloutBuffer(settings, num_steps, student.follow, student.draw)
    return take(buffer, student, range(first, num_steps)), student


def test_every_step_has_fresh_rollouts_of_its_own_by_default() -> None:
    taken, student = run(Rollout(), 3)
    assert taken == [(0, 0, 0), (1, 1, 0), (2, 2, 0)]
    assert student.drawn == [0, 1, 2]


def test_uses_and_ahead_by_hand() -> None:
    taken, student = run(Rollout(uses=2, ahead=2), 7)
    # batches begin at 0, 2, 4, 6; groups of two batches at 0 and 4, each written by the student at its beginning
    assert [t[0] for t in taken] == [0, 0, 2, 2, 4, 4, 6]
    assert [t[1] for t in taken] == [0, 0, 0, 0, 4, 4, 4]
    assert [t[2] for t in taken] == [0, 1, 2, 3, 0, 1, 2]
    assert student.drawn == [0, 2, 4, 6]


def test_asynchronous_by_hand() -> None:
    taken, student = run(Rollout(uses=1, ahead=2, asynchronous=True), 6)
    # the group of 2, 3 is drawn while 0, 1 are trained on, by the student at 0; that of 4, 5 by the student at 2
    assert [t[1] for t in taken] == [0, 0, 0, 0, 2, 2]
    assert [t[2] for t in taken] == [0, 1, 2, 3, 2, 3]
    assert student.drawn == [0, 1, 2, 3, 4, 5]


def test_a_run_that_goes_on_policy_within_a_group_draws_the_rest_of_it() -> None:
    taken, student = run(Rollout(uses=2, ahead=2), 8, first=3)
    assert taken[:2] == [(2, 3, 0), (4, 4, 0)]
    assert student.drawn == [2, 4, 6]


@given(SETTINGS, st.integers(1, 25), st.data())
def test_properties(settings: Rollout, num_steps: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, num_steps - 1))
    taken, student = run(settings, num_steps, first)
    length = settings.uses * settings.ahead
    bound = (2 if settings.asynchronous else 1) * length - 1
    for step, (batch, writer, staleness) in enumerate(taken, first):
        assert batch == step - step % settings.uses
        assert staleness == step - writer
        assert 0 <= staleness <= bound
    assert student.drawn == sorted({t[0] for t in taken}), "each batch once, in order, none that is not used"


@given(SETTINGS, st.integers(2, 20), st.data())
def test_killed_and_resumed_at_any_steps_serves_the_same(
    tmp_path_factory: pytest.TempPathFactory, settings: Rollout, num_steps: int, data: st.DataObject
) -> None:
    kills = data.draw(st.lists(st.integers(1, num_steps - 1), unique=True, max_size=3).map(sorted))
    expected, _ = run(settings, num_steps)
    student = Student()
    buffer = RolloutBuffer(settings, num_steps, student.follow, student.draw)
    taken, at = [], 0
    path = tmp_path_factory.mktemp("state") / "rollouts.safetensors"
    for kill in kills:
        taken += take(buffer, student, range(at, kill))
        tensors, record = buffer.state(kill)
        save_file(tensors or {"none": torch.zeros(1)}, path)
        line = json.dumps(record)
        student = Student()
        buffer = RolloutBuffer(settings, num_steps, student.follow, student.draw)
        buffer.load_state({k: v for k, v in load_file(path).items() if k != "none"}, json.loads(line))
        at = kill
    assert taken + take(buffer, student, range(at, num_steps)) == expected


def test_state_keeps_what_is_still_to_come_and_nothing_else() -> None:
    student = Student()
    buffer = RolloutBuffer(Rollout(ahead=3, asynchronous=True), 9, student.follow, student.draw)
    take(buffer, student, range(2))
    tensors, record = buffer.state(2)
    assert record == {
        "held": [{"step": 2, "writer": 0, "terms": 2}],
        "coming": [{"step": step, "writer": 0, "terms": 2} for step in (3, 4, 5)],
    }
    assert {name.split(".")[0] for name in tensors} == {"2", "3", "4", "5"}
    assert {name.split(".")[1] for name in tensors} == {"0"}, "the second term has no share"


def test_a_draw_under_way_is_waited_for_and_kept_by_state() -> None:
    go = threading.Event()
    student = Student()

    def slow(steps: range) -> dict[int, Batch]:
        if steps.start > 0:
            assert go.wait(5)
        return student.draw(steps)

    buffer = RolloutBuffer(Rollout(asynchronous=True), 5, student.follow, slow)
    take(buffer, student, range(1))
    threading.Timer(0.05, go.set).start()
    _, record = buffer.state(1)
    assert record["coming"] == [{"step": 1, "writer": 0, "terms": 2}]


def test_the_student_trains_while_the_next_rollouts_are_drawn() -> None:
    """Training waits only when it wants what is not there yet."""
    go = threading.Event()
    student = Student()

    def slow(steps: range) -> dict[int, Batch]:
        assert steps.start == 0 or go.wait(5)
        return student.draw(steps)

    buffer = RolloutBuffer(Rollout(uses=3, asynchronous=True), 6, student.follow, slow)
    take(buffer, student, range(3))  # returns though the next draw stands still
    assert student.drawn == [0]
    go.set()
    take(buffer, student, range(3, 6))
    assert student.drawn == [0, 3]


def test_an_error_in_the_background_surfaces_where_the_rollouts_are_asked_for() -> None:
    student = Student()

    def failing(steps: range) -> dict[int, Batch]:
        if steps.start == 1:
            raise ValueError("the server went away")
        return student.draw(steps)

    buffer = RolloutBuffer(Rollout(asynchronous=True), 5, student.follow, failing)
    buffer.rollouts_of(0)
    with pytest.raises(ValueError, match="the server went away"):
        buffer.rollouts_of(1)


def test_drop_forgets_held_and_coming_rollouts_and_their_errors() -> None:
    student = Student()

    def failing(steps: range) -> dict[int, Batch]:
        if steps.start == 1 and student.steps == 0:
            raise ValueError("of rollouts that nobody wants any more")
        return student.draw(steps)

    buffer = RolloutBuffer(Rollout(asynchronous=True), 5, student.follow, failing)
    take(buffer, student, range(1))
    buffer.drop()
    assert buffer.state(1) == ({}, {"held": [], "coming": []})
    assert take(buffer, student, range(1, 2)) == [(1, 1, 0)]


def test_the_background_thread_never_keeps_a_stopped_run_alive() -> None:
    student, go = Student(), threading.Event()

    def standing(steps: range) -> dict[int, Batch]:
        assert steps.start == 0 or go.wait(5)
        return student.draw(steps)

    buffer = RolloutBuffer(Rollout(asynchronous=True), 3, student.follow, standing)
    buffer.rollouts_of(0)
    (thread,) = [t for t in threading.enumerate() if t.name == "recoup-rollouts"]
    assert thread.daemon
    go.set()
    thread.join()


class Eager(threading.Thread):
    """A thread that does its work at once, in the thread that starts it."""

    def start(self) -> None:
        self.run()

    def join(self, timeout: float | None = None) -> None:
        pass


def trained(folder: Path, settings: Rollout, *, pause: float = 0.0) -> dict[str, torch.Tensor]:
    """Weights of a tiny student after five steps on what it wrote itself, through a real backend."""
    student = load(str(folder))
    student.model.requires_grad_(True)
    optimizer = torch.optim.SGD(student.model.parameters(), lr=0.05)
    setup = Setup(student, torch.float32, folder, snapshot=settings.asynchronous)
    backend = BACKENDS[settings.backend](setup)

    def draw(steps: range) -> dict[int, Batch]:
        time.sleep(pause)
        prompts = [[65, 66], [70, 71, 72]]
        return {step: [backend.sample(prompts, Sampling(4, 0.8, seed=step))] for step in steps}

    buffer = RolloutBuffer(settings, 5, backend.follow, draw)
    for step in range(5):
        (rollouts,) = buffer.rollouts_of(step)
        assert rollouts is not None
        output = student.model(rollouts.tokens_BT, attention_mask=rollouts.attention_BT.long())
        output.logits.float().log_softmax(-1)[..., 0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach() for name, value in student.model.named_parameters()}


@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_a_background_draw_gives_the_weights_of_the_same_draw_in_the_foreground_bit_for_bit(
    tiny_model: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Rollout(asynchronous=True, backend=backend)
    quick, slow = trained(tiny_model, settings), trained(tiny_model, settings, pause=0.05)
    monkeypatch.setattr(buffer_module, "Thread", Eager)
    foreground = trained(tiny_model, settings)
    assert all(torch.equal(quick[name], value) and torch.equal(slow[name], value) for name, value in foreground.items())
    on_policy = trained(tiny_model, Rollout(backend=backend))
    assert any(not torch.equal(quick[name], value) for name, value in on_policy.items()), "staleness has an effect"
