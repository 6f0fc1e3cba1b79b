"""A network on disk: safetensors beside a JSON that says what it is. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritseg.config import Extractor, Network
from spiritseg.errors import BundleError, ConfigError
from spiritseg.files import json_bytes, without_folders, write_atomically
from spiritseg.models.build import build_network, network_from_dict
from spiritseg.models.class_path import DOWNLOADS, is_class_path, is_library_network
from spiritseg.models.segmenter import Segmenter

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
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in segmenter.state_dict().items()}
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
            (`is_library_network`), unless their arguments hold a string with a colon, which
            could make these libraries fetch or read something.

    Returns:
        The network in eval mode, and its description.

    Raises:
        BundleError: a file is missing, altered, or of another format.
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
    """Refuse a bundle whose loading would import and call classes that it names itself.

    Args:
        folder: of the bundle.
        info: what it says of its network.

    Raises:
        BundleError: it names such classes; says how to trust it.
    """
    if foreign := sorted(filter(None, map(foreign_class, info.networks.values()))):
        raise BundleError(
            f"{folder} is built from your own classes ({', '.join(foreign)}); loading it imports "
            "them, which runs their code. Pass trust=True (--trust; in a recipe "
            "networks.NAME.trust) if the bundle is yours."
        )


def foreign_class(network: Network) -> str:
    """Return the class path of a network whose import needs trust.

    Args:
        network: of a bundle.

    Returns:
        The path; nothing where there is none, or where its library needs no trust.
    """
    given = network.extractor
    if not is_class_path(given.name):
        return ""
    return "" if is_library_network(given.name) and not _has_colon(given.args) else given.name


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
    from safetensors.torch import load

    others: dict[str, Segmenter] = {}
    for name, network in info.networks.items():  # a network stands after those it is made from
        others[name] = build_network(network, len(info.classes), others, seed=0)
    segmenter = others[info.network]
    try:
        segmenter.load_state_dict(load(weights))
    except RuntimeError as error:
        raise BundleError(f"{folder}: the weights are of another network: {error}") from None
    return segmenter.eval()


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
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON: {error}. Copy the bundle again.") from None
    if not isinstance(card, dict) or card.get("format") not in (_BENT, _FORMAT):
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise BundleError(f"{path}: expected a bundle of format {_FORMAT}, got {found!r}.")
    digests = card.get("sha256")
    if not isinstance(digests, dict) or digests.get(_CARD) != _card_digest(card):
        raise BundleError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one inside. "
            f"{_ANEW}"
        )
    return card


def _info(card: Mapping[str, Any], folder: Path) -> BundleInfo:
    try:
        info = BundleInfo(
            networks={name: network_from_dict(n) for name, n in card["networks"].items()},
            network=card["network"],
            classes=tuple(map(str, card["classes"])),
            colours=tuple((int(r), int(g), int(b)) for r, g, b in card["colours"]),
            pool=int(card["pool"]),
            metrics=dict(card["metrics"]),
            training=dict(card["training"]),
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
    return _without_weights(info)


def _has_colon(value: Any) -> bool:
    if isinstance(value, str):
        return ":" in value  # URLs, and timm's hf-hub: and local-dir:
    if isinstance(value, Mapping):
        return any(map(_has_colon, (*value, *value.values())))
    return isinstance(value, list | tuple) and any(map(_has_colon, value))


def _without_weights(info: BundleInfo) -> BundleInfo:
    # The weights come from the bundle; nothing is fetched to build the architecture.
    networks = {
        name: dataclasses.replace(n, extractor=_bare(n.extractor), bundle=None)
        for name, n in info.networks.items()
    }
    return dataclasses.replace(info, networks=networks)


def _bare(extractor: Extractor) -> Extractor:
    args = extractor.args
    if not is_class_path(extractor.name) or is_library_network(extractor.name):
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
