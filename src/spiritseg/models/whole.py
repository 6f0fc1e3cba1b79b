"""Whole segmentation networks of others, used as they are: torchvision's, smp's, your own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError, SpiritsegError
from spiritseg.geometry import fit, resize
from spiritseg.models.class_path import construct, load_file
from spiritseg.models.graph import drop_unused
from spiritseg.models.segmenter import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Extractor,
    Segmenter,
    join_maps,
    layer,
)
from spiritseg.models.strides import dry_strides
from spiritseg.modes import evaluating
from spiritseg.randomness import seeded

__all__ = [
    "WholeExtractor",
    "WholeNetwork",
    "trunk_of",
    "whole_network",
]

_USUAL_SPLITS = ("decoder", "backbone")  # smp's and torchvision's
_INSIDE = "extractor.module."
_DRY_SIZE = (128, 128)


class WholeExtractor(Extractor):
    """A whole network as an extractor: what one of its layers gives counts as the features.

    The layer's output is noted while the network runs. Where only features are asked for, the
    pass ends as soon as they are there.

    Args:
        module: normalised images (B, 3, H, W) to logits; see `WholeNetwork`.
        split: path of a layer inside the module, such as ``backbone`` or ``classifier.cbr``.
            Its first call in a pass counts; several maps are joined (`join_maps`).
        mean: subtracted from RGB in [0, 1].
        std: divided by.

    Raises:
        ConfigError: an unknown layer, or a module that the dry run cannot use so.
    """

    def __init__(
        self,
        module: nn.Module,
        split: str,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__(module, 0, 0, mean, std)
        like = next(module.parameters(), torch.zeros(()))
        self._mean, self._std = self._mean.to(like), self._std.to(like)
        self.split = split
        layer(module, split)
        self.channels = self.dry_run("features").shape[1]
        self.stride, self.multiple_of = dry_strides(self, join_maps, _DRY_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """Extract features.

        Args:
            images: (B, 3, H, W), RGB in [0, 1]; sides that are multiples of `multiple_of`.

        Returns:
            (B, channels, H / stride, W / stride).
        """
        return self.outputs(images, ("features",))["features"]

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs in one pass of the network, or in a part of one.

        Args:
            images: (B, 3, H, W), RGB in [0, 1]; sides that are multiples of `multiple_of`.
            wanted: ``features``, ``logits``, or paths of layers inside the module.

        Returns:
            The outputs by name, all of them on the grids of their layers.
        """
        normalised = (images - self._mean) / self._std
        paths = {n: self.split if n == "features" else n for n in wanted if n != "logits"}
        output, noted = None, {}
        if paths:
            output, noted = _noted(self.module, normalised, {*paths.values()}, "logits" in wanted)
        elif "logits" in wanted:
            output = self.module(normalised)
        found = {name: noted[path] for name, path in paths.items()}
        if "logits" in wanted:
            found["logits"] = _logits(output, self.module)
        return found

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network (`torch.nn.Module.compile`) for passes that give logits alone.

        A layer's output cannot be noted in compiled code: passes that note one run as they are.
        """
        self.module.compile(*args, **kwargs)

    def drop_rest(self) -> None:
        """Drop, in place, the layers that the features do not depend on."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(1, 3, *_DRY_SIZE, generator=generator)
        drop_unused(self, (images.to(self._mean),))

    def dry_run(self, wanted: str) -> Tensor:
        """Return an output for a black image; the module's state stays as it is.

        Raises:
            ConfigError: the module does not turn images into logits, or the layer not into maps.
        """
        images = self._mean.new_zeros(1, 3, *_DRY_SIZE)
        name = type(self.module).__name__
        try:
            with torch.no_grad(), seeded(0), evaluating(self.module):
                found = self.outputs(images, (wanted,))[wanted]
        except SpiritsegError:
            raise
        except Exception as error:
            raise ConfigError(
                f"cannot use {name} as a segmentation network: expected it to turn a "
                f"{tuple(images.shape)} tensor into logits, got {type(error).__name__}: {error}."
            ) from error
        if found.ndim != 4:
            raise ConfigError(
                f"layer {self.split!r} of {name}: expected a map (B, C, h, w), got shape "
                f"{tuple(found.shape)}. Name another one."
            )
        return found

    def extra_repr(self) -> str:
        """Say what the feature map is."""
        return f"{super().extra_repr()}, split={self.split}"


