"""A saved student, ready: an image in, a mask out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from spiritseg.config import Experiment
from spiritseg.errors import BundleError, ConfigError, DataError
from spiritseg.geometry import max_pool
from spiritseg.images import read_image, to_rgb
from spiritseg.models.bundle import BundleInfo, load_bundle
from spiritseg.models.segmenter import Segmenter
from spiritseg.registry import is_in_file

__all__ = ["Student", "bundle_folder", "load"]

Mask = NDArray[np.uint8]
_ROUNDING = 1e-3  # what resizing may leave beyond [0, 1]


class Student:
    """A network with its preprocessing and its classes.

    Args:
        network: (1, 3, h, w) in [0, 1] to logits (1, K, h, w).
        info: what it is.
        device: where it runs.
        config: the YAML of the run that it came from, where that is at hand.

    Raises:
        ConfigError: the device is unknown, or not there.
    """

    def __init__(
        self,
        network: Segmenter,
        info: BundleInfo,
        device: str = "cpu",
        config: Path | None = None,
        trust: bool = False,
    ) -> None:
        self._config = config
        self._trust = trust
        self.device = _device(device)
        self.network = network.to(self.device).eval()
        self.info = info

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the mask's values."""
        return self.info.classes

    def experiment(self, overrides: Mapping[str, Any] | None = None) -> Experiment:
        """Return the experiment that made it.

        Args:
            overrides: dotted fields, such as ``{"target.root": DIR}``: a bundle away from its
                run names the folders of its images only by their last part.

        Raises:
            BundleError: it was saved without one, or names a Python file for the layout of its
                images and was loaded without trust.
            ConfigError: with all problems at once.
        """
        experiment = self._experiment(overrides)
        dataset = experiment.target.dataset
        if is_in_file(dataset) and not self._trust and not _sets_dataset(overrides or {}):
            raise BundleError(
                f"the layout of its images, {dataset}, is a Python file. Pass --trust (trust=True) "
                "to run that file, or say yourself which one, by --target.dataset."
            )
        return experiment

    def _experiment(self, overrides: Mapping[str, Any] | None) -> Experiment:
        from spiritseg.recipes import experiment_from_dict, load_experiment

        if self._config is not None:
            return load_experiment(self._config, overrides)
        fields = self.info.training.get("experiment")
        if not isinstance(fields, Mapping):
            raise BundleError(
                "the bundle was saved without the experiment that made it, so that nothing says "
                "which images and settings are meant. Take the bundle of a run (RUN/student), or "
                "save it with training={'experiment': ...}."
            )
        return experiment_from_dict(fields, overrides)

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits of an image on its own grid.

        Args:
            image: (3, H, W) uint8, or float in [0, 1].

        Returns:
            (K, H, W) float32.

        Raises:
            DataError: where it has another shape, type or range.
        """
        values = _unit_range(image)
        with torch.inference_mode():
            batch = max_pool(values[None].to(self.device), self.info.pool)
            return self.network.before_pool(batch, self.info.pool, image.shape[-2:])[0].float()

    def __call__(self, image: str | Path | Image.Image | NDArray[Any] | Tensor) -> Mask:
        """Segment an image.

        Args:
            image: a path, a PIL image, an (H, W, 3) uint8 array or a (3, H, W) tensor (uint8,
                or float in [0, 1]).

        Returns:
            (H, W) uint8 class indices.

        Raises:
            DataError: where it cannot be read, or has another shape, type or range.
        """
        mask: Mask = self.logits(_tensor(image)).max(0).indices.to(torch.uint8).cpu().numpy()
        return mask

    def colourise(self, mask: Mask) -> NDArray[np.uint8]:
        """Return a mask in the colours of its classes, (H, W, 3) uint8."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.info.colours)] = self.info.colours
        coloured: NDArray[np.uint8] = palette[mask]
        return coloured

    def overlay(
        self, image: str | Path | Image.Image | NDArray[Any] | Tensor, opacity: float = 0.5
    ) -> Image.Image:
        """Return an image under its coloured mask.

        Args:
            image: as for calling the student.
            opacity: of the mask, 0 to 1.
        """
        tensor = (_unit_range(_tensor(image)) * 255).round().to(torch.uint8)
        picture = Image.fromarray(tensor.permute(1, 2, 0).numpy())
        return Image.blend(picture, Image.fromarray(self.colourise(self(tensor))), opacity)


def load(path: str | Path, device: str = "cpu", trust: bool = False) -> Student:
    """Load a saved student.

    Args:
        path: a bundle, or the run that it came from.
        device: where it runs, such as cpu or cuda.
        trust: import your own classes that the bundle names.

    Returns:
        A student: ``load(path)(image)`` is its mask.

    Raises:
        BundleError: a file is missing, altered, or of another format.
        ConfigError: the device is unknown, or not there.
    """
    folder = bundle_folder(path)
    network, info = load_bundle(folder, trust=trust)
    config = folder.parent / "config.yaml"
    of_run = folder.name == "student" and config.is_file()
    return Student(network, info, device, config if of_run else None, trust)


def bundle_folder(path: str | Path) -> Path:
    """Return where the bundle lies that `load` reads.

    Args:
        path: a bundle, or the run that it came from.
    """
    folder = Path(path).expanduser()
    return folder / "student" if (folder / "student").is_dir() else folder


def _sets_dataset(overrides: Mapping[str, Any]) -> bool:
    target = overrides.get("target")
    return "target.dataset" in overrides or (isinstance(target, Mapping) and "dataset" in target)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # a device without a driver is told by using it
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu; torch sees no GPU here"
        raise ConfigError(f"device: cannot run on {name!r}: {reason} Expected {here}.") from None
    return device


def _tensor(image: str | Path | Image.Image | NDArray[Any] | Tensor) -> Tensor:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}; convert the "
                "image to 8-bit RGB."
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return image


def _unit_range(image: Tensor) -> Tensor:
    """Return a tensor of either kind as float32 in [0, 1], or refuse it."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise DataError(f"expected a (3, H, W) tensor, got {tuple(image.shape)}.")
    if image.dtype == torch.uint8:
        return image.float() / 255
    came = f"{image.dtype}"
    if image.is_floating_point():
        low, high = (float(value) for value in image.detach().aminmax())
        if low >= -_ROUNDING and high <= 1 + _ROUNDING:  # not so for NaN
            return image.float()
        came += f" from {low:g} to {high:g}"
    raise DataError(
        f"expected a (3, H, W) tensor of uint8, or of float in [0, 1]; got {came}. "
        "Convert values of 0..255 by image.to(torch.uint8), or divide them by 255."
    )
