"""The whole examination: a sound recipe passes, all faults of a bad one are reported at once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import nn

from spiritseg.cli import main
from spiritseg.config import Experiment
from spiritseg.data import items
from spiritseg.doctor import Examination, Finding, Report, doctor
from spiritseg.doctor import images as images_module
from spiritseg.doctor.findings import Known
from spiritseg.doctor.images import examine_images
from spiritseg.doctor.weights import examine_weights
from spiritseg.errors import ConfigError
from spiritseg.recipes import load_experiment

TINY = """
extends: esd
input: {crop: 32}
target: {subset: "first:4", val: "fraction:0.2"}
networks: {teacher: {extractor: {cut_at: blocks.2}}}
stages:
  mimicry: {max_steps: 20, batch_size: 2, num_views: 2}
  head: {max_steps: 10, batch_size: 2, num_views: 2}
  all: {max_steps: 10, batch_size: 2}
evaluation: {latency: false, pictures: 1}
trainer: {progress: false, accelerator: cpu}
"""


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[20 + number :] = 1
        _save(tmp_path / f"road/images/{number}.png", pixels)
        _save(tmp_path / f"road/masks/{number}.png", mask)
        _save(tmp_path / f"near/{number}.png", pixels[::-1, :, ::-1][4:28])
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def _fields(images: Path, overrides: dict[str, object]) -> dict[str, object]:
    roots = {"target.root": str(images / "road"), "proximity.root": str(images / "near")}
    return {**roots, **{k.replace("__", "."): v for k, v in overrides.items()}}


def _doctor(images: Path, **overrides: object) -> Report:
    return doctor(images / "tiny.yaml", _fields(images, overrides))


def _known(images: Path, **overrides: object) -> tuple[Report, Known]:
    """Only the examination of images, which is quick."""
    fields = _fields(images, overrides)
    known = Known(load_experiment(images / "tiny.yaml", fields, complete=False))
    found = Examination("Images and labels")
    examine_images(found, known)
    return Report([found]), known


def _images(images: Path, **overrides: object) -> Report:
    return _known(images, **overrides)[0]


def _text(report: Report, level: str = "problem") -> str:
    return "\n".join(str(finding) for finding in report.findings if finding.level == level)


def _files(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_sound_recipe_has_no_problem(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    before = _files(images)
    report = _doctor(images)
    assert not report.problems, report.problems
    assert _files(images) == before  # nothing is written
    titles = [one.title for one in report.examinations]
    assert titles == [
        "Recipe", "Images and labels", "Weights", "Input normalisation",
        "Cut points and cost", "Training steps",
    ]  # fmt: skip
    text = _text(report, "ok")
    assert "33 of 33" not in text  # the layers behind the cut are gone
    assert "10 of 10 images are enlarged so that the crop fits, by up to 1.33" in text
    assert "time: the run takes about" in text
    assert "memory: stage" in text
    tables = {title: rows for one in report.examinations for title, rows in one.tables.items()}
    stages = next(rows for title, rows in tables.items() if title.startswith("a few real steps"))
    assert [row[:2] for row in stages[1:4]] == [["mimicry", "20"], ["head", "10"], ["all", "10"]]
    pixels = next(rows for title, rows in tables.items() if title.startswith("pixels"))
    assert [row[0] for row in pixels[1:]] == ["background", "road", "(ignored)"]
    assert pixels[1][1].endswith("(4)")
    assert repr(report).endswith(report.summary)
    assert "│ mimicry" in str(report)


def test_all_faults_are_reported_at_once(images: Path) -> None:
    road = images / "road"
    _save(road / "masks/1.png", np.full((40, 48), 7, np.uint8))
    _save(road / "masks/2.png", np.zeros((10, 48), np.uint8))
    data = (road / "images/3.png").read_bytes()
    (road / "images/3.png").write_bytes(data[: len(data) // 2])
    report = _doctor(
        images,
        target__subset="all",
        proximity__root=str(images / "nowhere"),
        networks__teacher__extractor__cut_at="blocks.9",
        networks__teacher__extractor__weights="random",
    )
    text = _text(report)
    for part in ("masks/1.png", "masks/2.png", "images/3.png", "nowhere", "blocks.9"):
        assert part in text
    assert len(report.problems) == 4  # masks, an image, a folder, a network
    assert "not measured before the problems above" in _text(report, "warning")


def test_an_examination_that_fails_is_a_finding_with_its_name(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(found: Examination, known: Known) -> None:
        raise ZeroDivisionError("by nothing")

    module = sys.modules[doctor.__module__]
    parts = {"Weights": broken, "Images": examine_images}
    monkeypatch.setattr(module, "_EXAMINATIONS", parts)
    report = _doctor(images)
    assert [one.title for one in report.examinations] == list(parts)
    assert report.problems == [
        Finding("problem", "weights", "the examination stopped: ZeroDivisionError: by nothing")
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the examinations of the recipe and its images."""
    module = sys.modules[doctor.__module__]
    parts = {key: module._EXAMINATIONS[key] for key in ("Recipe", "Images and labels")}
    monkeypatch.setattr(module, "_EXAMINATIONS", parts)


