"""The tournament from folders to terms: what it finds, keeps, leaves out and refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from recoup.config import History, Recover
from recoup.config_file import parse
from recoup.errors import ConfigError, DataError, SourceError
from recoup.evaluate import harness
from recoup.history import run as stage
from recoup.history.run import HistoryInputs, run
from recoup.models.load import load
from recoup.models.sample import Sampling, sample
from recoup.recover.run import RecoverInputs
from recoup.recover.run import run as recover
from recoup.results import HistoryResult
from recoup.run_folder import result_path
from tests.conftest import save_tiny

NUM_ROWS = 40


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints. The second wrote the answers of the group `own`, so it alone is likely to write them."""
    root = tmp_path_factory.mktemp("history")
    for number in range(3):
        save_tiny("llama", root / "trained" / f"checkpoint-{number}", seed=number)
    writer = load(str(root / "trained" / "checkpoint-1"))
    texts = [f"question number {i}" for i in range(NUM_ROWS)]
    prompts = [
        writer.tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True)["input_ids"]
        for t in texts
    ]
    answers = [
        writer.tokenizer.decode(ids, skip_special_tokens=True)
        for ids in sample(writer, prompts, Sampling(max_tokens=12)).completions()
    ]
    made = [{"prompt": t, "answer": a or "-", "group": "own"} for t, a in zip(texts, answers, strict=True)]
    other = [{"prompt": f"other {t}", "answer": "no", "group": "other"} for t in texts]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made + other))
    return root


@pytest.fixture
def inputs(history: Path, tmp_path: Path) -> HistoryInputs:
    student = save_tiny("llama", tmp_path / "student", seed=9)
    return HistoryInputs(str(student), history / "trained", seed=0, dtype=torch.float32)


@pytest.fixture
def config(history: Path) -> History:
    return History(prompts=str(history / "rows.jsonl"), num_prompts=48)


def test_the_checkpoint_that_can_teaches(config: History, inputs: HistoryInputs, history: Path, tmp_path: Path) -> None:
    labels: list[tuple[str, int, int]] = []
    result = run(config, inputs, tmp_path / "out", lambda *label: labels.append(label))
    assert HistoryResult.read(result_path(tmp_path / "out")) == result
    trained = [str(history / "trained" / f"checkpoint-{number}") for number in range(3)]
    assert [row.checkpoint for row in result.checkpoints] == [*trained, inputs.student]
    assert [row.order for row in result.checkpoints] == [0, 1, 2, 3]
    student = result.checkpoints[-1]
    assert all(score.gain.value == score.gain.low == score.gain.high == 0 for score in student.scores)
    own = next(chosen for chosen in result.chosen if chosen.capability == "own")
    assert (own.checkpoint, own.significant) == (trained[1], True)
    assert own.gain.low > 0.5  # its own words against another's, nats a token
    peak = next(score for score in result.checkpoints[1].scores if score.capability == "own")
    assert peak.score.value - peak.gain.value == pytest.approx(
        next(score.score.value for score in student.scores if score.capability == "own")
    )
    term = next(term for term in result.terms if term["group"] == "own")
    assert term == {"prompts": config.prompts, "group": "own", "teacher": trained[1], "weight": own.weight}
    assert labels[0] == ("history: the student", 0, 4)
    assert labels[-1] == ("history: choose teachers", 4, 4)


def test_a_repair_takes_the_terms(config: History, inputs: HistoryInputs, tmp_path: Path) -> None:
    terms = run(config, inputs, tmp_path / "out").terms
    anchored = [{**term, "teacher": "start"} if term["group"] == "other" else term for term in terms]
    tree = {"terms": anchored, "steps": 1, "batch_size": 4, "micro_batch_size": 4, "precision": "fp32"}
    repair = parse(Recover, tree | {"rollout": {"max_tokens": 4}, "bootstrap": {"max_steps": 0}}, "a test")
    teachers = tuple(str(term.teacher) for term in repair.terms)
    found = recover(repair, RecoverInputs(inputs.student, teachers, seed=0), tmp_path / "recover")
    assert found.teachers == teachers
    assert "start" in teachers


