"""Adapters: from a student's layer to the channels of its teacher's, for mimicry alone."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from spiritseg.models.segmenter import Segmenter
from spiritseg.modes import evaluating
from spiritseg.randomness import seeded

__all__ = ["adapter", "layer_channels"]


def adapter(in_channels: int, out_channels: int, seed: int = 0) -> nn.Module:
    """Make a 1x1 projection between layers; it trains beside a student and is then dropped.

    Grids need no adapter: mimicry resizes the student's map to the teacher's.

    Args:
        in_channels: of the student's layer.
        out_channels: of the teacher's.
        seed: of the fresh weights.

    Returns:
        A linear 1x1 convolution, or the identity where the channels agree.
    """
    if in_channels == out_channels:
        return nn.Identity()
    with seeded(seed):
        projection = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.kaiming_normal_(projection.weight, nonlinearity="linear")
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    return projection


def layer_channels(
    network: Segmenter, layers: Collection[str], size: tuple[int, int] = (128, 128)
) -> dict[str, int]:
    """Find out how many channels layers have; the network's state stays as it is.

    Args:
        network: any segmenter.
        layers: as for `Segmenter.outputs`.
        size: (H, W) of the dry run, in pixels.

    Returns:
        Channels by layer.

    Raises:
        ConfigError: a layer that is not there.
    """
    found = {"features": network.extractor.channels} if "features" in layers else {}
    rest = set(layers) - {"features"}
    if not rest:
        return found
    like = next(network.parameters(), torch.zeros(()))
    images = torch.zeros(1, 3, *size, device=like.device)
    with torch.no_grad(), evaluating(network), seeded(0):
        outputs: dict[str, Tensor] = network.outputs(images, rest)
    return found | {name: x.shape[1] for name, x in outputs.items()}
