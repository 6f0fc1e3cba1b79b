"""A student as one file for a deployment engine, verified against PyTorch before it is kept."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritseg.errors import BadImageError, ConfigError, DataError, RunError, listed
from spiritseg.export.engines import ExportInfo, write_sidecar
from spiritseg.export.formats import FORMATS
from spiritseg.export.module import DeployedNetwork, info_of
from spiritseg.export.verify import Check, check, evenly, open_check_images, resize
from spiritseg.images import Pixels, read_pixels
from spiritseg.predict.inputs import find_images
from spiritseg.student import Student, bundle_folder, load

__all__ = ["ExportReport", "build", "export"]

Images = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class ExportReport:
    """The files of an export, the one to open first, and how it compares with PyTorch."""

    paths: tuple[Path, ...]
    info: ExportInfo
    check: Check
    bytes: int
    skipped: tuple[str, ...] = ()  # images to calibrate or verify with that could not be read

    def __str__(self) -> str:
        lines = [f"{len(self.skipped)} unreadable images were left out:"] if self.skipped else []
        lines += [f"  {path}" for path in self.skipped]
        wrote = f"wrote {', '.join(map(str, self.paths))} ({self.bytes / 1e6:.2f} MB)"
        return "\n".join([*lines, str(self.check), wrote])

    __repr__ = __str__


def export(
    student: str | Path,
    format: str = "onnx",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    out: str | Path | None = None,
    *,
    argmax: bool = False,
    fixed: bool = False,
    bare: bool = False,
    calibrate: Images = None,
    images: Images = None,
    limit: int = 64,
    trust: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a run's student for a deployment engine, verified against PyTorch.

    The graph takes ``image``, (N, H, W, 3) uint8 RGB as decoders and cameras give it, and
    returns ``logits`` (N, K, H, W) float32 or ``mask`` (N, H, W) uint8. Batch and size are open.

    The export is run by its own engine on real images and compared with PyTorch, at an odd and at
    an even size, alone and in a batch; nothing is written if it differs by more than
    `verify.LIMITS` allow.

    Args:
        student: Folder of a run, or a bundle.
        format: Name in `formats.FORMATS` (onnx, openvino, pt2), or path/to/file.py:NAME.
        precision: fp32; fp16, which computes in float16 (openvino: stores), for GPUs and
            accelerators; or int8, which is quantised (onnx, openvino).
        size: (H, W) that it is traced with, and that images to calibrate with are resized to; by
            default that of the first image to verify on, and no image is resized.
        out: File to write; by default RUN/student-PRECISION.SUFFIX.
        argmax: Whether the output is the mask instead of logits.
        fixed: Whether it takes one image of `size` at a time, for engines that need it; then all
            images, those to verify on too, are resized to it.
        bare: Whether to leave the max-pool and uint8 out: ``image`` is then (N, 3, h, w) float32
            in [0, 1] after the pool, and the output is on that grid.
        calibrate: Folder, glob or files of unlabelled images as the student will meet them, for
            int8.
        images: Folder, glob or files of images to verify on.
        limit: Largest number of images to verify on and to calibrate with, evenly spaced; 0 for
            all.
        trust: Whether to import your own classes that the bundle names.
        overrides: Dotted fields of the student's experiment, such as ``{"target.root": DIR}``,
            for the test images to verify on; by default those of its run, where they are still
            there.

    Returns:
        The files and the comparison.

    Raises:
        ConfigError: for an unknown format or precision, or one that is not offered.
        DataError: if no image to calibrate with or to verify on can be read.
        RunError: if the export differs from PyTorch; nothing is left of it.
        BundleError: if the student cannot be read.
        MissingExtraError: if what the format needs is not installed.
    """
    entry = FORMATS[format]
    entry.check(format, precision)
    _check_options(precision, calibrate, size)
    path = Path(student)
    target = _target(path, entry.suffix, precision, out)
    loaded = load(path, trust=trust)
    calibration, bad = _read_some(calibrate, limit)
    given, also_bad = _read_some(images, limit)
    on = open_check_images(loaded, overrides, limit, given, calibration)
    height, width = size or on.images[0].shape[:2]
    if size is not None or fixed:
        calibration = [resize(image, (height, width)) for image in calibration]
    if fixed:
        on = dataclasses.replace(on, images=[resize(one, (height, width)) for one in on.images])
    info = dataclasses.replace(
        info_of(loaded.network, loaded.info, path.resolve().name, (height, width)),
        preprocess=not bare,
        output="mask" if argmax else "logits",
        precision=precision,
        dynamic=not fixed,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
            files = build(loaded, info, format, Path(folder) / target.name, calibration)
            found = check(loaded, entry.open(files[0], None, "cpu", 1), on)
            for file in reversed(files):  # the one that is opened comes last
                file.replace(target.with_name(file.name))
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}.") from None
    paths = tuple(target.with_name(file.name) for file in files)
    written = sum(file.stat().st_size for file in paths)
    skipped = dict.fromkeys((*bad, *also_bad, *on.skipped))
    return ExportReport(paths, info, found, written, tuple(skipped))


def build(
    student: Student, info: ExportInfo, format: str, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write a student, without verifying it; return the files, the one to open first.

    Args:
        student: Student; it is not changed.
        info: Metadata: precision, size, preprocessing, argmax.
        format: Name in `formats.FORMATS`, or path/to/file.py:NAME.
        path: File to write; further files lie next to it.
        calibration: Images (H, W, 3) uint8, for int8.
    """
    network = copy.deepcopy(student.network).cpu().float()
    module = DeployedNetwork(network, info.pool, info.preprocess, info.output == "mask").eval()
    entry = FORMATS[format]
    files = entry.write(module, info, path, calibration)
    return files if entry.has_info else [*files, write_sidecar(info, format, files)]


def _check_options(precision: str, calibrate: Images, size: tuple[int, int] | None) -> None:
    if precision == "int8" and calibrate is None:
        raise ConfigError(
            "int8 is calibrated on unlabelled images as the student will meet them: give "
            "--calibrate DIR."
        )
    if size is not None and (len(size) != 2 or min(size) < 16):
        raise ConfigError(f"expected a size (H, W) of 16 pixels or more, got {tuple(size)}.")


def _target(student: Path, suffix: str, precision: str, out: str | Path | None) -> Path:
    if out is None:
        student = bundle_folder(student).resolve()
        return student.with_name(f"{student.name}-{precision}{suffix}")
    target = Path(out)
    if target.suffix != suffix:
        raise ConfigError(f"--out {target}: expected a file that ends in {suffix}.")
    if target.is_dir():
        raise ConfigError(f"--out {target} is a folder; expected the name of a file.")
    return target


def _read_some(where: Images, limit: int) -> tuple[list[Pixels], list[str]]:
    """Read evenly spaced images of folders, globs and files; return also the unreadable ones."""
    if where is None:
        return [], []
    given = [where] if isinstance(where, str | Path) else list(where)
    files = find_images(given)
    if not files:
        raise DataError(f"no images in {', '.join(map(str, given))}.")
    pixels, bad = [], []
    for file in evenly(files, limit):
        try:
            pixels.append(read_pixels(file))
        except BadImageError as error:
            bad.append(f"{error.path}: {error.reason}")
    if not pixels:
        raise DataError(f"no image is left; all are unreadable:\n{listed(bad)}")
    return pixels, bad
