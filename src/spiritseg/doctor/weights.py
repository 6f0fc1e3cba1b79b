"""Weights: did the trained ones load, who trains the others, and are images normalised for them?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.config import Experiment, Network
from spiritseg.doctor.findings import Examination, Known
from spiritseg.errors import SpiritsegError
from spiritseg.losses.loss import LOGITS
from spiritseg.models import Segmenter, build_networks
from spiritseg.models.bundle import check_bundles
from spiritseg.models.external import is_class_path
from spiritseg.training.stage import stage_module

__all__ = ["Traces", "examine_normalisation", "examine_weights", "traces"]

_UNEVEN = 1.4  # random weights of any usual initialiser have 0.6 to 1.1, trained ones 2 and more
_SMALLEST = 8  # filters, and weights of a filter: fewer tell nothing
_FAR_MEAN = 2.0  # images of a drive at dusk have -1.5
_RAW_STD = 0.35  # photographs in [0, 1] have 0.2 to 0.3, normalised ones 0.7 to 1.2
_BYTES = 10.0  # beyond it values are 0..255
_DARK = 0.02  # mean of images that are all but black


@dataclass(frozen=True)
class Traces:
    """What training leaves in weights.

    Args:
        unevenness: spread of the filters' norms in a layer, relative to that of normally
            distributed weights; the median over layers. About 1 at initialisation; training
            makes some filters strong and some weak. NaN without large enough layers.
        norms: number of batch-norm layers.
        fresh_norms: those with their initial statistics, mean 0 and variance 1.
    """

    unevenness: float
    norms: int
    fresh_norms: int

    @property
    def trained(self) -> bool | None:
        """Whether the weights look trained; None where the traces contradict each other."""
        uneven = self.unevenness > _UNEVEN
        if not self.norms:
            return None if math.isnan(self.unevenness) else uneven
        moved = self.fresh_norms < self.norms / 2
        return uneven if moved == uneven else None

    def __str__(self) -> str:
        parts = [f"filter norms {self.unevenness:.1f} times as uneven as random ones"]
        if self.norms:
            moved = self.norms - self.fresh_norms
            parts.append(f"statistics in {moved} of {self.norms} batch norms")
        return ", ".join(parts)


def traces(module: nn.Module) -> Traces:
    """Look for traces of training in a module's weights, without running it."""
    uneven = [u for p in module.parameters() if (u := _unevenness(p.detach())) is not None]
    norms = [
        (m.running_mean, m.running_var)
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    kept = [(mean, var) for mean, var in norms if mean is not None and var is not None]
    fresh = sum(bool((mean == 0).all() and (var == 1).all()) for mean, var in kept)
    return Traces(statistics.median(uneven) if uneven else math.nan, len(kept), fresh)


def _unevenness(weight: Tensor) -> float | None:
    """Spread of the filters' norms over that of independent normal weights, 1 / sqrt(2 n)."""
    if weight.ndim < 2 or weight.shape[0] < _SMALLEST or weight[0].numel() < _SMALLEST:
        return None
    norms = torch.linalg.vector_norm(weight.flatten(1).float(), dim=1)
    mean = float(norms.mean())
    return float(norms.std()) / mean * math.sqrt(2 * weight[0].numel()) if mean else None


def examine_weights(found: Examination, known: Known) -> None:
    """Build each network, and examine whether its weights are trained, or who trains them."""
    _build(found, known)
    readers = _read_logits(known)
    for name, network in known.networks.items():
        head = network.head
        if asked := _trained_weights(known.experiment, name):
            _examine_asked(found, known, name, asked)
        else:
            _examine_random(found, known.experiment, name, traces(network.extractor))
        if isinstance(head, nn.Module) and known.experiment.networks[name].head.name != "none":
            _examine_head(found, known.experiment, name, traces(head), readers.get(name, []))


def _build(found: Examination, known: Known) -> None:
    """Build the networks; where that fails, one by one, to find all that cannot be built."""
    given = known.experiment
    if not _try(known, list(given.networks)):
        return
    errors = (_try(known, _made_of(given, name)) for name in given.networks)
    for error in dict.fromkeys(filter(None, errors)):
        found.refused("networks", error)


def _try(known: Known, names: Sequence[str]) -> str:
    """Build networks and add them; return the error message, or nothing."""
    given = known.experiment
    networks = {name: given.networks[name] for name in names}
    try:
        check_bundles(networks, known.classes, given.input.pool)
        built = build_networks(networks, known.num_classes, given.seed)
    except SpiritsegError as error:
        return str(error)
    known.networks.update({name: built[name] for name in names})
    return ""


def _examine_asked(found: Examination, known: Known, name: str, asked: str) -> None:
    """Examine an extractor whose weights should be trained ones."""
    seen = traces(known.networks[name].extractor)
    where, what = f"networks.{name}", f"{asked}: {seen}"
    if seen.trained:
        found.ok(where, what)
    elif seen.trained is None:
        found.warn(
            where,
            f"{what}; the traces of training contradict each other, or there are too few",
            "check that the file holds this network's weights with their batch-norm statistics",
        )
    else:
        found.problem(
            where,
            f"{what}: the weights look untrained",
            "check the file; weights that were saved before training fit just as well",
        )


def _examine_random(found: Examination, given: Experiment, name: str, seen: Traces) -> None:
    """Examine a randomly initialised extractor."""
    where, what = f"networks.{name}", "randomly initialised"
    trained_by = _trained_by(given, name, ("all", "extractor"))
    teaches = [key for key in given.stages if name in _teachers(given, key)]
    if teaches and not _before(given, trained_by, teaches) and seen.trained is not True:
        found.warn(
            where,
            f"{what} ({seen}), but it is the teacher of {', '.join(teaches)} before any stage "
            "trains it: features of an untrained network",
            f"--networks.{name}.extractor.weights pretrained, or a bundle of a trained network",
        )
    elif trained_by:
        found.ok(where, f"{what}, trained by {', '.join(trained_by)}")
    elif any(other.extractor.base == name for other in given.networks.values()):
        found.ok(where, f"{what}; only its architecture is used")
    else:
        found.warn(where, f"{what}, and no stage trains it", "train it, or leave it out")


def _examine_head(
    found: Examination, given: Experiment, name: str, seen: Traces, readers: Sequence[str]
) -> None:
    """Examine a head; readers: the stages whose losses read its logits as a teacher's."""
    where = f"networks.{name}.head"
    trained_by = _trained_by(given, name, ("all", "head"))
    if seen.trained:
        found.ok(where, f"trained: {seen}")
    elif given.networks[name].bundle:
        found.warn(where, f"from a bundle, but with few traces of training: {seen}")
    elif readers and not _before(given, trained_by, readers):
        found.problem(
            where,
            f"randomly initialised, but it is a teacher's in {', '.join(readers)}",
            f"--networks.{name}.bundle RUN/student, or train it in a stage before",
        )
    elif trained_by:
        found.ok(where, f"randomly initialised, trained by {', '.join(trained_by)}")
    elif name == given.result:
        found.problem(where, "randomly initialised and no stage trains it, but it is the result")
    else:
        found.ok(where, "randomly initialised and not used")


def _source(experiment: Experiment, name: str) -> Network:
    """Return the network that a network is, or is a copy of."""
    given = experiment.networks[name]
    of = given.extractor.base
    if given.bundle is None and given.extractor.name == "copy" and of in experiment.networks:
        return _source(experiment, of)
    return given


def _trained_weights(experiment: Experiment, name: str) -> str:
    """Name the trained weights that a network was asked for; nothing for random ones."""
    given = _source(experiment, name)
    if given.bundle:
        return f"bundle {given.bundle}"
    extractor = given.extractor
    if extractor.weights != "random":
        return f"{extractor.name}, weights {extractor.weights}"
    asked = [f"{k}={v}" for k, v in extractor.args.items() if v and "weights" in k]
    return f"{extractor.name}, {', '.join(asked)}" if asked else ""


def _read_logits(known: Known) -> dict[str, list[str]]:
    """Return the stages whose losses read a teacher's logits, by the teacher's name."""
    readers: dict[str, list[str]] = {}
    for key in known.experiment.stages:
        try:
            module = stage_module(key, known.dry, known.networks, known.classes)
        except (SpiritsegError, KeyError):  # a network is missing; told elsewhere
            continue
        for name in _teachers(known.experiment, key) if LOGITS in module.teacher_needs else ():
            readers.setdefault(name, []).append(key)
    return readers


def _made_of(experiment: Experiment, name: str) -> list[str]:
    """Return a network and those that its extractor is made from."""
    found: list[str] = []
    here: str | None = name
    while here is not None and here in experiment.networks and here not in found:
        found.append(here)
        network = experiment.networks[here]
        here = network.extractor.base if network.bundle is None else None
    return found


def _trained_by(experiment: Experiment, name: str, parts: Collection[str]) -> list[str]:
    return [k for k, s in experiment.stages.items() if s.network == name and s.trains in parts]


def _teachers(experiment: Experiment, stage: str) -> tuple[str, ...]:
    given = experiment.stages[stage]
    return () if given.teacher is None else (given.teacher, *given.co_teachers)


def _before(experiment: Experiment, trained_by: Sequence[str], used_in: Sequence[str]) -> bool:
    """Whether a network is trained before it is used."""
    order = list(experiment.stages)
    first = min((order.index(k) for k in trained_by), default=len(order))
    return first < min(order.index(k) for k in used_in)


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
        given = _source(known.experiment, name)
        # The project's own networks carry the normalisation of their weights.
        own = given.bundle is None and not is_class_path(given.extractor.name)
        sure = own and bool(_trained_weights(known.experiment, name))
        _examine_seen(found, name, _first_convolution_input(network, known.samples), sure)


def _examine_seen(
    found: Examination, name: str, seen: tuple[Tensor, Tensor] | None, sure: bool
) -> None:
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
def _first_convolution_input(
    network: Segmenter, samples: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """Return the (3,) mean and deviation of the first 3-channel convolution's input, if any."""
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
