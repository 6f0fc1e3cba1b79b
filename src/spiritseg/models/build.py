"""A network from its description: an extractor, then a head."""

from __future__ import annotations

import copy
import inspect
import reprlib
import threading
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from spiritseg import config
from spiritseg.errors import ConfigError, SpiritsegError, unknown
from spiritseg.models.class_path import is_class_path
from spiritseg.models.compact import compact
from spiritseg.models.extractors import project, separable
from spiritseg.models.heads import student_head
from spiritseg.models.pyramid import pyramid_head
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.teachers import TEACHERS, teacher
from spiritseg.models.whole import WholeExtractor, WholeNetwork, whole_network
from spiritseg.randomness import derive_seed

__all__ = ["build_network", "limited_parameters", "network_from_dict"]

_MADE = ("compact", "copy", "separable")


def build_network(
    network: config.Network, num_classes: int, others: Mapping[str, Segmenter], seed: int
) -> Segmenter:
    """Build one network from its description.

    Args:
        network: its extractor and head are read (`build_networks` loads bundles).
        num_classes: K, the background included.
        others: the networks that it may be made of, by name.
        seed: of its fresh weights.

    Returns:
        The network, trainable and in train mode: freezing belongs to a stage.

    Raises:
        ConfigError: an unknown name, or parts that do not go together.
        WeightsError: pretrained weights that do not fit, or cannot be had.
    """
    whole = _pretrained_or_made(network, num_classes, others, derive_seed(seed, "extractor"))
    if network.head.name == "own":
        _check_own_head(whole, num_classes, network)
        return whole.requires_grad_(True).train()  # a Segmenter of your own keeps its class
    extractor, channels = whole.extractor, network.extractor.project
    if channels and network.extractor.name != "separable":
        extractor = project(extractor, channels, derive_seed(seed, "projection"))
    head = _head(network.head, extractor.channels, num_classes, derive_seed(seed, "head"))
    return Segmenter(extractor, head).requires_grad_(True).train()


def _head(given: config.Head, in_channels: int, num_classes: int, seed: int) -> nn.Module | None:
    if given.name == "student":
        return student_head(in_channels, num_classes, given.channels, given.convolution, seed)
    if given.name == "pyramid":
        return pyramid_head(in_channels, num_classes, given.channels, seed)
    return None


def network_from_dict(fields: Mapping[str, Any]) -> config.Network:
    """Rebuild a description from plain values, as `dataclasses.asdict` gave them.

    Args:
        fields: nested; lists stand for tuples after a detour through JSON.

    Raises:
        ConfigError: an unknown field, or a value of another type.
        KeyError: there is no extractor or no head.
    """
    if not isinstance(fields, Mapping):
        raise ConfigError(f"expected a network's fields, got {reprlib.repr(fields)}.")
    extractor = _fields(config.Extractor, fields["extractor"], "extractor")
    head = _fields(config.Head, fields["head"], "head")
    if "strides" in extractor:
        extractor["strides"] = tuple(extractor["strides"])
    bundle, trust = fields.get("bundle"), bool(fields.get("trust"))
    return config.Network(config.Extractor(**extractor), config.Head(**head), bundle, trust)


