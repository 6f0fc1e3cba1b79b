"""Networks from their descriptions: an extractor from a source, then a head; or a bundle."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from spiritseg import config
from spiritseg.errors import ConfigError, SpiritsegError, unknown
from spiritseg.models.entries import Request
from spiritseg.models.heads import HEADS
from spiritseg.models.segmenter import Segmenter, project
from spiritseg.models.sources import build_from_source, source_of
from spiritseg.models.whole import WholeNetwork
from spiritseg.randomness import derive_seed, seeded

__all__ = ["build_network", "limited_parameters"]


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
        ConfigError, WeightsError: if a name is unknown, or parts do not go together.
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


@contextmanager
def limited_parameters(most: int) -> Iterator[None]:
    """Refuse networks that are built inside the block, in this thread, and are too large.

    A layer is refused as soon as its weights are registered, before they are initialised and
    take physical memory.
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


def _from_source(
    given: config.Extractor, num_classes: int | None, others: Mapping[str, Segmenter], seed: int
) -> Segmenter:
    source = source_of(given.name)
    if given.base is not None and not source.of_network:
        raise ConfigError(f"extractor.base: {given.name} is made of no other network.")
    if given.base is not None and given.base not in others:
        raise ConfigError(f"extractor.base: {unknown('network', given.base, others)}")
    request = Request(
        name=given.name,
        weights=None if given.weights == "random" else given.weights,
        cut_at=given.cut_at,
        strides=given.strides,
        args=given.args,
        num_classes=num_classes,
        base=None if given.base is None else others[given.base],
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
    name, found = given.name, num_classes
    if given.project:
        raise ConfigError(
            f"extractor.project: the own head of {name} takes its own channels, got a projection "
            f"to {given.project}. Use 0, or head.name: student."
        )
    if isinstance(whole, WholeNetwork):
        found = whole.num_classes
    elif whole.head is None:
        raise ConfigError(f"head.name: {name} has no head of its own. Use student, or none.")
    elif convs := [m for m in whole.head.modules() if isinstance(m, nn.Conv2d)]:
        found = convs[-1].out_channels
    if found != num_classes:
        raise ConfigError(
            f"head.name: the own head of {name} has {found} classes, the data set has "
            f"{num_classes}. Give it the right number in extractor.args, or use student, or none "
            "where only its features are used."
        )
