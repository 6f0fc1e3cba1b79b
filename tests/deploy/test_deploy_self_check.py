"""The check on labelled images: the mIOU that an export costs, in every form it can have."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import spiritseg
from reference import naive_metrics
from spiritseg.config import Extractor, Head, Network
from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.export import export
from spiritseg.deploy.graph import DeployedNetwork
from spiritseg.deploy.opening import open_runtime
from spiritseg.deploy.runtime import Runtime
from spiritseg.deploy.self_check import CheckImages, check, open_check_images, resize, spaced
from spiritseg.deploy.torch_runtime import TorchRuntime, card_of
from spiritseg.errors import DataError, RunError
from spiritseg.geometry import max_pool
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.networks import build_networks
from spiritseg.scenes import STYLES, render
from spiritseg.student import Student

Array = NDArray[Any]
SIZE, SMALLER = (64, 96), (48, 72)
_EXPERIMENT = {
    "target": {"dataset": "scenes", "scenes": {"test": 3, "size": list(SIZE)}},
    "input": {"crop": 32, "pool": 2},
    "networks": {"student": {"extractor": {"name": "efficientnet_lite0"}}},
    "stages": {"all": {"network": "student", "losses": {"cross_entropy": {"weight": 1.0}}}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says which scenes it is tested on."""
    widths = {"widths": [16, 24, 32, 48], "depths": [0, 0, 0]}
    networks = {"student": Network(Extractor("separable", args=widths), Head("student", 16))}
    info = BundleInfo(
        networks=networks,
        network="student",
        classes=("background", "road"),
        colours=((70, 70, 70), (128, 64, 128)),
        pool=2,
        training={"experiment": _EXPERIMENT},
    )
    network = build_networks(networks, 2, seed=1)["student"].train()
    scene = torch.from_numpy(render(0, 0, SIZE, STYLES["test"]).image).permute(2, 0, 1)
    with torch.no_grad():
        for _ in range(20):  # statistics of its own, so that its logits have some contrast
            network(scene[None].float().repeat(2, 1, 1, 1) / 255)
    path = tmp_path_factory.mktemp("labelled") / "student"
    save_bundle(path, network.eval(), info)
    return path


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return spiritseg.load(folder)


class _Shifted(Runtime):
    """An export that prefers the road by a little."""

    def __init__(self, network: DeployedNetwork, card: ModelCard, by: float) -> None:
        super().__init__(card, "shifted", Path("shifted"))
        self.good, self.by = TorchRuntime(network, card, Path("shifted"), "cpu"), by

    def forward(self, images: Array) -> Array:
        logits = self.good.forward(images)
        logits[:, 1] += self.by
        return logits.argmax(1).astype(np.uint8) if self.card.output == "mask" else logits


def _reference_logits(student: Student, image: Array, preprocess: bool) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if preprocess:
        return student.logits(tensor)
    with torch.no_grad():
        batch: torch.Tensor = student.network(max_pool(tensor[None].float() / 255, 2))
    return batch[0]


def _miou(logits: list[torch.Tensor], labels: list[Array], by: float, preprocess: bool) -> float:
    masks = [(one[1] + by > one[0]).long() for one in logits]
    if not preprocess:  # a pixel of the pool's grid stands for two by two of the image's
        masks = [one.repeat_interleave(2, 0).repeat_interleave(2, 1) for one in masks]
    truth = torch.stack([torch.from_numpy(one).long() for one in labels])
    return naive_metrics.image_iou(torch.stack(masks), truth, 2, 0.75)[0]


