"""Videos: every frame, the same size and times, the sound untouched; short and broken ones."""

from __future__ import annotations

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
from spiritseg.deploy.export import ExportReport
from spiritseg.deploy.opening import open_runtime
from spiritseg.deploy.predict import predict
from spiritseg.deploy.runtime import Runtime
from spiritseg.deploy.sources import Item
from spiritseg.deploy.video_reader import VideoReader
from spiritseg.errors import BadImageError
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
    # Its index first, so that a cut leaves a video that can be opened.
    with (
        av.open(str(video)) as source,
        av.open(str(folder / "whole.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    whole = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.6)])
    report = predict(runtime, folder, tmp_path / "out", "video", progress=False)
    said = {Path(path).name: reason for path, reason in report.skipped}
    assert set(said) == {"none.mp4", "zero.mkv", "headless.mp4", "cut.mp4"}
    assert "ends early" in said["cut.mp4"] or "to its end" in said["cut.mp4"]
    assert len(_frames(tmp_path / "out/whole.overlay.mp4")) == 12
    assert 0 < len(_frames(tmp_path / "out/cut.overlay.mp4")) < 12


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
    part = out / ".long.overlay.mp4.part"
    while not part.exists() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "long.overlay.mp4").exists()
    report = predict(open_runtime(exported.paths[0]), source, out, "video", progress=False)
    assert report.frames == 150
    assert len(_frames(out / "long.overlay.mp4")) == 150
    assert not part.exists()
