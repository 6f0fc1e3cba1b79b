"""A run's folder belongs to the process that holds it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from spiritseg.errors import RunError
from spiritseg.recipes import load_experiment
from spiritseg.training.run_folder import RunFolder, is_first_process


def test_of_two_that_start_together_the_loser_leaves_the_folder_alone(tmp_path: Path) -> None:
    experiment, path = load_experiment("demo"), tmp_path / "run"

    class Late(RunFolder):
        """Has seen no folder when the other process makes it."""

        def _check_space(self) -> None:
            other.enter_context(RunFolder(path).claim(experiment))

    with ExitStack() as other:
        with pytest.raises(RunError, match="in use by another process"):
            other.enter_context(Late(path).claim(experiment))
        assert (path / "config.yaml").exists()


@pytest.mark.parametrize("left", [".lock", ".config.yaml.0badc0de-1-1.part"])
def test_a_folder_that_a_killed_process_began_to_claim_is_claimed(
    tmp_path: Path, left: str
) -> None:
    (tmp_path / left).touch()
    with RunFolder(tmp_path).claim(load_experiment("demo")):
        assert (tmp_path / "config.yaml").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(RunError, match=r"not a run of spiritseg:\n.*thesis.tex"),
        RunFolder(tmp_path).claim(load_experiment("demo")),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00", "[" * 100_000])
def test_a_garbled_record_is_told_and_counts_as_missing(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(content)
    assert RunFolder(tmp_path).read("run.json") is None
    assert f"{tmp_path / 'run.json'} cannot be read" in capsys.readouterr().err


def test_a_run_that_did_nothing_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(RunError, match="bad"), RunFolder(path).claim(load_experiment("demo")):
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
