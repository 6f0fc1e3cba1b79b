"""A run goes on with the files that it was begun with, or says which differ."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import spiritseg
from spiritseg.compare.matrix import plan, run
from spiritseg.config import Experiment
from spiritseg.errors import DivergedError, RunError
from spiritseg.evaluation.evaluate import EvaluationModule
from spiritseg.recipes import differences, fingerprint, load_experiment
from spiritseg.training import run as runner
from spiritseg.training.run_files import refuse_other_weights
from spiritseg.training.stage import StageModule

MASK = np.zeros((40, 48), np.uint8)
MASK[:, :12] = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images, the left quarter of each road."""
    draw = np.random.default_rng(0)
    for number in range(12):
        for kind, value in (("images", draw.integers(0, 255, (40, 48, 3))), ("masks", MASK)):
            path = tmp_path / f"road/{kind}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(value, np.uint8)).save(path)
    return tmp_path / "road"


def _fields(root: Path, **further: Any) -> dict[str, Any]:
    return {
        "target.root": str(root),
        "target.subset": "all",
        "input.crop": 32,
        "networks.student.head.channels": 8,
        "stages.supervised.max_steps": 1,
        "stages.supervised.batch_size": 2,
        "trainer.accelerator": "cpu",
        "trainer.progress": False,
        "evaluation.latency": False,
        "evaluation.pictures": 0,
        **further,
    }


