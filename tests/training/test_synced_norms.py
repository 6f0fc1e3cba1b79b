"""Synchronised batch norm against torch's own, on one process."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import distributed, nn

from spiritseg.training.synced_norms import SyncedNorms


@pytest.fixture(autouse=True)
def _one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d])
def test_one_process_is_plain_batch_norm(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain = make(5).double()
    nn.init.normal_(plain.weight)  # type: ignore[arg-type]
    synced = copy.deepcopy(plain)
    ours, theirs = (torch.randn(3, 5, 4, 6, dtype=torch.float64) * 3 + 1 for _ in range(2))
    theirs = ours.clone().requires_grad_()
    ours.requires_grad_()
    with SyncedNorms():
        found = synced(ours)
    wanted = plain(theirs)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for one, other in zip(synced.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    for a, b in zip(synced.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_frozen_norms_are_left_alone() -> None:
    norm = nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4)
    with SyncedNorms():
        assert torch.equal(norm(x), nn.BatchNorm2d(3).eval()(x))
