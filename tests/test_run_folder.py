"""Writes are all or nothing; bad rows are told by their line."""

from pathlib import Path

import pytest

from recoup.errors import DataError, RunFolderError
from recoup.results import SCHEMA_VERSION, RecoverResult
from recoup.run_folder import alone_in, atomic_file, atomic_folder, make_folder, read_jsonl, settle, write_json


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def fill_the_disk() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(RunFolderError, match=r"cannot write \(No space left on device\); nothing was overwritten"):
        fill_the_disk()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("old")

    def stop() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "a").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert (target / "a").read_text() == "old"
    with atomic_folder(target) as temporary:
        (temporary / "b").write_text("new")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone_in(folder), pytest.raises(RunFolderError, match="another recoup is at work here"), alone_in(folder):
        pass
    with pytest.raises(ValueError, match="mine"), alone_in(folder):
        raise ValueError("mine")
    with alone_in(folder):  # what ended, however it ended, holds nothing
        pass


def test_what_a_killed_write_left_is_settled(tmp_path: Path) -> None:
    """Killed between the renames: the old folder had stepped aside, the new one was whole but not in its place."""
    aside, half = tmp_path / ".state.old.abc" / "state", tmp_path / ".state.xyz"
    for folder in (aside, half, tmp_path / ".other.xyz"):
        folder.mkdir(parents=True)
    (aside / "position.json").write_text("old")
    settle(tmp_path / "state")
    assert (tmp_path / "state" / "position.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.xyz", "state"]
    # killed after them: the new one stays, the old one goes
    aside.mkdir(parents=True)
    settle(tmp_path / "state")
    assert (tmp_path / "state" / "position.json").read_text() == "old"
    assert not aside.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot create this folder"):
        make_folder(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("line", "says"), [('{"a": 1', "line 2: not JSON"), ("[1]", "line 2: expected a JSON object, found list")]
)
def test_malformed_rows_name_their_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=says):
        read_jsonl(path)


def test_results_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(DataError, match="written by a newer recoup"):
        RecoverResult.read(tmp_path / "result.json")
    with pytest.raises(DataError, match="run that stage first"):
        RecoverResult.read(tmp_path / "none.json")
