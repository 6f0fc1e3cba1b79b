"""A run's folder belongs to the process that holds it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from spiritseg.errors import RunError
from spiritseg.recipes import load_experiment
from spiritseg.training.rundir import RunDir, is_first_process


def test_of_two_that_start_together_the_loser_leaves_the_folder_alone(tmp_path: Path) -> None:
    experiment, path = load_experiment("demo"), tmp_path / "run"

    class Late(RunDir):
        """Has seen no folder when the other process makes it."""

        def _check_space(self) -> None:
            other.enter_context(RunDir(path).claim(experiment))

    with ExitStack() as other:
        with pytest.raises(RunError, match="in use by another process"):
            other.enter_context(Late(path).claim(experiment))
        assert (path / "config.yaml").exists()


def test_a_run_that_did_nothing_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RunError, match="bad"), RunDir(path).claim(load_experiment("demo")):
        raise RunError("bad")
    assert not path.exists()


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "0", "SLURM_PROCID": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "0"}, False),  # started in a shell of SLURM
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "2"}, False),
    ],
)
def test_one_process_writes(
    environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
