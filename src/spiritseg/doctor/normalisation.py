"""Whether images reach each network normalised as its weights expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.doctor.findings import Examination
from spiritseg.doctor.known import Known
from spiritseg.doctor.weights import source, trained_weights
from spiritseg.models import Segmenter
from spiritseg.models.external import is_class_path

__all__ = ["examine_normalisation", "seen_by_first_convolution"]

_FAR_MEAN = 2.0  # images of a drive at dusk have -1.5
_RAW_STD = 0.35  # photographs in [0, 1] have 0.2 to 0.3, normalised ones 0.7 to 1.2
_BYTES = 10.0  # beyond it values are 0..255
_DARK = 0.02  # mean of images that are all but black


def examine_normalisation(found: Examination, known: Known) -> None:
    """Measure what each network's first convolution gets of the user's images."""
    if not known.samples:
        found.warn("images", "not measured: there are no readable images")
        return
    raw = torch.cat([x.flatten(2) for x in known.samples], dim=2)
    what = f"in [0, 1], mean {_rgb(raw.mean((0, 2)))}, std {_rgb(raw.std((0, 2)))}"
    if float(raw.mean()) < _DARK:
        found.warn("images", f"{what}: all but black", "are they masks, or 16-bit data in 8 bits?")
    else:
        found.ok("images", what)
    for name, network in known.networks.items():
        given = source(known.experiment, name)
        # The project's own networks carry the normalisation of their weights.
        own = given.bundle is None and not is_class_path(given.extractor.name)
        sure = own and bool(trained_weights(known.experiment, name))
        _examine(found, name, seen_by_first_convolution(network, known.samples), sure)


def _examine(found: Examination, name: str, seen: tuple[Tensor, Tensor] | None, sure: bool) -> None:
    where = f"networks.{name}"
    if seen is None:
        found.warn(where, "not measured: no convolution over three channels")
        return
    mean, std = seen
    what = f"the first convolution gets mean {_rgb(mean)} and std {_rgb(std)}"
    if float(mean.abs().max()) > _BYTES or float(std.max()) > _BYTES:
        found.problem(
            where,
            f"{what}: values of 0..255",
            "spiritseg gives images in [0, 1]: do not multiply by 255 in your module, or divide "
            "its mean and std by 255",
        )
    elif sure:
        found.ok(where, f"{what}, as its weights expect")
    elif float(std.max()) < _RAW_STD and float(mean.min()) > 0:
        found.warn(
            where,
            f"{what}: images in [0, 1], not normalised",
            "right only if its weights were trained so; otherwise use Extractor(module, channels, "
            "stride, mean, std), which normalises",
        )
    elif float(mean.abs().max()) > _FAR_MEAN or float(std.max()) < _RAW_STD:
        found.warn(
            where,
            f"{what}: far from 0 and 1",
            "is the image normalised twice, by the module and by its Extractor?",
        )
    else:
        found.ok(where, f"{what}: close to 0 and 1")


@torch.inference_mode()
def seen_by_first_convolution(
    network: Segmenter, samples: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Measure the input of the first convolution over three channels.

    Args:
        network: in any mode; it is put into eval mode.
        samples: images (1, 3, h, w) in [0, 1].

    Returns:
        (3,) mean and (3,) standard deviation over all pixels; None without such a layer.
    """
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(2)[0].float().clone())

    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    hooks = [conv.register_forward_pre_hook(note) for conv in convs]
    first: list[Tensor] = []
    try:
        network.eval()
        for image in samples:
            seen.clear()
            network.features(image)
            first += seen[:1]
    finally:
        for hook in hooks:
            hook.remove()
    values = torch.cat(first, dim=1) if first else None
    return (values.mean(1), values.std(1)) if values is not None else None


def _rgb(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.2f}" for v in values) + ")"
