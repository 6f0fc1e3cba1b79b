"""A tiny student, exported once; pictures and a small video of procedural scenes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from spiritseg.config import Extractor, Head, Network
from spiritseg.data.scenes import STYLES, render
from spiritseg.deploy import onnx_runtime, openvino_runtime
from spiritseg.deploy.export import ExportReport, export
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.networks import build_networks
from spiritseg.pixels import Pixels

_NETWORKS = {
    "student": Network(
        Extractor("separable", args={"widths": [16, 24, 32, 48], "depths": [0, 0, 0]}),
        Head("student", channels=16),
    )
}
_INFO = BundleInfo(
    networks=_NETWORKS,
    network="student",
    classes=("background", "road", "kerb"),
    colours=((70, 70, 70), (128, 64, 128), (220, 20, 60)),
    pool=2,
)


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with batch-norm statistics of its own, and contrasts like a trained one's."""
    network = build_networks(_NETWORKS, 3, seed=1)["student"].train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the plain mean over what it sees
    with torch.no_grad():
        for index in range(4):
            scene = torch.from_numpy(render(0, index, (96, 128), STYLES["test"]).image)
            network(scene.permute(2, 0, 1)[None].float().repeat(2, 1, 1, 1) / 255)
    folder = tmp_path_factory.mktemp("run") / "student"
    save_bundle(folder, network.eval(), _INFO)
    return folder


@pytest.fixture(scope="session")
def exported(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The student as an .onnx that gives logits."""
    return export(student_folder, out=tmp_path_factory.mktemp("onnx") / "tiny.onnx")


@pytest.fixture(scope="session")
def fixed(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """The student as an .onnx that gives masks of one image of 64 x 80 pixels."""
    out = tmp_path_factory.mktemp("fixed") / "fixed.onnx"
    return export(student_folder, out=out, size=(64, 80), fixed=True, argmax=True)


@pytest.fixture
def traced(exported: ExportReport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds of tracing the same student again: take the graph of `exported`."""

    def again(module: object, card: object) -> onnx.ModelProto:
        model = onnx.load(exported.paths[0])
        del model.metadata_props[:]
        return model

    monkeypatch.setattr(onnx_runtime, "to_onnx", again)
    monkeypatch.setattr(openvino_runtime, "to_onnx", again)


@pytest.fixture(scope="session")
def scenes() -> list[Pixels]:
    """Six scenes of 96 x 128 pixels."""
    return [render(1, index, (96, 128), STYLES["test"]).image for index in range(6)]


@pytest.fixture
def pictures(scenes: list[Pixels], tmp_path: Path) -> Path:
    """A folder of them, nested, of three file types."""
    folder = tmp_path / "pictures"
    for number, (scene, suffix) in enumerate(
        zip(scenes, ("png", "jpg", "webp", "png", "jpg", "png"), strict=True)
    ):
        path = folder / ("deep/er" if number % 2 else ".") / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene).save(path)
    return folder


@pytest.fixture
def video(scenes: list[Pixels], tmp_path: Path) -> Path:
    """Twelve frames at 12 a second with a tone beside them."""
    path = tmp_path / "drive.mp4"
    _write_video(path, [scenes[number // 2] for number in range(12)])
    return path


@pytest.fixture
def write_video() -> Callable[[Path, list[Pixels]], None]:
    """The function that writes frames at 12 a second with a tone."""
    return _write_video


def _write_video(path: Path, frames: list[Pixels], rate: int = 12) -> None:
    """Write frames and an AAC tone of the same length."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=rate)
        picture.height, picture.width = frames[0].shape[:2]
        picture.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=16000)
        for frame in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(picture.encode())
        count = 16000 * len(frames) // rate
        wave = (np.sin(np.arange(count) / 10) * 0.3).astype(np.float32)
        for start in range(0, count, 1024):
            samples = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, start
            samples.time_base = Fraction(1, 16000)
            container.mux(tone.encode(samples))
        container.mux(tone.encode())
