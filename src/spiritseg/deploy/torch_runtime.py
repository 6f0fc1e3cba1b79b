"""A student that torch runs: a bundle, a run, or an exported ``.pt2``."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import spiritseg
from spiritseg.deploy.card import ModelCard, read_sidecar
from spiritseg.deploy.graph import DeployedNetwork
from spiritseg.deploy.runtime import Runtime
from spiritseg.errors import BundleError
from spiritseg.evaluation.cost import cost
from spiritseg.student import Student, load

__all__ = ["TorchRuntime", "card_of", "open_torch"]

_SIZE = (512, 1024)  # of the card of a bundle, which takes any size


class TorchRuntime(Runtime):
    """A module that takes and gives what its card says."""

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


def open_torch(
    path: Path, threads: int | None = None, device: str = "cpu", trust: bool = False
) -> TorchRuntime:
    """Open a bundle, a run or a ``.pt2``; see `open_runtime`.

    Args:
        path: where it is.
        threads: of torch in this process, 1 or more; by default as they are.
        device: cpu or cuda; a .pt2 stays on the CPU.
        trust: import your own classes that a bundle names; open a .pt2.

    Returns:
        The student, ready to run.

    Raises:
        BundleError: it is missing, altered, not of spiritseg, or a .pt2 without trust.
        ConfigError: the device is unknown, or not there.
    """
    if threads:
        torch.set_num_threads(threads)
    if path.suffix == ".pt2":
        if not trust:
            raise BundleError(
                f"{path}: torch may unpickle what a .pt2 holds, which can run code. Pass "
                "trust=True (--trust) if the file is yours; an .onnx needs no trust."
            )
        return TorchRuntime(_load_program(path), read_sidecar(path), path, "cpu")
    student = load(path, device, trust)
    card = card_of(student, path.name, _SIZE)
    network = student.network.to(memory_format=torch.channels_last)
    module = DeployedNetwork(network, card.pool).to(device).eval()
    return TorchRuntime(module, card, path, device)


def card_of(student: Student, name: str, size: tuple[int, int]) -> ModelCard:
    """Describe a student as an export without argmax would.

    Args:
        student: what it is.
        name: how it is called.
        size: (H, W) of its images, which its GFLOPs are counted at.

    Returns:
        The card of an export with preprocessing, float32 and open sizes.
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


def _load_program(path: Path) -> nn.Module:
    read_sidecar(path)  # first: torch must not even open a file that is not as it was written
    try:
        with warnings.catch_warnings():
            # torch's own doing in some versions: it only reads these buffers.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            return torch.export.load(path).module()
    except Exception as error:  # torch raises whatever it stumbles over
        raise BundleError(f"torch cannot load {path}: {error}") from None
