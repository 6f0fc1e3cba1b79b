"""torchvision's DeepLabV3-ResNet50, and the features of its VGG16."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn

from spiritseg.errors import ConfigError, WeightsError, unknown
from spiritseg.models.entries import Request, Source
from spiritseg.models.heads import ResizedHead
from spiritseg.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Extractor, Segmenter
from spiritseg.models.weights import State, fit_weights, is_file, read_weights

__all__ = ["DEEPLAB", "VGG16"]

T = TypeVar("T")


def _fetch(choices: Mapping[str, Any], name: str) -> State:
    """Get weights from one of torchvision's enums, downloaded once and checked by their hash."""
    if name not in choices:
        hint = "Or pass a .pth or .safetensors file."
        raise WeightsError(unknown("weights", name, [*choices, "pretrained"], hint))
    try:
        state = choices[name].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"cannot download the weights {name}: {error}. Get {choices[name].url} in another way "
            "and pass its path as weights."
        ) from error
    return cast(State, state)


# DeepLabV3-ResNet50 ------------------------------------------------------------------------

_RESNET_STEM = ("conv1", "bn1", "relu", "maxpool")
# The last two stages are dilated, so that the stride stays 8.
_RESNET_SPLITS = {"layer1": (256, 4), "layer2": (512, 8), "layer3": (1024, 8), "layer4": (2048, 8)}

# ResNet-50's own weights: they leave the head randomly initialised.
_TRUNK_WEIGHTS = ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2")
_USUAL = "COCO_WITH_VOC_LABELS_V1"


def _deeplab(request: Request) -> Segmenter:
    cut_at = request.cut_at or "layer4"
    channels, stride = _at(request, cut_at, _RESNET_SPLITS)
    whole = _deeplab_whole(request)
    if request.weights is not None:
        _load_deeplab(whole, request.weights)
    names = [*_RESNET_STEM, *_RESNET_SPLITS]
    cut = names.index(cut_at) + 1
    trunk = nn.Sequential(OrderedDict((n, whole.backbone[n]) for n in names[:cut]))
    rest = OrderedDict((n, whole.backbone[n]) for n in names[cut:])
    head = nn.Sequential(OrderedDict(**rest, classifier=whole.classifier))
    deepest = max(of_stride for _, of_stride in _RESNET_SPLITS.values())  # the head's layers too
    return Segmenter(Extractor(trunk, channels, stride, multiple_of=deepest), ResizedHead(head))


def _deeplab_whole(request: Request) -> Any:
    from torchvision.models.segmentation import deeplabv3_resnet50

    _only(request, ("num_classes",))
    trained = request.weights in ("pretrained", _USUAL)
    num_classes = 21 if trained or request.num_classes is None else request.num_classes
    args = {"num_classes": num_classes, **request.args}
    return deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False, **args)


def _load_deeplab(whole: Any, weights: str) -> None:
    from torchvision.models import ResNet50_Weights
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    heads, trunks = DeepLabV3_ResNet50_Weights.__members__, ResNet50_Weights.__members__
    if is_file(weights):
        fit_weights(whole, read_weights(weights), weights, _is_aux)
    elif weights in trunks:  # ImageNet: the trunk only
        state = _fetch(trunks, weights)
        fit_weights(whole.backbone, state, weights, lambda key: key.startswith("fc."))
    else:
        name = _USUAL if weights == "pretrained" else weights
        fit_weights(whole, _fetch({**heads, **trunks}, name), name, _is_aux)


def _is_aux(key: str) -> bool:
    return key.startswith("aux_classifier.")


# VGG16 -------------------------------------------------------------------------------------

_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _vgg_layers() -> tuple[nn.Sequential, dict[str, tuple[int, int, int]]]:
    """Make VGG16's features; name each legal cut_at: (layers up to it, channels, stride)."""
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


def _vgg16(request: Request) -> Segmenter:
    _only(request, ())
    features, places = _vgg_layers()
    cut, channels, stride = _at(request, request.cut_at or "conv4_3", places)
    trunk = features[:cut]
    if request.weights is not None:
        whole = set(features.state_dict())
        weights = _vgg_weights(request.weights)
        state = {k.removeprefix("features."): v for k, v in weights.items()}
        whole |= {k for k in state if k.startswith("classifier.")}
        fit_weights(trunk, state, request.weights, whole.__contains__)
    return Segmenter(Extractor(trunk, channels, stride), None)


def _vgg_weights(weights: str) -> State:
    from torchvision.models import VGG16_Weights

    if is_file(weights):
        return read_weights(weights)
    # Without IMAGENET1K_FEATURES, which expects another normalisation.
    name = "IMAGENET1K_V1" if weights == "pretrained" else weights
    return _fetch({"IMAGENET1K_V1": VGG16_Weights.IMAGENET1K_V1}, name)


def _at(request: Request, cut_at: str, places: Mapping[str, T]) -> T:
    name, legal = request.name, ", ".join(places)
    if request.strides:
        raise ConfigError(
            f"{name} is cut by cut_at, not by strides, got strides {list(request.strides)}. "
            f"Legal cuts: {legal}."
        )
    if cut_at not in places:
        raise ConfigError(f"{name} cannot be cut at {cut_at!r}. Legal cuts: {legal}.")
    return places[cut_at]


def _only(request: Request, allowed: Sequence[str]) -> None:
    for key in request.args:
        if key not in allowed:
            takes = ", ".join(allowed) or "none"
            raise ConfigError(f"{request.name} takes no argument {key!r}. It takes: {takes}.")


DEEPLAB = Source(
    help="torchvision's DeepLabV3 on a dilated ResNet-50, with its own head",
    build=_deeplab,
    cuts=lambda name: list(_RESNET_SPLITS),
    normalisation=lambda name: (IMAGENET_MEAN, IMAGENET_STD),
    trained_head=lambda given: given.weights not in ("random", *_TRUNK_WEIGHTS),
)
VGG16 = Source(
    help="torchvision's VGG16 up to a convolution or pooling",
    build=_vgg16,
    cuts=lambda name: list(_vgg_layers()[1]),
    normalisation=lambda name: (IMAGENET_MEAN, IMAGENET_STD),
)
