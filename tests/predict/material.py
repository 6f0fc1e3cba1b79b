"""A student without an engine, pictures, and films of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiritseg.export.engines import ExportInfo, Runtime
from spiritseg.images import Pixels
from spiritseg.student import Student


class Red(Runtime):
    """Calls a pixel road if its red is above 100."""

    def __init__(self) -> None:
        info = ExportInfo(
            name="red",
            classes=("background", "road"),
            colours=((70, 70, 70), (128, 64, 128)),
            pool=1,
            preprocess=True,
            output="mask",
            precision="fp32",
            size=(48, 64),
            dynamic=True,
            params=1,
            gflops=0.0,
            student_sha256="",
            version="",
        )
        super().__init__(info, "none", Path("red"), streams=2)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        return (images[..., 0] > 100).astype(np.uint8)


RED = Student(Red())

# The command line in a process of its own, with this student and without an engine to import.
COMMAND = """
import sys
from predict.material import RED
from spiritseg.cli import main
from spiritseg.predict import predict
predict.load = lambda *options: RED
main(sys.argv[1:])
"""


def picture(number: int, size: tuple[int, int] = (48, 64)) -> Pixels:
    """Noise, under red that grows to the right and with the number."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    red = (columns * 3 + 20 * number) % 256
    noise = np.random.default_rng(number).integers(0, 80, size)
    return np.stack([red, rows * 4 % 256, noise], -1).astype(np.uint8)


def read(path: Path) -> Pixels:
    """Decode a PNG as it is: a mask has two axes."""
    with Image.open(path) as image:
        return np.asarray(image)


def names(folder: Path) -> list[str]:
    """The files below a folder, hidden ones too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def film(
    path: Path,
    frames: Sequence[Pixels],
    times: Sequence[int] | None = None,
    sound: str = "aac",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    **options: Any,
) -> Path:
    """Write frames, at 12 a second or at times in milliseconds, beside a tone of their length."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=12)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000 if times else 12)
        tone: Any = container.add_stream(sound, rate=16000, layout="mono") if sound else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone is not None:
            _play(
                container, tone, 16000 * (times[-1] if times else 1000 * len(frames) // 12) // 1000
            )
    return path


def _play(container: Any, tone: Any, count: int) -> None:
    wave = np.sin(np.arange(count) / 10) * 0.3
    planar = tone.format.name == "fltp"
    for start in range(0, count, 1024):
        part = wave[None, start : start + 1024]
        data = part.astype(np.float32) if planar else (128 + 100 * part).astype(np.uint8)
        samples = av.AudioFrame.from_ndarray(data, "fltp" if planar else "u8", "mono")
        samples.sample_rate, samples.pts, samples.time_base = 16000, start, Fraction(1, 16000)
        container.mux(tone.encode(samples))
    container.mux(tone.encode())


def shown(path: Path) -> list[tuple[float, Pixels]]:
    """Times in seconds and pixels of a film's frames."""
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
    return [(float(f.time or 0), f.to_ndarray(format="rgb24").astype(np.uint8)) for f in found]


def heard(path: Path) -> list[bytes]:
    """The compressed sound of a film."""
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.dts is not None]


def remux(
    source: Path, target: Path, shift: float = 0.0, frames: int = 12, sound: bool = False
) -> Path:
    """Copy the first frames, shifted by seconds, and the whole sound if wanted."""
    # The index of an MP4 comes first, so that one that was cut can be opened.
    index = {"movflags": "faststart"} if target.suffix == ".mp4" else {}
    with av.open(str(source)) as given, av.open(str(target), "w", options=index) as written:
        streams = given.streams.video + (given.streams.audio if sound else ())
        tracks = {track.index: written.add_stream_from_template(track) for track in streams}
        for packet in given.demux():
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            if packet.stream.type == "video":
                frames -= 1
                packet.pts += int(shift / packet.time_base)
                packet.dts += int(shift / packet.time_base)
            if packet.stream.index in tracks and (packet.stream.type == "audio" or frames >= 0):
                packet.stream = tracks[packet.stream.index]
                written.mux(packet)
    return target


def cut(source: Path, target: Path, share: float = 0.6) -> Path:
    """Copy the first bytes of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target
