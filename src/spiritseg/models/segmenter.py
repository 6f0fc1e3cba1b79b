"""A network is a Segmenter: an extractor, then a head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError, unknown
from spiritseg.geometry import covered, cut, fit, resize
from spiritseg.models.strides import dry_strides, meta_strides
from spiritseg.modes import evaluating
from spiritseg.randomness import seeded

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Extractor",
    "JoinMaps",
    "Segmenter",
    "join_maps",
    "layer",
]

RGB = tuple[float, float, float]
Maps = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


class Extractor(nn.Module):
    """Images to one feature map (the paper's AMG and FE).

    Several maps are joined: resized bilinearly to the finest one's grid, concatenated.

    Args:
        module: normalised images to a feature map, or to a list, tuple or dict of maps.
        channels: C of the (joined) feature map.
        stride: image pixels per position of it.
        mean: what the module expects to be subtracted from RGB in [0, 1].
        std: what it expects to be divided by.
        multiple_of: deepest stride inside the module, in pixels: the sides of its input are
            multiples of this (`spiritseg.geometry`); 0 for `stride`.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        module: nn.Module,
        channels: int,
        stride: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        multiple_of: int = 0,
    ) -> None:
        super().__init__()
        if multiple_of < 0:
            raise ConfigError(f"multiple_of: expected 0 or more pixels, got {multiple_of}.")
        self.module = module
        self.channels = channels
        self.stride = stride
        self.multiple_of = multiple_of or stride
        self.mean = _rgb("mean", mean)
        self.std = _rgb("std", std)
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def wrap(
        cls,
        module: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        size: tuple[int, int] = (128, 128),
    ) -> Extractor:
        """Make an extractor of any module; dry runs tell its channels and strides.

        Args:
            module: (1, 3, H, W) to one map or several; its state stays as it is.
            mean: see `Extractor`.
            std: see `Extractor`.
            size: (H, W) of the dry run that tells the channels, in pixels.

        Returns:
            The module as an extractor.

        Raises:
            ConfigError: the module does not turn images into feature maps.
        """
        features = _dry_run(module, size)
        stride, deepest = dry_strides(module, join_maps, size)
        return cls(module, features.shape[1], stride, mean, std, deepest)

    def forward(self, images: Tensor) -> Tensor:
        """Extract features.

        Args:
            images: (B, 3, H, W), RGB in [0, 1]; sides that are multiples of `multiple_of`, to
                which `Segmenter.features` brings any others.

        Returns:
            (B, channels, H / stride, W / stride).
        """
        normalised = (images - self._mean) / self._std
        return join_maps(self.module(normalised))

    def extra_repr(self) -> str:
        """Say what the feature map is."""
        return f"channels={self.channels}, stride={self.stride}"


