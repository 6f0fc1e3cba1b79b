"""An exported student: its metadata, and one interface to it, whichever engine runs it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiritseg.errors import BundleError, ConfigError, DataError, MissingExtraError
from spiritseg.files import json_bytes, write_atomically
from spiritseg.images import Pixels

__all__ = [
    "KEY",
    "LARGE_BYTES",
    "ExportInfo",
    "LargeInputs",
    "Runtime",
    "import_engine",
    "prepare",
    "quiet",
    "read_sidecar",
    "write_sidecar",
]

KEY = "spiritseg"  # of the metadata in an ONNX model's metadata_props, and in a .json
LARGE_BYTES = 12_000_000  # of an input, 4 megapixels: an engine may keep its working memory
_FORMAT = 1

Floats = NDArray[np.float32]
Array = NDArray[Any]


@dataclass(frozen=True)
class ExportInfo:
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
    output: Literal["logits", "mask"]
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
    def from_json(cls, text: str, where: object) -> ExportInfo:
        """Read the result of `to_json`; BundleError, with the place, if that fails."""
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


class Runtime(ABC):
    """A student that is ready to run.

    Args:
        info: Its metadata.
        name: Name of the engine.
        path: File or folder that it came from.
        streams: Number of calls of `masks` that gain from running at once, in threads.
    """

    def __init__(self, info: ExportInfo, name: str, path: Path, streams: int = 1) -> None:
        self.info = info
        self.name = name
        self.path = path
        self.streams = streams

    @abstractmethod
    def forward(self, images: Array) -> Array:
        """Run the network as it was exported.

        Args:
            images: (N, H, W, 3) uint8, or (N, 3, h, w) float32 without preprocessing.

        Returns:
            Logits or masks, as in the metadata.
        """

    def logits(self, images: Pixels) -> Floats:
        """Return logits (N, K, H, W) float32 on the images' own grid.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Raises:
            ConfigError: if the export gives masks.
            DataError: if these are not images.
        """
        if self.info.output == "mask":
            raise ConfigError(
                f"{self.path} gives masks, not logits: it was exported with argmax. Export the "
                "student without it."
            )
        return cast(Floats, self._on_grid(images))

    def masks(self, images: Pixels) -> Pixels:
        """Segment images; return (N, H, W) uint8 class indices.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Raises:
            DataError: if these are not images.
        """
        found = self._on_grid(images)
        return found if self.info.output == "mask" else _largest(found)

    def _on_grid(self, images: Pixels) -> Array:
        """Run images of any size and batch through whatever the export takes."""
        if images.ndim != 4 or images.shape[3] != 3 or not images.size or images.dtype != np.uint8:
            raise DataError(
                f"expected images (N, H, W, 3) uint8 of at least one pixel, got {images.shape} "
                f"{images.dtype}; convert them to 8-bit RGB."
            )
        size = (images.shape[1], images.shape[2])
        if self.info.dynamic or (size == self.info.size and len(images) == 1):
            return self._whole(images)
        height, width = self.info.size
        found = []
        for image in images:
            picture = Image.fromarray(image)
            if size != self.info.size:
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            found.append(_resized(self._whole(np.asarray(picture)[None])[0], size))
        return np.stack(found)

    def _whole(self, images: Pixels) -> Array:
        """Run images of a size that the export takes; answer on their grid."""
        if self.info.preprocess:
            return self.forward(np.ascontiguousarray(images))
        pool = self.info.pool
        found = self.forward(prepare(images, pool))
        height, width = (pool * side for side in found.shape[-2:])  # what its windows cover
        whole = np.stack([_resized(one, (height, width)) for one in found])
        return whole[..., : images.shape[1], : images.shape[2]]


def prepare(images: Pixels, side: int) -> Floats:
    """Scale and max-pool in numpy, as an export with preprocessing does inside.

    Args:
        images: (N, H, W, 3) uint8.
        side: Side of the max-pool's windows; those at odd borders are smaller.

    Returns:
        (N, 3, ceil(H / side), ceil(W / side)) float32 in [0, 1].
    """
    number, height, width = images.shape[:3]
    border = ((0, 0), (0, -height % side), (0, -width % side), (0, 0))
    padded = np.pad(images, border)  # 0 is the least value
    windows = padded.reshape(number, -(-height // side), side, -(-width // side), side, 3)
    pooled = windows.max((2, 4)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pooled).astype(np.float32) / np.float32(255)


def _largest(logits: Array) -> Pixels:
    """Return the argmax over the classes, the first of equals; many times faster than numpy's."""
    best = logits[:, 0].copy()
    found = np.zeros(best.shape, np.uint8)
    for number in range(1, logits.shape[1]):
        found[logits[:, number] > best] = number
        if number + 1 < logits.shape[1]:
            np.maximum(best, logits[:, number], out=best)
    return found


