"""What a bundle says about its network: read, checked, and what of it needs trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, InstanceOf, TypeAdapter, ValidationError

from spiritseg.config import MAX_CHANNELS, Experiment, Extractor, Network
from spiritseg.errors import BundleError, ConfigError
from spiritseg.files import without_folders
from spiritseg.models.external import DOWNLOADS, untrusted_argument
from spiritseg.models.factory import foreign_names, network_from_dict
from spiritseg.models.sources import needs_trust

__all__ = ["FORMATS", "BundleInfo", "info_from_dict", "refuse_foreign"]

FORMATS = (1, 2)

_Network = Annotated[InstanceOf[Network], BeforeValidator(network_from_dict)]
_Byte = Annotated[int, Field(strict=True, ge=0, le=255)]


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle says about its network.

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

    networks: dict[str, _Network]
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
            extractor, foreign = network.extractor, foreign_names(network)
            found |= {f"the class {name}" for name in foreign}
            if extractor.name not in foreign and (bad := untrusted_argument(extractor.args)):
                found.add(f"the argument {bad} of {extractor.name}")
        return sorted(found)

    def experiment(
        self, overrides: Mapping[str, Any] | None = None, complete: bool = True
    ) -> Experiment:
        """Return the experiment that trained the network.

        Args:
            overrides: Values by dotted field, such as ``{"target.root": DIR}``. A bundle keeps
                only the last part of the folders of its images.
            complete: Whether the folders of the images must be given.

        Raises:
            BundleError: The bundle was saved without its experiment.
            ConfigError: The experiment is not valid; lists all problems.
        """
        from spiritseg.recipes import experiment_from_dict

        fields = self.training.get("experiment")
        if not isinstance(fields, Mapping):
            raise BundleError(
                "the bundle was saved without its experiment, so its images and settings are "
                "unknown. Use the bundle of a run (RUN/student), or save it with "
                "training={'experiment': ...}."
            )
        return experiment_from_dict(fields, overrides, complete)

    def without_weights(self) -> BundleInfo:
        """Return a copy whose networks are built without fetching or reading any weights."""
        networks = {
            name: dataclasses.replace(n, extractor=_bare(n.extractor), bundle=None)
            for name, n in self.networks.items()
        }
        return dataclasses.replace(self, networks=networks)


def info_from_dict(fields: Mapping[str, Any]) -> BundleInfo:
    """Check the fields of a bundle's JSON file.

    Args:
        fields: As `dataclasses.asdict` gives them; tuples may be lists, and further fields are
            ignored.

    Raises:
        ConfigError: Fields are missing or not valid.
    """
    try:
        info = _validator().validate_python(fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        listed = [f"{'.'.join(map(str, one['loc']))[:100]}: {one['msg']}" for one in problems[:5]]
        raise ConfigError("; ".join(listed)) from None
    except KeyError as error:
        raise ConfigError(f"a network lacks its {error}") from None
    if info.network not in info.networks:
        raise ConfigError(f"network: {info.network[:100]!r} is not among the networks")
    if len(info.colours) != len(info.classes):
        raise ConfigError(f"colours: {len(info.colours)} for {len(info.classes)} classes")
    return info


def refuse_foreign(folder: Path, info: BundleInfo) -> None:
    """Refuse a bundle whose loading would import classes, or open files, that it names.

    Args:
        folder: The bundle.
        info: Its description, from `bundle_info`.

    Raises:
        BundleError: The bundle names such classes or arguments; says how to trust it.
    """
    if needed := info.needs_trust:
        raise BundleError(
            f"{folder} needs trust for {', '.join(needed)}. Importing a class runs its code, and "
            "such an argument could make a library open or fetch something; without trust, "
            "expected arguments that describe an architecture (num_classes, encoder_name ...), as "
            f"numbers up to {MAX_CHANNELS} or words that name no file. Pass trust=True (--trust; "
            "in a recipe networks.NAME.trust) if the bundle is yours."
        )


@cache
def _validator() -> TypeAdapter[BundleInfo]:
    return TypeAdapter(BundleInfo)


def _bare(extractor: Extractor) -> Extractor:
    """Remove weights, and the paths of this machine that only weights and caches need.

    The constructor of a user's own class may need its paths, so its arguments stay.
    """
    args = extractor.args
    if not needs_trust(extractor.name):
        kept = {k: v for k, v in args.items() if k not in DOWNLOADS and not _is_path(v)}
        args = {k: without_folders(v) for k, v in kept.items()}
    return dataclasses.replace(extractor, weights="random", args=args)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(without_folders(value) != value)
