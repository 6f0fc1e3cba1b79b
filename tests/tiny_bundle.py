"""A small student, and changes of its description: for the tests of bundles and of the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spiritseg.config import Extractor, Head, Network
from spiritseg.models import Segmenter
from spiritseg.models.bundle import BundleInfo, info_digest
from spiritseg.models.networks import build_networks

TINY = Extractor("separable", args={"widths": [8] * 4, "depths": [0] * 3, "out_channels": 8})
NETWORKS = {
    "teacher": Network(TINY, Head("none")),
    "student": Network(
        Extractor("separable", base="teacher", args=TINY.args), Head("student", channels=16)
    ),
}
INFO = BundleInfo(
    networks=NETWORKS,
    network="student",
    classes=("background", "road"),
    colours=((70, 70, 70), (128, 64, 128)),
    pool=2,
    metrics={"test": {"mIOU": 0.5, "worst": float("nan"), "IoU": {"road": 0.25}}},
)


def tiny_network() -> Segmenter:
    """Build the student, with batch-norm statistics other than the initial ones."""
    network = build_networks(NETWORKS, 2, seed=1)["student"]
    with torch.no_grad():
        network(torch.rand(2, 3, 64, 64))
    return network.eval()


def sealed(fields: dict[str, Any], weights: bytes) -> bytes:
    """Write a description with digests that fit, if it has any."""
    digests = fields.get("sha256")
    if isinstance(digests, dict):
        digests["student.safetensors"] = hashlib.sha256(weights).hexdigest()
        digests["student.json"] = info_digest(fields)
    return json.dumps(fields).encode()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a description, and its digests with it."""
    fields = json.loads((folder / "student.json").read_text())
    change(fields)
    weights = (folder / "student.safetensors").read_bytes()
    (folder / "student.json").write_bytes(sealed(fields, weights))