def test_overrides_are_for_recipes(images: Path) -> None:
    with pytest.raises(ConfigError, match="load_experiment"):
        doctor(Experiment(), {"seed": 1})


@pytest.mark.usefixtures("quick")
def test_missing_root_and_missing_folder(images: Path) -> None:
    report = _doctor(images, target__root=None, proximity__root=None)
    where = {finding.where for finding in report.problems}
    assert {"target.root", "proximity.root"} <= where
    assert "there is no folder" in _text(_images(images, target__root=str(images / "gone")))


def test_each_image_is_opened_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def spy(real: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def read(path: Path) -> Any:
            opened.append(str(path))
            return real(path)

        return read

    for name in ("read_image", "image_size"):
        monkeypatch.setattr(items, name, spy(getattr(items, name)))
    monkeypatch.setattr(images_module, "_DECODED", 4)
    report, known = _known(images, target__subset="all")
    assert not report.problems
    assert len(opened) == len(set(opened)) == 20
    assert "4 were decoded" in _text(report, "ok")
    assert known.domains is not None
    assert len(known.samples) == min(8, len(known.domains.target.train))
    assert known.size == (20, 24)  # after the max-pool of 2
    assert known.nbytes == 10 * 40 * 48 * 4 + 10 * 24 * 48 * 3


def test_skip_bad_makes_an_unreadable_image_a_warning(images: Path) -> None:
    for path in ("road/images/3.png", "near/4.png"):
        (images / path).write_bytes(b"\x89PNG")
    bad = _text(_images(images, target__subset="all"))
    report, known = _known(images, target__subset="all", input__skip_bad=True)
    assert not report.problems
    for name in ("images/3.png", "near/4.png"):
        assert name in bad
        assert name in _text(report, "warning")
    assert known.domains is not None
    assert sum(len(one) for one in known.domains.proximity) == 9


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_skip_bad_that_leaves_no_image_of_a_split_is_a_problem(images: Path, split: str) -> None:
    fields: dict[str, object] = {"input__skip_bad": True, "target__subset": "all"}
    for own in ("val", "test"):
        for kind, values in (("images", np.full((40, 48, 3), 90)), ("masks", np.eye(40, 48))):
            _save(images / f"{own}/{kind}/a.png", values.astype(np.uint8))
        fields[f"target__{own}"] = f"folder:{images / own}"
    folder = images / ("road" if split == "train" else split)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"\x89PNG")
    report, known = _known(images, **fields)
    assert f"{split}: no image is left" in _text(report)
    assert known.domains is None


