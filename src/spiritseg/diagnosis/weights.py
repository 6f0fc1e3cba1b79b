"""Whether a network's weights are trained ones: by what training leaves in them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spiritseg.config import Experiment, Network, Stage
from spiritseg.diagnosis.findings import Section
from spiritseg.errors import SpiritsegError
from spiritseg.models import Segmenter, build_networks
from spiritseg.models.bundle import check_bundles
from spiritseg.models.external import is_class_path
from spiritseg.models.sources import source_of

__all__ = ["Traces", "build_each", "effective_rank", "examine_weights", "traces"]

_UNEVEN = 1.4  # fresh weights of any usual initialiser have 0.6 to 1.1, trained ones 2 and more
_SMALLEST = 8  # filters, and weights of a filter: fewer say nothing
_SURE = 0.85  # of the entropy of equal class scores


@dataclass(frozen=True)
class Traces:
    """What training leaves in weights.

    Args:
        unevenness: spread of the filters' norms in a layer, relative to that of normal
            weights; the median over layers. About 1 where weights were drawn alike; training
            makes some filters strong and some weak. NaN without large enough layers.
        norms: batch-norm layers.
        fresh_norms: those with statistics as they start, mean 0 and variance 1.
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
        parts = [f"filter norms {self.unevenness:.1f} times as uneven as drawn ones"]
        if self.norms:
            moved = self.norms - self.fresh_norms
            parts.append(f"statistics in {moved} of {self.norms} batch norms")
        return ", ".join(parts)


def traces(module: nn.Module) -> Traces:
    """Look for traces of training in a module's weights, without running it."""
    found = [u for p in module.parameters() if (u := _unevenness(p.detach())) is not None]
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    fresh = sum(_starts(m) for m in norms)
    return Traces(statistics.median(found) if found else math.nan, len(norms), fresh)


@torch.inference_mode()
def effective_rank(network: Segmenter, samples: Sequence[Tensor]) -> float:
    """Say in how many directions features vary over positions: (sum of variances)^2 over squares.

    Args:
        network: in any mode; it is put into eval mode.
        samples: images (1, 3, h, w).

    Returns:
        1 for features along one line, C for equal variances in all channels.
    """
    network.eval()
    flat = torch.cat([network.features(x).flatten(2)[0].double() for x in samples], dim=1)
    covariance = torch.cov(flat)
    total = float(covariance.trace())
    return total**2 / max(float(covariance.square().sum()), 1e-300)


def build_each(
    experiment: Experiment, num_classes: int, classes: Sequence[str] = ()
) -> tuple[dict[str, Segmenter], dict[str, str]]:
    """Build the networks of an experiment, those that can be built.

    Args:
        experiment: its networks, pool and seed are read.
        num_classes: K.
        classes: their names, which those of bundles must be; none where they are not known.

    Returns:
        The networks by name, and what is wrong with the others.
    """
    pool = experiment.input.pool
    try:
        check_bundles(experiment.networks, classes, pool)
        return build_networks(experiment.networks, num_classes, experiment.seed), {}
    except SpiritsegError:
        built: dict[str, Segmenter] = {}
        errors: dict[str, str] = {}
    for name in experiment.networks:
        needed = {n: experiment.networks[n] for n in _made_of(experiment, name)}
        try:
            check_bundles(needed, classes, pool)
            built[name] = build_networks(needed, num_classes, experiment.seed)[name]
        except SpiritsegError as error:
            errors[name] = str(error)
    return built, errors


def examine_weights(
    experiment: Experiment,
    networks: Mapping[str, Segmenter],
    samples: Sequence[Tensor],
    errors: Mapping[str, str],
) -> Section:
    """Say whether each network's weights are trained ones, and who trains the others.

    Args:
        experiment: its networks and stages are read.
        networks: built, not trained yet.
        samples: images to run them on.
        errors: why the other networks could not be built.
    """
    section = Section("Weights")
    for error in dict.fromkeys(errors.values()):
        section.problem(error)
    for name, network in networks.items():
        given = experiment.networks[name]
        _extractor(section, experiment, name, network, samples)
        if isinstance(network.head, nn.Module) and given.head.name != "none":
            _head(section, experiment, name, network.head)
    return section


