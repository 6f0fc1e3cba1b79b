"""Whether images reach a network normalised as its weights expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.config import Experiment
from spiritseg.diagnosis.findings import Section
from spiritseg.models import Segmenter
from spiritseg.models.sources import source_of

__all__ = ["examine_inputs", "expected_normalisation", "seen_by_first_convolution"]

RGB = tuple[float, float, float]

_FAR_MEAN = 2.0  # a dusk drive comes to -1.5
_RAW_STD = 0.35  # photographs in [0, 1] have 0.2 to 0.3, normalised ones 0.7 to 1.2
_BYTES = 10.0  # beyond it values are 0..255
_DARK = 0.02  # mean of images that are all but black


def examine_inputs(
    experiment: Experiment, networks: Mapping[str, Segmenter], samples: Sequence[Tensor]
) -> Section:
    """Say whether each network gets its images normalised as it expects.

    What its first convolution gets of the user's images is measured, whoever normalises; where
    the weights are known, the mean and the standard deviation are compared with theirs.

    Args:
        experiment: its networks are read.
        networks: built.
        samples: images (1, 3, h, w) in [0, 1].
    """
    section = Section("Input normalisation")
    if not samples:
        section.warn("not looked at: there are no readable images")
        return section
    raw = torch.cat([x.flatten(2) for x in samples], dim=2)
    shown = f"your images, in [0, 1]: mean {_rgb(raw.mean((0, 2)))}, std {_rgb(raw.std((0, 2)))}"
    if float(raw.mean()) < _DARK:
        section.warn(f"{shown}: all but black", "are the images masks, or 16-bit data in 8 bits?")
    else:
        section.ok(shown)
    for name, network in networks.items():
        expected = expected_normalisation(_source(experiment, name))
        ours = getattr(network.extractor, "mean", None), getattr(network.extractor, "std", None)
        if expected is not None and None not in ours and not _close(expected, ours):
            section.problem(
                f"{name}: normalised with mean {_rgb(ours[0])} and std {_rgb(ours[1])}, its "
                f"weights expect {_rgb(expected[0])} and {_rgb(expected[1])}",
                "wrap the module with Extractor(module, channels, stride, mean, std)",
            )
            continue
        _measured(section, name, network, samples, "as its weights expect" if expected else "")
    return section


def expected_normalisation(name: str) -> tuple[RGB, RGB] | None:
    """Return the mean and the standard deviation that a pretrained network expects.

    Args:
        name: as in `config.Extractor.name`.

    Returns:
        Of RGB in [0, 1]; None where it is not known.
    """
    return source_of(name).normalisation(name) if name else None


@torch.inference_mode()
def seen_by_first_convolution(
    network: Segmenter, samples: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Measure what the first convolution over three channels gets.

    Args:
        network: in any mode; it is put into eval mode.
        samples: images (1, 3, h, w) in [0, 1].

    Returns:
        (3,) mean and (3,) standard deviation over all pixels; None without such a layer.
    """
    network.eval()
    seen: list[Tensor] = []
    for image in samples:
        with _first_input(network) as found:
            network.features(image)
        seen += [x.flatten(2)[0].float() for x in found[:1]]
    if not seen:
        return None
    values = torch.cat(seen, dim=1)
    return values.mean(1), values.std(1)


def _measured(
    section: Section, name: str, network: Segmenter, samples: Sequence[Tensor], known: str
) -> None:
    found = seen_by_first_convolution(network, samples)
    if found is None:
        section.warn(f"{name}: no convolution over three channels was found; not measured")
        return
    mean, std = found
    said = f"{name}: its first convolution gets mean {_rgb(mean)} and std {_rgb(std)}"
    if float(mean.abs().max()) > _BYTES or float(std.max()) > _BYTES:
        section.problem(
            f"{said}: values of 0..255",
            "spiritseg gives images in [0, 1]: do not multiply by 255 in your module, or divide "
            "its mean and std by 255",
        )
    elif known:
        section.ok(f"{said}, {known}")
    elif float(std.max()) < _RAW_STD and float(mean.min()) > 0:
        section.warn(
            f"{said}: images in [0, 1], not normalised",
            "right only if its weights were trained so; else Extractor(module, channels, stride, "
            "mean, std) normalises",
        )
    elif float(mean.abs().max()) > _FAR_MEAN or float(std.max()) < _RAW_STD:
        section.warn(
            f"{said}: not about 0 and 1",
            "is the image normalised twice, by the module and by its Extractor?",
        )
    else:
        section.ok(f"{said}: about 0 and 1")


@contextmanager
def _first_input(network: nn.Module) -> Any:
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not found:
            found.append(inputs[0].detach().clone())

    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    hooks = [conv.register_forward_pre_hook(note) for conv in convs]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _source(experiment: Experiment, name: str) -> str:
    """Name the architecture of a network whose weights are trained ones; nothing for others."""
    given = experiment.networks[name]
    extractor = given.extractor
    if given.bundle is not None:
        return ""
    if extractor.name == "copy" and extractor.of in experiment.networks:
        return _source(experiment, extractor.of)
    return extractor.name if extractor.weights != "random" else ""


def _close(one: Any, other: Any) -> bool:
    flat = [v for values in one for v in values], [v for values in other for v in values]
    return all(abs(a - b) < 0.01 for a, b in zip(*flat, strict=True))


def _rgb(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.2f}" for v in values) + ")"
