"""The command line: one clear error, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from spiritseg.cli import main
from spiritseg.cli.words import read_fields
from spiritseg.recipes import load_experiment, recipe_names

TINY = """
extends: esd
input: {crop: 32}
networks: {teacher: {extractor: {weights: random}}}
stages:
  mimicry: {max_steps: 2, batch_size: 2, num_views: 1}
  head: {max_steps: 2, batch_size: 2, num_views: 1}
  all: {max_steps: 2, batch_size: 2}
evaluation: {latency: false, pictures: 1}
trainer: {progress: false, accelerator: cpu}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder data set, a folder of unlabelled images and a tiny recipe."""
    generator = np.random.default_rng(0)

    def save(path: Path, values: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)

    for number in range(10):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[20 + number :] = 1
        save(tmp_path / f"road/images/{number}.png", pixels)
        save(tmp_path / f"road/masks/{number}.png", mask)
        save(tmp_path / f"near/deep/er/{number}.webp", pixels[::-1])
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def _words(images: Path, *further: str) -> list[str]:
    roots = ["--target.root", str(images / "road"), "--proximity.root", str(images / "near")]
    common = ["distill", str(images / "tiny.yaml"), *roots, "--run-dir", str(images / "run")]
    return [*common, "--target.subset", "first:4", "--target.val", "fraction:0.2", *further]


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(words)
    shown = capsys.readouterr()
    code = caught.value.code
    assert isinstance(code, int)
    return code, shown.out, shown.err


def test_distill_then_evaluate(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(_words(images), capsys)
    assert code == 0
    assert "mIOU %" in out
    for name in (
        "metrics.json",
        "per_image.csv",
        "predictions.png",
        "config.yaml",
        "student/student.safetensors",
        "student/student.json",
    ):
        assert (images / "run" / name).is_file(), name
    student = images / "run" / "student" / "student.safetensors"
    written = student.stat().st_mtime_ns
    code, again, _ = _call(_words(images), capsys)  # a finished run is only read
    said, _, figures = again.partition("\n")
    assert (code, figures) == (0, out)
    assert said.endswith("run was finished before; to train anew, choose another --run-dir.")
    assert student.stat().st_mtime_ns == written
    code, out, _ = _call(["evaluate", str(images / "run")], capsys)
    assert code == 0
    assert "IoU road %" in out


def test_a_bundle_says_nothing_of_the_folders_of_its_machine(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(_words(images), capsys)[0] == 0
    moved = images / "elsewhere"
    shutil.copytree(images / "run" / "student", moved)
    assert str(images) not in (moved / "student.json").read_text()
    code, _, err = _call(["evaluate", str(moved)], capsys)
    assert code == 2
    assert "road" in err
    code, out, _ = _call(["evaluate", str(moved), "--target.root", str(images / "road")], capsys)
    assert (code, out) == _call(["evaluate", str(images / "run")], capsys)[:2]


def test_another_config_may_not_take_the_folder(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(_words(images), capsys)[0] == 0
    code, _, err = _call(_words(images, "--seed", "1"), capsys)
    assert code == 2
    assert "belongs to another config" in err
    assert "seed: 0 became 1" in err


def _broken(images: Path, fault: str) -> list[str]:
    road = images / "road"
    if fault == "missing folder":
        shutil.rmtree(road)
    elif fault == "no images":
        shutil.rmtree(road / "images")
        (road / "images").mkdir()
    elif fault == "images without masks":
        (road / "masks/3.png").unlink()
    elif fault == "masks without images":
        (road / "images/3.png").unlink()
    elif fault == "mask of another size":
        Image.fromarray(np.zeros((10, 48), np.uint8)).save(road / "masks/1.png")
    elif fault == "label outside":
        Image.fromarray(np.full((40, 48), 7, np.uint8)).save(road / "masks/1.png")
    elif fault == "truncated image":
        data = (road / "images/1.png").read_bytes()
        (road / "images/1.png").write_bytes(data[: len(data) // 2])
    elif fault == "no unlabelled images":
        shutil.rmtree(images / "near/deep")
    return _words(images)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing folder", ["road"]),
        ("no images", ["images"]),
        ("images without masks", ["3.png"]),
        ("masks without images", ["3.png"]),
        ("mask of another size", ["masks/1.png", "10 x 48", "40 x 48"]),
        ("label outside", ["masks/1.png", "7"]),
        ("truncated image", ["images/1.png", "--skip-bad"]),
        ("no unlabelled images", ["near"]),
    ],
)
def test_bad_images_are_one_clear_error(
    images: Path, fault: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _call(_broken(images, fault), capsys)
    assert code == 2
    assert err.startswith("spiritseg: error: ")
    assert "Traceback" not in err
    for part in said:
        assert part in err
    assert not (images / "run").exists()


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (["--stages.mimicry.ratio", "-1"], "ratio: expected 0 or more, got"),
        (["--input.crop", "64"], "does not fit"),
        (["--networks.teacher.extractor.name", "vg16"], "vgg16"),
        (["--networks.student.extractor.policy", "spatail"], "spatial"),
        (["--stages.head.max_step", "3"], "max_steps"),
        (["--networks.teacher.extractor.weights", "no.pth"], "no.pth"),
        (["--networks.teacher.extractor.strides", "8", "5"], "strides"),
        (["--trainer.precision", "17-mixed"], "trainer.precision 17-mixed"),
        (["--stages.all.losses.cross_entropy.class_weights.raod", "2"], "unknown class 'raod'"),
        (
            ["--stages.mimicry.losses.mimicry.layers", '{"extractor.modul": "features"}'],
            "stages.mimicry.losses.mimicry.layers, of student",
        ),
    ],
)
def test_bad_fields_are_one_clear_error(
    images: Path, further: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _call(_words(images, *further), capsys)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (images / "run").exists()


def test_skip_bad_leaves_the_image_out_and_reports_it(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _call([*_broken(images, "truncated image"), "--skip-bad"], capsys)
    assert code == 0
    assert "1 unreadable images were left out" in out
    assert "images/1.png" in out


def test_a_folder_that_is_no_run_is_left_alone(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "run").mkdir()
    (images / "run/thesis.tex").write_text("precious")
    code, _, err = _call(_words(images), capsys)
    assert code == 2
    assert "thesis.tex" in err
    assert [p.name for p in (images / "run").iterdir()] == ["thesis.tex"]


def test_no_disk_space_is_said_before_anything_is_written(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(images)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, _, err = _call(_words(images), capsys)
    assert code == 2
    assert "no disk space" in err
    assert "1 MiB are free" in err
    assert not (images / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distil"], "Did you mean distill?"),
        (["distill", "sdd"], "Did you mean sd"),
        (["distill"], "recipe"),
        (["distill", "demo", "--run-dir", "a" * 300], "names of at most 255 bytes"),
        (["evaluate", "a" * 300], "names of at most 255 bytes"),
        (["evaluate", "nowhere"], "nowhere"),
        (["demo", "--sed", "1"], "--sed"),
        (
            ["distill", "sd-skd", "--print_config", "--stages.ct_head.num_views", "1"],
            "mean ct-head",
        ),
        (["distill", "esd", "--print_config", "--networks.techer.trust", "1"], "mean teacher?"),
    ],
)
def test_unknown_words_are_one_clear_error(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _call(words, capsys)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["demo", "--help"],
        ["distill", "--help"],
        ["evaluate", "--help"],
        ["recipes"],
        ["--version"],
    ],
)
def test_help_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(words, capsys)
    assert code == 0
    assert out.strip()


def test_names_stay_as_they_are_written_and_fields_may_have_dashes() -> None:
    words = "--stages.ct-head.max-steps 5 --paper-sd.stages.a-b.losses.cross-entropy.weight=2"
    assert read_fields(words.split()) == {
        "stages.ct-head.max_steps": "5",
        "paper-sd.stages.a-b.losses.cross_entropy.weight": "2",
    }


def test_a_stage_with_a_dash_is_set_from_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    fields = [
        "--stages.ct-head.losses.cross_entropy.weight",
        "0.5",
        "--stages.ct-head.num_views",
        "3",
    ]
    code, out, _ = _call(["distill", "sd-skd", "--print_config", *fields], capsys)
    assert code == 0
    stages = yaml.safe_load(out)["stages"]
    assert list(stages) == list(load_experiment("sd-skd", complete=False).stages)
    assert stages["ct-head"]["losses"]["cross_entropy"]["weight"] == 0.5
    assert (stages["ct-head"]["num_views"], stages["ct-head"]["max_steps"]) == (3, 200)


def test_output_that_nobody_reads_to_its_end_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m spiritseg distill esd --help | head -1"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.stderr == ""
    assert found.returncode in (0, 141)
    assert len(found.stdout.splitlines()) == 1


def test_another_broken_pipe_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(words: list[str]) -> None:
        raise BrokenPipeError("a worker's pipe")

    monkeypatch.setattr("spiritseg.cli._command", lambda name: broken)
    with pytest.raises(BrokenPipeError, match="a worker's pipe"):
        main(["recipes"])


@pytest.mark.parametrize(
    ("command", "continues"),
    [
        *((name, True) for name in ("demo", "distill", "predict", "compare")),
        *((name, False) for name in ("bench", "doctor", "evaluate", "export", "report", "serve")),
    ],
)
def test_an_interrupted_command_says_whether_it_continues(
    command: str,
    continues: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spiritseg.cli._command", lambda name: interrupted)
    code, _, err = _call([command, "a"], capsys)
    assert code == 130
    assert err.startswith("\nspiritseg: interrupted")
    assert ("the same command continues" in err) == continues


@pytest.mark.parametrize("first", [[], ["--trust"]])
@pytest.mark.parametrize(
    "command", ["distill", "doctor", "evaluate", "export", "compare", "report"]
)
def test_a_field_before_the_recipe_is_one_clear_error(
    command: str, first: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _call([command, *first, "--seed", "1", "esd"], capsys)
    assert code == 2
    assert "the recipe or run comes first" in err
    assert "unknown recipe" not in err


def test_a_field_with_its_value_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--seed=7", "esd"], ["--print_config", "esd", "--seed", "7"]):
        code, out, _ = _call(["distill", *words, "--print_config"], capsys)
        assert code == 0
        assert yaml.safe_load(out)["seed"] == 7


def test_help_after_an_option_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(["distill", "--seed", "1", "--help"], capsys)
    assert code == 0
    assert "--run-dir" in out


def test_help_of_a_recipe_shows_its_own_fields(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _call(["distill", "esd", "--help"], capsys)
    for field in ("--target.root null", "--stages.mimicry.optimizer.lr 0.04", "head.num_views 8"):
        assert field in out
    assert "--trainer.precision" not in out
    assert len(out.splitlines()) < 120


def test_all_help_of_a_recipe_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _call(["distill", "esd", "--help-all"], capsys)
    for field in (
        "--stages.head.losses.pairwise.node_size",
        "--seed",
        "--target.root",
        "--input.crop",
        "--networks.student.head.channels",
        "--stages.mimicry.ratio",
        "--stages.all.optimizer.lr",
        "--trainer.precision",
    ):
        assert field in out


@pytest.mark.parametrize("name", recipe_names())
def test_print_config_prints_a_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(["distill", name, "--print_config", "--seed", "7"], capsys)
    assert code == 0
    assert yaml.safe_load(out)["seed"] == 7
