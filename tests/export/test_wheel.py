"""The project's wheel predicts from .onnx with numpy, onnxruntime, Pillow, rich and av alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from predict.material import film, picture
from spiritseg.export.export import ExportReport

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = ("numpy", "onnxruntime", "pillow", "rich", "av")


def _needed(name: str, found: set[str]) -> set[str]:
    """Collect a distribution and what it requires."""
    if name in found:
        return found
    found.add(name)
    for line in requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            try:
                distribution(requirement.name)
            except PackageNotFoundError:
                continue
            _needed(requirement.name.lower(), found)
    return found


def _link(name: str, site: Path) -> None:
    """Link a distribution's top-level entries into another site-packages."""
    found = distribution(name)
    tops = {Path(str(file)).parts[0] for file in found.files or []}
    for top in tops - {"..", "__pycache__"}:
        source = Path(str(found.locate_file(top)))
        if source.exists() and not (site / top).exists():
            (site / top).symlink_to(source)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the five packages, and nothing else."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    # Only what belongs to the project: its build must not see this test's environment.
    words = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run([*pip, *words, str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("spiritseg-*.whl")
    venv.create(folder / "env", symlinks=True)
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    words = ["install", str(wheel), "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, *words], check=True, capture_output=True)
    names: set[str] = set()
    for name in ALLOWED:
        _needed(name, names)
    for name in names:
        _link(name, site)
    return folder / "env/bin/python"


def _run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [str(python), "-W", "error", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_wheel_predicts_without_torch(
    python: Path, exported: ExportReport, pictures: Path, tmp_path: Path
) -> None:
    for absent in ("torch", "torchvision", "lightning", "yaml", "onnx", "openvino"):
        assert "ModuleNotFoundError" in _run(python, "-c", f"import {absent}").stderr
    home = _run(python, "-c", "import spiritseg; print(spiritseg.__file__)").stdout
    assert str(python.parent.parent) in home
    words = ["-m", "spiritseg", "predict", str(exported.paths[0])]
    done = _run(python, *words, str(pictures), "--out", str(tmp_path / "masks"))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 6
    video = film(tmp_path / "drive.mp4", [picture(number) for number in range(12)])
    done = _run(python, *words, str(video), "--out", str(tmp_path / "video"), "--kind", "video")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "video/drive.overlay.mp4").stat().st_size > 1000


def test_what_needs_more_says_so(python: Path, student_folder: Path, tmp_path: Path) -> None:
    words = ["predict", str(student_folder), str(tmp_path), "--out", str(tmp_path / "out")]
    (tmp_path / "a.png").touch()
    done = _run(python, "-m", "spiritseg", *words)
    assert done.returncode == 2
    assert "torch is not installed" in done.stderr
    assert ".onnx" in done.stderr
    assert "Traceback" not in done.stderr
    assert _run(python, "-m", "spiritseg", "--help").returncode == 0
