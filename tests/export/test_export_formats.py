"""Export formats: what entries say, and a format of your own through the public door alone."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import spiritseg
from spiritseg.cli import main
from spiritseg.errors import BundleError
from spiritseg.export.formats import FORMATS, describe_formats
from spiritseg.images import Pixels
from spiritseg.student import load

DOCS = Path(__file__).parents[2] / "docs" / "deploy.md"


@pytest.fixture
def own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The format of the documentation, in a file of the user's working folder."""
    code = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[-1]
    (tmp_path / "my_format.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return "my_format.py:TORCHSCRIPT"


def _run(*words: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 0


@pytest.mark.filterwarnings("ignore")  # of torch.jit
def test_a_format_in_a_file_exports_and_runs(
    own_format: str, student_folder: Path, pictures: Path, scenes: list[Pixels]
) -> None:
    words = ["--fixed", "--size", 96, 128, "--out", "tiny.torchscript"]
    _run("export", student_folder, "--format", own_format, *words)
    _run("predict", "tiny.torchscript", pictures, "--out", "masks", "--trust")
    assert len(list(Path("masks").rglob("*.png"))) == len(scenes)
    runtime = load("tiny.torchscript", trust=True).engine
    assert runtime.name == "torchscript"
    student = spiritseg.load(student_folder)
    assert np.array_equal(runtime.masks(scenes[0][None])[0], student(scenes[0]))
    with pytest.raises(BundleError, match=r"my_format\.py:TORCHSCRIPT.*--trust"):
        load("tiny.torchscript")


@pytest.mark.filterwarnings("ignore")
def test_a_format_of_an_installed_package_is_known_by_name(
    own_format: str, student_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("script", "my_format:TORCHSCRIPT", FORMATS.group)
    monkeypatch.setitem(FORMATS._installed, "script", point)
    assert ("script", "a .torchscript for libtorch; one size (fp32)") in describe_formats()
    rows = spiritseg.bench([student_folder], [(64, 80)], ["torchscript"], threads=1, rounds=1)
    assert [row.runtime for row in rows] == ["torchscript"]
    report = spiritseg.export(
        student_folder, "script", fixed=True, size=(64, 80), out="a.torchscript"
    )
    assert load(report.paths[0]).engine.info == report.info  # an installed package is trusted
    sys.modules.pop("my_format")


def test_documentation_and_help_list_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    docs = DOCS.read_text()
    _run("export", "--help")
    shown = capsys.readouterr().out
    for name, about in describe_formats():
        assert f"| {name} | {about} |" in docs
        assert f"{name:10} {about}" in shown
