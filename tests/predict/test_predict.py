"""Files in, files out: nothing half-written, nothing lost, nothing replaced unasked."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from predict.material import COMMAND, RED, film, names, picture, read
from spiritseg.cli import main
from spiritseg.cli.predict import parser
from spiritseg.errors import BundleError, ConfigError, RunError
from spiritseg.images import read_pixels
from spiritseg.predict.inputs import Kind
from spiritseg.predict.predict import PredictReport, predict

# Of the processes: where the tests' own modules lie.
_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _predict(inputs: Any, out: Path, kind: Kind = "mask", **options: Any) -> PredictReport:
    return predict(RED, inputs, out, kind, progress=False, **options)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_folder_becomes_masks_of_the_same_names(
    pictures: Path, tmp_path: Path, batch: int
) -> None:
    out = tmp_path / "out"
    report = _predict(pictures, out, batch=batch)
    wanted = ["0.png", "2.png", "4.png", "deep/er/1.png", "deep/er/3.png", "deep/er/5.png"]
    assert names(out) == sorted(p.relative_to(out).as_posix() for p in report.outputs) == wanted
    assert (report.frames, report.kept, report.skipped) == (6, 0, [])
    for source in pictures.rglob("*.*"):
        mask = read((out / source.relative_to(pictures)).with_suffix(".png"))
        assert np.array_equal(mask, read_pixels(source)[..., 0] > 100)
        assert 0 < mask.mean() < 1


@pytest.mark.parametrize("kind", ["overlay", "video"])
def test_overlays_stand_next_to_masks(pictures: Path, tmp_path: Path, kind: Kind) -> None:
    _predict(pictures / "0.png", tmp_path / "out")
    _predict(pictures / "0.png", tmp_path / "out", kind, opacity=0.25)
    image = picture(0).astype(float)
    colours = np.where(image[..., :1] > 100, (128, 64, 128), (70, 70, 70))
    assert np.abs(read(tmp_path / "out/0.overlay.png") - (0.75 * image + 0.25 * colours)).max() < 1
    assert names(tmp_path / "out") == ["0.overlay.png", "0.png"]


def test_what_is_there_is_kept_unless_it_shall_be_overwritten(
    pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _predict(pictures, out)
    (out / "deep/er/3.png").unlink()
    (out / "2.png").write_text("mine")
    again = _predict(pictures, out)
    assert (again.frames, again.kept) == (1, 5)
    assert (out / "2.png").read_text() == "mine"
    assert "5 outputs existed and were kept" in repr(again)
    anew = _predict(pictures, out, overwrite=True)
    assert (anew.frames, anew.kept) == (6, 0)
    assert np.array_equal(read(out / "2.png"), read_pixels(pictures / "2.webp")[..., 0] > 100)


def _bad_folder(folder: Path) -> set[str]:
    """Write a good image and every kind of bad one; return the names of the bad ones."""
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "zero.png").touch()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 255
    (folder / "corrupt.png").write_bytes(flipped)
    Image.new("L", (12000, 9000)).save(folder / "warned.png", compress_level=1)
    Image.new("1", (40000, 30000)).save(folder / "bomb.png", compress_level=1)
    Image.new("1", (70_000, 1)).save(folder / "thin.png")
    Image.fromarray(picture(0)[..., 0].astype(np.float32)).save(folder / "float.tiff")
    return {"zero", "cut", "text", "corrupt", "warned", "bomb", "thin", "float"}


def test_bad_images_are_left_out_and_reported(tmp_path: Path) -> None:
    bad = _bad_folder(tmp_path / "in")
    report = _predict(tmp_path / "in", tmp_path / "out", batch=3)
    assert {Path(path).stem for path, _ in report.skipped} == bad
    assert all(reason in repr(report) for _, reason in report.skipped)
    assert names(tmp_path / "out") == ["good.png"]


def test_unusual_images_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = Image.fromarray(picture(0))
    grey = np.asarray(image.convert("L"))
    clear = image.copy()
    clear.putalpha(128)
    image.convert("L").save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) << 8).save(folder / "deep.png")
    clear.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.tif")
    report = _predict(folder, tmp_path / "out")
    assert report.skipped == []
    red = picture(0)[..., 0]
    wanted = {"grey": grey, "deep": grey, "alpha": red, "turned": red, "cmyk": red}
    for name, values in wanted.items():
        assert np.array_equal(read(tmp_path / "out" / f"{name}.png"), values > 100), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "masks"}, "Did you mean mask"),
        ({"batch": 0}, "batch"),
        ({"opacity": 2}, "opacity"),
        ({"streams": -1}, "streams"),
    ],
)
def test_wrong_options_are_one_clear_error(
    pictures: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _predict(pictures, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_written_are_one_clear_error(tmp_path: Path) -> None:
    image = tmp_path / f"{'x' * 250}.png"
    Image.fromarray(picture(0)).save(image)
    (tmp_path / "file").touch()
    for out, kind in ((tmp_path / "file", "mask"), ("x" * 5000, "mask"), (tmp_path, "overlay")):
        with pytest.raises(RunError, match=r"cannot (make|write)"):
            predict(RED, image, out, kind, progress=False)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="too long"):
        predict("x" * 5000, image, tmp_path / "out", progress=False)
    assert names(tmp_path) == ["file", image.name]


def test_the_options_are_the_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = vars(parser().parse_args(["s", "in", "--out", "o"]))
    arguments = inspect.signature(predict).parameters
    assert options.keys() == arguments.keys()
    defaults = {k: p.default for k, p in arguments.items() if p.default is not p.empty}
    assert options == {**defaults, "student": "s", "inputs": ["in"], "out": "o"}
    words = "--overwrite --batch 4 --workers 3 --opacity 0.7 --threads 2 --streams 1 --frames 5"
    given = vars(parser().parse_args(["s", "a", "b", "--out", "o", *words.split()]))
    assert [given[key] for key in ("overwrite", "batch", "workers", "opacity")] == [True, 4, 3, 0.7]
    assert [given[key] for key in ("threads", "streams", "frames")] == [2, 1, 5]


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["predict", *words])
    return (caught.value.code, *capsys.readouterr())


def test_the_command_fails_if_no_input_can_be_read(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "zero.png").touch()
    (folder / "zero.mp4").touch()
    words = [str(student_folder), str(folder), "--out", str(tmp_path / "out"), "--no-progress"]
    code, out, error = _call(words, capsys)
    assert (code, out) == (2, "")
    assert "error: none of the inputs could be read" in error
    assert "zero.png: the file is empty" in error
    assert "zero.mp4: " in error
    Image.fromarray(picture(0)).save(folder / "good.png")
    for counted in ("1 frames in", "1 outputs existed and were kept"):
        code, out, error = _call(words, capsys)
        assert (code, error) == (0, "")
        assert counted in out
        assert "zero.png: the file is empty" in out


def _command(given: Path, out: Path, kind: Kind) -> list[str]:
    words = ["predict", "red", str(given), "--out", str(out), "--kind", kind]
    return [sys.executable, "-c", COMMAND, *words]


def _stopped(command: list[str], ready: Callable[[], bool], number: signal.Signals) -> int:
    """Start a command, send it a signal when it is ready, and return its exit code."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=_ENVIRONMENT)
    while not ready() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate()
    assert "Traceback" not in error
    assert number == signal.SIGKILL or "; the same command continues" in error
    return process.returncode


