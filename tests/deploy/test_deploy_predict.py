"""Files in, files out: every kind of image, nothing half-written, nothing lost, nothing crashed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from spiritseg.cli import main
from spiritseg.deploy.outputs import Kind
from spiritseg.deploy.predict import predict
from spiritseg.errors import BadImageError, BundleError, ConfigError, DataError, RunError
from spiritseg.export.engines import Runtime
from spiritseg.export.export import ExportReport
from spiritseg.export.opening import open_runtime
from spiritseg.pixels import Pixels, read_pixels


@pytest.fixture
def runtime(exported: ExportReport) -> Runtime:
    return open_runtime(exported.paths[0], threads=1)


def _mask(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_folder_becomes_masks_under_the_same_names(
    runtime: Runtime, pictures: Path, tmp_path: Path, batch: int
) -> None:
    out = tmp_path / "out"
    report = predict(runtime, pictures, out, batch=batch, progress=False)
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
    assert names == ["0.png", "2.png", "4.png", "deep/er/1.png", "deep/er/3.png", "deep/er/5.png"]
    assert (report.frames, report.kept, report.skipped) == (6, 0, [])
    for source in pictures.rglob("*.*"):
        wanted = runtime.masks(read_pixels(source)[None])[0]
        written = (out / source.relative_to(pictures)).with_suffix(".png")
        assert np.array_equal(_mask(written), wanted)
        assert _mask(written).ndim == 2


def test_overlays_stand_beside_masks(runtime: Runtime, pictures: Path, tmp_path: Path) -> None:
    predict(runtime, pictures / "0.png", tmp_path / "out", progress=False)
    predict(runtime, pictures / "0.png", tmp_path / "out", "overlay", progress=False)
    image = read_pixels(pictures / "0.png")
    wanted = runtime.overlay(image, runtime.masks(image[None])[0], 0.5)
    assert np.array_equal(_mask(tmp_path / "out/0.overlay.png"), wanted)
    assert (tmp_path / "out/0.png").exists()


def test_globs_files_and_repeated_inputs(runtime: Runtime, pictures: Path, tmp_path: Path) -> None:
    given: list[str | Path] = [str(pictures / "**/*.jpg"), pictures / "0.png", pictures / "0.png"]
    report = predict(runtime, given, tmp_path / "out", progress=False)
    assert report.frames == 3
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in report.outputs)
    assert found == ["0.png", "4.png", "deep/er/1.png"]


def test_the_same_call_computes_nothing_twice(
    runtime: Runtime, pictures: Path, tmp_path: Path
) -> None:
    predict(runtime, pictures, tmp_path / "out", progress=False)
    (tmp_path / "out/deep/er/3.png").unlink()
    again = predict(runtime, pictures, tmp_path / "out", progress=False)
    assert (again.frames, again.kept) == (1, 5)


def test_outputs_within_the_input_folder_are_no_inputs(runtime: Runtime, pictures: Path) -> None:
    predict(runtime, pictures, pictures / "out", progress=False)
    assert predict(runtime, pictures, pictures / "out", progress=False).frames == 0


def test_names_that_would_collide_are_kept_apart_or_refused(
    runtime: Runtime, scenes: list[Pixels], tmp_path: Path
) -> None:
    for name in ("a/1.png", "a/1.jpg", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(scenes[0]).save(tmp_path / name)
    predict(runtime, tmp_path / "a", tmp_path / "out", progress=False)
    names = sorted(p.name for p in (tmp_path / "out").glob("*.png"))
    assert names == ["1.jpg.png", "1.png.png"]
    with pytest.raises(DataError, match=r"1\.png"):
        predict(runtime, [tmp_path / "a/1.png", tmp_path / "b"], tmp_path / "two", progress=False)
    with pytest.raises(DataError, match="replace inputs"):
        predict(runtime, tmp_path / "b/1.png", tmp_path / "b", progress=False)
    with pytest.raises(DataError, match="replace inputs"):
        predict(runtime, tmp_path / "b", tmp_path / "b", progress=False)


def test_another_opacitys_folder_is_left_alone(
    runtime: Runtime, pictures: Path, tmp_path: Path
) -> None:
    predict(runtime, pictures / "0.png", tmp_path / "out", "overlay", progress=False)
    with pytest.raises(RunError, match=r"other options .*opacity 0\.9; there: .*opacity 0\.5"):
        predict(runtime, pictures, tmp_path / "out", "overlay", opacity=0.9, progress=False)


def _bad_folder(folder: Path, scene: Pixels) -> set[str]:
    """Write a good image and every kind of bad one; return the bad ones' names."""
    folder.mkdir()
    picture = Image.fromarray(scene)
    picture.save(folder / "good.png")
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
    Image.fromarray(scene[..., 0].astype(np.float32)).save(folder / "float.tiff")
    return {"zero", "cut", "text", "corrupt", "warned", "bomb", "thin", "float"}


def test_bad_images_are_left_out_and_reported(
    runtime: Runtime, scenes: list[Pixels], tmp_path: Path
) -> None:
    bad = _bad_folder(tmp_path / "in", scenes[0])
    report = predict(runtime, tmp_path / "in", tmp_path / "out", batch=3, progress=False)
    assert {Path(path).stem for path, _ in report.skipped} == bad
    assert all(reason for _, reason in report.skipped)
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["good.png"]


def test_thin_images_count_as_what_a_network_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (3, 1000)).save(tmp_path / "thin.png")
    assert read_pixels(tmp_path / "thin.png").shape == (1000, 3, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 1000 - 1)
    with pytest.raises(BadImageError, match=r"3 x 1000 .*a side counts as 64 or more"):
        read_pixels(tmp_path / "thin.png")


