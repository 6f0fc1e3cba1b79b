"""Class maps: from the values in a mask file to the classes that a network learns."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from spiritseg.colours import colourise
from spiritseg.errors import ConfigError, DataError, unknown

__all__ = ["IGNORED", "NAMED", "ClassMap", "binary", "load_class_map", "named"]

IGNORED = 255
_FILES = resources.files("spiritseg.data").joinpath("class_maps")
NAMED = tuple(sorted(file.name.removesuffix(".yaml") for file in _FILES.iterdir()))
_FOREIGN = 254  # marks a value that the map does not know, within the lookup table only
_TABLE = 1 << 16  # masks have 8 or 16 bits
_REST_COLOUR = (70, 70, 70)  # black is left to ignored pixels

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set, and which values in its masks mean them.

    Args:
        names: the classes by train id, 0 to K-1; two or more.
        colours: red, green and blue in 0..255 of each class.
        ids: raw value in a mask to train id, or to 255 if the pixel is ignored. Any other value
            in a mask is an error.

    Raises:
        ConfigError: if names, colours and ids do not fit together.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    ids: Mapping[int, int]

    def __post_init__(self) -> None:
        problem = _problem(self.names, self.colours, self.ids)
        if problem:
            raise ConfigError(f"class map {list(self.names)}: {problem}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _table(self) -> npt.NDArray[np.uint8]:
        table = np.full(_TABLE, _FOREIGN, np.uint8)
        for raw, train_id in self.ids.items():
            if raw >= 0:  # a mask file cannot hold -1, which Cityscapes' map names
                table[raw] = train_id
        return table

    def to_train_ids(self, mask: npt.NDArray[Any], where: object = "mask") -> npt.NDArray[np.uint8]:
        """Look up the train id of each pixel.

        Args:
            mask: (H, W) raw values, of any integer type.
            where: the file, for the error message.

        Returns:
            (H, W) uint8: 0..K-1, or 255 where ignored.

        Raises:
            DataError: if a value is not in the map.
        """
        low, high = (int(mask.min()), int(mask.max())) if mask.size else (0, 0)
        if low >= 0 and high < _TABLE:
            labels: npt.NDArray[np.uint8] = np.take(self._table, mask)
            if not (labels == _FOREIGN).any():
                return labels
        foreign = set(np.unique(mask).tolist()) - {raw for raw in self.ids if raw >= 0}
        raise DataError(
            f"{where}: values {_first(sorted(foreign))} are not in the class map; it knows "
            f"{_first(sorted(self.ids))} for {_first(self.names)}. Correct the mask, or give a "
            "class map whose ids name these values (target.classes=FILE.yaml; 255 or ignore "
            "leaves pixels out)."
        )

    def colourise(self, labels: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Paint train ids (H, W) in the classes' colours, (H, W, 3) uint8; 255 turns black."""
        return colourise(np.asarray(labels, dtype=np.uint8), self.colours)

    def merge(self, groups: Mapping[str, Sequence[str]], rest: str | None = None) -> ClassMap:
        """Merge classes into fewer ones; ignored values stay ignored.

        Args:
            groups: the new classes, each with the names of the old ones in it.
            rest: name of a class, put first, for all old ones in no group; without it they are
                ignored.

        Raises:
            ConfigError: if a name is unknown or in two groups.
        """
        target = dict.fromkeys(range(len(self)), IGNORED if rest is None else 0)
        seen: set[str] = set()
        for new_id, (group, members) in enumerate(groups.items(), start=rest is not None):
            if not members or isinstance(members, str) or rest == group:
                raise ConfigError(
                    f"merged class {group!r}: expected a list of classes, and a name other than "
                    f"the rest's, got {members!r}"
                )
            for member in members:
                if member not in self.names:
                    what = f"class in merged class {group!r}:"
                    raise ConfigError(unknown(what, member, self.names))
                if member in seen:
                    raise ConfigError(f"class {member!r} is in two merged classes")
                seen.add(member)
                target[self.names.index(member)] = new_id
        ids = {raw: target.get(train_id, IGNORED) for raw, train_id in self.ids.items()}
        colours = tuple(self.colours[self.names.index(members[0])] for members in groups.values())
        if rest is None:
            return ClassMap(tuple(groups), colours, ids)
        return ClassMap((rest, *groups), (_REST_COLOUR, *colours), ids)

    def road(self) -> ClassMap:
        """Merge to background (0) and road (1), as the Spirit Distillation papers do."""
        roads = [name for name in self.names if name.lower() == "road"]
        if not roads:
            raise ConfigError(
                f"target.classes=road: there is no class 'road' among {', '.join(self.names)}. "
                "Use target.classes=all, or a class-map YAML with a class of that name."
            )
        return self.merge({"road": roads}, rest="background")

    def require(self, names: Sequence[str]) -> None:
        """Raise a DataError if a network was trained on other classes, or in another order."""
        if tuple(names) != self.names:
            raise DataError(
                f"the network knows the classes {', '.join(names)}; the images are labelled with "
                f"{', '.join(self.names)}. Choose target.classes so that they agree."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object = "class map") -> ClassMap:
        """Read the fields of a class-map file; see `load_class_map`."""
        return _parse(values, where)


