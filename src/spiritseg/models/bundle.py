"""A network on disk: safetensors and a JSON file that describes it. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from spiritseg.config import MAX_CHANNELS, Extractor, Network
from spiritseg.errors import BundleError, ConfigError, SpiritsegError
from spiritseg.files import json_bytes, without_folders, write_atomically
from spiritseg.models.external import DOWNLOADS, untrusted_argument
from spiritseg.models.factory import build_network, limited_parameters
from spiritseg.models.heads import is_foreign_head
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.sources import needs_trust
from spiritseg.options import build

__all__ = [
    "BUNDLE_FILES",
    "BundleInfo",
    "bundle_digest",
    "bundle_info",
    "check_bundles",
    "info_digest",
    "load_bundle",
    "refuse_foreign",
    "save_bundle",
]

_INFO, _WEIGHTS = BUNDLE_FILES = ("student.json", "student.safetensors")
_FORMATS = (1, 2)
_AGAIN = "Copy the bundle again, or save it again from its run."
_MAX_PARAMETERS = 1_000_000_000  # of all networks of a bundle without trust: 4 GB

_Byte = Annotated[int, Field(strict=True, ge=0, le=255)]


@dataclass(frozen=True)
class BundleInfo:
    """Description of a bundle's network.

    Args:
        networks: The network, and those that its extractor is derived from, by name.
        network: Name of the network whose weights these are.
        classes: Class names in the order of the logits, 1 to 16384.
        colours: (R, G, B) of each class, 0 to 255.
        pool: Side of the max-pool between an image and the network, 1 to 16384.
        metrics: Scores of the network by split, as plain values.
        training: The experiment and its stages, as plain values.
        format: Format of the file. The scores in format 1 are too low where the sides of the
            images are not multiples of the network's stride.
    """

    networks: dict[str, Network]
    network: str
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CHANNELS)]
    colours: tuple[tuple[_Byte, _Byte, _Byte], ...]
    pool: Annotated[int, Field(strict=True, ge=1, le=MAX_CHANNELS)]
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    format: Literal[1, 2] = 2

    @property
    def measured_before_one_geometry(self) -> bool:
        """Whether the scores are those of the first version; see `spiritseg.geometry`."""
        return self.format == 1

    @property
    def needs_trust(self) -> list[str]:
        """What loading would import, or could open or fetch, beyond the library networks."""
        found = set()
        for network in self.networks.values():
            extractor, head = network.extractor, network.head.name
            if needs_trust(extractor.name):
                found.add(f"the class {extractor.name}")
            elif bad := untrusted_argument(extractor.args):
                found.add(f"the argument {bad} of {extractor.name}")
            if is_foreign_head(head):
                found.add(f"the class {head}")
        return sorted(found)

    def without_weights(self) -> BundleInfo:
        """Return a copy whose networks are built without fetching or reading any weights."""
        networks = {
            name: dataclasses.replace(n, extractor=_bare(n.extractor), bundle=None)
            for name, n in self.networks.items()
        }
        return dataclasses.replace(self, networks=networks)


def save_bundle(folder: Path, segmenter: Segmenter, info: BundleInfo) -> None:
    """Write a network and its description to a folder, the JSON file last.

    Raises:
        BundleError: A weight is NaN or infinite.
    """
    from safetensors.torch import save

    state = {k: v.detach().cpu().contiguous() for k, v in segmenter.state_dict().items()}
    _refuse_not_finite(folder, state)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(state)
    write_atomically(folder / _WEIGHTS, weights)
    fields = dataclasses.asdict(info.without_weights())
    fields["sha256"] = {_WEIGHTS: _sha256(weights)}
    fields["sha256"][_INFO] = info_digest(fields)
    write_atomically(folder / _INFO, json_bytes(fields))


def load_bundle(folder: Path | str, trust: bool = False) -> tuple[Segmenter, BundleInfo]:
    """Read a network and its description.

    Args:
        folder: A folder that `save_bundle` wrote.
        trust: Whether classes of your own that the bundle names are imported, which runs their
            code. Networks of torchvision, timm and segmentation-models-pytorch need no trust if
            their arguments only describe an architecture. Without trust, the networks have at
            most 1,000,000,000 parameters.

    Returns:
        The network in eval mode, and its description.

    Raises:
        BundleError: A file is missing, altered, or of another format; a weight is NaN or
            infinite; or the bundle needs trust.
        ConfigError: The network cannot be built, or is too large.
    """
    folder = Path(folder).expanduser()
    fields, info = _read_info(folder)
    weights = _read(folder / _WEIGHTS)
    if _sha256(weights) != fields["sha256"].get(_WEIGHTS):
        raise BundleError(
            f"{folder / _WEIGHTS} is not the file that was saved: its SHA-256 differs from the "
            f"one in {_INFO}. {_AGAIN}"
        )
    if not trust:
        refuse_foreign(folder, info)
    info = info.without_weights()
    with nullcontext() if trust else limited_parameters(_MAX_PARAMETERS):
        segmenter = _build(folder, info)
    _load_weights(folder, segmenter, weights)
    return segmenter.eval(), info


def bundle_info(folder: Path | str) -> BundleInfo:
    """Read the description of a bundle's network, but not its weights."""
    return _read_info(Path(folder).expanduser())[1]


