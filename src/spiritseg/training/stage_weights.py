"""The weights of a finished stage: written with a digest, checked when they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from spiritseg.errors import DivergedError
from spiritseg.models import Segmenter

__all__ = ["NETWORK", "load_state", "refuse_not_finite", "state_bytes"]

NETWORK = "network.safetensors"


def state_bytes(network: Segmenter) -> bytes:
    """Return a network's weights and buffers as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})


def load_state(network: Segmenter, folder: Path, report: dict[str, Any]) -> str:
    """Take a finished stage's weights; return what is amiss with them, or nothing.

    Stages of the first version have no digest: their weights must only fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    try:
        data = (folder / NETWORK).read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if report.get("sha256", hashlib.sha256(data).hexdigest()) != hashlib.sha256(data).hexdigest():
        return "is not the file that was written"
    try:
        network.load_state_dict(load_tensors(data))
    except (SafetensorError, RuntimeError):
        return "holds the weights of another network, or none"
    return ""


def refuse_not_finite(network: Segmenter, stage: str) -> None:
    """Raise `DivergedError` if weights or buffers are not finite."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DivergedError(
                f"stage {stage!r} has ended with values in {name} that are not finite; they are "
                f"not saved. Lower stages.{stage}.optimizer.lr, or check the teacher's weights."
            )
