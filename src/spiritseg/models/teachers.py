"""Pretrained networks by name, and where each is split into an extractor and a head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import nn

from spiritseg.errors import ConfigError, unknown
from spiritseg.models.backbones import LITES, backbone, backbone_splits, lite
from spiritseg.models.class_path import construct, load_file
from spiritseg.models.heads import ResizedHead
from spiritseg.models.segmenter import Extractor, Segmenter
from spiritseg.models.weights import (
    State,
    fetch_torchvision,
    fit_weights,
    is_file,
    read_weights,
)
from spiritseg.models.whole import trunk_of
from spiritseg.randomness import seeded

__all__ = ["TEACHERS", "Teacher", "splits", "teacher"]

T = TypeVar("T")


@dataclass(frozen=True)
class Teacher:
    """How a network is made, and where it can be split.

    Args:
        build: (weights, split, strides, args) to a `Segmenter`.
        splits: names of the legal splits.
    """

    build: Callable[[str | None, str, Sequence[int], dict[str, Any]], Segmenter]
    splits: Callable[[], list[str]]


def teacher(
    name: str,
    weights: str | None = None,
    *,
    split: str = "",
    strides: Sequence[int] = (),
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    **kw: Any,
) -> Segmenter:
    """Make a network to distil from.

    Args:
        name: deeplabv3_resnet50, vgg16, efficientnet_lite0 to 2, ``timm:MODEL``, or the class
            path of a module, your own or a library's (``package.module.Class``).
        weights: None for fresh ones; "pretrained" for the network's usual ones; a name of the
            library's (``COCO_WITH_VOC_LABELS_V1``); or a .pth or .safetensors file, whose keys
            must fit exactly (DeepLab's ``aux_classifier.*`` and layers after the split may be
            there beyond).
        split: where extractor and head part; empty for the usual place. `splits` lists them.
            For a class path: the layer whose output is the feature map, if not the module's.
        strides: strides of the maps that a timm backbone joins; empty for 8 and 16.
        seed: of fresh weights.
        args: arguments of the network's constructor, such as num_classes of DeepLab.
        **kw: the same, as keywords.

    Returns:
        The network in eval mode with requires_grad off. Its head is its own where it has
        one: DeepLab's layers after the split; otherwise it is a trunk only.

    Raises:
        ConfigError: an unknown name, split or stride.
        WeightsError: the weights do not fit, or cannot be had.
        MissingExtraError: the package with the weights is not installed.
    """
    entry = _find(name)
    with seeded(seed):
        network = entry.build(weights, split, tuple(strides), {**(args or {}), **kw})
    return network.eval().requires_grad_(False)


def splits(name: str) -> list[str]:
    """Return where a network can be split, from the image on; for timm, module names."""
    with seeded(0):
        return _find(name).splits()


def _find(name: str) -> Teacher:
    if name in TEACHERS:
        return TEACHERS[name]
    if name.startswith("timm:"):
        model = name.removeprefix("timm:")
        return Teacher(partial(_timm, model), lambda: backbone_splits(model))
    if "." in name:
        return Teacher(partial(_own, name), list)
    hint = "Or a class path such as package.module.Class."
    raise ConfigError(unknown("network", name, [*TEACHERS, "timm:MODEL"], hint))


# DeepLabV3-ResNet50 ------------------------------------------------------------------------

_RESNET_STEM = ("conv1", "bn1", "relu", "maxpool")
# The last two stages are dilated, so that the stride stays 8.
_RESNET_SPLITS = {"layer1": (256, 4), "layer2": (512, 8), "layer3": (1024, 8), "layer4": (2048, 8)}


def _deeplab(
    weights: str | None, split: str, strides: Sequence[int], args: dict[str, Any]
) -> Segmenter:
    split = split or "layer4"
    channels, stride = _at("deeplabv3_resnet50", split, strides, _RESNET_SPLITS)
    whole = _deeplab_whole(args)
    if weights is not None:
        _load_deeplab(whole, weights)
    names = [*_RESNET_STEM, *_RESNET_SPLITS]
    cut = names.index(split) + 1
    trunk = nn.Sequential(OrderedDict((n, whole.backbone[n]) for n in names[:cut]))
    rest = OrderedDict((n, whole.backbone[n]) for n in names[cut:])
    head = nn.Sequential(OrderedDict(**rest, classifier=whole.classifier))
    deepest = max(of_stride for _, of_stride in _RESNET_SPLITS.values())  # the head's layers too
    return Segmenter(Extractor(trunk, channels, stride, multiple_of=deepest), ResizedHead(head))


def _deeplab_whole(args: dict[str, Any]) -> Any:
    from torchvision.models.segmentation import deeplabv3_resnet50

    _only("deeplabv3_resnet50", args, ("num_classes",))
    return deeplabv3_resnet50(
        weights=None, weights_backbone=None, aux_loss=False, num_classes=args.get("num_classes", 21)
    )


def _load_deeplab(whole: Any, weights: str) -> None:
    from torchvision.models import ResNet50_Weights
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    heads, trunks = DeepLabV3_ResNet50_Weights.__members__, ResNet50_Weights.__members__
    if is_file(weights):
        fit_weights(whole, read_weights(weights), weights, _is_aux)
    elif weights in trunks:  # ImageNet: the trunk only, the head stays fresh
        state = fetch_torchvision(trunks, weights)
        fit_weights(whole.backbone, state, weights, lambda key: key.startswith("fc."))
    else:
        name = "COCO_WITH_VOC_LABELS_V1" if weights == "pretrained" else weights
        choices = {**heads, **trunks}
        fit_weights(whole, fetch_torchvision(choices, name), name, _is_aux)


def _is_aux(key: str) -> bool:
    return key.startswith("aux_classifier.")


# VGG16 -------------------------------------------------------------------------------------

_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _vgg_layers() -> tuple[nn.Sequential, dict[str, tuple[int, int, int]]]:
    """Make VGG16's features; name each legal split: (layers up to it, channels, stride)."""
    layers: list[nn.Module] = []
    places: dict[str, tuple[int, int, int]] = {}
    channels = 3
    for block, widths in enumerate(_VGG_WIDTHS, start=1):
        for index, width in enumerate(widths, start=1):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.constant_(conv.bias, 0.0)  # type: ignore[arg-type]
            layers += [conv, nn.ReLU(inplace=True)]
            channels = width
            places[f"conv{block}_{index}"] = (len(layers), width, 2 ** (block - 1))
        layers.append(nn.MaxPool2d(2, 2))
        places[f"pool{block}"] = (len(layers), channels, 2**block)
    return nn.Sequential(*layers), places