def _interrupted(experiment: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the stage is over, and no further."""

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner._Run, "_result", stop)
        with pytest.raises(KeyboardInterrupt):
            spiritseg.distill(experiment, path)
    assert (path / "stages/1-supervised/stage.json").exists()


def test_other_labels_under_the_same_names_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, path = load_experiment("baseline", _fields(folder)), tmp_path / "run"
    _interrupted(experiment, path, monkeypatch)
    for mask in folder.glob("masks/*"):
        Image.fromarray(1 - MASK).save(mask)
    with pytest.raises(RunError, match=r"(?s)other files.*pixels\.road: \d+ became \d+"):
        spiritseg.distill(experiment, path)
    assert not (path / "metrics.json").exists()


def test_more_images_are_refused_and_the_old_ones_elsewhere_are_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, path = load_experiment("baseline", _fields(folder)), tmp_path / "run"
    _interrupted(experiment, path, monkeypatch)
    shutil.copytree(folder, tmp_path / "kept/road")
    for kind in ("images", "masks"):
        shutil.copy(folder / f"{kind}/1.png", folder / f"{kind}/99.png")
    with pytest.raises(RunError, match=r"images\.train\.images: \d+ became \d+"):
        spiritseg.distill(experiment, path)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept/road", folder)
    assert spiritseg.distill(experiment, path).metrics["stages"]["supervised"]["steps"] == 1


def test_a_teacher_that_was_trained_anew_is_refused(folder: Path, tmp_path: Path) -> None:
    def teacher(seed: int) -> None:
        shutil.rmtree(tmp_path / "teacher", ignore_errors=True)
        fields = {**_fields(folder), "seed": seed}
        spiritseg.distill(load_experiment("baseline", fields), tmp_path / "teacher")

    teacher(0)
    bundle = str(tmp_path / "teacher/student")
    own = {
        "networks.teacher": {"bundle": bundle},
        "stages.supervised.teacher": "teacher",
        "stages.supervised.losses.pixelwise": {},
    }
    fields = _fields(folder, **own)
    recipe = tmp_path / "taught.yaml"
    recipe.write_text("extends: baseline\nnetworks: {teacher: {head: {name: none}}}\n")
    experiment, path = load_experiment(recipe, fields), tmp_path / "run"
    found = spiritseg.distill(experiment, path).metrics["test"]
    assert spiritseg.distill(experiment, path).metrics["test"] == found
    cells = plan([recipe], fields, 1)
    assert [one.state for one in run(cells, tmp_path / "matrix")] == ["finished"]
    assert [one.state for one in run(cells, tmp_path / "matrix")] == ["kept"]
    teacher(1)
    with pytest.raises(RunError, match=r"weights\.teacher: \w+ became"):
        spiritseg.distill(experiment, path)
    with pytest.raises(RunError, match=r"weights\.teacher: \w+ became"):
        run(cells, tmp_path / "matrix")
    (tmp_path / "matrix" / cells[0].folder / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"weights\.teacher: \w+ became"):  # its stage is not shared
        run(cells, tmp_path / "matrix")
    shutil.rmtree(tmp_path / "teacher")  # a finished run does not need it any more
    assert spiritseg.distill(experiment, path).metrics["test"] == found


def test_a_class_without_a_pixel_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "classes.yaml").write_text("names: [background, road, kerb]\n")
    fields = _fields(folder, **{"target.classes": "all"})
    metrics = spiritseg.distill(load_experiment("baseline", fields), tmp_path / "run").metrics
    assert "no pixel of the train images is kerb" in metrics["warnings"]


def test_the_order_of_stages_decides_the_result() -> None:
    fields = {"target.dataset": "scenes"}
    one = load_experiment("sd", fields)
    other = dataclasses.replace(one, stages=dict(reversed(one.stages.items())))
    assert fingerprint(one) != fingerprint(other)
    assert differences(one, other) == [
        "order of the stages: mimicry, head, all became all, head, mimicry"
    ]
    assert differences(one, one) == []


@pytest.mark.parametrize("where", ["training", "measuring"])
def test_ctrl_c_is_an_interrupt_and_not_an_exit(
    where: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    if where == "training":
        monkeypatch.setattr(StageModule, "training_step", stop)
    else:
        monkeypatch.setattr(EvaluationModule, "test_step", stop)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        spiritseg.distill(load_experiment("baseline", _fields(folder)), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_finished_run_does_without_its_teachers_file(tmp_path: Path) -> None:
    file, folder = tmp_path / "teacher.pth", tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"files": {"weights": {"teacher": "abc"}}}')
    experiment = load_experiment("finetune-pretrained", {"target.root": str(tmp_path)})
    network = dataclasses.replace(
        experiment.networks["student"],
        extractor=dataclasses.replace(experiment.networks["student"].extractor, weights=str(file)),
    )
    experiment = dataclasses.replace(experiment, networks={"teacher": network})
    refuse_other_weights(folder, experiment)
    file.write_bytes(b"another one")
    with pytest.raises(RunError, match=r"weights\.teacher: abc became"):
        refuse_other_weights(folder, experiment)


DAMAGE = {
    "stages/1-supervised/network.safetensors": "the stage is trained again",
    "stages/1-supervised/stage.json": "done again",
    "run.json": "done again",
    "metrics.json": "done again",
    "student/student.safetensors": "The student is written again",
    "student/student.json": "The student is written again",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """A finished run, to be copied before it is damaged."""
    scenes = {"train": 3, "val": 1, "test": 2, "size": [64, 96]}
    fields = _fields(Path()) | {"target.root": None, "target.dataset": "scenes"}
    fields |= {"target.scenes": scenes, "evaluation.pictures": 0}
    experiment = load_experiment("baseline", fields)
    path = tmp_path_factory.mktemp("finished") / "run"
    spiritseg.distill(experiment, path)
    return experiment, path


@pytest.mark.parametrize("how", ["truncated", "flipped", "gone"])
@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_run_is_mended_by_the_same_command(
    finished: tuple[Experiment, Path],
    tmp_path: Path,
    file: str,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment, path = finished[0], tmp_path / "run"
    shutil.copytree(finished[1], path)
    before = json.loads((path / "metrics.json").read_text())
    weights = (path / "student/student.safetensors").read_bytes()
    data = (path / file).read_bytes()
    middle = len(data) // 2
    if how == "gone":
        (path / file).unlink()
    elif how == "truncated":
        (path / file).write_bytes(data[:middle])
    else:
        (path / file).write_bytes(data[:middle] + b"\xff\xff\xff\xff" + data[middle + 4 :])
    if file.startswith("stages/"):  # what a finished run takes from there is in its student
        (path / "metrics.json").unlink()
    capsys.readouterr()
    after = spiritseg.distill(experiment, path).metrics
    assert (path / "student/student.safetensors").read_bytes() == weights
    assert after["test"] == before["test"]
    if how != "gone" and file != "run.json":
        assert DAMAGE[file] in capsys.readouterr().err


def test_figures_that_were_edited_are_measured_again(
    finished: tuple[Experiment, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(finished[1], path)
    before = (path / "metrics.json").read_text()
    edited = json.loads(before)
    edited["test"]["mIOU"] = 0.999
    (path / "metrics.json").write_text(json.dumps(edited))
    again = spiritseg.distill(finished[0], path).metrics
    assert "were changed after the run: measured again" in capsys.readouterr().err
    assert again["test"] == json.loads(before)["test"]


def test_a_stage_of_another_run_is_not_taken_for_this_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = "stages/1-supervised/network.safetensors"
    one, other = (load_experiment("baseline", _fields(folder, seed=seed)) for seed in (0, 1))
    weights = []
    for experiment, name in ((one, "one"), (other, "other")):
        spiritseg.distill(experiment, tmp_path / name)
        weights.append((tmp_path / name / "student/student.safetensors").read_bytes())
    (tmp_path / "one" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    (tmp_path / "one" / "metrics.json").unlink()
    spiritseg.distill(one, tmp_path / "one")
    assert "is not the file that was written: the stage is trained again" in capsys.readouterr().err
    assert (tmp_path / "one/student/student.safetensors").read_bytes() == weights[0]


def test_weights_that_are_not_finite_are_never_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: StageModule) -> None:
        next(self.network.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(StageModule, "settle", spoil)  # the last thing that a stage does
    with pytest.raises(DivergedError, match=r"has ended with values in .* that are not finite"):
        spiritseg.distill(load_experiment("baseline", _fields(folder)), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
