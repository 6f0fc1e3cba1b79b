"""Sources of networks: what one is asked for, and what the rest of the code knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from spiritseg import config
from spiritseg.models.segmenter import RGB, Segmenter

__all__ = ["Request", "Source"]


@dataclass(frozen=True)
class Request:
    """What a source is asked for; see `spiritseg.config.Extractor`.

    Args:
        name: As in the recipe, such as ``timm:resnet18``.
        weights: None for random initialisation, "pretrained", a name of the library's own, or
            a file.
        cut_at: Where the network is cut into extractor and head; empty for the usual place.
        strides: Strides of the feature maps that are joined; empty for the usual ones.
        args: Further arguments of the constructor.
        num_classes: K where the network's own head is wanted; else None.
        base: Network that the new one is made of, for sources with `of_network`.
        policy: Policy of `spiritseg.compact`.
        project: Channels of the projection that follows; 0 for none.
        seed: Random seed for initialisation. torch's generator is seeded with it already.
    """

    name: str
    weights: str | None = None
    cut_at: str = ""
    strides: Sequence[int] = ()
    args: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    base: Segmenter | None = None
    policy: config.Policy = "spatial"
    project: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """Where networks come from: everything that the rest of the code needs to know of them.

    Functions of a name take it as it stands in the recipe, such as ``timm:resnet18``.

    Args:
        help: One line for --help and the documentation.
        build: Request to network; without a head where none is its own, or wanted.
        of_network: Whether it is made of another network of the experiment (extractor.base).
        projects: Whether `build` brings the features to `Request.project` channels by itself.
        cuts: Legal values of extractor.cut_at by name, from the image on; none where any layer's
            path is one.
        whole: Whole network by name, randomly initialised, in which `cuts` are paths of layers;
            None where they are not.
        normalisation: Mean and standard deviation by name that pretrained weights expect of RGB
            in [0, 1]; None where they are not known.
        trained_head: Whether the own head of the network that is described comes trained.
        licence: Licence of the pretrained weights by name; empty where it is not known.
        needs_trust: Whether a bundle that names it needs trust, since building it would run code
            of the user's. Sources from outside of the project always need it.
    """

    help: str
    build: Callable[[Request], Segmenter]
    of_network: bool = False
    projects: bool = False
    cuts: Callable[[str], list[str]] = lambda name: []
    whole: Callable[[str], nn.Module] | None = None
    normalisation: Callable[[str], tuple[RGB, RGB] | None] = lambda name: None
    trained_head: Callable[[config.Extractor], bool] = lambda given: given.weights != "random"
    licence: Callable[[str], str] = lambda name: ""
    needs_trust: Callable[[str], bool] = lambda name: False