@pytest.mark.parametrize("output", ["logits", "mask"])
@pytest.mark.parametrize("preprocess", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_the_loss_of_miou_is_that_of_the_masks(
    student: Student, dynamic: bool, preprocess: bool, output: Any
) -> None:
    on = open_check_images(student, None, 2)
    assert on.where == "the test images of scenes"
    assert on.labels is not None
    if not dynamic:
        on = on.resized(SMALLER)
    assert on.labels is not None
    labels = list(on.labels)
    assert {one.shape for one in labels} == {SIZE if dynamic else SMALLER}
    logits = [_reference_logits(student, image, preprocess) for image in on.images]
    missing = torch.cat([(one[0] - one[1]).flatten() for one in logits])
    by = float(missing[missing > 0].quantile(0.04))  # turns a few per cent of the pixels
    card = dataclasses.replace(
        card_of(student, "student", SIZE if dynamic else SMALLER),
        preprocess=preprocess,
        dynamic=dynamic,
        output=output,
        precision="int8",  # whose limits allow it
    )
    network = DeployedNetwork(student.network, 2, preprocess)
    found = check(student, _Shifted(network, card, by), card, on)
    before, after = (_miou(logits, labels, shift, preprocess) for shift in (0.0, by))
    assert 0.05 < before < 0.95
    assert abs(after - before) > 3e-3
    assert found.miou_pytorch == pytest.approx(before, abs=3e-4)
    assert found.miou == pytest.approx(after, abs=3e-4)
    assert found.miou_lost == pytest.approx(before - after, abs=6e-4)
    assert found.images == 2


def test_labels_are_resized_without_new_classes() -> None:
    labels = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    on = CheckImages([image], [labels], "here", ["bad.png"])
    double = on.resized((4, 6))
    assert double.labels is not None
    np.testing.assert_array_equal(double.labels[0], labels.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(double.images[0], resize(image, (4, 6)))
    assert (double.where, list(double.skipped)) == ("here", ["bad.png"])
    smaller = on.resized((3, 2)).labels
    assert smaller is not None
    assert smaller[0].shape == (3, 2)
    assert set(smaller[0].flatten()) <= {0, 1, 2, 255}
    assert CheckImages([image], None, "here").resized((4, 6)).labels is None


def test_images_are_chosen_evenly() -> None:
    assert spaced(10, 4) == [0, 2, 5, 7]
    assert spaced(3, 4) == spaced(3, 0) == [0, 1, 2]


def test_unreadable_labelled_images_are_left_out(student: Student, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for number in range(2):
            for name in (split, f"{split}annot"):
                path = tmp_path / name / f"{number}.png"
                path.parent.mkdir(exist_ok=True)
                shape = SIZE if name.endswith("annot") else (*SIZE, 3)
                Image.fromarray(np.full(shape, 3 + number, np.uint8)).save(path)
    broken = tmp_path / "test/0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    place = {"target.dataset": "camvid", "target.root": str(tmp_path)}
    found = open_check_images(student, place, 0)
    assert len(found.images) == 1
    assert list(found.skipped) == [str(broken)]
    (tmp_path / "test/1.png").write_bytes(b"")
    with pytest.raises(DataError, match="no image is left"):
        open_check_images(student, place, 0)


def test_a_fixed_int8_export_calibrates_on_images_of_other_sizes(
    folder: Path, student: Student, pictures: Path, tmp_path: Path
) -> None:
    broken = pictures / "9.png"
    broken.write_bytes(b"no picture")
    Image.fromarray(np.full((50, 130, 3), 99, np.uint8)).save(pictures / "8.png")
    out = tmp_path / "fixed.onnx"
    report = export(folder, precision="int8", fixed=True, calibrate=pictures, out=out, limit=0)
    assert report.card.size == SIZE  # of the labelled images
    shape = onnx.load(out).graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [1, *SIZE, 3]
    assert [line.split(": ")[0] for line in report.skipped] == [str(broken)]
    assert report.check.where == "the test images of scenes"
    on = open_check_images(student, None, 0)
    masks = torch.from_numpy(
        np.concatenate([open_runtime(out).masks(np.array(image)[None]) for image in on.images])
    ).long()
    truth = torch.from_numpy(np.stack(list(on.labels or []))).long()
    wanted = naive_metrics.image_iou(masks, truth, 2, 0.75)[0]
    assert report.check.miou == pytest.approx(wanted, abs=1e-6)


def test_a_fixed_export_is_not_told_to_be_fixed(student: Student) -> None:
    class Broken(Runtime):
        def forward(self, images: Array) -> Array:
            raise ValueError("no")

    card = card_of(student, "student", SIZE)
    on = CheckImages([np.zeros((*SIZE, 3), np.uint8)], None, "here")
    for dynamic in (True, False):
        own = dataclasses.replace(card, dynamic=dynamic)
        with pytest.raises(RunError, match="another format") as caught:
            check(student, Broken(own, "broken", Path("x")), own, on)
        assert ("--fixed" in str(caught.value)) == dynamic