def bundle_digest(folder: Path | str) -> str:
    """Return the SHA-256 of a bundle's weights, as its description gives it."""
    return str(_read_info(Path(folder).expanduser())[0]["sha256"][_WEIGHTS])


def check_bundles(networks: Mapping[str, Network], classes: Sequence[str], pool: int) -> None:
    """Refuse bundles with other classes, or another max-pool, than the experiment's.

    Args:
        networks: The experiment's networks by name.
        classes: Classes of the data set in the order of the logits; empty if unknown.
        pool: Side of the experiment's max-pool.
    """
    for name, network in networks.items():
        if network.bundle is None:
            continue
        info, where = bundle_info(network.bundle), f"networks.{name}.bundle: {network.bundle}"
        if classes and info.classes != tuple(classes):
            raise ConfigError(
                f"{where} knows {len(info.classes)} classes ({', '.join(info.classes[:12])}), the "
                f"data set has {len(classes)} ({', '.join(classes[:12])}). Both need the same "
                "classes in the same order: choose target.classes accordingly."
            )
        if info.pool != pool:
            raise ConfigError(
                f"{where} was trained behind a max-pool of {info.pool}, input.pool is {pool}. Set "
                f"input.pool to {info.pool}, or use a network that was trained with {pool}."
            )


def refuse_foreign(folder: Path, info: BundleInfo) -> None:
    """Refuse a bundle whose loading would import classes, or open files, that it names."""
    if needed := info.needs_trust:
        raise BundleError(
            f"{folder} needs trust for {', '.join(needed)}. Importing a class runs its code, and "
            "such an argument could make a library open or fetch something; without trust, "
            "expected arguments that describe an architecture (num_classes, encoder_name ...), as "
            f"numbers up to {MAX_CHANNELS} or words that name no file. Pass trust=True (--trust; "
            "in a recipe networks.NAME.trust) if the bundle is yours."
        )


def info_digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the contents of a JSON file, without this digest itself."""
    digests = {k: v for k, v in fields["sha256"].items() if k != _INFO}
    plain = json.loads(json_bytes({**fields, "sha256": digests}))
    return _sha256(json.dumps(plain, sort_keys=True).encode())


def _read_info(folder: Path) -> tuple[dict[str, Any], BundleInfo]:
    path = folder / _INFO
    try:
        fields = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}. Copy the bundle again.") from None
    found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
    if found not in _FORMATS:
        raise BundleError(
            f"{path}: expected a bundle of format {_FORMATS[-1]}, got {reprlib.repr(found)}."
        )
    if not _is_whole(fields):
        raise BundleError(
            f"{path} is not the file that was saved: its SHA-256 differs from the one inside. "
            f"{_AGAIN}"
        )
    info, problems = build(BundleInfo, fields)
    if info is not None and info.network not in info.networks:
        problems.append(f"network: {info.network[:100]!r} is not among the networks")
    if info is not None and len(info.colours) != len(info.classes):
        problems.append(f"colours: {len(info.colours)} for {len(info.classes)} classes")
    if info is None or problems:
        found = "; ".join(line[:300] for line in problems[:5])
        raise BundleError(f"{path} is not a valid description: {found}. {_AGAIN}")
    return fields, info


def _is_whole(fields: Mapping[str, Any]) -> bool:
    digests = fields.get("sha256")
    if not isinstance(digests, dict) or not isinstance(digests.get(_WEIGHTS), str):
        return False
    try:
        return bool(digests.get(_INFO) == info_digest(fields))
    except RecursionError:  # nested deeper than anything that is saved
        return False


def _build(folder: Path, info: BundleInfo) -> Segmenter:
    built: dict[str, Segmenter] = {}
    try:
        for name, network in info.networks.items():  # each comes after those it derives from
            built[name] = build_network(network, len(info.classes), built, seed=0)
    except SpiritsegError:
        raise
    except Exception as error:  # libraries raise anything for values that they do not expect
        raise BundleError(
            f"{folder}: its networks cannot be built: {type(error).__name__}: {error}. {_AGAIN}"
        ) from error
    return built[info.network]


def _load_weights(folder: Path, segmenter: Segmenter, weights: bytes) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        segmenter.load_state_dict(load(weights))
    except RuntimeError as error:
        raise BundleError(f"{folder}: the weights are of another network: {error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # e.g. an unknown dtype
        raise BundleError(
            f"{folder / _WEIGHTS} is not a valid safetensors file: {error}. {_AGAIN}"
        ) from None
    _refuse_not_finite(folder, segmenter.state_dict())


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
            f"cannot read {path}: {error.strerror}. A bundle is a folder with {_INFO} and "
            f"{_WEIGHTS}; a run keeps its bundle in RUN/student."
        ) from None


def _bare(extractor: Extractor) -> Extractor:
    """Remove weights, and the paths of this machine that only weights and caches need.

    The constructor of a user's own class may need its paths, so its arguments stay.
    """
    args = extractor.args
    if not needs_trust(extractor.name):
        is_path = {k for k, v in args.items() if isinstance(v, str) and without_folders(v) != v}
        args = {k: without_folders(v) for k, v in args.items() if k not in {*DOWNLOADS, *is_path}}
    return dataclasses.replace(extractor, weights="random", args=args)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
