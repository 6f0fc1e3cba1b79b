"""Videos: every frame, the same size and times, the sound untouched; short and broken ones."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from spiritseg.deploy import video_reader
from spiritseg.deploy.predict import predict
from spiritseg.deploy.serve.uploads import UnknownKindError, is_video
from spiritseg.deploy.sources import Item
from spiritseg.deploy.video_format import VIDEO_HEAD, video_format
from spiritseg.deploy.video_reader import VideoReader
from spiritseg.errors import BadImageError
from spiritseg.export.engines import Runtime
from spiritseg.export.export import ExportReport
from spiritseg.export.opening import open_runtime
from spiritseg.pixels import Pixels


@pytest.fixture
def runtime(exported: ExportReport) -> Runtime:
    return open_runtime(exported.paths[0], threads=1)


def _sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.dts is not None]


def _png(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image)


def _frames(path: Path) -> list[tuple[float, Pixels]]:
    with av.open(str(path)) as container:
        shown = list(container.decode(video=0))
        return [(f.time or 0.0, f.to_ndarray(format="rgb24").astype(np.uint8)) for f in shown]


def _remux(
    source: Path, target: Path, shift: float = 0.0, frames: int = 12, sound: bool = True
) -> None:
    """Copy the first frames, their times shifted by seconds, and the whole sound as it is."""
    # The index of an MP4 first, so that a cut leaves a video that can be opened.
    index = {"movflags": "faststart"} if target.suffix == ".mp4" else {}
    with av.open(str(source)) as given, av.open(str(target), "w", options=index) as written:
        streams = given.streams.video + (given.streams.audio if sound else ())
        tracks = {track.index: written.add_stream_from_template(track) for track in streams}
        for packet in given.demux(*streams):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            if packet.stream.type == "video":
                frames -= 1
                packet.pts += int(shift / packet.time_base)
                packet.dts += int(shift / packet.time_base)
            if packet.stream.type == "audio" or frames >= 0:
                packet.stream = tracks[packet.stream.index]
                written.mux(packet)


def _cut(source: Path, target: Path, share: float = 0.6) -> None:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])


def _read(path: Path) -> tuple[int, str | None]:
    """Return how many frames a reader gives, and what it says then."""
    with VideoReader(Item(path, path.name, "video")) as reader:
        return sum(isinstance(given, video_reader.Frame) for given in reader), reader.problem


def _shorten_edit(path: Path, milliseconds: int) -> None:
    """Let an MP4's edit list end earlier."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # after version and count, in units of the movie's time scale
    assert int.from_bytes(data[at : at + 4]) > milliseconds
    data[at : at + 4] = milliseconds.to_bytes(4)
    path.write_bytes(data)


@pytest.mark.parametrize("end", [None, 250])
def test_a_clip_that_was_trimmed_without_encoding_is_whole(
    video: Path, tmp_path: Path, end: int | None
) -> None:
    trimmed, cut = tmp_path / "trimmed.mp4", tmp_path / "cut.mp4"
    _remux(video, trimmed, shift=-0.4, sound=False)
    if end is not None:
        if not hasattr(av.stream.Stream, "index_entries"):
            pytest.skip("this PyAV does not show what an edit list leaves")
        _shorten_edit(trimmed, end)
    count, problem = _read(trimmed)
    assert 0 < count < 12
    assert problem is None
    _cut(trimmed, cut, 0.3)
    problem = _read(cut)[1]
    assert problem is not None
    assert "ends early" in problem or "broken" in problem


def test_a_last_frame_that_lacks_a_byte_is_told(video: Path, tmp_path: Path) -> None:
    _remux(video, tmp_path / "whole.mp4", sound=False)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:-1])
    assert _read(tmp_path / "whole.mp4") == (12, None)
    assert _read(tmp_path / "cut.mp4")[1] is not None


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(("shift", "frames"), [(0.0, 6), (0.5, 6), (2.0, 12)])
def test_a_track_that_is_shorter_than_its_file_is_whole(
    video: Path, tmp_path: Path, tagged: bool, shift: float, frames: int
) -> None:
    path, cut = tmp_path / "film.mkv", tmp_path / "cut.mkv"
    _remux(video, path, shift, frames)
    if not tagged:  # as other programs write it
        data = path.read_bytes()
        assert data.count(b"DURATION") == 2
        path.write_bytes(data.replace(b"DURATION", b"XURATION"))
    assert _read(path) == (frames, None)
    _cut(path, cut, 0.4)
    problem = _read(cut)[1]
    assert problem is not None
    assert "ends early" in problem


@pytest.mark.parametrize(
    ("tags", "seconds"),
    [
        ({"DURATION": "00:01:02.500000000"}, 62.5),
        ({"title": "00:00:09", "DURATION-eng": "01:00:00"}, 3600),
        ({"DURATION": "1 h"}, None),
        ({}, None),
    ],
)
def test_the_end_of_a_matroska_track(tags: dict[str, str], seconds: float | None) -> None:
    assert video_reader._tagged_end(tags) == seconds