def _extractor(
    section: Section,
    experiment: Experiment,
    name: str,
    network: Segmenter,
    samples: Sequence[Tensor],
) -> None:
    given = experiment.networks[name]
    found = traces(network.extractor)
    asked = _asked(experiment, name)
    if asked:
        said = f"{name}: {asked}: {found}"
        if found.trained:
            section.ok(f"{said}{_on_images(experiment, name, network, samples)}")
        elif found.trained is None:
            section.warn(
                f"{said}; the traces contradict each other, or there are too few",
                "check that the file holds this network's weights with their batch-norm statistics",
            )
        else:
            section.problem(
                f"{said}: the weights look untrained",
                "check the file; weights that were saved before training fit just as well",
            )
        if found.trained is not False and samples:
            _scores(section, name, given, samples)
        return
    trained_by = _trained_by(experiment, name, ("all", "extractor"))
    teaches = _teaches(experiment, name)
    if teaches and not _before(experiment, trained_by, teaches) and found.trained is not True:
        section.warn(
            f"{name}: fresh weights ({found}), and it teaches in {', '.join(teaches)} before any "
            "stage trains it: features of an untrained network",
            f"--networks.{name}.extractor.weights pretrained, or a bundle of a trained network",
        )
    elif trained_by:
        section.ok(f"{name}: fresh weights, trained by {', '.join(trained_by)}")
    elif _only_looked_at(experiment, name):
        section.ok(f"{name}: fresh weights; only its architecture is used")
    else:
        section.warn(f"{name}: fresh weights that no stage trains", "train it, or leave it out")


def _on_images(
    experiment: Experiment, name: str, network: Segmenter, samples: Sequence[Tensor]
) -> str:
    """Compare the features on the user's images with those of an untrained copy."""
    given = experiment.networks[name]
    if not samples or given.bundle or is_class_path(given.extractor.name) or given.extractor.of:
        return ""
    bare = dataclasses.replace(given.extractor, weights="random")
    alone = {name: dataclasses.replace(given, extractor=bare)}
    try:
        fresh = build_networks(alone, _classes_of(network), experiment.seed)[name]
    except SpiritsegError:
        return ""
    same = _share_equal(network.extractor, fresh.extractor)
    ranks = effective_rank(network, samples), effective_rank(fresh, samples)
    return (
        f"; {100 * (1 - same):.0f} % of them differ from fresh ones; on your images its features "
        f"vary in {ranks[0]:.1f} directions, an untrained copy's in {ranks[1]:.1f}"
    )


def _classes_of(network: Segmenter) -> int:
    convs = [] if network.head is None else list(network.head.modules())
    found = [m.out_channels for m in convs if isinstance(m, nn.Conv2d)]
    return found[-1] if found else 2


def _share_equal(one: nn.Module, other: nn.Module) -> float:
    """Return the share of the values of two equal architectures that are the same."""
    theirs = dict(other.named_parameters())
    equal = total = 0
    for key, value in one.named_parameters():
        equal += int((value == theirs[key]).sum()) if key in theirs else 0
        total += value.numel()
    return equal / max(1, total)


@torch.inference_mode()
def _scores(section: Section, name: str, given: Network, samples: Sequence[Tensor]) -> None:
    """Whether the whole ImageNet classifier is sure of anything on the user's images."""
    source, extractor = source_of(given.extractor.name), given.extractor
    normalisation = source.normalisation(extractor.name)
    if extractor.weights != "pretrained" or source.classifier is None or normalisation is None:
        return
    whole = source.classifier(extractor.name)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in normalisation)
    entropies = []
    for image in samples:
        p = whole((image - mean) / std).softmax(1)
        entropies.append(float(-(p * p.clamp_min(1e-12).log()).sum()))
    found, most = statistics.mean(entropies), math.log(1000)
    scale = f"{found:.1f} (at most {most:.1f})"
    said = f"{name}: class scores on your images have an entropy of {scale}"
    if found < _SURE * most:
        section.ok(f"{said}: the classifier sees something in them")
    else:
        section.warn(
            f"{said}: the classifier sees nothing in them",
            "are these photographs? Look at the images, and at input.pool",
        )


