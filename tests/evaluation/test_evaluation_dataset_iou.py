from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from reference import naive_metrics
from spiritseg.errors import DataError
from spiritseg.evaluation import DatasetIoU, ImageIoU


def drawn(images: int = 5, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    predicted, labels = torch.randint(0, classes, (2, images, 7, 9), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, predicted)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return predicted, labels


def test_values_by_hand_and_an_absent_class() -> None:
    metric = DatasetIoU(3)
    metric.update(torch.tensor([[[0, 1, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    metric.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 255]]]))
    found = metric.compute()
    assert found["IoU"].tolist()[:2] == pytest.approx([4 / 5, 2 / 3])
    assert math.isnan(found["IoU"][2])
    assert found["mIoU"].item() == pytest.approx(11 / 15)  # ImageIoU would say 19 / 24
    assert found["pixel accuracy"].item() == pytest.approx(6 / 7)
    assert metric.confusion_matrix().tolist() == [[4, 1, 0], [0, 2, 0], [0, 0, 0]]


def test_it_agrees_with_a_loop_and_with_torchmetrics() -> None:
    predicted, labels = drawn()
    metric = DatasetIoU(4)
    for some in torch.split(torch.arange(5), 2):
        metric.update(predicted[some], labels[some])
    found = metric.compute()
    expected = naive_metrics.class_ious(naive_metrics.pixel_pairs(predicted, labels), 4)
    assert found["IoU"].tolist() == pytest.approx(expected, rel=1e-12)
    jaccard = MulticlassJaccardIndex(4, average="none", ignore_index=255)(predicted, labels)
    torch.testing.assert_close(found["IoU"].float(), jaccard)
    accuracy = MulticlassAccuracy(4, average="micro", ignore_index=255)(predicted, labels)
    torch.testing.assert_close(found["pixel accuracy"].float(), accuracy)
    assert found["mIoU"].item() == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_an_index_counts_once() -> None:
    predicted, labels = drawn()
    once, repeated = DatasetIoU(4), DatasetIoU(4)
    once.update(predicted, labels)
    for some in (torch.tensor([0, 3, 2]), torch.tensor([1, 0, 4]), torch.tensor([2])):
        repeated.update(predicted[some], labels[some], index=some)
    assert torch.equal(once.confusion_matrix(), repeated.confusion_matrix())
    assert int(once.confusion_matrix().sum()) == int((labels != 255).sum())


def test_it_is_not_the_mean_over_images() -> None:
    predicted, labels = drawn()
    dataset, image = DatasetIoU(4), ImageIoU(4)
    dataset.update(predicted, labels)
    image.update(predicted, labels)
    assert abs(dataset.compute()["mIoU"] - image.compute()["mIOU"]) > 1e-4


def test_no_labelled_pixel_is_named() -> None:
    metric = DatasetIoU(4)
    predicted, labels = drawn()
    metric.update(predicted, torch.full_like(labels, 255))
    with pytest.raises(DataError, match="no labelled pixel"):
        metric.compute()