def test_a_letter_g_is_no_video(tmp_path: Path) -> None:
    gif = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(gif, "GIF")
    for data in (gif.getvalue(), b"Good morning. " * 40, b"G", b"G" * 188):
        assert video_format(data) is None
        with pytest.raises(UnknownKindError, match="not an image or video"):
            is_video(data)
        (tmp_path / "a.ts").write_bytes(data)
        with pytest.raises(BadImageError, match="its first bytes are of none"):
            VideoReader(Item(tmp_path / "a.ts", "a.ts", "video"))


def test_a_transport_stream_is_told_by_its_packets(video: Path, tmp_path: Path) -> None:
    _remux(video, tmp_path / "a.ts")
    data = (tmp_path / "a.ts").read_bytes()
    assert video_format(data[:VIDEO_HEAD]) == "mpegts"
    assert is_video(data)
    assert _read(tmp_path / "a.ts") == (12, None)


def test_a_playlist_under_the_name_of_a_video_is_not_followed(video: Path, tmp_path: Path) -> None:
    playlist = tmp_path / "drive.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n")
    with pytest.raises(BadImageError, match="cannot be opened as a video"):
        VideoReader(Item(playlist, "drive.mp4", "video"))


@pytest.mark.parametrize("batch", [1, 5])
def test_a_video_keeps_its_frames_times_and_sound(
    runtime: Runtime, video: Path, tmp_path: Path, batch: int
) -> None:
    out = tmp_path / "out"
    report = predict(runtime, video, out, "video", batch=batch, opacity=0.5, progress=False)
    assert (report.frames, report.skipped) == (12, [])
    target = out / "drive.overlay.mp4"
    assert report.outputs == [target]
    given, written = _frames(video), _frames(target)
    assert len(written) == 12
    for (moment, pixels), (shown, found) in zip(given, written, strict=True):
        assert shown == pytest.approx(moment, abs=1e-3)
        wanted = runtime.overlay(pixels, runtime.masks(pixels[None])[0], 0.5)
        assert np.abs(found.astype(int) - wanted).mean() < 6  # what the encoder loses
    assert _sound(target) == _sound(video)
    again = predict(runtime, video, out, "video", batch=batch, progress=False)
    assert (again.frames, again.kept) == (0, 1)
    assert sorted(p.name for p in out.iterdir()) == [".spiritseg-predict.json", target.name]


def test_a_video_becomes_a_folder_of_masks(runtime: Runtime, video: Path, tmp_path: Path) -> None:
    report = predict(runtime, video, tmp_path / "out", progress=False)
    files = sorted((tmp_path / "out/drive.mp4").glob("*.png"))
    assert [f.name for f in files] == [f"{n:06d}.png" for n in range(12)]
    for file, (_, pixels) in zip(files, _frames(video), strict=True):
        assert np.array_equal(_png(file), runtime.masks(pixels[None])[0])
    assert report.outputs == [tmp_path / "out/drive.mp4"]
    files[3].unlink()
    again = predict(runtime, video, tmp_path / "out", progress=False)
    assert (again.frames, again.kept) == (1, 11)


def test_odd_sizes_and_other_containers(
    runtime: Runtime, scenes: list[Pixels], tmp_path: Path
) -> None:
    path = tmp_path / "odd.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 95, 127, "yuvj444p"
        for scene in scenes[:4]:
            pixels = np.ascontiguousarray(scene[:95, :127])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    report = predict(runtime, path, tmp_path / "out", "video", progress=False)
    assert report.skipped == []
    written = _frames(tmp_path / "out/odd.overlay.mkv")
    assert [pixels.shape for _, pixels in written] == [(95, 127, 3)] * 4


