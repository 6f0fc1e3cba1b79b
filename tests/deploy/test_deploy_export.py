"""Exports equal PyTorch, in the engines that will run them; a wrong one is not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import spiritseg
from spiritseg.config import Extractor, Head, Network
from spiritseg.deploy import export as exporting
from spiritseg.deploy import graph
from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.export import ExportReport, export
from spiritseg.deploy.opening import open_runtime
from spiritseg.deploy.runtime import Runtime
from spiritseg.deploy.self_check import Check, CheckImages, check, open_check_images
from spiritseg.deploy.sliced_head import SlicedHead
from spiritseg.errors import BundleError, ConfigError, DataError, RunError
from spiritseg.images import Pixels
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.heads import StudentHead
from spiritseg.models.networks import build_networks
from spiritseg.student import Student

SIZES = [(1, 96, 128), (3, 61, 47), (2, 128, 64), (1, 33, 200)]


def _images(count: int, height: int, width: int) -> Pixels:
    shape = (count, height, width, 3)
    return np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)


def _logits(student: Student, images: Pixels) -> np.ndarray:
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    return torch.stack([student.logits(one) for one in tensors]).numpy()


@pytest.mark.parametrize("shape", SIZES)
def test_onnx_gives_pytorchs_logits_at_any_size_and_batch(
    exported: ExportReport, student_folder: Path, shape: tuple[int, int, int]
) -> None:
    images = _images(*shape)
    wanted = _logits(spiritseg.load(student_folder), images)
    runtime = open_runtime(exported.paths[0])
    np.testing.assert_allclose(runtime.logits(images), wanted, atol=2e-5 * np.ptp(wanted))
    assert np.array_equal(runtime.masks(images), runtime.logits(images).argmax(1))
    assert runtime.masks(images).dtype == np.uint8


def test_the_report_says_how_close_it_is(exported: ExportReport) -> None:
    assert exported.check.max_difference is not None
    assert exported.check.max_difference < 1e-4
    assert exported.check.equal_labels > 0.9999
    assert exported.check.where == "the embedded scenes"
    assert exported.bytes == exported.paths[0].stat().st_size
    assert [p.name for p in exported.paths[0].parent.iterdir()] == ["tiny.onnx"]


def test_the_file_alone_says_what_it_is(exported: ExportReport, student_folder: Path) -> None:
    runtime = open_runtime(exported.paths[0])
    student = spiritseg.load(student_folder)
    assert runtime.classes == student.classes
    assert runtime.colours == student.info.colours
    assert runtime.card.params == sum(p.numel() for p in student.network.parameters())
    model = onnx.load(exported.paths[0])
    onnx.checker.check_model(model)
    assert b"site-packages" not in exported.paths[0].read_bytes()  # no path of this machine


def test_argmax_and_a_fixed_size_are_in_the_graph(
    fixed: ExportReport, student_folder: Path
) -> None:
    runtime = open_runtime(fixed.paths[0])
    assert fixed.check.max_difference is None
    graph_input = onnx.load(fixed.paths[0]).graph.input[0]
    assert [d.dim_value for d in graph_input.type.tensor_type.shape.dim] == [1, 64, 80, 3]
    images = _images(2, 64, 80)
    wanted = _logits(spiritseg.load(student_folder), images).argmax(1)
    found = runtime.masks(images)
    assert found.dtype == np.uint8
    assert (found == wanted).mean() > 0.9999
    assert runtime.masks(_images(1, 50, 90)).shape == (1, 50, 90)  # resized around it
    with pytest.raises(ConfigError, match="argmax"):
        runtime.logits(images)


def test_a_bare_export_takes_pooled_floats(student_folder: Path, tmp_path: Path) -> None:
    report = export(
        student_folder, out=tmp_path / "bare.onnx", preprocess=False, fixed=True, size=(80, 104)
    )
    runtime = open_runtime(report.paths[0])
    student = spiritseg.load(student_folder)
    pooled = np.random.default_rng(0).random((1, 3, 40, 52), dtype=np.float32)
    with torch.no_grad():
        wanted = student.network(torch.from_numpy(pooled)).numpy()
    np.testing.assert_allclose(runtime.forward(pooled), wanted, atol=2e-5 * np.ptp(wanted))
    # Around it the runtime pools in numpy, and brings the logits back in Pillow.
    images = _images(1, 80, 104)
    with torch.no_grad():
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        on_its_grid = student.network(F.max_pool2d(floats, 2))
        wanted = F.interpolate(on_its_grid, (80, 104), mode="bilinear").numpy()
    np.testing.assert_allclose(runtime.logits(images), wanted, atol=2e-5 * np.ptp(wanted))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("precision", "equal"), [("fp32", 0.9999), ("fp16", 0.99)])
def test_openvino_equals_pytorch(
    student_folder: Path, tmp_path: Path, precision: str, equal: float
) -> None:
    out = tmp_path / "tiny.xml"
    report = export(student_folder, "openvino", precision, out=out)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bin", "tiny.xml", "tiny.xml.json"]
    runtime = open_runtime(report.paths[0])
    assert runtime.name == "openvino"
    for shape in SIZES[:3]:
        images = _images(*shape)
        wanted = _logits(spiritseg.load(student_folder), images).argmax(1)
        assert (runtime.masks(images) == wanted).mean() > equal


def test_fp16_is_half_the_size_and_close(
    exported: ExportReport, student_folder: Path, tmp_path: Path
) -> None:
    report = export(student_folder, precision="fp16", out=tmp_path / "half.onnx", fixed=True)
    assert report.bytes < 0.7 * exported.bytes
    assert report.check.equal_labels > 0.99
    kinds = {t.data_type for t in onnx.load(report.paths[0]).graph.initializer if len(t.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.usefixtures("traced")
def test_int8_is_quantised_and_close(
    exported: ExportReport, student_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    report = export(
        student_folder, precision="int8", calibrate=pictures, out=tmp_path / "small.onnx"
    )
    operations = [node.op_type for node in onnx.load(report.paths[0]).graph.node]
    assert operations.count("QuantizeLinear") > 5
    assert report.check.equal_labels > 0.9
    assert report.check.where == "the given images"
    assert report.bytes < exported.bytes


@pytest.mark.usefixtures("traced")
def test_int8_takes_the_mean_of_the_images_ranges(
    exported: ExportReport, student_folder: Path, tmp_path: Path
) -> None:
    strong, flat = _images(1, 64, 96)[0], np.full((64, 96, 3), 128, np.uint8)
    card = dataclasses.replace(open_runtime(exported.paths[0]).card, precision="int8")
    student, scales = spiritseg.load(student_folder), []
    for given in ([strong], [strong, flat]):
        path = exporting.build(student, card, "onnx", tmp_path / "a.onnx", given)[0]
        model = onnx.load(path).graph
        values = {one.name: onnx.numpy_helper.to_array(one) for one in model.initializer}
        first = next(node for node in model.node if node.op_type == "QuantizeLinear")
        scales.append(float(values[first.input[1]]))
    assert scales[1] < 0.7 * scales[0]  # both images' extremes are those of the strong one


def test_int8_leaves_a_sliced_head_in_float(pictures: Path, tmp_path: Path) -> None:
    head = Head("student", channels=128, convolution="grouped")
    extractor = Extractor("separable", args={"widths": [16, 24, 32, 128], "depths": [0, 0, 0]})
    networks = {"student": Network(extractor, head)}
    network = build_networks(networks, 2, seed=1)["student"].eval()
    colours = ((70, 70, 70), (128, 64, 128))
    save_bundle(
        tmp_path / "student",
        network,
        BundleInfo(networks, "student", ("background", "road"), colours, pool=2),
    )
    report = export(
        tmp_path / "student", precision="int8", calibrate=pictures, out=tmp_path / "a.onnx"
    )
    nodes = list(onnx.load(report.paths[0]).graph.node)
    made = {output: node.op_type for node in nodes for output in node.output}
    convs = [node for node in nodes if node.op_type == "Conv"]
    eighths = [made.get(node.input[0]) == "DequantizeLinear" for node in convs]
    sliced = SlicedHead(cast(StudentHead, network.head)).convolutions
    assert eighths == [True] * (len(convs) - sliced) + [False] * sliced
    assert report.check.equal_labels > 0.9


def test_pt2_equals_pytorch_and_asks_for_trust(student_folder: Path, tmp_path: Path) -> None:
    report = export(student_folder, "pt2", out=tmp_path / "tiny.pt2")
    with pytest.raises(BundleError, match="trust"):
        open_runtime(report.paths[0])
    runtime = open_runtime(report.paths[0], trust=True)
    images = _images(3, 61, 47)
    wanted = _logits(spiritseg.load(student_folder), images)
    np.testing.assert_allclose(runtime.logits(images), wanted, atol=1e-5 * np.ptp(wanted))


def test_a_wrong_export_is_refused_and_leaves_nothing(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = graph.DeployedNetwork.forward

    def wrong(self: graph.DeployedNetwork, images: Tensor) -> Tensor:
        return good(self, images) * 1.01

    monkeypatch.setattr(graph.DeployedNetwork, "forward", wrong)
    with pytest.raises(RunError, match="a logit differs by"):
        export(student_folder, out=tmp_path / "wrong.onnx", fixed=True, size=(32, 48))
    assert list(tmp_path.iterdir()) == []


class _Faulty(Runtime):
    """The export with a fault in what it answers."""

    def __init__(self, good: Runtime, fault: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(good.card, "faulty", good.path)
        self.good, self.fault = good, fault

    def forward(self, images: np.ndarray) -> np.ndarray:
        return self.fault(self.good.forward(images))


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda y: y[..., ::-1],
    "shifted by a pixel": lambda y: np.roll(y, 1, -1),
    "classes swapped": lambda y: y[:, ::-1],
    "not a number": lambda y: np.where(y == y[0, 0, 0, 0], np.nan, y),
    "wrong in a batch": lambda y: y[:1].repeat(len(y), 0),
    "wrong at odd sizes": lambda y: y if y.shape[2] % 2 == 0 else y * 1.1,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_noticed(exported: ExportReport, student_folder: Path, fault: str) -> None:
    student = spiritseg.load(student_folder)
    images = open_check_images(student, None, 2)
    good = open_runtime(exported.paths[0])
    check(student, good, good.card, images)
    with pytest.raises(RunError, match="is not the student"):
        check(student, _Faulty(good, FAULTS[fault]), good.card, images)


def test_int8_may_round_but_not_lose_accuracy(
    exported: ExportReport, student_folder: Path, scenes: list[Pixels]
) -> None:
    student = spiritseg.load(student_folder)
    good = open_runtime(exported.paths[0])
    truth = [np.asarray(good.masks(scene[None])[0]) for scene in scenes]
    on = CheckImages(scenes, truth, "the scenes")
    card = dataclasses.replace(good.card, precision="int8")
    noise = np.random.default_rng(0)
    found = check(student, _Faulty(good, lambda y: y * 1.2 + 1e-3), card, on)
    assert found.miou_pytorch == 1.0
    assert found.miou_lost == pytest.approx(0, abs=0.01)
    spoilt = _Faulty(good, lambda y: y + noise.normal(0, np.ptp(y) / 4, y.shape))
    with pytest.raises(RunError, match="points of mIOU are lost"):
        check(student, spoilt, card, on)


def test_a_size_that_was_traced_in_is_noticed(fixed: ExportReport, student_folder: Path) -> None:
    student = spiritseg.load(student_folder)
    claims = dataclasses.replace(fixed.card, dynamic=True)
    images = open_check_images(student, None, 1)
    with pytest.raises(RunError, match="cannot run the export"):
        check(student, open_runtime(fixed.paths[0]), claims, images)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"format": "tflite"}, "onnx"),
        ({"precision": "fp8"}, "int8"),
        ({"precision": "int8"}, "--calibrate"),
        ({"precision": "int8", "format": "pt2", "calibrate": "."}, "not offered"),
        ({"size": (4, 4)}, "16 pixels"),
        ({"out": "model.pb"}, ".onnx"),
    ],
)
def test_what_is_not_offered_is_one_clear_error(
    student_folder: Path, words: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        export(student_folder, **words)  # type: ignore[arg-type]


class _Seen:
    """What reaches the exporter and the check, which do nothing here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exporting, "build", self._build)
        monkeypatch.setattr(exporting, "_compare", self._compare)

    def _build(
        self, student: Student, card: ModelCard, format: str, path: Path, calibration: list[Pixels]
    ) -> list[Path]:
        self.size, self.calibration = card.size, [image.shape[:2] for image in calibration]
        path.write_bytes(b"")
        return [path]

    def _compare(self, student: Student, path: Path, card: ModelCard, images: CheckImages) -> Check:
        self.checked = [image.shape[:2] for image in images.images]
        return Check(0, 0, 1, None, None, len(images.images), images.where)


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Pictures of three sizes, and a file that is none."""
    sizes = {"a.png": (40, 60), "b.png": (48, 64), "c.png": (33, 91)}
    for name, size in sizes.items():
        Image.fromarray(np.full((*size, 3), 80, np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return [*(tmp_path / name for name in sizes), tmp_path / "broken.png"]


@pytest.mark.parametrize("size", [None, (32, 48)])
@pytest.mark.parametrize("checked_apart", [True, False])
def test_all_images_have_the_size_of_a_fixed_export(
    student_folder: Path,
    mixed: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int] | None,
    checked_apart: bool,
) -> None:
    seen = _Seen(monkeypatch)
    images = mixed[1:] if checked_apart else None
    words: dict[str, Any] = {"precision": "int8", "calibrate": mixed, "images": images}
    report = export(student_folder, size=size, fixed=True, **words)
    own = size or ((48, 64) if checked_apart else (40, 60))
    assert report.card.size == seen.size == own
    assert seen.calibration == [own] * 3
    assert seen.checked == [own] * (2 if checked_apart else 3)
    assert report.skipped == (f"{mixed[-1]}: it is not an image file that Pillow knows",)


def test_an_export_of_any_size_leaves_images_as_they_are(
    student_folder: Path, mixed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _Seen(monkeypatch)
    export(student_folder, precision="int8", calibrate=mixed)
    assert seen.size == (40, 60)
    assert seen.calibration == seen.checked == [(40, 60), (48, 64), (33, 91)]


@pytest.mark.parametrize("option", ["calibrate", "images"])
def test_no_readable_image_is_an_error_without_a_hint_that_export_lacks(
    student_folder: Path, mixed: list[Path], option: str
) -> None:
    with pytest.raises(DataError, match="no image is left") as caught:
        export(student_folder, **{option: mixed[-1]})  # type: ignore[arg-type]
    assert "broken.png" in str(caught.value)
    assert "--skip-bad" not in str(caught.value)


def test_a_wrong_data_set_is_an_error_only_where_it_was_asked_for(student_folder: Path) -> None:
    with pytest.raises(BundleError, match="without the experiment"):
        export(student_folder, overrides={"target.root": "/nowhere"})
