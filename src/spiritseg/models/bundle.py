"""A network on disk: safetensors beside a JSON that says what it is. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spiritseg.config import MAX_CHANNELS, Extractor, Network
from spiritseg.errors import BundleError, ConfigError, SpiritsegError
from spiritseg.files import json_bytes, without_folders, write_atomically
from spiritseg.models.external import DOWNLOADS, untrusted_argument
from spiritseg.models.factory import (
    build_network,
    foreign_names,
    limited_parameters,
    network_from_dict,
)
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.sources import needs_trust

__all__ = [
    "BundleInfo",
    "bundle_info",
    "check_bundles",
    "foreign_class",
    "load_bundle",
    "refuse_foreign",
    "save_bundle",
]

_FORMAT = 2
_BENT = 1  # whose figures were measured before there was one geometry; its networks are the same
_CARD, _WEIGHTS = "student.json", "student.safetensors"
_ANEW = "Copy the bundle again, or save it anew from its run."
_TRUST = "Pass trust=True (--trust; in a recipe networks.NAME.trust) if the bundle is yours."
_MOST_PARAMETERS = 1_000_000_000  # of all networks of a bundle without trust: 4 GB

_TYPES = {  # of what `BundleInfo` takes from a description
    "networks": dict,
    "network": str,
    "classes": list,
    "colours": list,
    "pool": int,
    "metrics": dict,
    "training": dict,
}


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle says of its network.

    Args:
        networks: the network, and those whose extractors its own is made from, by name.
        network: name of the one whose weights these are.
        classes: names of the classes, in the order of the logits.
        colours: (R, G, B) of each class, 0 to 255.
        pool: side of the max-pool between an image and the network.
        metrics: what it reached, and on what.
        training: the experiment and its stages, as plain values.
        format: of the file that it was read from. The figures of format 1 are too low where sides
            are no multiples of the network's stride.
    """

    networks: dict[str, Network]
    network: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    pool: int
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    format: int = _FORMAT

    @property
    def measured_before_one_geometry(self) -> bool:
        """Whether its figures are those of the first version; see `spiritseg.geometry`."""
        return self.format == _BENT


def save_bundle(folder: Path, segmenter: Segmenter, info: BundleInfo) -> None:
    """Write a network and what it is.

    Args:
        folder: made if it is not there. The JSON is written last: a folder without one is
            not a bundle.
        segmenter: the network.
        info: what it is.

    Raises:
        BundleError: a weight is NaN or infinite.
    """
    from safetensors.torch import save

    state = {k: v.detach().cpu().contiguous() for k, v in segmenter.state_dict().items()}
    _refuse_not_finite(folder, state)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(state)
    write_atomically(folder / _WEIGHTS, weights)
    card = dataclasses.asdict(_without_weights(info))
    card["sha256"] = {_WEIGHTS: _digest(weights)}
    card["sha256"][_CARD] = _card_digest(card)
    write_atomically(folder / _CARD, json_bytes(card))


def load_bundle(folder: Path | str, trust: bool = False) -> tuple[Segmenter, BundleInfo]:
    """Read a network and what it is.

    Args:
        folder: as `save_bundle` wrote it.
        trust: import the classes that the bundle names, where its network is one of your
            own (class path). Importing runs code: only for bundles that you made. Networks of
            torchvision, timm and segmentation-models-pytorch need no trust
            (`is_library_network`) if their arguments only describe an architecture
            (`untrusted_argument`); others could make these libraries fetch or read something.
            Without trust, the networks have at most 1,000,000,000 parameters.

    Returns:
        The network in eval mode, and its description.

    Raises:
        BundleError: a file is missing, altered, or of another format; a weight is NaN or
            infinite; or the bundle needs trust.
        ConfigError: the network that it describes cannot be built, or is too large.
        MissingExtraError: the library that the network comes from is not installed.
    """
    folder = Path(folder).expanduser()
    card = _read_card(folder)
    info = _info(card, folder)
    weights = _read(folder / _WEIGHTS)
    if _digest(weights) != card["sha256"].get(_WEIGHTS):
        raise BundleError(
            f"{folder / _WEIGHTS} is not the file that was saved: its SHA-256 differs from the "
            f"one in {_CARD}. {_ANEW}"
        )
    if not trust:
        refuse_foreign(folder, info)
    info = _without_weights(info)
    with nullcontext() if trust else limited_parameters(_MOST_PARAMETERS):
        return _restore(folder, info, weights), info


