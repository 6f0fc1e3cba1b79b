"""Videos: every frame, the same size and times, the sound untouched; short and broken ones."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from predict.material import RED, cut, film, heard, names, picture, read, remux, shown
from spiritseg.errors import BadImageError
from spiritseg.predict.inputs import Kind
from spiritseg.predict.predict import PredictReport, predict
from spiritseg.predict.video import VIDEO_HEAD, VideoReader, video_format


def _predict(inputs: Any, out: Path, kind: Kind = "video", **options: Any) -> PredictReport:
    return predict(RED, inputs, out, kind, progress=False, **options)


def _read(path: Path) -> tuple[int, str | None]:
    """The number of frames, and what the reader says of them."""
    with VideoReader(path) as reader:
        return sum(1 for _ in reader), reader.problem


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("times", [None, [0, 40, 47, 200, 201, 333, 900, 1000]])
def test_a_video_keeps_its_frames_times_and_sound(
    tmp_path: Path, batch: int, times: list[int] | None
) -> None:
    source = film(tmp_path / "drive.mp4", [picture(n) for n in range(8)], times)
    report = _predict(source, tmp_path / "out", batch=batch, opacity=0.5)
    assert (report.frames, report.skipped) == (8, [])
    target = tmp_path / "out/drive.overlay.mp4"
    assert report.outputs == [target]
    given, written = shown(source), shown(target)
    assert [time for time, _ in written] == pytest.approx([time for time, _ in given], abs=1e-6)
    assert times is None or [1000 * time for time, _ in written] == pytest.approx(times, abs=1e-6)
    for (_, pixels), (_, found) in zip(given, written, strict=True):
        wanted = np.asarray(RED.overlay(pixels, 0.5))
        assert np.abs(found.astype(int) - wanted).mean() < 6  # lost in the encoder
    assert heard(target) == heard(source) != []
    again = _predict(source, tmp_path / "out", batch=batch)
    assert (again.frames, again.kept) == (0, 1)
    assert _predict(source, tmp_path / "out", frames=3, overwrite=True).frames == 3
    assert names(tmp_path / "out") == [target.name]
    assert len(shown(target)) == 3


def test_a_video_becomes_a_folder_of_masks(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out/drive.mp4"
    report = _predict(video, tmp_path / "out", "mask")
    assert names(folder) == [f"{n:06d}.png" for n in range(12)]
    for number, (_, pixels) in enumerate(shown(video)):
        assert np.array_equal(read(folder / f"{number:06d}.png"), pixels[..., 0] > 100)
    assert report.outputs == [folder]
    (folder / "000003.png").unlink()
    again = _predict(video, tmp_path / "out", "mask")
    assert (again.frames, again.kept) == (1, 11)


def test_odd_sizes_and_other_containers(tmp_path: Path) -> None:
    frames = [picture(number, (95, 127)) for number in range(4)]
    film(tmp_path / "odd.avi", frames, codec="mjpeg", pix_fmt="yuvj444p", sound="")
    report = _predict(tmp_path / "odd.avi", tmp_path / "out")
    assert report.skipped == []
    written = shown(tmp_path / "out/odd.overlay.mkv")
    assert [pixels.shape for _, pixels in written] == [(95, 127, 3)] * 4


def test_a_turned_video_is_segmented_upright(video: Path, tmp_path: Path) -> None:
    data = bytearray(video.read_bytes())
    at = data.index(b"tkhd") + 44  # the matrix of the picture, after version, times and layer
    assert data[at : at + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)  # right becomes down
    data[at : at + 36] = struct.pack(">9i", *clockwise)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    assert _predict(turned, tmp_path / "out", "mask", frames=2).skipped == []
    for number, (_, pixels) in enumerate(shown(video)[:2]):
        mask = read(tmp_path / f"out/turned.mp4/{number:06d}.png")
        assert np.array_equal(mask, np.rot90(pixels, -1)[..., 0] > 100)
    _predict(turned, tmp_path / "out")
    assert shown(tmp_path / "out/turned.overlay.mp4")[0][1].shape == (64, 48, 3)


@pytest.mark.parametrize(
    ("sound", "name", "kind", "message"),
    [
        ("pcm_u8", "a.avi", "avi", None),
        ("pcm_u8", "a.mp4", "avi", "(pcm_u8) cannot be kept in .mp4; an .mkv may hold it"),
        ("flac", "a.mov", "mp4", "(flac) cannot be kept in .mov"),  # refused at its header
    ],
)
def test_sound_that_the_format_cannot_hold_is_left_out_and_reported(
    tmp_path: Path, sound: str, name: str, kind: str, message: str | None
) -> None:
    frames = [picture(n) for n in range(3)]
    film(tmp_path / name, frames, None, sound, "mjpeg", "yuvj420p", format=kind)
    report = _predict(tmp_path / name, tmp_path / "out")
    assert [path for path, _ in report.skipped] == [str(tmp_path / name)] * (message is not None)
    assert message is None or message in report.skipped[0][1]
    assert len(shown(report.outputs[0])) == 3
    with av.open(str(report.outputs[0])) as container:
        assert len(container.streams.audio) == (message is None)


def test_videos_that_end_early_or_are_none_are_reported(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "none.mp4").write_text("not a video")
    (folder / "zero.mkv").touch()
    cut(video, folder / "headless.mp4", 0.5)
    cut(remux(video, folder / "whole.mp4"), folder / "cut.mp4", 0.8)
    report = _predict(folder, tmp_path / "out")
    reasons = {Path(path).name: reason for path, reason in report.skipped}
    assert set(reasons) == {"none.mp4", "zero.mkv", "headless.mp4", "cut.mp4"}
    assert "ends early" in reasons["cut.mp4"] or "to its end" in reasons["cut.mp4"]
    assert len(shown(tmp_path / "out/whole.overlay.mp4")) == 12
    assert 0 < len(shown(tmp_path / "out/cut.overlay.mp4")) < 12
    limited = _predict(folder / "cut.mp4", tmp_path / "two", frames=2)
    assert (limited.frames, limited.skipped) == (2, [])  # all that was asked for


def test_a_bad_frame_is_reported_and_the_rest_done(tmp_path: Path) -> None:
    frames = [picture(number) for number in range(6)]
    source = film(tmp_path / "a.avi", frames, codec="png", pix_fmt="rgb24", sound="")
    data = bytearray(source.read_bytes())
    third = [i for i in range(len(data)) if data[i : i + 4] == b"IHDR"][2]
    data[third : third + 4] = b"BAD!"
    source.write_bytes(data)
    report = _predict(source, tmp_path / "out", "mask")
    assert report.frames == 5
    assert report.skipped == [(str(source), "1 of its packets are broken; 5 frames were read")]


@pytest.mark.parametrize("kind", ["mask", "video"])
def test_frames_have_the_limits_of_images(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    film(tmp_path / "thin.mkv", [np.zeros((2, 70_000, 3), np.uint8)], codec="ffv1", sound="")
    report = _predict(tmp_path / "thin.mkv", tmp_path / "out", kind)
    assert "65535 at the most" in report.skipped[0][1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    report = _predict(video, tmp_path / "out", kind)
    assert "a side counts as 64 or more" in report.skipped[0][1]
    assert (report.frames, report.outputs) == (0, [])
    assert not names(tmp_path / "out")


def test_a_clip_that_was_trimmed_without_encoding_is_whole(video: Path, tmp_path: Path) -> None:
    trimmed = remux(video, tmp_path / "trimmed.mp4", shift=-0.4)
    count, problem = _read(trimmed)
    assert 0 < count < 12
    assert problem is None
    assert _read(cut(trimmed, tmp_path / "cut.mp4", 0.3))[1] is not None


def test_a_last_frame_that_lacks_a_byte_is_told(video: Path, tmp_path: Path) -> None:
    whole = remux(video, tmp_path / "whole.mp4")
    assert _read(whole) == (12, None)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-1])
    assert _read(tmp_path / "cut.mp4")[1] is not None


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("shift", "frames"), [(0.0, 6), (0.5, 6), (2.0, 12)])
def test_a_track_that_is_shorter_than_its_file_is_whole(
    video: Path, tmp_path: Path, tagged: bool, shift: float, frames: int
) -> None:
    path = remux(video, tmp_path / "film.mkv", shift, frames, sound=True)
    if not tagged:  # as other programs write it
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))
    assert _read(path) == (frames, None)
    problem = _read(cut(path, tmp_path / "cut.mkv", 0.4))[1]
    assert problem is not None
    assert "ends early" in problem


def test_a_format_is_told_by_its_bytes(video: Path, tmp_path: Path) -> None:
    stream = remux(video, tmp_path / "a.ts")
    assert video_format(stream.read_bytes()[:VIDEO_HEAD]) == "mpegts"
    assert _read(stream) == (12, None)
    assert video_format(video.read_bytes()[:VIDEO_HEAD]) == "mov"
    gif = io.BytesIO()
    Image.fromarray(picture(0)).save(gif, "GIF")
    playlist = f"#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n".encode()
    for data in (gif.getvalue(), b"Good morning. " * 40, b"G", b"G" * 188, playlist, b""):
        assert video_format(data[:VIDEO_HEAD]) is None
        (tmp_path / "b.mp4").write_bytes(data)
        with pytest.raises(BadImageError, match="its first bytes are of none"):
            VideoReader(tmp_path / "b.mp4")
