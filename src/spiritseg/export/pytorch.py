"""PyTorch: runs bundles and runs, writes and runs ``.pt2`` files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import spiritseg
from spiritseg.errors import BundleError
from spiritseg.evaluation.cost import cost
from spiritseg.export.engines import Runtime
from spiritseg.export.metadata import ModelCard, read_sidecar
from spiritseg.export.module import DeployedNetwork, trace
from spiritseg.export.onnx import quiet
from spiritseg.images import Pixels
from spiritseg.student import Student, load

__all__ = ["TorchRuntime", "card_of", "in_torch", "open_bundle", "open_pt2", "write_pt2"]

_SIZE = (512, 1024)  # of the card of a bundle, which takes any size


class TorchRuntime(Runtime):
    """A module whose input and output are what its metadata say."""

    def __init__(self, module: nn.Module, card: ModelCard, path: Path, device: str) -> None:
        super().__init__(card, "torch", path)
        self.module = module
        self.device = torch.device(device)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        with torch.inference_mode():
            whole = np.require(images, requirements=["C", "W"])  # torch wants to own it
            given = torch.from_numpy(whole).to(self.device)
            return cast(NDArray[Any], self.module(given).cpu().numpy())


def open_bundle(
    path: Path, threads: int | None = None, device: str = "cpu", trust: bool = False
) -> TorchRuntime:
    """Open a bundle or a run; see `open_runtime`.

    Raises:
        BundleError: if it is missing, altered, or not a bundle.
        ConfigError: if the device is unknown or absent.
    """
    if threads:
        torch.set_num_threads(threads)
    student = load(path, device, trust)
    return in_torch(student, card_of(student, path.name, _SIZE), path, device)


def in_torch(student: Student, card: ModelCard, path: Path, device: str = "cpu") -> TorchRuntime:
    """Run a student in torch as its export would run.

    Args:
        student: Student; it is moved to the device.
        card: Metadata: preprocessing and output.
        path: Where it came from.
        device: cpu or cuda.
    """
    network = student.network.to(memory_format=torch.channels_last)
    module = DeployedNetwork(network, card.pool, card.preprocess, card.output == "mask")
    return TorchRuntime(module.to(device).eval(), card, path, device)


def open_pt2(
    path: Path, threads: int | None = None, device: str = "cpu", streams: int = 1
) -> TorchRuntime:
    """Open a ``.pt2``, which torch may unpickle; see `spiritseg.export.formats.Opener`."""
    if threads:
        torch.set_num_threads(threads)
    card = read_sidecar(path)  # first: an altered file must not even be opened
    try:
        with warnings.catch_warnings():
            # Some versions of torch warn of a buffer that they only read.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            module = torch.export.load(path).module()
    except Exception as error:  # torch raises whatever it meets
        raise BundleError(f"torch cannot load {path}: {error}") from None
    return TorchRuntime(module, card, path, device)


def write_pt2(
    module: DeployedNetwork, card: ModelCard, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write a ``.pt2`` of torch.export; see `spiritseg.export.formats.Writer`."""
    if card.precision == "fp16":
        module.in_half()
    with quiet():
        torch.export.save(trace(module, card, same_as_operation=card.dynamic), path)
    return [path]


def card_of(student: Student, name: str, size: tuple[int, int]) -> ModelCard:
    """Return the metadata of a student's default export: preprocessing, logits, fp32, open sizes.

    Args:
        student: Student.
        name: Its name.
        size: (H, W) of its images, at which GFLOPs are counted.
    """
    pool = student.info.pool
    pooled = (-(-size[0] // pool), -(-size[1] // pool))
    costs = cost(student.network, pooled)
    digest = hashlib.sha256()
    for key, value in sorted(student.network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return ModelCard(
        name=name,
        classes=student.classes,
        colours=student.info.colours,
        pool=pool,
        preprocess=True,
        output="logits",
        precision="fp32",
        size=size,
        dynamic=True,
        params=costs.params,
        gflops=costs.gflops,
        student_sha256=digest.hexdigest(),
        version=spiritseg.__version__,
    )
