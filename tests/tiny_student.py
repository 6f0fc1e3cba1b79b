"""Fixtures: a tiny student, exported once; pictures of procedural scenes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image

from spiritseg.config import Extractor, Head, Network
from spiritseg.export import onnx as onnx_format
from spiritseg.export.export import ExportReport, export
from spiritseg.images import Pixels
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.networks import build_networks
from spiritseg.scenes import STYLES, render

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

    def again(module: object, info: object) -> onnx.ModelProto:
        model = onnx.load(exported.paths[0])
        del model.metadata_props[:]
        return model

    monkeypatch.setattr(onnx_format, "to_onnx", again)


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