def _vgg16(
    weights: str | None, split: str, strides: Sequence[int], args: dict[str, Any]
) -> Segmenter:
    _only("vgg16", args, ())
    features, places = _vgg_layers()
    cut, channels, stride = _at("vgg16", split or "conv4_3", strides, places)
    trunk = features[:cut]
    if weights is not None:
        whole = set(features.state_dict())
        state = {k.removeprefix("features."): v for k, v in _vgg_weights(weights).items()}
        fit_weights(trunk, state, weights, lambda k: k in whole or k.startswith("classifier."))
    return Segmenter(Extractor(trunk, channels, stride), None)


def _vgg_weights(weights: str) -> State:
    from torchvision.models import VGG16_Weights

    if is_file(weights):
        return read_weights(weights)
    # IMAGENET1K_FEATURES is left out: it wants another normalisation.
    name = "IMAGENET1K_V1" if weights == "pretrained" else weights
    return fetch_torchvision({"IMAGENET1K_V1": VGG16_Weights.IMAGENET1K_V1}, name)


# Backbones and modules of your own ----------------------------------------------------------


def _lite(
    name: str, weights: str | None, split: str, strides: Sequence[int], args: dict[str, Any]
) -> Segmenter:
    return Segmenter(lite(name, weights, split, strides, args), None)


def _timm(
    model: str, weights: str | None, split: str, strides: Sequence[int], args: dict[str, Any]
) -> Segmenter:
    return Segmenter(backbone(model, weights, split, strides, args), None)


def _own(
    path: str, weights: str | None, split: str, strides: Sequence[int], args: dict[str, Any]
) -> Segmenter:
    if strides:
        raise ConfigError(
            f"{path} is given by its class and takes no strides, got {list(strides)}. Cut it at a "
            "layer (split), or in its constructor (args)."
        )
    module = construct(path, args)
    if weights is not None:
        load_file(module, path, weights)
    if isinstance(module, Segmenter):
        if split:
            raise ConfigError(
                f"{path} is a Segmenter and says itself where its features come from, got the "
                f"split {split!r}. Leave it empty."
            )
        return module
    return Segmenter(trunk_of(module, split) if split else module, None)


def _at(name: str, split: str, strides: Sequence[int], places: Mapping[str, T]) -> T:
    if strides:
        raise ConfigError(
            f"{name} is cut by split, not by strides, got strides {list(strides)}. "
            f"Legal splits: {', '.join(places)}."
        )
    if split not in places:
        raise ConfigError(
            f"{name} cannot be split at {split!r}. Legal splits: {', '.join(places)}."
        )
    return places[split]


def _only(name: str, args: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in args:
        if key not in allowed:
            takes = ", ".join(allowed) or "none"
            raise ConfigError(f"{name} takes no argument {key!r}. It takes: {takes}.")


TEACHERS: dict[str, Teacher] = {
    "deeplabv3_resnet50": Teacher(_deeplab, lambda: list(_RESNET_SPLITS)),
    "vgg16": Teacher(_vgg16, lambda: list(_vgg_layers()[1])),
    **{
        name: Teacher(partial(_lite, name), partial(backbone_splits, model))
        for name, model in LITES.items()
    },
}
