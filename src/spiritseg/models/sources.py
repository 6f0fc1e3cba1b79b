"""The registry of sources of networks, and how networks are made from it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from spiritseg.errors import ConfigError
from spiritseg.models.compact import compact
from spiritseg.models.entries import Request, Source
from spiritseg.models.external import CLASS_PATH, is_class_path
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.separable import separable
from spiritseg.models.timm import LITE_SOURCES, TIMM
from spiritseg.models.torchvision import DEEPLAB, VGG16
from spiritseg.models.whole import WholeExtractor
from spiritseg.randomness import seeded
from spiritseg.registry import Registry, is_in_file

__all__ = ["SOURCES", "build_from_source", "needs_trust", "source_of", "splits", "teacher"]

_CLASS_PATH = "package.module.Class"


def teacher(
    name: str,
    weights: str | None = None,
    *,
    cut_at: str = "",
    strides: Sequence[int] = (),
    seed: int = 0,
    args: Mapping[str, Any] | None = None,
    **kw: Any,
) -> Segmenter:
    """Make a network to distil from.

    Args:
        name: Name in `SOURCES`: deeplabv3_resnet50, vgg16, efficientnet_lite0 to 2,
            ``timm:MODEL``, the class path of a module, your own or a library's
            (``package.module.Class``), or a source of your own (``path/to/file.py:NAME``).
        weights: None for random initialisation; "pretrained" for the network's usual weights; a
            name of the library's (``COCO_WITH_VOC_LABELS_V1``); or a .pth or .safetensors file,
            whose keys must fit exactly (but DeepLab's ``aux_classifier.*`` and layers after the
            cut_at are ignored).
        cut_at: Where extractor and head are separated; empty for the usual place. `splits` lists
            them. For a class path: the layer whose output is the feature map, if not the
            module's.
        strides: Strides of the maps that a timm backbone joins; empty for 8 and 16.
        seed: Random seed for initialisation.
        args: Arguments of the network's constructor, such as num_classes of DeepLab.
        **kw: The same, as keywords.

    Returns:
        The network in eval mode with requires_grad off, a trunk only where it has no head.

    Raises:
        ConfigError, WeightsError: if a name is unknown, or weights do not fit or cannot be fetched.
    """
    given = {**(args or {}), **kw}
    request = Request(name, weights, cut_at, tuple(strides), given, seed=seed)
    return build_from_source(request).eval().requires_grad_(False)


def splits(name: str) -> list[str]:
    """Return where a network can be cut_at, from the image on; for timm, module names."""
    with seeded(0):
        return source_of(name).cuts(name)


def source_of(name: str) -> Source:
    """Find the source of a network by its name; a file of the user's that it names is run."""
    return SOURCES[_key(name)]


def needs_trust(name: str) -> bool:
    """Return whether a bundle that names a network needs trust; nothing of the user's is run."""
    key = _key(name)
    if key in _OWN:
        return SOURCES[key].needs_trust(name)
    return is_in_file(key) or key in SOURCES


def build_from_source(request: Request) -> Segmenter:
    """Build the network that a request describes; its random numbers are a function of its seed."""
    source = source_of(request.name)
    if source.of_network and request.weights is not None:
        raise ConfigError(
            f"{request.name} takes no weights of its own, got {request.weights!r}. "
            "Put the weights on the network that it is made of."
        )
    with seeded(request.seed):
        return source.build(request)


def _key(name: str) -> str:
    prefix = name.partition(":")[0] + ":"
    if name in SOURCES or is_in_file(name):
        return name
    if is_class_path(name):
        return _CLASS_PATH
    return prefix if name.startswith(prefix) and prefix in SOURCES else name


# Networks that are made of another one ------------------------------------------------------


def _copy(request: Request) -> Segmenter:
    if request.base is None:
        raise ConfigError(
            f"extractor.base: {request.name} needs the name of another network, got nothing."
        )
    if request.num_classes is not None:
        return copy.deepcopy(request.base)
    extractor = copy.deepcopy(request.base.extractor)
    if isinstance(extractor, WholeExtractor):
        extractor.drop_rest()
    return Segmenter(extractor, None)


def _compact(request: Request) -> Segmenter:
    trunk = _copy(dataclasses.replace(request, num_classes=None))
    return Segmenter(compact(trunk.extractor, request.policy, request.seed), None)


def _separable(request: Request) -> Segmenter:
    args: dict[str, Any] = {"seed": request.seed}
    if request.base is not None:
        match = request.base.extractor
        args |= {"out_channels": match.channels, "stride": match.stride}
    if request.project:
        args["out_channels"] = request.project
    return Segmenter(separable(**{**args, **request.args}), None)


_OWN = {
    **LITE_SOURCES,
    "vgg16": VGG16,
    "deeplabv3_resnet50": DEEPLAB,
    "timm:": TIMM,
    _CLASS_PATH: CLASS_PATH,
    "copy": Source("a copy of another network (extractor.base)", _copy, of_network=True),
    "compact": Source(
        "the extractor of another network with compact convolutions, randomly initialised",
        _compact,
        of_network=True,
    ),
    "separable": Source(
        "a small extractor with the channels and the stride of another network's",
        _separable,
        of_network=True,
        projects=True,
    ),
}
# By name, or by a prefix that ends in a colon (``timm:MODEL``); class paths have one entry.
SOURCES: Registry[Source] = Registry("network", "spiritseg.sources", Source)
for _name, _source in _OWN.items():
    SOURCES.register(_name, _source)