def test_a_stopped_tournament_goes_on(
    config: History, inputs: HistoryInputs, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    real = stage.load

    def counting(name: str, **settings):
        loaded.append(Path(name).name)
        if loaded.count("checkpoint-2") == 1 and loaded[-1] == "checkpoint-2":
            raise KeyboardInterrupt
        return real(name, **settings)

    monkeypatch.setattr(stage, "load", counting)
    with pytest.raises(KeyboardInterrupt):
        run(config, inputs, tmp_path / "out")
    assert not result_path(tmp_path / "out").exists()
    assert loaded == ["student", "checkpoint-0", "checkpoint-1", "checkpoint-2"]
    loaded.clear()
    loaded.append("checkpoint-2")  # the interruption is over
    run(config, inputs, tmp_path / "out")
    assert loaded[1:] == ["student", "checkpoint-2"]  # the student lays the rows out
    loaded.clear()
    loaded.append("checkpoint-2")
    run(config.model_copy(update={"num_prompts": 24}), inputs, tmp_path / "out")  # other rows: all anew
    assert loaded[1:] == ["student", "checkpoint-0", "checkpoint-1", "checkpoint-2"]


def test_the_student_in_its_own_history_does_not_compete(
    config: History, inputs: HistoryInputs, history: Path, tmp_path: Path
) -> None:
    itself = HistoryInputs(str(history / "trained" / "checkpoint-1"), inputs.folder, 0, dtype=torch.float32)
    result = run(config, itself, tmp_path / "out")
    assert [Path(row.checkpoint).name for row in result.checkpoints] == ["checkpoint-0", "checkpoint-1", "checkpoint-2"]
    assert all(Path(chosen.checkpoint).name != "checkpoint-1" for chosen in result.chosen)
    own = next(chosen for chosen in result.chosen if chosen.capability == "own")
    assert not own.significant
    assert all(term["teacher"] == "start" for term in result.terms if term["group"] == "own")


def test_a_checkpoint_that_cannot_teach_is_named_and_left_out(
    config: History, inputs: HistoryInputs, tmp_path: Path
) -> None:
    copies = tmp_path / "copies"
    for number in range(3):
        shutil.copytree(inputs.folder / f"checkpoint-{number}", copies / f"checkpoint-{number}")
    vocabulary = copies / "checkpoint-0" / "tokenizer.json"
    tree = json.loads(vocabulary.read_text())
    first, second, *_ = tree["model"]["vocab"]
    tree["model"]["vocab"] |= {first: tree["model"]["vocab"][second], second: tree["model"]["vocab"][first]}
    vocabulary.write_text(json.dumps(tree))
    (copies / "checkpoint-1" / "config.json").write_text('{"model_type": "nothing"}')
    (copies / "checkpoint-3").mkdir()
    (copies / "checkpoint-3" / "pytorch_model.bin").touch()
    said: list[str] = []
    moved = HistoryInputs(inputs.student, copies, 0, dtype=torch.float32)
    result = run(config, moved, tmp_path / "out", lambda label, done, total: said.append(label))
    assert [Path(row.checkpoint).name for row in result.checkpoints] == ["checkpoint-2", "student"]
    left_out = {Path(label.split(" left out: ")[0]).name: label for label in said if " left out: " in label}
    assert "its tokenizer is not the student's" in left_out["checkpoint-0"]
    assert "cannot load this model" in left_out["checkpoint-1"]
    assert "neither config.json" in left_out["checkpoint-3"]


def test_mistakes(
    config: History, inputs: HistoryInputs, history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone.txt"
    alone.write_text(f"{inputs.student}\n")
    with pytest.raises(DataError, match="no checkpoint but the student itself could be scored"):
        run(config, HistoryInputs(inputs.student, alone, 0, dtype=torch.float32), tmp_path / "out")
    with pytest.raises(SourceError, match="no such model"):
        run(config, HistoryInputs(str(tmp_path / "gone"), inputs.folder, 0), tmp_path / "out")
    science = tmp_path / "data" / "science_sdft" / "eval_507_paper.jsonl"
    science.parent.mkdir(parents=True)
    science.write_text(json.dumps({"prompt": [{"role": "user", "content": "Q?"}], "answer": "A"}) + "\n")
    short = dict.fromkeys(
        ["science"], stage.TaskItems(task="science", metric="correct", item_ids=("0",), scores=(1.0,))
    )
    monkeypatch.setattr("recoup.history.score.score_task", lambda model, name, *rest: short[name])
    with pytest.raises(ConfigError, match="science: 1 item to choose a teacher by; raise `limit`"):
        run(History(tasks=("science",), data=str(tmp_path / "data"), limit=1), inputs, tmp_path / "out")
    monkeypatch.setattr(stage, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match="no such folder or file"):
        run(config, HistoryInputs(inputs.student, tmp_path / "gone", 0), tmp_path / "out")
    monkeypatch.setattr(harness, "known_names", lambda: frozenset({"gsm8k"}))  # lm-eval's own take long to list
    with pytest.raises(ConfigError, match="did you mean 'science'"):
        run(History(tasks=("scienc",)), inputs, tmp_path / "out")
