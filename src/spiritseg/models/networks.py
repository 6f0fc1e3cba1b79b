"""The networks of an experiment: built from their descriptions, or loaded from bundles."""

from __future__ import annotations

from collections.abc import Mapping

from spiritseg import config
from spiritseg.errors import ConfigError, MissingExtraError, WeightsError, unknown
from spiritseg.models.bundle import load_bundle
from spiritseg.models.factory import build_network
from spiritseg.models.segmenter import Segmenter
from spiritseg.randomness import derive_seed

__all__ = ["build_networks"]


def build_networks(
    networks: Mapping[str, config.Network], num_classes: int, seed: int
) -> dict[str, Segmenter]:
    """Build the networks of an experiment; initialisation is a function of (seed, name).

    Args:
        networks: Descriptions by name. One may be made of another (`of`), in any order.
        num_classes: K, the background included.
        seed: Random seed of the experiment.

    Returns:
        The networks by name, trainable and in train mode, in the order of `networks`.
    """
    built: dict[str, Segmenter] = {}

    def build(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise ConfigError(f"networks are made of each other in a circle: {circle}.")
        network = networks[name]
        base = network.extractor.base if network.bundle is None else None
        if base is not None:
            if base not in networks:
                where = f"networks.{name}.extractor.base"
                raise ConfigError(f"{where}: {unknown('network', base, networks)}")
            build(base, (*path, name))
        if name not in built:
            own_seed = derive_seed(seed, "network", name)
            try:
                if network.bundle is None:
                    built[name] = build_network(network, num_classes, built, own_seed)
                else:
                    built[name] = _load(network, num_classes)
            except (ConfigError, WeightsError, MissingExtraError) as error:
                raise type(error)(f"networks.{name}: {error}") from error

    for name in networks:
        build(name, ())
    return {name: built[name] for name in networks}


def _load(network: config.Network, num_classes: int) -> Segmenter:
    saved, info = load_bundle(network.bundle or "", trust=network.trust)
    if len(info.classes) != num_classes:
        raise ConfigError(
            f"bundle: {network.bundle} knows {len(info.classes)} classes "
            f"({', '.join(info.classes[:12])}), the data set has {num_classes}. Choose the "
            "same target.classes for both."
        )
    return saved.requires_grad_(True).train()