class WholeNetwork(Segmenter):
    """Any network from normalised images to logits as a `Segmenter`, without a change to it.

    Logits are taken from what the network gives: a tensor; the first of a list or tuple; of a
    dict, ``out``, ``logits`` or its only tensor. They are brought to the images' (H, W). It
    trains as a whole: there is no head apart from it.

    Args:
        module: normalised images (B, 3, H, W) to logits. It sees sides that are multiples of the
            deepest stride inside it, which is found by a dry run.
        split: path of the layer inside the module whose output counts as the features; empty
            for ``decoder`` or ``backbone``, whichever there is.
        mean: subtracted from RGB in [0, 1].
        std: divided by.

    Raises:
        ConfigError: an unknown layer, or a module that does not turn images into logits.
    """

    extractor: WholeExtractor

    def __init__(
        self,
        module: nn.Module,
        split: str = "",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        split = split or _usual_split(module)
        extractor = WholeExtractor(module, split, mean, std)
        super().__init__(extractor, None)
        self.num_classes = extractor.dry_run("logits").shape[1]
        _, deepest = dry_strides(module, lambda output: _logits(output, module), _DRY_SIZE)
        extractor.multiple_of = math.lcm(extractor.multiple_of, deepest)

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Segment images.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            size: (H', W') of the logits, which cover what the images cover; by default (H, W).

        Returns:
            Logits (B, K, H', W').
        """
        fitted = fit(images, self.extractor.multiple_of)
        logits = self.extractor.outputs(fitted, ("logits",))["logits"]
        return resize(logits, size or images.shape[-2:])

    def classify(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Refuse: the layers after the features cannot be run alone.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{type(self.extractor.module).__name__} trains as a whole network: it has no head "
            "that could turn features into logits alone. Call it on images, use "
            ".outputs(images, ('features', 'logits')), or give its extractor a head of its own "
            "(head.name: student)."
        )

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs in one pass of the network, or in a part of one.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            wanted: ``features`` (the output of the layer `split`), ``logits``, or the path of
                any layer, such as ``extractor.module.classifier.cbr``.

        Returns:
            The outputs by name. Several maps of one layer are joined (`join_maps`).

        Raises:
            ConfigError: a layer that is not there, or that a pass does not reach.
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


def whole_network(
    path: str,
    num_classes: int,
    weights: str | None = None,
    split: str = "",
    args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Segmenter:
    """Make a network with its own logits from its class path.

    Args:
        path: of a class or a function that makes an nn.Module, such as
            ``torchvision.models.segmentation.lraspp_mobilenet_v3_large`` or
            ``segmentation_models_pytorch.Unet``. One that makes a `Segmenter` (`WholeNetwork`
            with another normalisation, for instance) is taken as it is.
        num_classes: K; fills a parameter ``num_classes`` or ``classes`` that `args` leave out.
        weights: None for fresh ones, or the path of a .pth or .safetensors file.
        split: see `WholeNetwork`.
        args: of the constructor. The three libraries' own weights are fetched only where
            asked for here: ``weights_backbone``, ``encoder_weights`` and the like.
        seed: of the fresh weights.

    Returns:
        The network.

    Raises:
        ConfigError: a path, arguments or a layer that do not exist.
        WeightsError: weights that do not fit, or cannot be had.
    """
    with seeded(seed):
        module = construct(path, args or {}, num_classes)
    if weights is not None:
        load_file(module, path, weights)
    if isinstance(module, Segmenter):
        if split:
            raise ConfigError(
                f"extractor.split: {path} is a Segmenter and says itself where its features "
                f"come from, got {split!r}. Leave it empty."
            )
        return module
    return WholeNetwork(module, split)


def trunk_of(module: nn.Module, split: str) -> Extractor:
    """Cut a network after one of its layers; what runs later is dropped.

    Args:
        module: normalised images to anything; it is taken, not copied.
        split: path of the layer whose output is the feature map.

    Raises:
        ConfigError: an unknown layer.
    """
    extractor = WholeExtractor(module, split)
    extractor.drop_rest()
    return extractor


# Passes ------------------------------------------------------------------------------------


class _EnoughError(Exception):
    """Everything that was wanted is there; the rest of the pass is not needed."""


# Compiled code would pass the hooks over in silence.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _noted(
    module: nn.Module, images: Tensor, paths: Collection[str], to_the_end: bool
) -> tuple[Any, dict[str, Tensor]]:
    """Run a module once; return its output and those of its layers, which nothing keeps."""
    found: dict[str, Tensor] = {}
    output = None

    def note(path: str, part: nn.Module, inputs: Any, maps: Any) -> None:
        if path in found:
            return
        found[path] = join_maps(maps)
        if not to_the_end and len(found) == len(paths):
            raise _EnoughError
        # What comes next may write into it (in-place activations).
        found[path] = found[path].clone()

    hooks = [layer(module, path).register_forward_hook(partial(note, path)) for path in paths]
    try:
        with torch.compiler.set_stance("force_eager"):
            output = module(images)
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    for path in paths:
        if path not in found:
            raise ConfigError(
                f"layer {path!r} of {type(module).__name__} does not run when images are "
                "segmented, so it gives no features. Name another one."
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
        "of your own that returns the logits."
    )


def _usual_split(module: nn.Module) -> str:
    children = [name for name, _ in module.named_children()]
    for name in _USUAL_SPLITS:
        if name in children:
            return name
    raise ConfigError(
        f"extractor.split: name the layer of {type(module).__name__} whose output counts as the "
        f"features, got nothing. Its layers: {', '.join(children) or 'none'}, and those within."
    )