@contextmanager
def limited_parameters(most: int) -> Iterator[None]:
    """Refuse networks that are built inside the block, in this thread, and are too large.

    A layer is refused as soon as its weights are registered. They are not initialised by then,
    so that the system has not given them memory yet.

    Args:
        most: number of parameters of all networks together.

    Raises:
        ConfigError: one more layer would exceed it.
    """
    thread, count = threading.get_ident(), 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        if threading.get_ident() != thread:
            return
        count += parameter.numel()
        if count > most:
            raise ConfigError(
                f"expected networks of at most {most:,} parameters, got more: "
                f"{type(module).__name__} has a {name} of shape {tuple(parameter.shape)}."
            )

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _fields(kind: type, values: Any, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{what}: expected a mapping of fields, got {reprlib.repr(values)}.")
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(unknown(f"field of {what}", key, hints))
        if not _fits(value, hints[key]):
            wanted = hints[key] if typing.get_args(hints[key]) else hints[key].__name__
            raise ConfigError(f"{what}.{key}: expected {wanted}, got {reprlib.repr(value)}.")
    return dict(values)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in inner
    if origin is types.UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is tuple:  # of any length
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if hint is int and isinstance(value, bool):
        return False
    return isinstance(value, origin or hint)


def _pretrained_or_made(
    network: config.Network, num_classes: int, others: Mapping[str, Segmenter], seed: int
) -> Segmenter:
    given = network.extractor
    if given.name not in _MADE:
        return _pretrained(network, num_classes, seed)
    if given.weights != "random":
        raise ConfigError(
            f"{given.name} takes no weights of its own, got {given.weights!r}. "
            "Put the weights on the network that it is made of."
        )
    if given.name == "separable":
        return _separable(given, others, seed)
    source = _other(given, others)
    if given.name == "copy" and network.head.name == "own":
        return copy.deepcopy(source)
    extractor = copy.deepcopy(source.extractor)
    if isinstance(extractor, WholeExtractor):
        extractor.drop_rest()
    if given.name == "compact":
        extractor = compact(extractor, given.policy, seed)
    return Segmenter(extractor, None)


def _pretrained(network: config.Network, num_classes: int, seed: int) -> Segmenter:
    given = network.extractor
    if given.of is not None:
        raise ConfigError(
            f"extractor.of is for {', '.join(_MADE)}; {given.name} is made of no other network."
        )
    if not (
        given.name in TEACHERS or given.name.startswith("timm:") or is_class_path(given.name)
    ):  # nothing else: a name such as a.b:c.D would be imported unseen
        choices = [*TEACHERS, *_MADE, "timm:MODEL"]
        hint = "Or a class path such as package.module.Class."
        raise ConfigError(unknown("network", given.name, choices, hint))
    try:
        return _made_from_args(network, num_classes, seed)
    except SpiritsegError:
        raise
    except Exception as error:  # libraries raise anything for an argument that they do not expect
        raise ConfigError(
            f"{given.name} cannot be made with {reprlib.repr(given.args)}: "
            f"{type(error).__name__}: {error}."
        ) from error


def _made_from_args(network: config.Network, num_classes: int, seed: int) -> Segmenter:
    given, args = network.extractor, dict(network.extractor.args)
    weights = None if given.weights == "random" else given.weights
    if network.head.name == "own" and is_class_path(given.name):
        if given.strides:
            raise ConfigError(
                f"extractor.strides: {given.name} is taken whole and joins no maps by stride, "
                f"got {list(given.strides)}. Name a layer in extractor.split."
            )
        return whole_network(given.name, num_classes, weights, given.split, args, seed)
    if given.name == "deeplabv3_resnet50" and network.head.name == "own":
        trained = given.weights in ("pretrained", "COCO_WITH_VOC_LABELS_V1")
        args.setdefault("num_classes", 21 if trained else num_classes)
    return teacher(
        given.name, weights, split=given.split, strides=given.strides, seed=seed, args=args
    )


def _separable(given: config.Extractor, others: Mapping[str, Segmenter], seed: int) -> Segmenter:
    args: dict[str, Any] = {}
    if given.of is not None:
        match = _other(given, others).extractor
        args = {"out_channels": match.channels, "stride": match.stride}
    if given.project:
        args["out_channels"] = given.project
    args |= {"seed": seed, **given.args}
    try:
        inspect.signature(separable).bind(**args)
    except TypeError as error:
        raise ConfigError(
            f"separable does not take the arguments {given.args}: {error}."
        ) from error
    return Segmenter(separable(**args), None)


def _other(given: config.Extractor, others: Mapping[str, Segmenter]) -> Segmenter:
    if given.of is None:
        raise ConfigError(
            f"extractor.of: {given.name} needs the name of another network, got nothing."
        )
    if given.of not in others:
        raise ConfigError(f"extractor.of: {unknown('network', given.of, others)}")
    return others[given.of]


def _check_own_head(whole: Segmenter, num_classes: int, network: config.Network) -> None:
    name = network.extractor.name
    if network.extractor.project:
        raise ConfigError(
            f"extractor.project: the own head of {name} takes its own channels, got a projection "
            f"to {network.extractor.project}. Use 0, or head.name: student."
        )
    if isinstance(whole, WholeNetwork):
        _check_classes(name, whole.num_classes, num_classes)
        return
    if whole.head is None:
        raise ConfigError(f"head.name: {name} has no head of its own. Use student, or none.")
    convs = [m for m in whole.head.modules() if isinstance(m, nn.Conv2d)]
    if convs:
        _check_classes(name, convs[-1].out_channels, num_classes)


def _check_classes(name: str, found: int, num_classes: int) -> None:
    if found != num_classes:
        raise ConfigError(
            f"head.name: the own head of {name} has {found} classes, the data set has "
            f"{num_classes}. Give it the right number in extractor.args, or use student, or none "
            "where only its features are used."
        )
