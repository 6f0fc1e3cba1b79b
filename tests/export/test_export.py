"""Exports equal PyTorch, in the engines that will run them; a wrong one is not written."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import spiritseg
from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import BundleError, ConfigError, DataError, RunError
from spiritseg.export import export as exporting
from spiritseg.export.engines import ExportInfo, Runtime
from spiritseg.export.export import ExportReport
from spiritseg.export.formats import FORMATS
from spiritseg.export.module import DeployedNetwork, TorchRuntime
from spiritseg.export.verify import Check, CheckImages, check, evenly, open_check_images
from spiritseg.images import Pixels
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.networks import build_networks
from spiritseg.student import Student, load

Array = np.ndarray[Any, Any]
SIZES = [(1, 96, 128), (3, 61, 47), (2, 128, 64), (1, 33, 200)]


@pytest.fixture(scope="module")
def student(student_folder: Path) -> Student:
    return spiritseg.load(student_folder)


def _images(count: int, height: int, width: int) -> Pixels:
    shape = (count, height, width, 3)
    return np.random.default_rng(height).integers(0, 256, shape, dtype=np.uint8)


def _logits(student: Student, images: Pixels) -> Array:
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    return torch.stack([student.logits(one) for one in tensors]).numpy()


@pytest.mark.parametrize("shape", SIZES)
def test_onnx_gives_pytorchs_logits_at_any_size_and_batch(
    exported: ExportReport, student: Student, shape: tuple[int, int, int]
) -> None:
    images = _images(*shape)
    wanted = _logits(student, images)
    runtime = load(exported.paths[0]).engine
    np.testing.assert_allclose(runtime.logits(images), wanted, atol=2e-5 * np.ptp(wanted))
    assert np.array_equal(runtime.masks(images), runtime.logits(images).argmax(1))
    assert runtime.masks(images).dtype == np.uint8


def test_an_export_reports_how_close_it_is_and_describes_itself(
    exported: ExportReport, student: Student
) -> None:
    path = exported.paths[0]
    assert exported.check.max_difference < 1e-4
    assert exported.check.equal_labels > 0.9999
    assert exported.bytes == path.stat().st_size
    assert (
        f"% of labels equal to PyTorch's, on 4 images of the embedded scenes\nwrote {path}"
        in str(exported)
    )
    assert [p.name for p in path.parent.iterdir()] == ["tiny.onnx"]
    info = load(path).engine.info
    assert (info.classes, info.colours) == (student.classes, student.info.colours)
    assert info.params == sum(p.numel() for p in student.network.parameters())
    onnx.checker.check_model(onnx.load(path))
    assert b"site-packages" not in path.read_bytes()  # no path of this machine


def test_argmax_and_a_fixed_size_are_in_the_graph(fixed: ExportReport, student: Student) -> None:
    runtime = load(fixed.paths[0]).engine
    graph_input = onnx.load(fixed.paths[0]).graph.input[0]
    assert [d.dim_value for d in graph_input.type.tensor_type.shape.dim] == [1, 64, 80, 3]
    images = _images(2, 64, 80)
    found = runtime.masks(images)
    assert found.dtype == np.uint8
    assert (found == _logits(student, images).argmax(1)).mean() > 0.9999
    assert runtime.masks(_images(1, 50, 90)).shape == (1, 50, 90)  # resized around it
    with pytest.raises(ConfigError, match="argmax"):
        runtime.logits(images)


def test_a_bare_half_export_takes_pooled_floats(
    exported: ExportReport, student_folder: Path, student: Student, tmp_path: Path
) -> None:
    report = spiritseg.export(
        student_folder, "onnx", "fp16", (80, 104), tmp_path / "a.onnx", bare=True, fixed=True
    )
    assert report.bytes < 0.7 * exported.bytes
    kinds = {t.data_type for t in onnx.load(report.paths[0]).graph.initializer if len(t.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    runtime = load(report.paths[0]).engine
    pooled = np.random.default_rng(0).random((1, 3, 40, 52), dtype=np.float32)
    with torch.no_grad():
        wanted = student.network(torch.from_numpy(pooled)).numpy()
    np.testing.assert_allclose(runtime.forward(pooled), wanted, atol=0.02 * np.ptp(wanted))
    # Around it the runtime pools in numpy, and brings the logits back in Pillow.
    images = _images(1, 80, 104)
    with torch.no_grad():
        floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        on_its_grid = student.network(F.max_pool2d(floats, 2))
        wanted = F.interpolate(on_its_grid, (80, 104), mode="bilinear").numpy()
    np.testing.assert_allclose(runtime.logits(images), wanted, atol=0.02 * np.ptp(wanted))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("precision", "equal"), [("fp32", 0.9999), ("fp16", 0.99)])
def test_openvino_equals_pytorch(
    student_folder: Path, student: Student, tmp_path: Path, precision: str, equal: float
) -> None:
    report = spiritseg.export(student_folder, "openvino", precision, out=tmp_path / "tiny.xml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bin", "tiny.xml", "tiny.xml.json"]
    runtime = load(report.paths[0]).engine
    assert runtime.name == "openvino"
    for shape in SIZES[:3]:
        wanted = _logits(student, _images(*shape)).argmax(1)
        assert (runtime.masks(_images(*shape)) == wanted).mean() > equal


@pytest.mark.usefixtures("traced")
def test_int8_is_quantised_and_close(
    exported: ExportReport, student_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small.onnx"
    report = spiritseg.export(student_folder, precision="int8", calibrate=pictures, out=out)
    operations = [node.op_type for node in onnx.load(out).graph.node]
    assert operations.count("QuantizeLinear") > 5
    assert report.check.equal_labels > 0.9
    assert report.check.where == "the given images"
    assert report.bytes < exported.bytes


@pytest.mark.usefixtures("traced")
def test_int8_takes_the_mean_of_the_images_ranges(
    exported: ExportReport, student: Student, tmp_path: Path
) -> None:
    strong, flat = _images(1, 64, 96)[0], np.full((64, 96, 3), 128, np.uint8)
    info = dataclasses.replace(exported.info, precision="int8")
    scales = []
    for given in ([strong], [strong, flat]):
        path = exporting.build(student, info, "onnx", tmp_path / "a.onnx", given)[0]
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
    info = BundleInfo(networks, "student", ("background", "road"), colours, pool=2)
    save_bundle(tmp_path / "student", network, info)
    report = spiritseg.export(
        tmp_path / "student", "onnx", "int8", (48, 64), tmp_path / "a.onnx", calibrate=pictures,
        fixed=True,
    )  # fmt: skip
    nodes = list(onnx.load(report.paths[0]).graph.node)
    made = {output: node.op_type for node in nodes for output in node.output}
    convs = [node for node in nodes if node.op_type == "Conv"]
    eighths = [made.get(node.input[0]) == "DequantizeLinear" for node in convs]
    sliced = 2 * (2 + 6 + 1)  # slices of 64: products and members, blocks, the classifier
    assert eighths == [True] * (len(convs) - sliced) + [False] * sliced


def test_pt2_equals_pytorch_and_asks_for_trust(
    student_folder: Path, student: Student, tmp_path: Path
) -> None:
    path = spiritseg.export(student_folder, "pt2", out=tmp_path / "tiny.pt2").paths[0]
    with pytest.raises(BundleError, match="trust"):
        load(path)
    wanted = _logits(student, _images(3, 61, 47))
    found = load(path, trust=True).engine.logits(_images(3, 61, 47))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.ptp(wanted))


class _Faulty(Runtime):
    """The student in torch, with a fault in its output."""

    def __init__(self, student: Student, info: ExportInfo, fault: Callable[[Array], Array]) -> None:
        super().__init__(info, "faulty", Path("faulty"))
        module = DeployedNetwork(student.network, 2, info.preprocess, info.output == "mask")
        self.good, self.fault = TorchRuntime(module, info, Path("faulty"), "cpu"), fault

    def forward(self, images: Array) -> Array:
        return self.fault(self.good.forward(images))


FAULTS: dict[str, Callable[[Array], Array]] = {
    "mirrored": lambda y: y[..., ::-1],
    "shifted by a pixel": lambda y: np.roll(y, 1, -1),
    "classes swapped": lambda y: y[:, ::-1],
    "scaled": lambda y: y * 1.01,
    "not a number": lambda y: np.where(y == y[0, 0, 0, 0], np.nan, y),
    "wrong in a batch": lambda y: y[:1].repeat(len(y), 0),
    "wrong at odd sizes": lambda y: y if y.shape[2] % 2 == 0 else y[:, ::-1],
    "wrong at small even sizes": lambda y: y[:, ::-1] if y.shape[2] == 96 else y,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_noticed(exported: ExportReport, student: Student, fault: str) -> None:
    images = open_check_images(student, None, 1)
    with pytest.raises(RunError, match="differs from the student"):
        check(student, _Faulty(student, exported.info, FAULTS[fault]), images)


@pytest.mark.parametrize(("output", "preprocess"), [("logits", True), ("mask", False)])
def test_the_share_of_equal_labels_is_that_of_the_masks(
    exported: ExportReport, student: Student, preprocess: bool, output: Any
) -> None:
    info = dataclasses.replace(
        exported.info, preprocess=preprocess, output=output, precision="int8", dynamic=False
    )
    rows = 4 if preprocess else 2  # of 64, on the grid of the output

    def wrong(y: Array) -> Array:
        classes = y[:, :1] * 0 if output == "mask" else y  # class 0 where it is a mask
        top = (y[:, :rows] + 1) % 3 if output == "mask" else np.roll(classes[:, :, :rows], 1, 1)
        return np.concatenate([top, y[:, rows:] if output == "mask" else y[:, :, rows:]], -2)

    found = check(
        student, _Faulty(student, info, wrong), CheckImages(list(_images(2, 64, 80)), "x")
    )
    assert found.equal_labels == pytest.approx(1 - 4 / 64)
    assert found.images == 2


def test_a_size_that_was_traced_in_is_noticed(fixed: ExportReport, student: Student) -> None:
    runtime = load(fixed.paths[0]).engine
    images = CheckImages([np.zeros((64, 96, 3), np.uint8)], "here")
    for dynamic in (True, False):
        runtime.info = dataclasses.replace(fixed.info, dynamic=dynamic)
        with pytest.raises(RunError, match="cannot run the export") as caught:
            check(student, runtime, images)
        assert ("--fixed" in str(caught.value)) == dynamic


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"format": "tflite"}, "Choices: onnx, openvino, pt2"),
        ({"format": "x" * 5000}, "unknown format"),
        ({"precision": "fp8"}, "int8"),
        ({"precision": "int8"}, "--calibrate"),
        ({"precision": "int8", "format": "pt2", "calibrate": "."}, "use --format onnx or openvino"),
        ({"size": (4, 4)}, "16 pixels"),
        ({"out": "model.pb"}, r"\.onnx"),
    ],
)
def test_what_is_not_offered_is_one_clear_error(
    student_folder: Path, words: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        spiritseg.export(student_folder, **words)


class _Seen:
    """What reaches the exporter and the check, which do nothing here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exporting, "build", self._build)
        monkeypatch.setattr(exporting, "check", self._check)
        entry = dataclasses.replace(FORMATS["onnx"], open=cast(Any, lambda *given: None))
        monkeypatch.setitem(FORMATS._entries, "onnx", entry)

    def _build(
        self, student: Student, info: ExportInfo, format: str, path: Path, calibration: list[Pixels]
    ) -> list[Path]:
        self.size, self.calibration = info.size, [image.shape[:2] for image in calibration]
        path.write_bytes(b"")
        return [path]

    def _check(self, student: Student, runtime: Runtime, on: CheckImages) -> Check:
        self.checked = [image.shape[:2] for image in on.images]
        return Check(1, 0, len(on.images), on.where)


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """Pictures of three sizes, and a file that is none."""
    sizes = {"a.png": (40, 60), "b.png": (48, 64), "c.png": (33, 91)}
    for name, size in sizes.items():
        Image.fromarray(np.full((*size, 3), 80, np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return [*(tmp_path / name for name in sizes), tmp_path / "broken.png"]


@pytest.mark.parametrize(("size", "checked_apart"), [(None, True), ((32, 48), False)])
def test_all_images_have_the_size_of_a_fixed_export(
    student_folder: Path,
    mixed: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int] | None,
    checked_apart: bool,
) -> None:
    seen = _Seen(monkeypatch)
    words: dict[str, Any] = {"calibrate": mixed, "images": mixed[1:] if checked_apart else None}
    report = spiritseg.export(student_folder, precision="int8", size=size, fixed=True, **words)
    own = size or ((48, 64) if checked_apart else (40, 60))
    assert report.info.size == seen.size == own
    assert seen.calibration == [own] * 3
    assert seen.checked == [own] * (2 if checked_apart else 3)
    assert report.skipped == (f"{mixed[-1]}: it is not an image file that Pillow knows",)
    assert f"1 unreadable images were left out:\n  {mixed[-1]}" in str(report)


def test_an_export_of_any_size_leaves_images_as_they_are(
    student_folder: Path, mixed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _Seen(monkeypatch)
    spiritseg.export(student_folder, precision="int8", calibrate=mixed)
    assert seen.size == (40, 60)
    assert seen.calibration == seen.checked == [(40, 60), (48, 64), (33, 91)]


def test_images_to_verify_on_are_found_in_order(student: Student, tmp_path: Path) -> None:
    scenes = {"target": {"dataset": "scenes", "scenes": {"test": 3, "size": [64, 96]}}}
    rest = {
        "input": {"crop": 32, "pool": 2},
        "networks": {"student": {"extractor": {"name": "efficientnet_lite0"}}},
        "stages": {"all": {"network": "student", "losses": {"cross_entropy": {"weight": 1.0}}}},
    }
    info = dataclasses.replace(student.info, training={"experiment": {**scenes, **rest}})
    own, picture = Student(student.network, info), np.zeros((5, 7, 3), np.uint8)
    found = open_check_images(own, None, 2, otherwise=[picture])
    assert (found.where, len(found.images)) == ("the test images of scenes", 2)
    assert found.images[0].shape == (64, 96, 3)
    assert open_check_images(own, None, 2, given=[picture]).where == "the given images"
    assert open_check_images(student, None, 2, otherwise=[picture]).where == "the given images"
    with pytest.raises(BundleError, match="without its experiment"):
        open_check_images(student, {"target.root": "/nowhere"}, 2, given=[picture])
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly(range(3), 4) == evenly(range(3), 0) == [0, 1, 2]


@pytest.mark.parametrize("option", ["calibrate", "images"])
def test_no_readable_image_is_an_error_without_a_hint_that_export_lacks(
    student_folder: Path, mixed: list[Path], option: str
) -> None:
    with pytest.raises(DataError, match="no image is left") as caught:
        spiritseg.export(student_folder, **cast(Any, {option: mixed[-1]}))
    assert "broken.png" in str(caught.value)
    assert "--skip-bad" not in str(caught.value)


def test_an_export_that_is_stopped_leaves_nothing(student_folder: Path, tmp_path: Path) -> None:
    words = ["export", str(student_folder), "--out", str(tmp_path / "new" / "a.onnx")]
    process = subprocess.Popen(
        [sys.executable, "-m", "spiritseg", *words], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(tmp_path.glob("new/.export-*")):
        time.sleep(0.01)
    time.sleep(0.5)  # while it traces
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert (process.returncode, said) == (143, "\nspiritseg: stopped.\n")
    assert list(tmp_path.glob("new/*")) == []
