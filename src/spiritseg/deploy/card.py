"""What an exported network says of itself, and how a file shows that it is whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spiritseg.errors import BundleError

__all__ = ["KEY", "ModelCard", "check_sealed", "read_sidecar", "seal", "sidecar"]

KEY = "spiritseg"  # of the card among an ONNX model's metadata_props
_FORMAT = 1
_SEAL = b"spiritseg.sha256"

Output = Literal["logits", "mask"]


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to feed an exported network and to read its answer.

    Args:
        name: of the student.
        classes: names, in the order of the logits and of a mask's values.
        colours: (R, G, B) of each class, 0 to 255.
        pool: side of the max-pool before the network.
        preprocess: True: the input is (N, H, W, 3) uint8 RGB, and the max-pool is inside.
            False: the input is (N, 3, H/pool, W/pool) float32 in [0, 1], and so is the
            output's grid.
        output: logits (N, K, H, W) float32, or the mask (N, H, W) uint8.
        precision: fp32, fp16 or int8.
        size: (H, W) of the images that it was made and checked with.
        dynamic: whether it takes other sizes and batches.
        params: number of the student's parameters.
        gflops: of an image of that size, 2 for each multiply-add.
        student_sha256: of the student's weights.
        version: spiritseg's.
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
        """Return the card as JSON; `from_json` reads it back."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str, where: object) -> ModelCard:
        """Read a card.

        Args:
            text: what `to_json` gave.
            where: what an error calls it.

        Returns:
            The card.

        Raises:
            BundleError: it is of another format, or fields are missing.
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


def seal(model: bytes) -> bytes:
    """Append an ONNX model's own checksum to it, as one more metadata entry.

    Protocol buffers can be concatenated: what is appended is a further metadata_props entry
    (field 14: key and value), so that the file stays an ordinary ONNX model.

    Args:
        model: the serialised model.

    Returns:
        The model and its seal.
    """
    return model + _entry(hashlib.sha256(model).hexdigest().encode())


def check_sealed(data: bytes, where: object) -> None:
    """Check that a file is an ONNX model of ours, whole and as it was written.

    Args:
        data: its contents.
        where: what an error calls it.

    Raises:
        BundleError: it is foreign, truncated or altered.
    """
    length = len(_entry(b"0" * 64))
    model, tail = data[:-length], data[-length:]
    if tail == _entry(hashlib.sha256(model).hexdigest().encode()):
        return
    if _entry_key(KEY.encode()) in data:
        raise BundleError(
            f"{where} is not as it was exported: its SHA-256 differs from the one inside (it is "
            "truncated or altered). Copy it again, or export the student again."
        )
    raise BundleError(
        f"{where} was not exported by spiritseg (or is cut short): it does not say its classes. "
        "Expected a file that `spiritseg export RUN` wrote."
    )


def sidecar(card: ModelCard, files: dict[str, bytes]) -> dict[str, Any]:
    """Return what the JSON beside a model says: its card, and its files' checksums.

    Args:
        card: the model's.
        files: contents by file name.

    Returns:
        What `read_sidecar` reads, as plain values.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return {KEY: json.loads(card.to_json()), "sha256": digests}


def read_sidecar(path: Path) -> ModelCard:
    """Read the card beside a model, and check the model's files against it.

    Args:
        path: the model; its card is the same name and ``.json``.

    Returns:
        The card.

    Raises:
        BundleError: a file is missing, altered, or not ours.
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


def _entry(value: bytes) -> bytes:
    body = _entry_key(_SEAL) + bytes([len(value)]) + value
    return bytes([0x72, len(body)]) + body


def _entry_key(key: bytes) -> bytes:
    return bytes([0x0A, len(key)]) + key + b"\x12"
