"""Files are whole under their name, whoever else writes them; what a kill leaves is removed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spiritseg.errors import RunError
from spiritseg.files import clear_parts, part_of, write_atomically


def test_two_writers_of_one_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, both = tmp_path / "a.bin", threading.Barrier(2, timeout=20)
    meet = threading.local()

    def half_way(handle: int) -> None:  # each has its file half-way; their folders need not meet
        if not getattr(meet, "met", False):
            meet.met = True
            both.wait()

    monkeypatch.setattr("os.fsync", half_way)
    failed: list[BaseException] = []

    def write(data: bytes) -> None:
        try:
            write_atomically(path, data)
        except BaseException as error:
            failed.append(error)

    contents = [b"a" * 100_000, b"b" * 50_000]
    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_no_two_processes_or_machines_share_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part_of(tmp_path / "a.bin")}
    monkeypatch.setattr("os.getpid", lambda: 1)
    parts.add(part_of(tmp_path / "a.bin"))
    monkeypatch.setattr("spiritseg.files._MACHINE", "0123abcd")
    parts.add(part_of(tmp_path / "a.bin"))
    assert len(parts) == 3
    assert all(part.name.startswith(".a.bin.") and part.suffix == ".part" for part in parts)


def _ended() -> int:
    """Return the id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(sys.platform == "win32", reason="there only age tells")
def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, path = part_of(tmp_path / "own.bin"), tmp_path / "a.bin"
    monkeypatch.setattr("os.getpid", _ended)
    left = [part_of(tmp_path / name) for name in ("a.bin", "other.png")]
    monkeypatch.undo()
    for part in (own, *left):
        part.write_bytes(b"half")
    write_atomically(path, b"whole")
    assert set(tmp_path.iterdir()) == {own, path}


def test_what_another_machine_has_not_touched_for_a_day_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", _ended)
    monkeypatch.setattr("spiritseg.files._MACHINE", "0123abcd")
    old, young = part_of(tmp_path / "old.bin"), part_of(tmp_path / "young.bin")
    monkeypatch.undo()
    others = [tmp_path / name for name in (".a.part", ".hub.4711.part", "b.0123abcd-1-1.part")]
    yesterday = time.time() - 90_000
    for path in (old, young, *others):
        path.write_bytes(b"")
    for path in (old, *others):
        os.utime(path, (yesterday, yesterday))
    clear_parts(tmp_path)
    assert set(tmp_path.iterdir()) == {young, *others}
    clear_parts(tmp_path / "absent")


@pytest.mark.parametrize("name", ["x" * 255, "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 127])
def test_a_name_as_long_as_can_be_is_written(tmp_path: Path, name: str) -> None:
    write_atomically(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_renamed_file_is_synced_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    real = os.fsync

    def note(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    write_atomically(tmp_path / "a", b"1")
    assert synced == [False, True]  # the file before it is renamed, the folder after


def test_where_nothing_can_be_written_that_is_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **more: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match=r"cannot write .*: Read-only file system"):
        write_atomically(tmp_path / "a", b"1")
