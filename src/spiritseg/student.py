"""A saved student, ready to run: an image in, a mask out, whatever engine runs it.

Neither this module nor an exported ``.onnx`` needs torch; a bundle does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiritseg.colours import colourise, overlay
from spiritseg.errors import BundleError, ConfigError, DataError
from spiritseg.export.engines import Runtime, import_engine
from spiritseg.export.formats import open_file
from spiritseg.images import Pixels, read_pixels, to_rgb

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from spiritseg.config import Experiment
    from spiritseg.models.bundle import BundleInfo
    from spiritseg.models.segmenter import Segmenter

__all__ = ["Student", "bundle_folder", "load"]

Decoded: TypeAlias = str | Path | Image.Image | NDArray[Any]

_ROUNDING = 1e-3  # what resizing may leave beyond [0, 1]
_SIZE = (512, 1024)  # pixels; the size at which the GFLOPs of a bundle are counted


class Student:
    """A saved student, ready to run.

    An image may be a path, a PIL image, an (H, W, 3) uint8 array, or a (3, H, W) tensor of uint8
    or of float in [0, 1], which is rounded to 8 bits.

    Args:
        source: The engine of an exported file, or the network of a bundle.
        info: Description of a network; None for an engine.
        device: Torch device of a network.
        config: YAML file of the run that made the network, if it is at hand.
        trust: Whether Python files that its experiment names may run.

    Raises:
        ConfigError: if the device is unknown or unavailable.
    """

    def __init__(
        self,
        source: Runtime | Segmenter,
        info: BundleInfo | None = None,
        device: str = "cpu",
        config: Path | None = None,
        trust: bool = False,
    ) -> None:
        self._config, self._info, self._network, self._trust = config, info, None, trust
        if isinstance(source, Runtime):
            self.engine = source
        else:
            self._device = _device(device)
            self._network = source.to(self._device).eval()

    @cached_property
    def engine(self) -> Runtime:
        """The runtime. A bundle's is made when it is first needed."""
        from spiritseg.export.module import in_torch, info_of

        name = self.info.network
        return in_torch(
            self.network,
            info_of(self.network, self.info, name, _SIZE),
            Path(name),
            str(self._device),
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the mask's values."""
        return (self._info or self.engine.info).classes

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """(R, G, B) of each class, 0 to 255."""
        return (self._info or self.engine.info).colours

    @property
    def network(self) -> Segmenter:
        """The torch network of a bundle."""
        if self._network is None:
            raise BundleError(_no_bundle(self.engine, "network"))
        return self._network

    @property
    def info(self) -> BundleInfo:
        """The description of a bundle's network."""
        if self._info is None:
            raise BundleError(_no_bundle(self.engine, "description of its network"))
        return self._info

    def experiment(self, overrides: Mapping[str, Any] | None = None) -> Experiment:
        """Return the experiment that made it.

        Args:
            overrides: Values by dotted field, such as ``{"target.root": DIR}``. A bundle away
                from its run keeps only the last part of the paths of its images.

        Raises:
            BundleError: if it was saved without its experiment.
            ConfigError: with all problems of the experiment at once; if it names Python files
                and the student was loaded without trust.
        """
        from spiritseg.recipes import load_experiment, recorded_experiment

        if self._config is not None:
            return load_experiment(self._config, overrides, trust=self._trust)
        return recorded_experiment(self.info.training, overrides, trust=self._trust)

    def __call__(self, image: Decoded | Tensor) -> Pixels:
        """Segment an image of any kind; return (H, W) uint8 class indices.

        Raises:
            DataError: if it cannot be read, or has another shape, type or range.
        """
        mask: Pixels = self.masks(_pixels(image)[None])[0]
        return mask

    def masks(self, images: Pixels) -> Pixels:
        """Segment (N, H, W, 3) uint8 RGB images; return (N, H, W) uint8 class indices."""
        return self.engine.masks(images)

    @overload
    def logits(self, image: Tensor) -> Tensor: ...

    @overload
    def logits(self, image: Decoded) -> NDArray[np.float32]: ...

    def logits(self, image: Decoded | Tensor) -> NDArray[np.float32] | Tensor:
        """Return the logits of an image of any kind on its own grid.

        Returns:
            (K, H, W) float32: a tensor for a tensor, otherwise an array.

        Raises:
            ConfigError: if the student was exported with argmax.
            DataError: if the image cannot be read, or has another shape, type or range.
        """
        found: NDArray[np.float32] = self.engine.logits(_pixels(image)[None])[0]
        if isinstance(image, str | Path | Image.Image | np.ndarray):
            return found
        import torch

        return torch.from_numpy(found)

    def colourise(self, mask: Pixels) -> Pixels:
        """Return a mask (H, W) in the colours of its classes, (H, W, 3) uint8."""
        return colourise(mask, self.colours)

    def overlay(
        self, image: Decoded | Tensor, opacity: float = 0.5, mask: Pixels | None = None
    ) -> Image.Image:
        """Blend an image with its coloured mask.

        Args:
            image: Image of any kind, see the class.
            opacity: Share of the mask's colours, 0 to 1.
            mask: (H, W) class indices; by default the student's own.
        """
        pixels = _pixels(image)
        mask = self(pixels) if mask is None else mask
        return Image.fromarray(overlay(pixels, mask, self.colours, opacity))

    def __repr__(self) -> str:
        engine = "torch" if self._network is not None else self.engine.name
        return f"Student({len(self.classes)} classes: {', '.join(self.classes)}; {engine})"


def load(
    path: str | Path,
    device: str = "cpu",
    trust: bool = False,
    threads: int | None = None,
    streams: int = 1,
) -> Student:
    """Load a saved student.

    Args:
        path: Bundle, run, or exported file of any format of `spiritseg.export.formats.FORMATS`.
        device: cpu or cuda; an .xml and a .pt2 run on the CPU only.
        trust: Import the classes that a bundle names; open a .pt2, which torch may unpickle; run
            the file that a format of your own is in.
        threads: CPU threads in all, over the streams; by default the engine's own choice for one
            stream, and the machine's cores for several.
        streams: Passes of an .onnx that run at once on the CPU, in the caller's threads, each with
            its share of the threads; 0 for one a core, at most 4 and at most the threads.

    Returns:
        A student: ``load(path)(image)`` is its mask.

    Raises:
        BundleError: if a file is missing, altered, or of another format.
        ConfigError: if the device is unknown or unavailable, or threads or streams are impossible.
        MissingExtraError: if its engine is not installed.
    """
    _check_shares(streams, threads)
    folder = bundle_folder(path)
    if not folder.is_dir():
        return Student(open_file(folder, threads, device, trust, streams))
    torch = import_engine("torch", "")
    from spiritseg.models.bundle import load_bundle

    if threads:
        torch.set_num_threads(threads)
    network, info = load_bundle(folder, trust=trust)
    config = folder.parent / "config.yaml"
    of_run = folder.name == "student" and config.is_file()
    return Student(network, info, device, config if of_run else None, trust)


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


def bundle_folder(path: str | Path) -> Path:
    """Return the folder of a bundle, or of the bundle of a run."""
    folder = Path(path).expanduser()
    return folder / "student" if (folder / "student").is_dir() else folder


def _no_bundle(engine: Runtime, lacks: str) -> str:
    return f"{engine.path} is an exported file without the {lacks}. Use its run or bundle instead."


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # a missing driver shows only in use
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu; torch sees no GPU here"
        raise ConfigError(f"device: cannot run on {name!r}: {reason} Expected {here}.") from None
    return device


def _pixels(image: Decoded | Tensor) -> Pixels:
    """Return an image of any kind as (H, W, 3) uint8."""
    if isinstance(image, str | Path):
        return read_pixels(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if not isinstance(image, np.ndarray):
        return _of_tensor(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(
            f"expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}; convert the "
            "image to 8-bit RGB."
        )
    return image


def _of_tensor(image: Tensor) -> Pixels:
    """Return a (3, H, W) tensor as (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise DataError(f"expected a (3, H, W) tensor, got {tuple(image.shape)}.")
    values = image.detach().cpu().permute(1, 2, 0)
    came = f"{image.dtype}"
    if image.is_floating_point():
        low, high = (float(value) for value in values.aminmax())
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:  # False for NaN
            found: Pixels = (values.double().clamp(0, 1) * 255).round().byte().numpy()
            return found
        came += f" from {low:g} to {high:g}"
    elif came == "torch.uint8":
        return np.asarray(values)
    raise DataError(
        f"expected a (3, H, W) tensor of uint8, or of float in [0, 1]; got {came}. "
        "Convert values of 0..255 by image.to(torch.uint8), or divide them by 255."
    )