def test_videos_that_end_early_or_are_none_are_reported(
    runtime: Runtime, video: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    data = video.read_bytes()
    (folder / "none.mp4").write_text("not a video")
    (folder / "zero.mkv").touch()
    (folder / "headless.mp4").write_bytes(data[: len(data) // 2])
    _remux(video, folder / "whole.mp4", sound=False)
    _cut(folder / "whole.mp4", folder / "cut.mp4")
    report = predict(runtime, folder, tmp_path / "out", "video", progress=False)
    said = {Path(path).name: reason for path, reason in report.skipped}
    assert set(said) == {"none.mp4", "zero.mkv", "headless.mp4", "cut.mp4"}
    assert "ends early" in said["cut.mp4"] or "to its end" in said["cut.mp4"]
    assert len(_frames(tmp_path / "out/whole.overlay.mp4")) == 12
    assert 0 < len(_frames(tmp_path / "out/cut.overlay.mp4")) < 12


@pytest.mark.parametrize("name", ["drive.mp4", "drive.ts"])  # half a .ts may seem a whole one
def test_a_video_that_was_half_there_is_made_anew(
    runtime: Runtime, video: Path, tmp_path: Path, name: str
) -> None:
    source, out = tmp_path / "in" / name, tmp_path / "out"
    source.parent.mkdir()
    _remux(video, tmp_path / name.replace("drive", "whole"), sound=False)
    _cut(tmp_path / name.replace("drive", "whole"), source)
    first = predict(runtime, source, out, "video", progress=False)
    assert 0 < len(_frames(first.outputs[0])) < 12
    (tmp_path / name.replace("drive", "whole")).replace(source)
    second = predict(runtime, source, out, "video", progress=False)
    assert (second.frames, second.kept, second.skipped) == (12, 0, [])
    assert second.outputs == first.outputs
    assert len(_frames(first.outputs[0])) == 12
    assert predict(runtime, source, out, "video", progress=False).kept == 1


def test_a_video_that_could_not_be_read_to_its_end_is_tried_again(
    runtime: Runtime, video: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "cut.mp4", tmp_path / "out"
    _remux(video, tmp_path / "whole.mp4", sound=False)
    _cut(tmp_path / "whole.mp4", source)
    first, again = (predict(runtime, source, out, "video", progress=False) for _ in range(2))
    assert (again.frames, again.kept) == (first.frames, 0)
    assert len(first.skipped) == len(again.skipped) == 1
    limited = predict(runtime, source, tmp_path / "two", "video", frames=2, progress=False)
    assert limited.skipped == []  # all that was asked for
    assert predict(runtime, source, tmp_path / "two", "video", frames=2, progress=False).kept == 1
    record = out / ".spiritseg-predict.json"
    said = json.loads(record.read_text())
    assert said.pop("sources") == {"cut.overlay.mp4": 0}
    record.write_text(json.dumps(said))  # as it was before sources were noted
    assert predict(runtime, source, out, "video", progress=False).kept == 1


def test_a_turned_video_is_segmented_as_it_is_shown(
    runtime: Runtime, video: Path, tmp_path: Path
) -> None:
    data = bytearray(video.read_bytes())
    at = data.index(b"tkhd") + 44  # of the picture: its matrix, after version, times and layer
    assert data[at : at + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 96 << 16, 0, 1 << 30)  # right becomes down
    data[at : at + 36] = struct.pack(">9i", *clockwise)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    report = predict(runtime, turned, tmp_path / "out", frames=2, progress=False)
    assert (report.frames, report.skipped) == (2, [])
    for number, (_, pixels) in enumerate(_frames(video)[:2]):
        shown = np.ascontiguousarray(np.rot90(pixels, -1))
        assert shown.shape == (128, 96, 3)
        mask = _png(tmp_path / f"out/turned.mp4/{number:06d}.png")
        assert np.array_equal(mask, runtime.masks(shown[None])[0])


def test_a_camera_runs_until_it_is_told_to_stop(
    runtime: Runtime, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_reader, "camera_address", lambda number: (str(video), "mp4"))
    out = tmp_path / "out"
    report = predict(runtime, "camera:0", out, "video", frames=3, progress=False)
    assert (report.frames, report.skipped) == (3, [])
    assert len(_frames(out / "camera-0.overlay.mkv")) == 3
    predict(runtime, "camera:0", out, "video", frames=1, progress=False)  # never replaced
    assert (out / "camera-0.overlay-1.mkv").exists()


def test_an_interrupted_camera_keeps_its_film(
    runtime: Runtime, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_reader, "camera_address", lambda number: (str(video), "mp4"))
    masks = type(runtime).masks

    def interrupted(self: Runtime, images: Pixels) -> Pixels:
        os.kill(os.getpid(), signal.SIGINT)
        return masks(self, images)

    calls = iter([masks, interrupted])
    monkeypatch.setattr(
        type(runtime), "masks", lambda self, images: next(calls, masks)(self, images)
    )
    before = signal.getsignal(signal.SIGINT)
    report = predict(runtime, "camera:0", tmp_path / "out", "video", progress=False)
    assert signal.getsignal(signal.SIGINT) == before
    assert report.frames >= 2
    assert len(_frames(tmp_path / "out/camera-0.overlay.mkv")) == report.frames


def test_a_reader_that_is_left_stops_its_thread(video: Path) -> None:
    with VideoReader(Item(video, "drive.mp4", "video"), ahead=2) as reader:
        next(iter(reader))
    assert not reader._thread.is_alive()


def test_a_half_written_video_is_made_anew(
    exported: ExportReport,
    scenes: list[Pixels],
    write_video: Callable[[Path, list[Pixels]], None],
    tmp_path: Path,
) -> None:
    source, out = tmp_path / "long.mp4", tmp_path / "out"
    write_video(source, [scenes[number % 6] for number in range(150)])
    words = ["predict", str(exported.paths[0]), str(source), "--out", str(out), "--kind", "video"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spiritseg", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(out.glob(".long.overlay.mp4.*.part")) and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "long.overlay.mp4").exists()
    report = predict(open_runtime(exported.paths[0]), source, out, "video", progress=False)
    assert report.frames == 150
    assert len(_frames(out / "long.overlay.mp4")) == 150
    assert not list(out.glob("*.part"))