class Segmenter(nn.Module):
    """Extract, then classify: images to logits. Teacher and student are both this class.

    Images of any size: the extractor sees the nearest multiple of its deepest stride, the logits
    come back on the grid of the images (`spiritseg.geometry`).

    Freezing belongs to a stage of training, never to this module.

    Args:
        extractor: an `Extractor`, a module of your own with `channels` and `stride` (it
            gets images in [0, 1] and normalises them itself; sides are multiples of its
            `multiple_of`, or of the deepest stride found in it), or any other module, which
            is wrapped with ImageNet's normalisation (`Extractor.wrap`).
        head: (features, (H, W)) to logits of that size (the paper's TH and SH); None for
            a trunk only.
    """

    def __init__(self, extractor: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        if not (hasattr(extractor, "channels") and hasattr(extractor, "stride")):
            extractor = Extractor.wrap(extractor)
        # Whatever stands here has an Extractor's channels and stride, and is called like one.
        self.extractor = cast(Extractor, extractor)
        self.head = head
        if not hasattr(extractor, "multiple_of"):
            found = meta_strides(extractor, join_maps)
            self.extractor.multiple_of = found[1] if found else self.extractor.stride

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Segment images.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            size: (H', W') of the logits, which cover what the images cover; by default (H, W).

        Returns:
            Logits (B, K, H', W').

        Raises:
            ConfigError: the network has no head.
        """
        return self.classify(self.features(images), size or images.shape[-2:])

    def before_pool(self, images: Tensor, pool: int, size: Sequence[int]) -> Tensor:
        """Segment max-pooled images; return logits on the grid of the images before the pool.

        Args:
            images: (B, 3, ceil(H / pool), ceil(W / pool)), RGB in [0, 1].
            pool: side of the max-pool's windows.
            size: (H, W) of the images before it.

        Returns:
            Logits (B, K, H, W).

        Raises:
            ConfigError: the network has no head.
        """
        return cut(self(images, covered(images.shape[-2:], pool)), size)

    def features(self, images: Tensor) -> Tensor:
        """Extract features from images (B, 3, H, W) in [0, 1].

        Returns:
            (B, C, h, w) with h x w = (H', W') / stride, where (H', W') is the multiple of
            `extractor.multiple_of` that is nearest to (H, W).
        """
        return cast(Tensor, self.extractor(fit(images, self.extractor.multiple_of)))

    def classify(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Turn features (B, C, h, w) into logits (B, K, H, W) of a size (H, W).

        Raises:
            ConfigError: the network has no head.
        """
        if self.head is None:
            raise ConfigError(
                "this network is a trunk only: it gives features, not logits. Use "
                ".features(images), or give it a head: Segmenter(extractor, "
                "student_head(extractor.channels, num_classes))."
            )
        return cast(Tensor, self.head(features, size))

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs in one pass, and no more of the network than they need.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            wanted: ``features`` (the extractor's output), ``logits``, or the path of any
                module inside the network, such as ``head.at_quarter``.

        Returns:
            The outputs by name. Several maps of one layer are joined (`join_maps`).

        Raises:
            ConfigError: a layer that is not there, or logits of a network without a head.
        """
        layers = [name for name in wanted if name not in ("features", "logits")]
        with recorded(self, layers) as found:
            features = self.features(images)
            if "features" in wanted:
                found["features"] = features
            if "logits" in wanted or any(not name.startswith("extractor.") for name in layers):
                found["logits"] = self.classify(features, images.shape[-2:])
        return {name: found[name] for name in wanted}


class JoinMaps(nn.Module):
    """Several maps as one, as a module; see `join_maps`."""

    def forward(self, maps: Maps) -> Tensor:
        """Join maps."""
        return join_maps(maps)


def join_maps(maps: Maps) -> Tensor:
    """Resize maps bilinearly to the finest grid and concatenate their channels.

    Args:
        maps: one map (B, C, h, w), or several in a list, tuple or dict.

    Returns:
        (B, sum of C, h, w) on the finest grid.
    """
    if isinstance(maps, Tensor):
        return maps
    several = list(maps.values()) if isinstance(maps, Mapping) else list(maps)
    if len(several) == 1:
        return several[0]
    size = max((m.shape[-2:] for m in several), key=lambda s: s[0])
    return torch.cat([m if m.shape[-2:] == size else resize(m, size) for m in several], dim=1)


@contextmanager
def recorded(network: nn.Module, layers: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """Note the outputs of layers in whatever runs inside the block.

    Args:
        network: that has the layers.
        layers: paths of modules inside it.

    Yields:
        The outputs by path, as they come.

    Raises:
        ConfigError: a layer that is not there.
    """
    found: dict[str, Tensor] = {}
    hooks = [layer(network, path).register_forward_hook(_note(found, path)) for path in layers]
    # Code that an earlier stage compiled would pass the hooks over in silence.
    eager = torch.compiler.set_stance("force_eager") if hooks else nullcontext()
    try:
        with eager:
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def layer(network: nn.Module, path: str) -> nn.Module:
    """Find a module inside a network by its path.

    Raises:
        ConfigError: there is none; the message lists what there is at that place.
    """
    here = network
    walked: list[str] = []
    for name in path.split("."):
        children = dict(here.named_children())
        if name not in children:
            kind = f"layer of {'.'.join(walked) or type(network).__name__}"
            raise ConfigError(f"layer {path!r}: {unknown(kind, name, children)}")
        here = children[name]
        walked.append(name)
    return here


def _note(found: dict[str, Tensor], path: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Maps) -> None:
        # A copy: an in-place activation behind the layer would change what was noted.
        found[path] = join_maps(output).clone()

    return hook


def _rgb(name: str, values: Sequence[float]) -> RGB:
    if len(values) != 3:
        raise ConfigError(f"{name}: expected three values (R, G, B), got {tuple(values)}.")
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _dry_run(module: nn.Module, size: tuple[int, int]) -> Tensor:
    like = next(module.parameters(), torch.zeros(()))
    images = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    name = type(module).__name__
    try:
        with torch.no_grad(), evaluating(module), seeded(0):
            features = join_maps(module(images))
    except Exception as error:
        raise ConfigError(
            f"cannot use {name} as an extractor: expected it to turn a (1, 3, {size[0]}, "
            f"{size[1]}) tensor into one feature map or a list of them, got "
            f"{type(error).__name__}: {error}. Give the module `channels` and `stride` "
            "attributes, or make Extractor(module, channels, stride) yourself."
        ) from error
    if features.ndim != 4:
        raise ConfigError(
            f"cannot use {name} as an extractor: expected feature maps (B, C, h, w), got shape "
            f"{tuple(features.shape)}. Cut the network before its pooling and classifier."
        )
    return features
