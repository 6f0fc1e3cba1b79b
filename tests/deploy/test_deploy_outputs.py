"""A folder of outputs belongs to one student; a video is whole under its name, or not there."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image

from deploy.serving import Threshold
from spiritseg.deploy import outputs
from spiritseg.deploy.outputs import Kind, earlier_outputs, plan
from spiritseg.deploy.predict import predict
from spiritseg.deploy.sources import Item
from spiritseg.deploy.video_reader import VideoReader
from spiritseg.deploy.video_writer import VideoWriter
from spiritseg.errors import ConfigError, RunError
from spiritseg.export.engines import Runtime
from spiritseg.export.export import ExportReport
from spiritseg.files import part_of
from spiritseg.pixels import Pixels, read_pixels


def _student(level: int) -> Runtime:
    student = Threshold(level)
    student.card = dataclasses.replace(student.card, student_sha256=f"{level:064d}")
    return student


ONE, OTHER = _student(80), _student(160)


def _predict(student: Runtime, given: object, out: Path, kind: Kind = "mask", **more: float) -> int:
    """Predict and return how many outputs were kept."""
    return predict(student, given, out, kind, progress=False, **more).kept  # type: ignore[arg-type]


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("first", "second"),
    [("mask", "mask"), ("overlay", "overlay"), ("overlay", "video"), ("video", "overlay")],
)
def test_outputs_of_another_student_are_never_kept_as_ones_own(
    pictures: Path, tmp_path: Path, first: Kind, second: Kind
) -> None:
    out = tmp_path / "out"
    _predict(ONE, pictures, out, first)
    before = _contents(out)
    with pytest.raises(RunError, match="another student or of other options"):
        _predict(OTHER, pictures, out, second)
    assert _contents(out) == before
    assert _predict(ONE, pictures, out, second) == 6


def _export(**fields: object) -> Runtime:
    """One student, exported in another way."""
    student = _student(80)
    student.card = dataclasses.replace(student.card, **fields)  # type: ignore[arg-type]
    return student


FIXED = _export(dynamic=False, size=(64, 80))


@pytest.mark.parametrize("kind", ["mask", "overlay"])
@pytest.mark.parametrize("other", [FIXED, _export(preprocess=False)])
def test_exports_that_give_other_masks_do_not_share_a_folder(
    pictures: Path, tmp_path: Path, kind: Kind, other: Runtime
) -> None:
    for number, (first, second) in enumerate([(ONE, other), (other, ONE)]):
        out = tmp_path / f"out{number}"
        _predict(first, pictures / "0.png", out, kind)
        with pytest.raises(RunError, match="another student or of other options"):
            _predict(second, pictures, out, kind)


def test_exports_of_other_fixed_sizes_do_not_share_a_folder(pictures: Path, tmp_path: Path) -> None:
    _predict(FIXED, pictures / "0.png", tmp_path / "out")
    with pytest.raises(RunError, match=r"this call: .*size 80x64; there: .*size 64x80"):
        _predict(_export(dynamic=False, size=(80, 64)), pictures, tmp_path / "out")


def test_the_size_an_open_export_was_checked_with_does_not_matter(
    pictures: Path, tmp_path: Path
) -> None:
    _predict(ONE, pictures, tmp_path / "out")
    assert _predict(_export(size=(64, 80)), pictures, tmp_path / "out") == 6


def test_a_folder_from_before_exports_were_told_apart_is_continued(
    pictures: Path, tmp_path: Path
) -> None:
    _predict(FIXED, pictures, tmp_path / "out", "overlay")
    path = tmp_path / "out/.spiritseg-predict.json"
    record = json.loads(path.read_text())
    for key in ("preprocess", "size"):
        del record["overlay"][key]
    del record["sources"]
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="another student"):
        _predict(OTHER, pictures, tmp_path / "out", "overlay")
    assert _predict(FIXED, pictures, tmp_path / "out", "overlay") == 6
    with pytest.raises(RunError, match=r"there: .*size 64x80"):  # from now on it says so
        _predict(ONE, pictures, tmp_path / "out", "overlay")


class _Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        _Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_names_are_found_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outputs._name
    monkeypatch.setattr(outputs, "_name", lambda *given: _Counted(plain(*given)))
    items = [Item(tmp_path / f"{n}.jpg", f"{n}.jpg", "image") for n in range(300)]
    assert len(plan(items, tmp_path / "out", "mask")) == 300
    assert _Counted.compared < 3000  # each with each would be 90 000


def test_masks_of_one_stand_beside_overlays_of_another(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _predict(ONE, pictures / "0.png", out)
    _predict(OTHER, pictures / "0.png", out, "video")
    image = read_pixels(pictures / "0.png")
    mask, shown = (OTHER.masks(image[None])[0], read_pixels(out / "0.overlay.png"))
    assert np.array_equal(shown, OTHER.overlay(image, mask, 0.5))
    assert not np.array_equal(mask, ONE.masks(image[None])[0])


def test_a_video_that_was_cut_is_not_taken_for_a_whole_one(
    pictures: Path, video: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _predict(ONE, [video, pictures], out, "video", frames=3)
    assert _predict(ONE, [video, pictures], out, "video", frames=3) == 7
    with pytest.raises(RunError, match="this call: frames 0; there: frames 3"):
        _predict(ONE, video, out, "video")
    assert _predict(ONE, pictures, out, "video") == 6  # no video, nothing that could be cut
    assert _predict(ONE, pictures, out, "overlay") == 6
    _predict(ONE, video, out, "mask", frames=3)
    assert _predict(ONE, video, out, "mask") == 3  # frames are files, and go on


def test_pictures_may_be_there_before_the_first_video(
    pictures: Path, video: Path, tmp_path: Path
) -> None:
    _predict(ONE, pictures, tmp_path / "out", "overlay")
    assert _predict(ONE, [pictures, video], tmp_path / "out", "video") == 6


def test_files_that_nobody_is_known_to_have_made_are_no_outputs(
    pictures: Path, video: Path, tmp_path: Path
) -> None:
    truth = tmp_path / "truth"
    _predict(ONE, [pictures, video], truth)
    (truth / ".spiritseg-predict.json").unlink()
    before = _contents(truth)
    for given in (pictures, video):
        with pytest.raises(RunError, match=r"(?s)no record says.*(0\.png|drive\.mp4).*move them"):
            _predict(OTHER, given, truth)
    assert _contents(truth) == before
    _predict(OTHER, pictures, truth, "overlay")  # goes by other names
    for path in truth.rglob("*.png"):
        path.unlink()
    assert _predict(OTHER, [pictures, video], truth) == 0  # an empty folder of frames is nothing


@pytest.mark.parametrize(
    "record", ["[]", "3", "null", "{", '{"outputs": 3}', '{"outputs": [3]}', '{"sources": []}']
)
def test_a_record_that_is_none_is_one_clear_error(
    pictures: Path, tmp_path: Path, record: str
) -> None:
    path = tmp_path / "out/.spiritseg-predict.json"
    path.parent.mkdir()
    path.write_text(record)
    with pytest.raises(RunError, match="is not a record of spiritseg predict"):
        _predict(ONE, pictures, tmp_path / "out")
    assert _contents(path.parent) == {path.name: record.encode()}


def test_a_file_in_the_folders_place_is_one_clear_error(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot use the folder"):
        _predict(ONE, pictures, tmp_path / "out")


@pytest.mark.parametrize("given", ["*.png", "."])
def test_overlays_beside_their_images_do_not_become_inputs(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(pictures)
    _predict(ONE, given, Path(), "overlay")
    before = _contents(pictures)
    wanted = 1 if given == "*.png" else 6
    assert sum(".overlay." in name for name in before) == wanted
    assert _predict(ONE, given, Path(), "overlay") == wanted
    assert _contents(pictures) == before


def test_masks_beside_their_images_do_not_become_inputs(
    scenes: list[Pixels], tmp_path: Path
) -> None:
    for number in range(2):
        Image.fromarray(scenes[number]).save(tmp_path / f"{number}.jpg")
    _predict(ONE, tmp_path, tmp_path)
    assert _predict(ONE, tmp_path, tmp_path) == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"0.jpg", "1.jpg", "0.png", "1.png", ".spiritseg-predict.json"}
    assert earlier_outputs(tmp_path) == {(tmp_path / f"{n}.png").resolve() for n in range(2)}


@pytest.mark.parametrize("out", ["pictures", "."])
def test_an_out_above_the_inputs_holds_their_outputs(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _predict(ONE, "pictures/deep", Path(out))
    assert sorted(path.name for path in Path(out, "er").iterdir()) == ["1.png", "3.png", "5.png"]
    assert _predict(ONE, "pictures/deep", Path(out)) == 3


@pytest.mark.parametrize("kind", ["overlay", "video"])
def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(
    exported: ExportReport, video: Path, pictures: Path, tmp_path: Path, kind: Kind
) -> None:
    """In a process of its own, in which no file may become longer than 4 KiB."""
    given, out = video if kind == "video" else pictures, tmp_path / "out"
    words = ["predict", str(exported.paths[0]), str(given), "--out", str(out), "--kind", kind]
    command = [sys.executable, "-m", "spiritseg", *words]
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "limited", *command]
    full = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert full.returncode == 2, full.stderr
    assert re.search(r"cannot write .*overlay", full.stderr)
    assert "Traceback" not in full.stderr
    assert _contents(out).keys() == {".spiritseg-predict.json"}
    subprocess.run(command, capture_output=True, check=True)  # the same command continues


class _Source:
    """As much of a reader as a writer asks for."""

    rate, time_base = Fraction(10), Fraction(1, 10)

    def __init__(self, *sound: object) -> None:
        self.sound = list(sound)


def _writer(path: Path, *sound: object) -> VideoWriter:
    return VideoWriter(path, cast(VideoReader, _Source(*sound)), (16, 32))


def test_a_video_that_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        _writer(tmp_path / "out/a.mp4", object())
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot make the folder"):
        _writer(tmp_path / "file/a.mp4")
    part_of(tmp_path / "out/a.mp4").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*a\.mp4"):
        _writer(tmp_path / "out/a.mp4")


def test_a_video_that_cannot_be_finished_is_one_clear_error(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "a.mp4")
    writer.write(np.zeros((16, 32, 3), np.uint8), 0)
    part_of(tmp_path / "a.mp4").unlink()
    with pytest.raises(RunError, match=r"cannot write .*a\.mp4"):
        writer.finish()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "a.mp4")
    writer.write(np.zeros((16, 32, 3), np.uint8), 0)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def _film(path: Path, sound: str, kind: str, scenes: list[Pixels]) -> None:
    """Write three frames and silence."""
    with av.open(str(path), "w", format=kind) as container:
        picture = container.add_stream("mjpeg", rate=10)
        picture.height, picture.width, picture.pix_fmt = 96, 128, "yuvj420p"
        tone: Any = container.add_stream(sound, rate=8000, layout="mono")
        for scene in scenes[:3]:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(scene, format="rgb24")))
        container.mux(picture.encode())
        for start in range(0, 2048, 512):
            quiet = np.full((1, 512), 128, np.uint8)
            samples = av.AudioFrame.from_ndarray(quiet, "u8", "mono")
            samples.sample_rate, samples.pts, samples.time_base = 8000, start, Fraction(1, 8000)
            container.mux(tone.encode(samples))
        container.mux(tone.encode())


@pytest.mark.parametrize(
    ("sound", "name", "kind", "said"),
    [
        ("pcm_u8", "a.avi", "avi", None),
        ("pcm_u8", "a.mp4", "avi", "(pcm_u8) cannot be kept in .mp4 (named .mkv, it may"),
        ("adpcm_ms", "a.avi", "avi", "(adpcm_ms) cannot be kept in .mkv; its overlay is without"),
        ("flac", "a.mov", "mp4", "(flac) cannot be kept in .mov"),  # refused at its header
    ],
)
def test_a_sound_that_the_container_cannot_hold_is_left_out_and_reported(
    scenes: list[Pixels], tmp_path: Path, sound: str, name: str, kind: str, said: str | None
) -> None:
    _film(tmp_path / name, sound, kind, scenes)
    report = predict(ONE, tmp_path / name, tmp_path / "out", "video", progress=False)
    assert [path for path, _ in report.skipped] == [str(tmp_path / name)] * (said is not None)
    assert said is None or said in report.skipped[0][1]
    assert len(report.outputs) == 1
    with av.open(str(report.outputs[0])) as container:
        assert len(list(container.decode(video=0))) == 3
        assert len(container.streams.audio) == (said is None)
    assert _predict(ONE, tmp_path / name, tmp_path / "out", "video") == 1  # no better next time


def test_the_record_says_no_path_of_this_machine(pictures: Path, tmp_path: Path) -> None:
    _predict(ONE, pictures / "0.png", tmp_path / "out")
    record = json.loads((tmp_path / "out/.spiritseg-predict.json").read_text())
    assert record == {
        "mask": {"student": ONE.card.student_sha256, "precision": "fp32", "preprocess": True},
        "outputs": ["0.png"],
        "sources": {},
    }


def test_an_unknown_kind_is_one_clear_error(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean mask"):
        _predict(ONE, pictures, tmp_path / "out", cast(Kind, "masks"))
