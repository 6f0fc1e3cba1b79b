"""Metadata of an exported network, inside its file or in a .json next to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spiritseg.errors import BundleError
from spiritseg.files import json_bytes, write_atomically

__all__ = ["KEY", "ModelCard", "read_sidecar", "write_sidecar"]

KEY = "spiritseg"  # of the card among an ONNX model's metadata_props
_FORMAT = 1

Output = Literal["logits", "mask"]


@dataclass(frozen=True)
class ModelCard:
    """Metadata of an exported network: what its input and output are.

    Args:
        name: Name of the student.
        classes: Class names, in the order of the logits and of a mask's values.
        colours: (R, G, B) of each class, 0 to 255.
        pool: Side of the max-pool before the network.
        preprocess: Whether the input is (N, H, W, 3) uint8 RGB and the max-pool is inside.
            Otherwise the input is (N, 3, H/pool, W/pool) float32 in [0, 1], and the output is on
            that grid.
        output: Logits (N, K, H, W) float32, or the mask (N, H, W) uint8.
        precision: fp32, fp16 or int8.
        size: (H, W) of the images that it was traced with.
        dynamic: Whether it takes other sizes and batches.
        params: Number of parameters.
        gflops: 10^9 operations for an image of that size, 2 for each multiply-add.
        student_sha256: SHA-256 of the student's weights.
        version: Version of spiritseg.
    """

    name: str
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    pool: int
    preprocess: bool
    output: Output
    precision: str
    size: tuple[int, int]
    dynamic: bool
    params: int
    gflops: float
    student_sha256: str
    version: str

    def to_json(self) -> str:
        """Return the metadata as JSON; `from_json` reads them back."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str, where: object) -> ModelCard:
        """Read metadata.

        Args:
            text: Result of `to_json`.
            where: Name of the place, for errors.

        Raises:
            BundleError: if it is of another version, or fields are missing.
        """
        try:
            values = json.loads(text)
            if values.get("format") != _FORMAT:
                raise ValueError(f"format {values.get('format')!r}, expected {_FORMAT}")
            fields = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        except (ValueError, KeyError, AttributeError) as error:
            raise BundleError(
                f"{where}: its description cannot be read ({error}). Export the student again "
                "with this version of spiritseg."
            ) from None
        fields["classes"] = tuple(fields["classes"])
        fields["colours"] = tuple((int(r), int(g), int(b)) for r, g, b in fields["colours"])
        fields["size"] = (int(fields["size"][0]), int(fields["size"][1]))
        return cls(**fields)


def write_sidecar(card: ModelCard, format: str, files: Sequence[Path]) -> Path:
    """Write the .json next to a model: its metadata, its format and its files' checksums.

    Args:
        card: Metadata of the export.
        format: Name of its format.
        files: Its files, the one to open first.

    Returns:
        The .json.
    """
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    values = {KEY: json.loads(card.to_json()), "format": format, "sha256": digests}
    beside = files[0].with_name(f"{files[0].name}.json")
    write_atomically(beside, json_bytes(values))
    return beside


def read_sidecar(path: Path) -> ModelCard:
    """Read the metadata next to a model, and check the model's files against their checksums.

    Args:
        path: The model; its metadata have the same name and ``.json``.

    Returns:
        The metadata.

    Raises:
        BundleError: if a file is missing, altered, or not exported by spiritseg.
    """
    beside = path.with_name(f"{path.name}.json")
    try:
        values = json.loads(beside.read_bytes())
        card, digests = json.dumps(values[KEY]), dict(values["sha256"])
    except OSError:
        raise BundleError(
            f"{path} was not exported by spiritseg, or {beside.name} was not copied with it: "
            "keep the files of an export together."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{beside} is not the description of an export: {error!r}.") from None
    if path.name not in digests:
        raise BundleError(f"{beside} describes {', '.join(digests)}, not {path.name}.")
    for name, digest in digests.items():
        file = path.parent / Path(name).name
        if not file.is_file():
            raise BundleError(f"{file} is missing: keep the files of an export together.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise BundleError(
                f"{file} is not as it was exported: its SHA-256 differs from the one in "
                f"{beside.name}. Copy it again, or export the student again."
            )
    return ModelCard.from_json(card, beside)
