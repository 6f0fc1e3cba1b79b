"""Whole segmentation networks, unchanged: their own logits, the output of a layer as features."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError, SpiritsegError
from spiritseg.geometry import fit, resize
from spiritseg.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Extractor, Segmenter
from spiritseg.models.tracing import (
    DRY_SIZE,
    drop_unused,
    dry_run,
    join_maps,
    layer,
    recorded,
    strides,
)

__all__ = ["WholeExtractor", "WholeNetwork"]

_USUAL_SPLITS = ("decoder", "backbone")  # smp's and torchvision's
_INSIDE = "extractor.module."


class WholeExtractor(Extractor):
    """A whole network as an extractor: the output of one of its layers is the feature map.

    The layer's output is recorded while the network runs. Where only features are asked for, the
    pass ends as soon as they are there.

    Args:
        module: Normalised images (B, 3, H, W) to logits; see `WholeNetwork`.
        cut_at: Path of a layer inside the module, such as ``backbone`` or ``classifier.cbr``.
            Its first call in a pass counts; several maps are joined (`join_maps`).
        mean: Mean that is subtracted from RGB in [0, 1].
        std: Standard deviation that it is divided by.

    Raises:
        ConfigError: if there is no such layer, or the module fails on a dry run.
    """

    def __init__(
        self,
        module: nn.Module,
        cut_at: str,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(module, 0, 0, mean, std)
        like = next(module.parameters(), torch.zeros(()))
        self._mean, self._std = self._mean.to(like), self._std.to(like)
        self.cut_at = cut_at
        layer(module, cut_at)
        self.channels, dry = self.measured("features")
        self.stride, self.multiple_of = strides(self, join_maps, dry)

    def forward(self, images: Tensor) -> Tensor:
        """Extract features; see `Extractor.forward`."""
        return self.outputs(images, ("features",))["features"]

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs, in one pass, on the grids of their layers.

        Args:
            images: (B, 3, H, W), RGB in [0, 1]; sides that are multiples of `multiple_of`.
            wanted: ``features``, ``logits``, or paths of layers inside the module.
        """
        normalised = self.normalised(images)
        paths = {n: self.cut_at if n == "features" else n for n in wanted if n != "logits"}
        output, noted = None, {}
        if paths:
            stop = "logits" not in wanted
            output, noted = _record(self.module, normalised, {*paths.values()}, stop)
        elif "logits" in wanted:
            output = self.module(normalised)
        found = {name: noted[path] for name, path in paths.items()}
        if "logits" in wanted:
            found["logits"] = _logits(output, self.module)
        return found

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network (`torch.nn.Module.compile`) for passes that give logits alone.

        A layer's output cannot be recorded in compiled code: passes that record one run eagerly.
        """
        self.module.compile(*args, **kwargs)

    def drop_rest(self) -> None:
        """Drop, in place, the layers that the features do not depend on."""
        images = torch.rand(1, 3, *DRY_SIZE, generator=torch.Generator().manual_seed(0))
        drop_unused(self, (images.to(self._mean),))

    def measured(self, wanted: str) -> tuple[int, int]:
        """Return the channels and the stride of an output in a dry run, or refuse the module."""
        name = type(self.module).__name__
        try:
            found = dry_run(self, lambda images: self.outputs(images, (wanted,))[wanted])
        except SpiritsegError:
            raise
        except Exception as error:
            raise ConfigError(
                f"cannot use {name} as a segmentation network: expected it to turn a "
                f"{(1, 3, *DRY_SIZE)} tensor into logits, got {type(error).__name__}: {error}."
            ) from error
        if found.ndim != 4:
            raise ConfigError(
                f"layer {self.cut_at!r} of {name}: expected a map (B, C, h, w), got shape "
                f"{tuple(found.shape)}. Name another layer."
            )
        return int(found.shape[1]), max(1, round(DRY_SIZE[0] / found.shape[-2]))

    def extra_repr(self) -> str:
        """Describe the feature map."""
        return f"{super().extra_repr()}, cut_at={self.cut_at}"


class WholeNetwork(Segmenter):
    """Any network from normalised images to logits as a `Segmenter`, without a change to it.

    Logits are taken from the network's output: a tensor; the first of a list or tuple; of a
    dict, ``out``, ``logits`` or its only tensor. They are resized to the images' (H, W). It
    trains as a whole: there is no separate head.

    Args:
        module: Normalised images (B, 3, H, W) to logits. It sees sides that are multiples of the
            deepest stride inside it, which is found by a dry run.
        cut_at: Path of the layer inside the module whose output is the feature map; empty
            for ``decoder`` or ``backbone``, whichever there is.
        mean: Mean that is subtracted from RGB in [0, 1].
        std: Standard deviation that it is divided by.

    Raises:
        ConfigError: if there is no such layer, or the module does not turn images into logits.
    """

    extractor: WholeExtractor

    def __init__(
        self,
        module: nn.Module,
        cut_at: str = "",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        extractor = WholeExtractor(module, cut_at or _usual_split(module), mean, std)
        super().__init__(extractor, None)
        self.num_classes, dry = extractor.measured("logits")
        _, deepest = strides(module, lambda output: _logits(output, module), dry)
        extractor.multiple_of = math.lcm(extractor.multiple_of, deepest)

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Segment images; see `Segmenter.forward`."""
        fitted = fit(images, self.extractor.multiple_of)
        logits = self.extractor.outputs(fitted, ("logits",))["logits"]
        return resize(logits, size or images.shape[-2:])

    def classify(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Refuse: the layers after the features cannot be run alone."""
        raise ConfigError(
            f"{type(self.extractor.module).__name__} trains as a whole network: it has no head "
            "that could turn features into logits alone. Call it on images, use "
            ".outputs(images, ('features', 'logits')), or give its extractor a head of its own "
            "(head.name: student)."
        )

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs in one pass, or a part of one; see `Segmenter.outputs`.

        Layers have paths such as ``extractor.module.classifier.cbr``.
        """
        paths = {name: self._inside(name) for name in wanted}
        fitted = fit(images, self.extractor.multiple_of)
        found = self.extractor.outputs(fitted, {*paths.values()})
        if "logits" in found:
            found["logits"] = resize(found["logits"], images.shape[-2:])
        return {name: found[path] for name, path in paths.items()}

    def _inside(self, name: str) -> str:
        if name in ("features", "logits"):
            return name
        layer(self, name)
        if not name.startswith(_INSIDE):
            children = ", ".join(n for n, _ in self.extractor.module.named_children())
            raise ConfigError(
                f"layer {name!r}: expected features, logits or {_INSIDE}LAYER, where LAYER is a "
                f"path inside {type(self.extractor.module).__name__}, from: {children}."
            )
        return name.removeprefix(_INSIDE)


# Compiled code would skip the hooks silently.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _record(
    module: nn.Module, images: Tensor, paths: Collection[str], stop: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Run a module once; return its output and those of its layers."""
    output = None
    with recorded(module, paths, stop) as found:
        output = module(images)
    for path in paths:
        if path not in found:
            raise ConfigError(
                f"layer {path!r} of {type(module).__name__} does not run when images are "
                "segmented, so it gives no features. Name another layer."
            )
    return output, found


def _logits(output: Any, module: nn.Module) -> Tensor:
    found = output
    if isinstance(output, Mapping):
        tensors = [v for v in output.values() if isinstance(v, Tensor)]
        only = tensors[0] if len(tensors) == 1 else None
        found = next((output[k] for k in ("out", "logits") if k in output), only)
    elif isinstance(output, list | tuple) and output:
        found = output[0]
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    came = type(output).__name__
    if isinstance(found, Tensor):
        came = f"shape {tuple(found.shape)}"
    elif isinstance(output, Mapping):
        came = f"a dict of {', '.join(map(str, output)) or 'nothing'}"
    raise ConfigError(
        f"{type(module).__name__}: expected logits (B, K, h, w) as a tensor, as the first of a "
        f"list or tuple, or in a dict under out, logits or alone; got {came}. Wrap it in a module "
        "that returns the logits."
    )


def _usual_split(module: nn.Module) -> str:
    children = [name for name, _ in module.named_children()]
    for name in _USUAL_SPLITS:
        if name in children:
            return name
    raise ConfigError(
        f"extractor.cut_at: name the layer of {type(module).__name__} whose output counts as the "
        f"features, got nothing. Its layers: {', '.join(children) or 'none'}, and those within."
    )
