"""The module that is exported: preprocessing, the student, and its answer on the image's grid."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.models.segmenter import Segmenter

__all__ = ["DeployedNetwork", "trace"]


class DeployedNetwork(nn.Module):
    """A student with what stands around it in a car.

    Args:
        network: the student.
        pool: side of the max-pool before it.
        preprocess: take (N, H, W, 3) uint8 RGB, as decoders and cameras give it, and answer
            on that grid. Otherwise take what the network takes, and answer on its grid.
        argmax: answer with the mask (N, H, W) uint8 instead of logits.
        half: compute in float16; input and output keep their types.
    """

    def __init__(
        self,
        network: Segmenter,
        pool: int,
        preprocess: bool = True,
        argmax: bool = False,
        half: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self.preprocess = preprocess
        self.argmax = argmax
        self.half_precision = half

    def forward(self, images: Tensor) -> Tensor:
        """Segment images; see the class for the shapes."""
        size = (images.shape[1], images.shape[2])
        if self.preprocess:
            images = images.permute(0, 3, 1, 2).float() / 255
            if self.pool > 1:
                # Padding with the least value, then whole windows, is the same as ceil_mode,
                # and its output size has no case for odd images, so it exports as it is.
                border = self.pool - 1
                images = F.max_pool2d(F.pad(images, (0, border, 0, border)), self.pool)
        images = images.half() if self.half_precision else images
        if self.preprocess:
            logits = self.network.before_pool(images, self.pool, size)
        else:
            logits = cast(Tensor, self.network(images))
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits.float()


def trace(
    module: DeployedNetwork, size: tuple[int, int], dynamic: bool
) -> torch.export.ExportedProgram:
    """Trace a module with torch.export.

    Args:
        module: in eval mode.
        size: (H, W) of the images that it is traced with.
        dynamic: leave batch, height and width open.

    Returns:
        The program. Conditions that hold for these sizes only become checks in it.
    """
    pool = 1 if module.preprocess else module.pool
    height, width = (-(-side // pool) for side in size)
    count = 2 if dynamic else 1  # torch takes a batch of 1 for a constant
    images = (
        torch.zeros(count, height, width, 3, dtype=torch.uint8)
        if module.preprocess
        else torch.zeros(count, 3, height, width)
    )
    shapes = None
    if dynamic:
        free = torch.export.Dim.DYNAMIC
        axes = (0, 1, 2) if module.preprocess else (0, 2, 3)
        shapes = (dict.fromkeys(axes, free),)
    with torch.no_grad():
        return torch.export.export(
            module,
            (images,),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