def binary() -> ClassMap:
    """Return the default map of a folder: 0 background, 1 road, 255 ignored."""
    return ClassMap(
        ("background", "road"), (_REST_COLOUR, (128, 64, 128)), {0: 0, 1: 1, IGNORED: IGNORED}
    )


@lru_cache
def named(name: str) -> ClassMap:
    """Load a class map that comes with the library, by a name in `NAMED`."""
    if name not in NAMED:
        raise ConfigError(unknown("class map", name, NAMED))
    return _parse(yaml.safe_load(_FILES.joinpath(f"{name}.yaml").read_text("utf-8")), name)


def load_class_map(path: str | Path) -> ClassMap:
    """Read a class map from a YAML file.

    The file has ``names``, and optionally ``colours`` (one ``[r, g, b]`` a class) and ``ids``
    (raw value: class name, train id, or ``ignore``). Without ids, value i is class i and 255 is
    ignored. Or it merges the classes of a map of the library::

        base: cityscapes
        merge: {drivable: [road], walkway: [sidewalk, terrain]}
        rest: background        # optional; without it the rest is ignored

    Raises:
        ConfigError: if the file is missing or is not a class map.
    """
    path = Path(path).expanduser()
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the class map {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"the class map {path} is not valid YAML: {error}") from error
    return _parse(values, path)


def _parse(values: object, where: object) -> ClassMap:
    fields = {"names", "colours", "ids", "base", "merge", "rest"}
    try:
        if not isinstance(values, Mapping) or not ({"names", "base"} & set(values)):
            raise ConfigError(f"a class map needs the field names (or base); got {values!r:.80}")
        for key in values:
            if key not in fields:
                raise ConfigError(unknown("field", str(key), fields))
        unused = [key for key in ("names", "ids", "colours") if "base" in values and key in values]
        unused += ["rest"] if "rest" in values and "merge" not in values else []
        if unused:
            raise ConfigError(
                f"{' and '.join(unused)} would have no effect: base brings its own names, ids and "
                "colours, and rest goes with merge. Leave out one or the other."
            )
        whole = named(values["base"]) if "base" in values else _parse_plain(values)
        return whole.merge(values["merge"], values.get("rest")) if "merge" in values else whole
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: not a class map: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _parse_plain(values: Mapping[str, Any]) -> ClassMap:
    given = values["names"]
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ConfigError(
            f"names: expected a list of words in the order of the classes, got {given!r:.80}. Put "
            "quotes around what YAML takes for a number or for yes or no; ids: {0: background, "
            "1: road} maps the values in the masks to classes."
        )
    names = tuple(given)
    raw_ids = values.get("ids") or {**{i: i for i in range(len(names))}, IGNORED: IGNORED}
    meanings = {name: i for i, name in enumerate(names)} | {"ignore": IGNORED}
    ids: dict[int, int] = {}
    for raw, meaning in raw_ids.items():
        if isinstance(meaning, str) and meaning not in meanings:
            raise ConfigError(unknown(f"class of value {raw}:", meaning, meanings))
        ids[int(raw)] = int(meanings.get(meaning, meaning))
    colours = values.get("colours") or _distinct(len(names))
    return ClassMap(names, tuple((int(r), int(g), int(b)) for r, g, b in colours), ids)


def _distinct(count: int) -> tuple[Colour, ...]:
    """Spread hues by the golden ratio, over three brightnesses so that they differ in grey too."""
    colours = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb((0.6 + i * 0.618034) % 1.0, 0.75, (0.95, 0.6, 0.78)[i % 3])
        colours.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return tuple(colours)


def _problem(names: Sequence[str], colours: Sequence[Colour], ids: Mapping[int, int]) -> str | None:
    if not 2 <= len(names) < _FOREIGN:
        return (
            f"expected 2 to {_FOREIGN - 1} classes, got {len(names)}. Name the background too, as "
            "in names: [background, road], or rest: background where classes are merged."
        )
    if len(set(names)) < len(names):
        return "two classes have the same name"
    if len(colours) != len(names):
        return f"expected one colour a class ({len(names)}), got {len(colours)}"
    if any(not 0 <= value <= 255 for colour in colours for value in colour):
        return "colours are red, green and blue in 0..255"
    for raw, train_id in ids.items():
        if not -1 <= raw < _TABLE:
            return f"raw value {raw} does not fit a 16-bit mask"
        if train_id != IGNORED and not 0 <= train_id < len(names):
            return f"value {raw} leads to class {train_id}; expected 0..{len(names) - 1} or 255"
    return None


def _first(values: Sequence[object]) -> str:
    return ", ".join([*map(str, values[:12]), *(["..."] if len(values) > 12 else [])])