def bundle_info(folder: Path | str) -> BundleInfo:
    """Read what a bundle says of its network, and nothing else of it.

    Args:
        folder: as `save_bundle` wrote it.

    Returns:
        The description.

    Raises:
        BundleError: the description is missing, altered, or of another format.
    """
    folder = Path(folder).expanduser()
    return _info(_read_card(folder), folder)


def bundle_digest(folder: Path | str) -> str:
    """Return the SHA-256 that a bundle's description gives of its weights.

    Raises:
        BundleError: the description is missing, altered, or of another format.
    """
    return str(_read_card(Path(folder).expanduser())["sha256"][_WEIGHTS])


def refuse_foreign(folder: Path, info: BundleInfo) -> None:
    """Refuse a bundle whose loading would import classes, or open files, that it names itself.

    Args:
        folder: of the bundle.
        info: what it says of its network, as `bundle_info` reads it.

    Raises:
        BundleError: it names such classes or arguments; says how to trust it.
    """
    networks = info.networks.values()
    extractors = [network.extractor for network in networks]
    if foreign := sorted({name for network in networks for name in foreign_names(network)}):
        raise BundleError(
            f"{folder} is built from your own classes ({', '.join(foreign)}); loading it imports "
            f"them, which runs their code. {_TRUST}"
        )
    for one in extractors:
        if argument := untrusted_argument(one.args):
            raise BundleError(
                f"{folder}: the argument {argument} of {one.name} needs trust, since it could make "
                "a library open or fetch something. Without trust, expected arguments that "
                "describe an architecture (num_classes, encoder_name ...), as numbers up to "
                f"{MAX_CHANNELS} or words that name no file. {_TRUST}"
            )


def foreign_class(network: Network) -> str:
    """Return the name of a network that needs trust.

    Args:
        network: of a bundle.

    Returns:
        Its class path, or its name where an argument needs trust; empty if nothing does.
    """
    given = network.extractor
    foreign = [*foreign_names(network), *([given.name] if untrusted_argument(given.args) else [])]
    return foreign[0] if foreign else ""


def check_bundles(networks: Mapping[str, Network], classes: Sequence[str], pool: int) -> None:
    """Refuse bundles whose networks know other classes, or see images at another size.

    Their logits would be compared with other classes' and their features with those of other
    positions, and nothing else would tell.

    Args:
        networks: of an experiment, by name.
        classes: of the data set, in the order of the logits; none where they are not known.
        pool: side of the experiment's max-pool.

    Raises:
        BundleError: a description cannot be read.
        ConfigError: the first network that does not fit, and how.
    """
    for name, network in networks.items():
        if network.bundle is None:
            continue
        info = bundle_info(network.bundle)
        where = f"networks.{name}.bundle: {network.bundle}"
        if classes and info.classes != tuple(classes):
            raise ConfigError(
                f"{where} knows {len(info.classes)} classes ({', '.join(info.classes[:12])}), the "
                f"data set has {len(classes)} ({', '.join(classes[:12])}). Both need the same "
                "ones in the same order: choose target.classes so."
            )
        if info.pool != pool:
            raise ConfigError(
                f"{where} was trained behind a max-pool of {info.pool}, input.pool is {pool}. Set "
                f"input.pool to {info.pool}, or take a network that was trained with {pool}."
            )