def test_the_crop_and_the_scales_of_stages_are_examined(images: Path) -> None:
    found = next(f for f in _images(images, input__crop=64).problems if f.where == "input.crop")
    assert "does not fit" in found.what
    assert "--input.crop 40" in found.do
    padded = "asks for windows of up to 64 pixels, the smallest side is 40"
    assert padded not in _text(_images(images), "warning")
    of_all = _images(images, input__scale=[0.5, 1.0])
    assert f"input.scale: 0.5 {padded}" in _text(of_all, "warning")
    of_one = _images(images, stages__head__scale=[0.5, 2.0], stages__all__scale=[0.75, 2.0])
    assert f"stages.head.scale: 0.5 {padded}" in _text(of_one, "warning")
    unlabelled = {"stages__mimicry__images": "proximity", "stages__mimicry__scale": [0.5, 1.0]}
    assert "padding" not in _text(_images(images, **unlabelled), "warning")


def test_the_drives_of_the_test_images_are_named(images: Path) -> None:
    for name in ("a_0001", "a_0002", "b_0007"):
        _save(images / f"own/images/{name}.png", np.full((40, 48, 3), 90, np.uint8))
        _save(images / f"own/masks/{name}.png", np.ones((40, 48), np.uint8))
    text = _text(_images(images, target__test=f"folder:{images / 'own'}"), "ok")
    assert "test: 3 of 3 images of 2 drives (" in text


def test_labels_that_show_too_little(images: Path) -> None:
    for number in range(3):
        _save(images / f"road/masks/{number}.png", np.zeros((40, 48), np.uint8))
    (images / "road/classes.yaml").write_text("names: [background, road, sky]\n")
    mask = np.zeros((40, 48), np.uint8)
    mask[:10], mask[30:] = 2, 1
    _save(images / "road/val/images/a.png", np.full((40, 48, 3), 90, np.uint8))
    _save(images / "road/val/masks/a.png", mask)
    report = _images(images, target__classes="all", target__val="auto", target__subset="all")
    text = _text(report, "warning")
    assert "no training image shows sky, but val images do" in text
    assert "images show no road" in text
    assert "val: 1 images; one image is 100 points of HP-Acc" in text
    assert "give more by target.val" in text


def test_an_untrained_teacher_is_a_warning(images: Path) -> None:
    fields = {"networks.teacher.extractor.weights": "random"}
    found = Examination("Weights")
    examine_weights(found, Known(load_experiment(images / "tiny.yaml", fields, complete=False)))
    assert "features of an untrained network" in _text(Report([found]), "warning")


@pytest.mark.usefixtures("quick")
def test_command_exits_with_2_for_a_problem(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", str(images / "tiny.yaml"), "--target.root", str(images / "road")]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--proximity.root", str(images / "nowhere"), "--input.crop", "64"])
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert "nowhere" in shown.out
    assert "does not fit" in shown.out
    assert "2 problems" in shown.err
    assert "Traceback" not in shown.err


def test_findings_are_printed_behind_their_level() -> None:
    found = Examination("Title", [Finding("warning", "here", "a\n  b", "c")])
    assert str(found) == "Title\n  warning  here: a\n             b\n           -> c"
    found.refused("target", "target.root: there is no folder x.")
    assert found.findings[-1] == Finding("problem", "target.root", "there is no folder x.")


class Whole(nn.Module):
    """A network of one's own, whose logits come without a separate head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(4, num_classes, 1)

    def forward(self, images: Any) -> Any:
        return self.classifier(self.backbone(images))


def test_a_network_of_ones_own_is_measured_whole(images: Path) -> None:
    own = {
        "extractor": {"name": f"{__name__}.Whole", "cut_at": "backbone"},
        "head": {"name": "own"},
    }
    stage = {"losses": {"cross_entropy": {}}, "max_steps": 2, "batch_size": 2}
    recipe = {
        "networks": {"student": own},
        "stages": {"supervised": stage},
        "input": {"crop": 32},
        "trainer": {"accelerator": "cpu", "progress": False},
    }
    (images / "own.yaml").write_text(yaml.safe_dump(recipe))
    target = {"root": str(images / "road"), "subset": "all", "val": "fraction:0.2"}
    report = doctor(images / "own.yaml", {"target": target})
    assert not report.problems, report.problems
    rows = report.examinations[-1].tables.popitem()[1]
    assert [row[0] for row in rows[1:]] == [
        "supervised", "(reading the images)", "(measuring the result)",
    ]  # fmt: skip
