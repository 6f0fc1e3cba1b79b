"""The head in slices is the head."""

from __future__ import annotations

import pytest
import torch

from spiritseg.deploy.sliced_head import SlicedHead, can_be_sliced
from spiritseg.models import student_head


@pytest.mark.parametrize(("channels", "classes"), [(256, 2), (128, 3), (512, 4)])
def test_slices_add_up_to_the_head(channels: int, classes: int) -> None:
    head = student_head(2 * channels, classes, 128, "grouped").train()
    features = torch.randn(2, 2 * channels, 5, 6)
    with torch.no_grad():
        for _ in range(30):
            head(features, (40, 48))  # statistics that a fold must take in
        head.eval()
        wanted = head(features, (39, 47))
        assert can_be_sliced(head)
        found = SlicedHead(head)(features, (39, 47))
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "convolution"),
    [(64, "grouped"), (96, "grouped"), (128, "separable"), (128, "dense")],
)
def test_other_heads_stay_whole(channels: int, convolution: str) -> None:
    assert not can_be_sliced(student_head(256, 2, channels, convolution))  # type: ignore[arg-type]
    assert not can_be_sliced(torch.nn.Identity())