STOPS = [(signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), STOPS[1:])
def test_stopped_in_the_middle_the_same_command_continues(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder, out, count = tmp_path / "in", tmp_path / "out", 40
    folder.mkdir()
    Image.fromarray(picture(0, (384, 512))).save(folder / "000.png")
    for index in range(1, count):
        os.link(folder / "000.png", folder / f"{index:03d}.png")
    command = _command(folder, out, "overlay")
    assert _stopped(command, lambda: len(list(out.glob("*.png"))) > 4, number) == code
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 5 <= len(before) < count
    if code != -9:  # nothing half-written, not even under another name
        assert names(out) == sorted(path.name for path in before)
    assert all(read(path).shape == (384, 512, 3) for path in before)
    assert _predict(folder, out, "overlay").kept == len(before)
    assert len(names(out)) == count
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


@pytest.mark.parametrize(("number", "code"), STOPS[:2])
def test_a_video_that_was_stopped_is_not_there(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    source = film(tmp_path / "long.mp4", [picture(index, (192, 256)) for index in range(200)])
    out = tmp_path / "out"
    command = _command(source, out, "video")
    assert _stopped(command, lambda: bool(list(out.glob(".*.part"))), number) == code
    assert bool(names(out)) == (code == -9)
    assert _predict(source, out, "video", frames=20).frames == 20
    assert names(out) == ["long.overlay.mp4"]


@pytest.mark.parametrize("kind", ["overlay", "video"])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    video: Path, pictures: Path, tmp_path: Path, kind: Kind
) -> None:
    """In a process of its own, in which no file may become longer than 4 KiB."""
    given = video if kind == "video" else pictures / "0.png"
    command = _command(given, tmp_path / "out", kind)
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "limited", *command]
    full = subprocess.run(limited, capture_output=True, text=True, check=False, env=_ENVIRONMENT)
    assert full.returncode == 2, full.stderr
    assert re.search(r"cannot write .*overlay", full.stderr)
    assert re.search(r"segmenting .* frames/s", full.stderr)
    assert "Traceback" not in full.stderr
    assert names(tmp_path / "out") == []