def _restore(folder: Path, info: BundleInfo, weights: bytes) -> Segmenter:
    from safetensors import SafetensorError
    from safetensors.torch import load

    others: dict[str, Segmenter] = {}
    try:
        for name, network in info.networks.items():  # it stands after those it is made from
            others[name] = build_network(network, len(info.classes), others, seed=0)
    except SpiritsegError:
        raise
    except Exception as error:  # libraries raise anything for values that they do not expect
        raise BundleError(
            f"{folder}: its networks cannot be built: {type(error).__name__}: {error}. {_ANEW}"
        ) from error
    segmenter = others[info.network]
    try:
        segmenter.load_state_dict(load(weights))
    except RuntimeError as error:
        raise BundleError(f"{folder}: the weights are of another network: {error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # e.g. an unknown dtype
        raise BundleError(
            f"{folder / _WEIGHTS} is not a valid safetensors file: {error}. {_ANEW}"
        ) from None
    _refuse_not_finite(folder, segmenter.state_dict())
    return segmenter.eval()


def _refuse_not_finite(folder: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise BundleError(
                f"{folder}: expected finite weights, got NaN or infinity in {name} ({bad} of "
                f"{tensor.numel()} values). Train it again, with a lower learning rate."
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        run = path.parent
        if (run / "run.json").is_file() and not (run / "metrics.json").exists():
            raise BundleError(
                f"{run} is a run that has not finished, so it has no student yet. The command "
                "that began it continues it."
            ) from None
        raise BundleError(
            f"cannot read {path}: {error.strerror}. A bundle is a folder with {_CARD} and "
            f"{_WEIGHTS}; a run keeps its own in RUN/student."
        ) from None


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / _CARD
    try:
        card = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}. Copy the bundle again.") from None
    if not isinstance(card, dict) or card.get("format") not in (_BENT, _FORMAT):
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise BundleError(
            f"{path}: expected a bundle of format {_FORMAT}, got {reprlib.repr(found)}."
        )
    if not _is_whole(card):
        raise BundleError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one inside. "
            f"{_ANEW}"
        )
    return card


def _is_whole(card: Mapping[str, Any]) -> bool:
    digests = card.get("sha256")
    if not isinstance(digests, dict) or not isinstance(digests.get(_WEIGHTS), str):
        return False
    try:
        return bool(digests.get(_CARD) == _card_digest(card))
    except RecursionError:  # nested deeper than anything that is saved
        return False


def _info(card: Mapping[str, Any], folder: Path) -> BundleInfo:
    try:
        _check_card(card)
        info = BundleInfo(
            networks={name: network_from_dict(n) for name, n in card["networks"].items()},
            network=card["network"],
            classes=tuple(card["classes"]),
            colours=tuple((r, g, b) for r, g, b in card["colours"]),
            pool=card["pool"],
            metrics=card["metrics"],
            training=card["training"],
            format=int(card["format"]),
        )
        info.networks[info.network]  # it must be one of them
    except KeyError as error:
        raise BundleError(
            f"{folder / _CARD} lacks {error}, which a bundle's description has. {_ANEW}"
        ) from None
    except (ConfigError, AttributeError, TypeError, ValueError) as error:
        raise BundleError(
            f"{folder / _CARD} is not what a bundle's description looks like: {error}. {_ANEW}"
        ) from None
    return info


def _check_card(card: Mapping[str, Any]) -> None:
    for name, kind in _TYPES.items():
        if not isinstance(card[name], kind) or isinstance(card[name], bool):
            came = reprlib.repr(card[name])
            raise ConfigError(f"{name}: expected a {kind.__name__}, got {came}")
    classes, colours, pool = card["classes"], card["colours"], card["pool"]
    if not all(isinstance(one, str) for one in classes) or not 0 < len(classes) <= MAX_CHANNELS:
        raise ConfigError(f"classes: expected 1 to {MAX_CHANNELS} names, got {len(classes)} values")
    whole = all(type(part) is int and 0 <= part <= 255 for one in colours for part in one)
    if not whole or len(colours) != len(classes):
        raise ConfigError("colours: expected (R, G, B) of each class, whole numbers 0 to 255")
    if not 0 < pool <= MAX_CHANNELS:
        raise ConfigError(f"pool: expected 1 to {MAX_CHANNELS}, got {reprlib.repr(pool)}")


def _without_weights(info: BundleInfo) -> BundleInfo:
    # The weights come from the bundle; nothing is fetched to build the architecture.
    networks = {
        name: dataclasses.replace(n, extractor=_bare(n.extractor), bundle=None)
        for name, n in info.networks.items()
    }
    return dataclasses.replace(info, networks=networks)


def _bare(extractor: Extractor) -> Extractor:
    args = extractor.args
    if not needs_trust(extractor.name):
        args = {k: v for k, v in args.items() if k not in DOWNLOADS and not _is_file(v)}
        args = {k: without_folders(v) for k, v in args.items()}
    return dataclasses.replace(extractor, weights="random", args=args)


def _is_file(value: Any) -> bool:
    """Say whether an argument names a file of this machine.

    A library's networks have no use for one but weights and caches; a class of your own may
    need it to be made, so that its arguments stay as they are.
    """
    return isinstance(value, str) and bool(without_folders(value) != value)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _card_digest(card: Mapping[str, Any]) -> str:
    digests = {k: v for k, v in card["sha256"].items() if k != _CARD}
    plain = json.loads(json_bytes({**card, "sha256": digests}))
    return _digest(json.dumps(plain, sort_keys=True).encode())