def _head(section: Section, experiment: Experiment, name: str, head: nn.Module) -> None:
    given = experiment.networks[name]
    found = traces(head)
    trained_by = _trained_by(experiment, name, ("all", "head"))
    logits_from = [
        stage
        for stage, s in experiment.stages.items()
        if name in _teachers(s) and (s.losses.pixelwise or s.losses.holistic)
    ]
    if found.trained:
        section.ok(f"{name}'s head is trained: {found}")
    elif given.bundle:
        section.warn(f"{name}'s head, from a bundle, shows few traces of training: {found}")
    elif logits_from and not _before(experiment, trained_by, logits_from):
        section.problem(
            f"{name}'s head is fresh, and teaches its logits in {', '.join(logits_from)}",
            f"--networks.{name}.bundle RUN/student, or train it in a stage before",
        )
    elif trained_by:
        section.ok(f"{name}'s head is fresh; trained by {', '.join(trained_by)}")
    elif name == experiment.result:
        section.problem(f"{name}'s head is fresh and no stage trains it, but it is the result")
    else:
        section.ok(f"{name}'s head is fresh and not used")


def _asked(experiment: Experiment, name: str) -> str:
    """Say which trained weights a network was asked for; nothing for fresh ones."""
    given = experiment.networks[name]
    if given.bundle:
        return f"bundle {given.bundle}"
    extractor = given.extractor
    if extractor.name == "copy" and extractor.of in experiment.networks:
        return _asked(experiment, extractor.of)
    if extractor.weights != "random":
        return f"{extractor.name}, weights {extractor.weights}"
    asked = [f"{k}={v}" for k, v in extractor.args.items() if v and "weights" in k]
    return f"{extractor.name}, {', '.join(asked)}" if asked else ""


def _made_of(experiment: Experiment, name: str) -> list[str]:
    found: list[str] = []
    here: str | None = name
    while here is not None and here in experiment.networks and here not in found:
        found.append(here)
        network = experiment.networks[here]
        here = network.extractor.of if network.bundle is None else None
    return found


def _trained_by(experiment: Experiment, name: str, parts: Collection[str]) -> list[str]:
    return [k for k, s in experiment.stages.items() if s.network == name and s.trains in parts]


def _teaches(experiment: Experiment, name: str) -> list[str]:
    return [k for k, s in experiment.stages.items() if name in _teachers(s)]


def _teachers(stage: Stage) -> tuple[str, ...]:
    return () if stage.teacher is None else (stage.teacher, *stage.co_teachers)


def _before(experiment: Experiment, trained_by: Sequence[str], used_in: Sequence[str]) -> bool:
    """Whether a network is trained before it is used."""
    order = list(experiment.stages)
    first = min((order.index(k) for k in trained_by), default=len(order))
    return first < min(order.index(k) for k in used_in)


def _only_looked_at(experiment: Experiment, name: str) -> bool:
    return any(n.extractor.of == name for n in experiment.networks.values())


def _starts(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    return bool((mean == 0).all() and (variance == 1).all())  # type: ignore[union-attr]


def _unevenness(weight: Tensor) -> float | None:
    """Spread of the filters' norms over that of independent normal weights, 1 / sqrt(2 n)."""
    if weight.ndim < 2 or weight.shape[0] < _SMALLEST or weight[0].numel() < _SMALLEST:
        return None
    norms = torch.linalg.vector_norm(weight.flatten(1).float(), dim=1)
    mean = float(norms.mean())
    return float(norms.std()) / mean * math.sqrt(2 * weight[0].numel()) if mean else None
