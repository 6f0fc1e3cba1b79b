"""Networks from their descriptions: an extractor from a source, then a head."""

from __future__ import annotations

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
from spiritseg.models.entries import Request
from spiritseg.models.heads import HEADS, is_foreign_head
from spiritseg.models.segmenter import Segmenter, project
from spiritseg.models.sources import build_from_source, needs_trust, source_of
from spiritseg.models.whole import WholeNetwork
from spiritseg.randomness import derive_seed, seeded

__all__ = ["build_network", "foreign_names", "limited_parameters", "network_from_dict"]


def build_network(
    network: config.Network, num_classes: int, others: Mapping[str, Segmenter], seed: int
) -> Segmenter:
    """Build one network from its description.

    Args:
        network: Description; its bundle is not read (`build_networks` loads bundles).
        num_classes: K, the background included.
        others: Networks that it may be made of, by name.
        seed: Random seed for initialisation.

    Returns:
        The network, trainable and in train mode: freezing belongs to a stage.

    Raises:
        ConfigError: if a name is unknown, or parts do not go together.
        WeightsError: if pretrained weights do not fit, or cannot be fetched.
    """
    given, head = network.extractor, HEADS[network.head.name]
    whole = _from_source(given, num_classes if head.own else None, others, seed)
    if head.own:
        _check_own_head(whole, num_classes, given)
        return whole.requires_grad_(True).train()  # a Segmenter of your own keeps its class
    extractor = whole.extractor
    if given.project and not source_of(given.name).projects:
        extractor = project(extractor, given.project, derive_seed(seed, "projection"))
    built = None
    if head.build is not None:
        options = {name: getattr(network.head, name) for name in head.options}
        head_seed = derive_seed(seed, "head")
        with seeded(head_seed):
            built = head.build(extractor.channels, num_classes, seed=head_seed, **options)
    return Segmenter(extractor, built).requires_grad_(True).train()


def foreign_names(network: config.Network) -> list[str]:
    """Return the names in a description that stand for code of the user's.

    Args:
        network: Description, from anywhere; nothing that it names is imported.
    """
    extractor, head = network.extractor.name, network.head.name
    foreign = {extractor: needs_trust(extractor), head: is_foreign_head(head)}
    return [name for name, is_foreign in foreign.items() if is_foreign]


def network_from_dict(fields: Mapping[str, Any]) -> config.Network:
    """Rebuild a description from plain values, as `dataclasses.asdict` returns them.

    Args:
        fields: Nested fields; tuples may have become lists in JSON.

    Raises:
        ConfigError: if a field is unknown, or a value of another type.
        KeyError: if there is no extractor or no head.
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
    so that no physical memory is in use for them yet.

    Args:
        most: Largest number of parameters of all networks together.

    Raises:
        ConfigError: if a layer exceeds it.
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


def _from_source(
    given: config.Extractor, num_classes: int | None, others: Mapping[str, Segmenter], seed: int
) -> Segmenter:
    source = source_of(given.name)
    if given.of is not None and not source.of_network:
        raise ConfigError(f"extractor.of: {given.name} is made of no other network.")
    if given.of is not None and given.of not in others:
        raise ConfigError(f"extractor.of: {unknown('network', given.of, others)}")
    request = Request(
        name=given.name,
        weights=None if given.weights == "random" else given.weights,
        split=given.split,
        strides=given.strides,
        args=given.args,
        num_classes=num_classes,
        base=None if given.of is None else others[given.of],
        policy=given.policy,
        project=given.project,
        seed=derive_seed(seed, "extractor"),
    )
    try:
        return build_from_source(request)
    except SpiritsegError:
        raise
    except Exception as error:  # libraries raise anything for an argument that they do not expect
        raise ConfigError(
            f"{given.name} cannot be made with {reprlib.repr(given.args)}: "
            f"{type(error).__name__}: {error}."
        ) from error


def _check_own_head(whole: Segmenter, num_classes: int, given: config.Extractor) -> None:
    name = given.name
    if given.project:
        raise ConfigError(
            f"extractor.project: the own head of {name} takes its own channels, got a projection "
            f"to {given.project}. Use 0, or head.name: student."
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
