"""The metrics over two processes: a sampler repeats images, a process may have none."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.utils.data import DistributedSampler, TensorDataset
from torchmetrics import Metric

from spiritseg.evaluation import DatasetIoU, ImageIoU
from spiritseg.evaluation.evaluate import ExplainedVariance

IMAGES, CLASSES = 7, 3  # an odd number: two processes repeat one image


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (IMAGES, 6, 8), generator=generator)
    wrong = torch.rand(labels.shape, generator=generator) < torch.linspace(0.6, 0, IMAGES).view(
        -1, 1, 1
    )
    features = torch.randn(2, IMAGES, 2, 3, 3, generator=generator)
    return torch.where(wrong, 0, labels), labels, features


def plain(value: Any) -> Any:
    """Tensors as lists, so that they pass between processes."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else [plain(one) for one in value]


def measured(order: list[int], indexed: bool = True) -> dict[str, Any]:
    """Run every metric over images in batches of two."""
    predicted, labels, features = drawn()
    images, dataset, variance = ImageIoU(CLASSES), DatasetIoU(CLASSES), ExplainedVariance()
    metrics: list[Metric] = [images, dataset, variance]
    for metric in metrics:  # a process without images computes too
        metric._update_count = 1
    for some in torch.split(torch.tensor(order, dtype=torch.int64), 2) if order else ():
        index = some if indexed else None
        images.update(predicted[some], labels[some], index=index)
        dataset.update(predicted[some], labels[some], index=index)
        variance.update(features[0, some], features[1, some])
    return {
        "image": plain(images.compute()),
        "per image": plain(images.per_image()),
        "dataset": plain(dataset.compute()),
        "confusion": plain(dataset.confusion_matrix()),
        "variance": plain(variance.compute()),
    }


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    images = TensorDataset(torch.arange(IMAGES))
    shares: list[int] = list(DistributedSampler(images, 2, rank, shuffle=False))
    found = {
        "sampler": measured(shares),
        "unindexed": measured(shares, indexed=False),
        "lopsided": measured(list(range(IMAGES)) if rank == 1 else []),
    }
    distributed.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=one_process, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0
    alone = measured(list(range(IMAGES)))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in ("image", "dataset"):
            for key, value in alone[name].items():
                assert found["sampler"][name][key] == pytest.approx(value, rel=1e-12)
                assert found["lopsided"][name][key] == pytest.approx(value, rel=1e-12)
        assert found["sampler"]["per image"] == alone["per image"]
        assert found["sampler"]["confusion"] == alone["confusion"]
        assert found["lopsided"]["confusion"] == alone["confusion"]
        assert found["lopsided"]["variance"] == pytest.approx(alone["variance"], rel=1e-12)
        # image 0, the worst, counts twice without its index
        assert found["unindexed"]["image"]["mIOU"] < alone["image"]["mIOU"] - 1e-2
        assert sum(map(sum, found["unindexed"]["confusion"])) == 8 * 6 * 8
