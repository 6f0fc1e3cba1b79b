"""A network is a Segmenter: an extractor, then a head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError
from spiritseg.geometry import covered, cut, fit
from spiritseg.models.tracing import DRY_SIZE, Maps, dry_run, join_maps, recorded, strides
from spiritseg.options import MAX_CHANNELS
from spiritseg.randomness import seeded

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RGB",
    "Extractor",
    "JoinMaps",
    "Segmenter",
    "adapter",
    "check_counts",
    "layer_channels",
    "project",
]

RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)


class Extractor(nn.Module):
    """Images to one feature map (the paper's AMG and FE).

    Several maps are joined: resized bilinearly to the finest one's grid, concatenated.

    Args:
        module: Normalised images to a feature map, or to a list, tuple or dict of maps.
        channels: C of the (joined) feature map.
        stride: Image pixels per position of the feature map.
        mean: Mean that is subtracted from RGB in [0, 1].
        std: Standard deviation that it is divided by.
        multiple_of: Deepest stride inside the module, in pixels: the sides of its input are
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
        size: tuple[int, int] = DRY_SIZE,
    ) -> Extractor:
        """Make an extractor of any module; dry runs tell its channels and strides.

        Args:
            module: (1, 3, H, W) to one map or several; its state does not change.
            mean: See `Extractor`.
            std: See `Extractor`.
            size: (H, W) of the dry run that tells the channels, in pixels.

        Raises:
            ConfigError: if the module does not turn images into feature maps.
        """
        _, channels, height, _ = _shape(module, size)
        stride, deepest = strides(module, join_maps, max(1, round(size[0] / height)))
        return cls(module, channels, stride, mean, std, deepest)

    def forward(self, images: Tensor) -> Tensor:
        """Extract features.

        Args:
            images: (B, 3, H, W), RGB in [0, 1]; sides that are multiples of `multiple_of`, to
                which `Segmenter.features` brings any others.

        Returns:
            (B, channels, H / stride, W / stride).
        """
        return join_maps(self.module(self.normalised(images)))

    def normalised(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) from [0, 1] to what the module expects."""
        return (images - self._mean) / self._std

    def extra_repr(self) -> str:
        """Describe the feature map."""
        return f"channels={self.channels}, stride={self.stride}"


class Segmenter(nn.Module):
    """Extract, then classify: images to logits. Teacher and student are both this class.

    Images of any size: the extractor sees the nearest multiple of its deepest stride, the logits
    come back on the grid of the images (`spiritseg.geometry`).

    Freezing belongs to a stage of training, never to this module.

    Args:
        extractor: An `Extractor`, a module of your own with `channels` and `stride` (it
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
        # Whatever it is, it has an Extractor's channels and stride, and is called like one.
        self.extractor = cast(Extractor, extractor)
        self.head = head
        if not hasattr(extractor, "multiple_of"):
            _, deepest = strides(extractor, join_maps, self.extractor.stride)
            self.extractor.multiple_of = deepest

    def forward(self, images: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Segment images.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            size: (H', W') of the logits, which cover what the images cover; by default (H, W).

        Returns:
            Logits (B, K, H', W'); ConfigError if the network has no head.
        """
        return self.classify(self.features(images), size or images.shape[-2:])

    def before_pool(self, images: Tensor, pool: int, size: Sequence[int]) -> Tensor:
        """Segment max-pooled images; return logits on the grid of the images before the pool.

        Args:
            images: (B, 3, ceil(H / pool), ceil(W / pool)), RGB in [0, 1].
            pool: Side of the max-pool's windows.
            size: (H, W) of the images before it.

        Returns:
            Logits (B, K, H, W).
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
        """Turn features (B, C, h, w) into logits (B, K, H, W) of a size (H, W)."""
        if self.head is None:
            raise ConfigError(
                "this network is a trunk only: it gives features, not logits. Use "
                ".features(images), or give it a head: Segmenter(extractor, "
                "student_head(extractor.channels, num_classes))."
            )
        return cast(Tensor, self.head(features, size))

    def outputs(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute several outputs in one pass, running no more of the network than they need.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            wanted: ``features`` (the extractor's output), ``logits``, or the path of any
                module inside the network, such as ``head.at_quarter``.

        Returns:
            The outputs by name. Several maps of one layer are joined (`join_maps`).

        Raises:
            ConfigError: if there is no such layer, or logits are wanted and there is no head.
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
    """`join_maps` as a module."""

    def forward(self, maps: Maps) -> Tensor:
        """Join maps."""
        return join_maps(maps)


def project(extractor: nn.Module, out_channels: int, seed: int = 0) -> Extractor:
    """Append a linear 1x1 projection to an extractor, such as to match a teacher's channels.

    Args:
        extractor: An `Extractor`, or any module that `Segmenter` takes for one. It is not
            copied.
        out_channels: Channels of the result, 1 to `MAX_CHANNELS`.
        seed: Random seed for initialisation.

    Returns:
        An extractor of the same stride and normalisation.
    """
    check_counts("project", channels=out_channels)
    mean: Sequence[float] = (0.0, 0.0, 0.0)  # a module of your own normalises by itself
    std: Sequence[float] = (1.0, 1.0, 1.0)
    trunk: nn.Module = Segmenter(extractor, None).extractor  # which knows its strides
    given = cast(Extractor, trunk)
    if isinstance(trunk, Extractor):
        mean, std, trunk = trunk.mean, trunk.std, trunk.module
    module = nn.Sequential(trunk, JoinMaps(), _projection(given.channels, out_channels, seed))
    return Extractor(module, out_channels, given.stride, mean, std, given.multiple_of)


def adapter(in_channels: int, out_channels: int, seed: int = 0) -> nn.Module:
    """Make a 1x1 projection from a student's layer to its teacher's channels, for mimicry alone.

    It trains together with the student and is then dropped. Grids need no adapter: mimicry
    resizes the student's map to the teacher's.

    Returns:
        A linear 1x1 convolution, or the identity where the channels agree.
    """
    if in_channels == out_channels:
        return nn.Identity()
    return _projection(in_channels, out_channels, seed)


def layer_channels(
    network: Segmenter, layers: Collection[str], size: tuple[int, int] = DRY_SIZE
) -> dict[str, int]:
    """Find out how many channels layers have; the network's state does not change.

    Args:
        network: Any segmenter.
        layers: As for `Segmenter.outputs`; ConfigError if there is none.
        size: (H, W) of the dry run, in pixels.
    """
    found = {"features": network.extractor.channels} if "features" in layers else {}
    rest = set(layers) - {"features"}
    if not rest:
        return found
    outputs = dry_run(network, lambda images: network.outputs(images, rest), size)
    return found | {name: x.shape[1] for name, x in outputs.items()}


def check_counts(where: str, least: int = 1, /, **counts: int) -> None:
    """Refuse numbers of channels or classes below `least` or above `MAX_CHANNELS`."""
    for name, value in counts.items():
        if not least <= value <= MAX_CHANNELS:
            wanted = f"of {least} or more" if value < least else f"up to {MAX_CHANNELS}"
            raise ConfigError(f"{where}: expected {name} {wanted}, got {value}.")


def _projection(in_channels: int, out_channels: int, seed: int) -> nn.Conv2d:
    with seeded(seed):
        projection = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.kaiming_normal_(projection.weight, nonlinearity="linear")
        nn.init.zeros_(cast(Tensor, projection.bias))
    return projection


def _rgb(name: str, values: Sequence[float]) -> RGB:
    if len(values) != 3:
        raise ConfigError(f"{name}: expected three values (R, G, B), got {tuple(values)}.")
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _shape(module: nn.Module, size: tuple[int, int]) -> Sequence[int]:
    """Return the shape of a module's feature map, or say why it cannot be an extractor."""
    name = type(module).__name__
    try:
        features = dry_run(module, lambda images: join_maps(module(images)), size)
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
    return cast(Sequence[int], features.shape)