def _resized(values: Array, size: tuple[int, int]) -> Array:
    """Bring logits (K, h, w) bilinearly, or a mask (h, w) by nearest neighbour, to a size."""
    if values.shape[-2:] == size:
        return values
    box = (size[1], size[0])
    if values.ndim == 2:
        return np.asarray(Image.fromarray(values).resize(box, Image.Resampling.NEAREST))
    planes = [Image.fromarray(plane).resize(box, Image.Resampling.BILINEAR) for plane in values]
    return np.stack([np.asarray(plane) for plane in planes])


class LargeInputs:
    """Tells when an engine should give back the working memory of its largest input.

    It is when the first much smaller input follows a large one. Doing so after every large input
    would cost a fifth of their speed (OpenVINO), after every input a quarter (onnxruntime).
    """

    def __init__(self) -> None:
        self._largest = 0  # bytes of an input since memory was given back

    def are_over(self, images: Array) -> bool:
        """Take the next input, and return whether memory is to be given back now."""
        over = self._largest > max(LARGE_BYTES, 4 * images.nbytes)
        self._largest = images.nbytes if over else max(self._largest, images.nbytes)
        return over


def import_engine(name: str, extra: str) -> Any:
    """Import a module that runs a student.

    Args:
        name: Name of the module.
        extra: Extras of spiritseg that install it; empty for torch.

    Raises:
        MissingExtraError: if it, or what it imports, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = f"spiritseg[{extra}]" if extra else "spiritseg"
        raise MissingExtraError(
            f"{error.name or name} is not installed, and this student needs it: pip install "
            f"'{wanted}'."
            + ("" if extra else " Or export the student to .onnx, which runs without torch.")
        ) from None


def write_sidecar(info: ExportInfo, format: str, files: Sequence[Path]) -> Path:
    """Write the .json next to a model: its metadata, format and checksums; return its path.

    Args:
        info: Metadata of the export.
        format: Name of its format.
        files: Its files, the one to open first.
    """
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    values = {KEY: json.loads(info.to_json()), "format": format, "sha256": digests}
    sidecar = files[0].with_name(f"{files[0].name}.json")
    write_atomically(sidecar, json_bytes(values))
    return sidecar


def read_sidecar(path: Path) -> ExportInfo:
    """Read the metadata next to a model, and check the model's files against their checksums.

    Args:
        path: The model; its metadata have the same name and ``.json``.

    Raises:
        BundleError: if a file is missing, altered, or not exported by spiritseg.
    """
    sidecar = path.with_name(f"{path.name}.json")
    try:
        values = json.loads(sidecar.read_bytes())
        info, digests = json.dumps(values[KEY]), dict(values["sha256"])
    except OSError:
        raise BundleError(
            f"{path} was not exported by spiritseg, or {sidecar.name} was not copied with it: "
            "keep the files of an export together."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{sidecar} is not the description of an export: {error!r}.") from None
    if path.name not in digests:
        raise BundleError(f"{sidecar} describes {', '.join(digests)}, not {path.name}.")
    for name, digest in digests.items():
        file = path.parent / Path(name).name
        if not file.is_file():
            raise BundleError(f"{file} is missing: keep the files of an export together.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise BundleError(
                f"{file} is not as it was exported: its SHA-256 differs from the one in "
                f"{sidecar.name}. Copy it again, or export the student again."
            )
    return ExportInfo.from_json(info, sidecar)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings and log lines, which a user cannot act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
