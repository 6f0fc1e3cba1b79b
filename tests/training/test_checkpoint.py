"""Checkpoints: whole or not there; a damaged one is passed over."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from spiritseg.errors import RunError
from spiritseg.files import write_atomically
from spiritseg.training.checkpoint import AtomicCheckpointIO, latest


def _save(folder: Path, step: int) -> None:
    AtomicCheckpointIO().save_checkpoint(
        {"step": step, "state": torch.arange(1000)}, folder / f"step-{step:08d}.ckpt"
    )


def _step(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path, weights_only=True)["step"])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        _save(tmp_path, step)
    assert len(list(tmp_path.iterdir())) == 2
    assert _step(latest(tmp_path)) == 100


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 5)
    _save(tmp_path, 10)
    newest = latest(tmp_path)
    assert newest is not None
    data = newest.read_bytes()
    flipped = bytes([data[len(data) // 2] ^ 1])
    broken = {
        "truncate": data[: len(data) // 2],
        "flip": data[: len(data) // 2] + flipped + data[len(data) // 2 + 1 :],
        "empty": b"",
    }[damage]
    newest.write_bytes(broken)
    assert _step(latest(tmp_path)) == 5


def test_there_may_be_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None


def test_a_part_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    (tmp_path / ".step-00000010-0123456789abcdef.ckpt.part").write_bytes(b"half")
    assert _step(latest(tmp_path)) == 5


def test_no_space_is_one_clear_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def full(handle: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_a_checkpoint_of_lightnings_own_keeps_its_name(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / ".temp.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == [".temp.ckpt"]
