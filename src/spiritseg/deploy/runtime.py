"""One interface to a student, whatever runs it: onnxruntime, OpenVINO or torch.

This module imports numpy alone; the engine is imported when a file is opened.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiritseg.deploy.card import KEY, ModelCard, check_sealed, read_sidecar
from spiritseg.errors import BundleError, ConfigError, DataError, MissingExtraError
from spiritseg.pixels import Pixels

__all__ = ["OnnxRuntime", "OpenVinoRuntime", "Runtime", "open_runtime"]

Floats = NDArray[np.float32]
Array = NDArray[Any]


class Runtime(ABC):
    """A student that is ready to run.

    Args:
        card: what it says of itself.
        name: of the engine.
        path: where it came from.
        streams: calls of `masks` that gain from running at once, in threads.
    """

    def __init__(self, card: ModelCard, name: str, path: Path, streams: int = 1) -> None:
        self.card = card
        self.name = name
        self.path = path
        self.streams = streams

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of a mask's values."""
        return self.card.classes

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """(R, G, B) of each class, 0 to 255."""
        return self.card.colours

    @abstractmethod
    def forward(self, images: Array) -> Array:
        """Run the network as it was exported.

        Args:
            images: what the card says: (N, H, W, 3) uint8, or (N, 3, h, w) float32.

        Returns:
            Logits or masks, as the card says.
        """

    def logits(self, images: Pixels) -> Floats:
        """Return logits on the images' own grid.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, K, H, W) float32.

        Raises:
            ConfigError: the export ends in the mask.
            DataError: not images.
        """
        if self.card.output == "mask":
            raise ConfigError(
                f"{self.path} gives masks, not logits: it was exported with argmax. Export the "
                "student without it."
            )
        return cast(Floats, self._on_grid(images))

    def masks(self, images: Pixels) -> Pixels:
        """Segment images.

        Args:
            images: (N, H, W, 3) uint8 RGB.

        Returns:
            (N, H, W) uint8 class indices.

        Raises:
            DataError: not images.
        """
        found = self._on_grid(images)
        return found if self.card.output == "mask" else _largest(found)

    def _on_grid(self, images: Pixels) -> Array:
        """Run images of any size and batch through whatever the export takes."""
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"expected images (N, H, W, 3) uint8, got {images.shape} {images.dtype}; convert "
                "them to 8-bit RGB."
            )
        card = self.card
        size = (images.shape[1], images.shape[2])
        if min(size) < 1 or len(images) == 0:
            raise DataError(f"expected images of at least one pixel, got {images.shape}.")
        if not card.dynamic and (size != card.size or len(images) != 1):
            found = [self._fixed(image) for image in images]
            return np.stack([_resized(one, size) for one in found])
        if card.preprocess:
            return self.forward(np.ascontiguousarray(images))
        found = list(self.forward(prepare(images, card.pool)))
        return np.stack([_resized(one, size) for one in found])

    def _fixed(self, image: Pixels) -> Array:
        height, width = self.card.size
        picture = Image.fromarray(image)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        whole = np.asarray(picture)[None]
        given = whole if self.card.preprocess else prepare(whole, self.card.pool)
        return cast(Array, self.forward(given)[0])

    def colourise(self, mask: Pixels) -> Pixels:
        """Return a mask (H, W) in the colours of its classes, (H, W, 3) uint8."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.colours)] = self.colours
        return palette[mask]

    def overlay(self, image: Pixels, mask: Pixels, opacity: float = 0.5) -> Pixels:
        """Return an image (H, W, 3) under its coloured mask, (H, W, 3) uint8.

        Args:
            image: what was segmented.
            mask: (H, W) class indices.
            opacity: of the mask, 0 to 1.
        """
        coloured = Image.fromarray(self.colourise(mask))
        return np.asarray(Image.blend(Image.fromarray(image), coloured, opacity))


class OnnxRuntime(Runtime):
    """An exported ``.onnx``, run by onnxruntime; see `open_runtime`."""

    def __init__(
        self, path: Path, threads: int | None = None, device: str = "cpu", streams: int = 1
    ) -> None:
        onnxruntime = _import("onnxruntime", "deploy")
        data = _read(path)
        check_sealed(data, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        streams, threads = _shared(streams, threads) if device == "cpu" else (1, threads)
        if threads:
            options.intra_op_num_threads = threads
        wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        providers = onnxruntime.get_available_providers()
        if wanted.get(device) not in providers:
            raise ConfigError(
                f"onnxruntime cannot run on {device!r} here; it has {', '.join(providers)}. Use "
                "cpu, or install the package of onnxruntime for your device."
            )
        try:
            self._session = onnxruntime.InferenceSession(data, options, [wanted[device]])
        except Exception as error:  # the engine's own exceptions have no common base
            raise BundleError(f"onnxruntime cannot run {path}: {error}") from None
        self._input = self._session.get_inputs()[0].name
        text = self._session.get_modelmeta().custom_metadata_map[KEY]
        super().__init__(ModelCard.from_json(text, path), "onnxruntime", path, streams)

    def forward(self, images: Array) -> Array:
        """Run the network as it was exported."""
        return cast(Array, self._session.run(None, {self._input: images})[0])


@cache
def _openvino_core() -> Any:
    """Return the process's one ``openvino.Core``, which is never let go.

    A core replaces its thread's signal stack, and when it goes puts back what it found. Of two
    that go in the order in which they came, the second puts back the first's, which is freed by
    then: the next signal (Ctrl-C; a loader's worker that ends) kills the process.
    """
    return _import("openvino", "openvino").Core()


class OpenVinoRuntime(Runtime):
    """An exported ``.xml`` with its ``.bin``, run by OpenVINO; see `open_runtime`."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        core = _openvino_core()
        super().__init__(read_sidecar(path), "openvino", path)
        # Left to itself the engine computes in bfloat16 where the processor has it.
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(str(path), "CPU", config)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot run {path}: {error}") from None

    def forward(self, images: Array) -> Array:
        """Run the network as it was exported."""
        return np.array(self._compiled([images])[0])  # the engine's own buffer is used again


def open_runtime(
    path: str | Path,
    threads: int | None = None,
    device: str = "cpu",
    trust: bool = False,
    streams: int = 1,
) -> Runtime:
    """Open a student, whatever it was saved as.

    Args:
        path: an ``.onnx`` (onnxruntime), an ``.xml`` (OpenVINO), a ``.pt2``, a run or a bundle
            (torch, which nothing else needs).
        threads: on the CPU in all, over the streams; by default the engine's own choice for
            one stream, and the machine's cores for several.
        device: cpu or cuda, for ``.onnx``, runs and bundles.
        trust: import your own classes that a bundle names; open a .pt2, which torch may
            unpickle.
        streams: passes that shall run at once, in threads of the caller's, each with its share
            of the threads; 0 for one a core, at most 4 and at most the threads. An ``.onnx`` on
            a CPU can; the others run one.

    Returns:
        The student: ``open_runtime(path).masks(images)``.

    Raises:
        BundleError: it is missing, altered, truncated, or not of spiritseg.
        ConfigError: threads or streams that cannot be, or a device that the engine lacks.
        MissingExtraError: its engine is not installed.
    """
    _check_shares(streams, threads)
    path = Path(path)
    if not path.exists():
        raise BundleError(f"there is no {path}. Expected a run, a bundle, or an exported file.")
    if path.suffix == ".onnx":
        return OnnxRuntime(path, threads, device, streams)
    if path.suffix == ".xml":
        return OpenVinoRuntime(path, threads)
    if path.is_file() and path.suffix != ".pt2":
        raise BundleError(
            f"{path}: expected a run, a bundle, or a file that ends in .onnx, .xml or .pt2."
        )
    _import("torch", "")
    from spiritseg.deploy.torch_runtime import open_torch

    return open_torch(path, threads, device, trust)


def prepare(images: Pixels, side: int) -> Floats:
    """Do in numpy what an export with preprocessing has inside: scale and max-pool.

    Args:
        images: (N, H, W, 3) uint8.
        side: of the max-pool's windows; those at odd borders are smaller.

    Returns:
        (N, 3, ceil(H / side), ceil(W / side)) float32 in [0, 1].
    """
    number, height, width = images.shape[:3]
    rows, columns = -(-height // side), -(-width // side)
    padded = np.zeros((number, rows * side, columns * side, 3), np.uint8)
    padded[:, :height, :width] = images
    windows = padded.reshape(number, rows, side, columns, side, 3)
    pooled = windows.max((2, 4)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pooled).astype(np.float32) / np.float32(255)


def _check_shares(streams: int, threads: int | None) -> None:
    if streams < 0 or (threads is not None and threads < 1):
        raise ConfigError(
            f"expected threads of 1 or more and streams of 0 or more, got {threads} and {streams}."
        )
    if threads is not None and streams > threads:
        raise ConfigError(
            f"{streams} streams cannot share threads of {threads} in all: give as many threads as "
            "streams, or fewer streams."
        )


def _shared(streams: int, threads: int | None) -> tuple[int, int | None]:
    """Choose the streams where they are 0, and the threads of each; None is the engine's choice.

    Streams times the threads of each are not more than the threads that were given.
    """
    if streams == 1:
        return 1, threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    total = threads or cores
    streams = streams or min(4, cores, total)
    return streams, max(1, total // streams)


def _largest(logits: Array) -> Pixels:
    """Argmax over the classes, the first of equals; many times faster than numpy's."""
    best = logits[:, 0].copy()
    found = np.zeros(best.shape, np.uint8)
    for number in range(1, logits.shape[1]):
        better = logits[:, number] > best
        found[better] = number
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from None


def _import(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        wanted = f"spiritseg[{extra}]" if extra else "spiritseg"
        raise MissingExtraError(
            f"{name} is not installed, and this student needs it: pip install '{wanted}'."
            + ("" if extra else " Or export the student to .onnx, which runs without torch.")
        ) from None