@pytest.mark.parametrize("kind", ["mask", "video"])
def test_a_thin_video_is_left_out_and_reported(
    runtime: Runtime, tmp_path: Path, kind: Kind
) -> None:
    with av.open(str(tmp_path / "thin.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.height, stream.width, stream.pix_fmt = 2, 70_000, "yuv420p"
        frame = np.zeros((2, 70_000, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    report = predict(runtime, tmp_path / "thin.mkv", tmp_path / "out", kind, progress=False)
    ((path, reason),) = report.skipped
    assert (Path(path).name, report.frames) == ("thin.mkv", 0)
    assert "65535 at the most" in reason


def test_where_no_input_can_be_read_the_command_says_so(
    exported: ExportReport, scenes: list[Pixels], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("zero.png", "zero.mp4"):
        (tmp_path / "in" / name).touch()
    words = ["predict", str(exported.paths[0]), str(tmp_path / "in")]

    def call(*more: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([*words, "--out", str(tmp_path / "out"), *more])
        return (caught.value.code, *capsys.readouterr())

    code, out, said = call()
    assert (code, out) == (2, "")
    assert "error: none of the inputs could be read" in said
    assert "zero.png: the file is empty" in said
    assert "zero.mp4: " in said
    Image.fromarray(scenes[0]).save(tmp_path / "in/good.png")
    for counted in ("1 frames in", "1 outputs were there already"):
        code, out, _ = call()
        assert code == 0
        assert counted in out
        assert "zero.png: the file is empty" in out


def test_names_that_are_too_long_are_one_clear_error(
    runtime: Runtime, scenes: list[Pixels], tmp_path: Path
) -> None:
    picture = tmp_path / f"{'x' * 250}.png"
    Image.fromarray(scenes[0]).save(picture)
    long = "x" * 5000
    given: list[tuple[Any, Any, Any, Kind, type[Exception]]] = [
        (long, picture, "out", "mask", BundleError),
        (runtime, long, "out", "mask", ConfigError),
        (runtime, tmp_path / "*" / long, "out", "mask", ConfigError),
        (runtime, str(tmp_path / "**" / ("x" * 300)), "out", "mask", ConfigError),
        (runtime, picture, long, "mask", RunError),
        (runtime, picture, "out", "overlay", DataError),
        (runtime, f"camera:{long}", "out", "mask", DataError),
    ]
    (tmp_path / "folder").mkdir()
    for student, inputs, out, kind, error in given:
        with pytest.raises(error, match=r"too long|of more than 255 bytes"):
            predict(student, inputs, tmp_path / out, kind, progress=False)
    assert not (tmp_path / "out").exists()
    assert predict(runtime, picture, tmp_path / "out", progress=False).frames == 1


def test_unusual_images_are_converted_as_they_are_meant(
    runtime: Runtime, scenes: list[Pixels], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.fromarray(scenes[0])
    grey = np.asarray(picture.convert("L"))
    clear = picture.copy()
    clear.putalpha(128)
    wanted = {
        "grey.png": np.repeat(grey[..., None], 3, 2),
        "deep.png": np.repeat(grey[..., None], 3, 2),
        "alpha.png": scenes[0],
        "turned.png": scenes[0],
        "cmyk.tif": np.asarray(picture.convert("CMYK").convert("RGB")),
    }
    picture.convert("L").save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) << 8).save(folder / "deep.png")
    clear.save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.tif")
    report = predict(runtime, folder, tmp_path / "out", progress=False)
    assert report.skipped == []
    for name, pixels in wanted.items():
        assert np.array_equal(read_pixels(folder / name), pixels), name
        written = (tmp_path / "out" / name).with_suffix(".png")
        assert np.array_equal(_mask(written), runtime.masks(pixels[None])[0]), name


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        (["nowhere.jpg"], {}, "no such file"),
        (["empty"], {}, "nothing to segment"),
        (["*.jpg"], {}, "nothing to segment"),
        (["."], {"kind": "masks"}, "Did you mean mask"),
        (["."], {"batch": 0}, "batch"),
        (["."], {"opacity": 2}, "opacity"),
        (["."], {"streams": -1}, "streams"),
    ],
)
def test_wrong_options_are_one_clear_error(
    runtime: Runtime, tmp_path: Path, inputs: list[str], options: dict[str, object], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / name) for name in inputs]
    with pytest.raises(ConfigError, match=said):
        predict(runtime, given, tmp_path / "out", progress=False, **options)  # type: ignore[arg-type]


def test_killed_in_the_middle_the_same_command_continues(
    exported: ExportReport, scenes: list[Pixels], tmp_path: Path
) -> None:
    folder, out, count = tmp_path / "in", tmp_path / "out", 400
    folder.mkdir()
    for number in range(count):
        if number < 6:
            Image.fromarray(np.repeat(scenes[number], 4, 0)).save(folder / f"{number:03d}.png")
        else:
            os.link(folder / f"{number % 6:03d}.png", folder / f"{number:03d}.png")
    words = ["predict", str(exported.paths[0]), str(folder), "--out", str(out)]
    command = [sys.executable, "-m", "spiritseg", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("*.png"))) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert 5 <= len(before) < count
    for path in before:
        assert _mask(path).shape == (384, 128)  # whole, each of them
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{count - len(before)} frames in" in done.stdout
    assert f"{len(before)} outputs were there already" in done.stdout
    assert len(list(out.glob("*.png"))) == count
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())
