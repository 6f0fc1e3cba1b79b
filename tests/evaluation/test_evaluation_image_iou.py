from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reference import naive_metrics
from spiritseg.errors import DataError
from spiritseg.evaluation import ImageIoU


def drawn(images: int = 6, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (images, 7, 9), generator=generator)
    labels[0] = labels[0].clamp(max=1)  # classes that are absent
    noise = torch.rand(labels.shape, generator=generator) < torch.linspace(0, 0.5, images).view(
        -1, 1, 1
    )
    predicted = torch.where(noise, 0, labels)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return predicted, labels


def test_values_by_hand() -> None:
    metric = ImageIoU(3)
    labels = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    predicted = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])
    metric.update(predicted, labels)
    # image 0: (1/2 + 2/3) / 2 = 7/12; class 2 is absent. Image 1: 1; classes 1, 2 are absent.
    found = metric.compute()
    assert found["mIOU"].item() == pytest.approx(19 / 24)
    assert found["Var"].item() == pytest.approx((5 / 24) ** 2)  # population, not sample
    assert found["HP-Acc"].item() == 0.5


def test_the_threshold_is_strict() -> None:
    labels, predicted = torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1]]])
    for threshold, share in ((0.375, 0), (0.374, 1)):  # (3/4 + 0) / 2
        metric = ImageIoU(2, threshold=threshold)
        metric.update(predicted, labels)
        assert metric.compute()["HP-Acc"].item() == share


@pytest.mark.parametrize("threshold", [0.75, 0.85])
def test_it_agrees_with_a_loop_in_any_order_and_batches(threshold: float) -> None:
    predicted, labels = drawn()
    mean, precise, variance, each = naive_metrics.image_iou(predicted, labels, 4, threshold)
    assert 0 < precise < 1
    for order, size in ((torch.arange(6), 6), (torch.tensor([4, 0, 5, 2, 1, 3]), 4)):
        metric = ImageIoU(4, threshold)
        for some in torch.split(order, size):
            metric.update(predicted[some], labels[some], index=some)
        found = metric.compute()
        assert found["mIOU"].item() == pytest.approx(mean, rel=1e-12)
        assert found["HP-Acc"].item() == pytest.approx(precise, rel=1e-12)
        assert found["Var"].item() == pytest.approx(variance, rel=1e-10)
        index, values = metric.per_image()
        assert index.tolist() == list(range(6))
        assert values.tolist() == pytest.approx(each, rel=1e-12)


def test_an_index_counts_once() -> None:
    predicted, labels = drawn()
    once, repeated, unnamed = ImageIoU(4), ImageIoU(4), ImageIoU(4)
    once.update(predicted, labels, index=torch.arange(6))
    for some in (torch.tensor([0, 1, 2]), torch.tensor([3, 0, 4]), torch.tensor([5, 0, 1])):
        repeated.update(predicted[some], labels[some], index=some)
        unnamed.update(predicted[some], labels[some])
    assert repeated.compute() == once.compute()
    assert unnamed.compute()["mIOU"] != once.compute()["mIOU"]
    assert unnamed.per_image()[0].tolist() == [-1] * 9


def test_logits_are_resized_bilinearly_then_arg_maxed() -> None:
    labels = drawn(2)[1]
    logits = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(1))
    resized = F.interpolate(logits, (7, 9), mode="bilinear", align_corners=False)
    from_logits, from_maps = ImageIoU(4), ImageIoU(4)
    from_logits.update(logits, labels)
    from_maps.update(resized.argmax(1), labels)
    assert from_logits.compute() == from_maps.compute()
    nearest = ImageIoU(4)
    nearest.update(F.interpolate(logits.argmax(1)[:, None].float(), (7, 9))[:, 0].long(), labels)
    assert nearest.compute() != from_logits.compute()


def test_ignored_pixels_and_images_change_nothing() -> None:
    predicted, labels = drawn()
    other = predicted.clone()
    other[labels == 255] = 3
    first, second = ImageIoU(4), ImageIoU(4)
    first.update(predicted, labels, index=torch.arange(6))
    second.update(other, labels, index=torch.arange(6))
    second.update(other[:1], torch.full((1, 7, 9), 255), index=torch.tensor([6]))
    assert first.compute() == second.compute()
    assert second.per_image()[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_reset_and_reuse() -> None:
    predicted, labels = drawn()
    metric = ImageIoU(4)
    metric.update(predicted, labels)
    before = metric.compute()
    metric.reset()
    metric.update(labels.clamp(max=3), labels)
    assert metric.compute()["mIOU"] == 1
    metric.reset()
    metric.update(predicted, labels)
    assert metric.compute() == before


def test_what_is_wrong_is_named() -> None:
    predicted, labels = drawn()
    metric = ImageIoU(4)
    with pytest.raises(DataError, match=r"labels must lie in 0\.\.3.*got 0\.\.7"):
        metric.update(predicted, torch.where(labels == 3, 7, labels))
    with pytest.raises(DataError, match=r"predictions must lie in 0\.\.3"):
        metric.update(predicted - 1, labels)
    with pytest.raises(DataError, match="label maps of the labels' size"):
        metric.update(predicted[:, 1:], labels)
    with pytest.raises(DataError, match="integer labels"):
        metric.update(predicted, labels.float())
    for index in (torch.arange(5), torch.arange(6) - 1, torch.arange(6.0)):
        with pytest.raises(DataError, match="index >= 0 for each of 6"):
            metric.update(predicted, labels, index=index)
    metric.update(predicted, torch.full_like(labels, 255))
    with pytest.raises(DataError, match="no image with a labelled pixel"):
        metric.compute()
