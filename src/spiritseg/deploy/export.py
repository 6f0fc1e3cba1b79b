"""A student as one file for a deployment engine, checked against PyTorch before it is written."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.formats import write_onnx, write_openvino, write_pt2
from spiritseg.deploy.graph import DeployedNetwork
from spiritseg.deploy.opening import open_runtime
from spiritseg.deploy.same_padding import replace_same_padding
from spiritseg.deploy.self_check import (
    Check,
    CheckImages,
    check,
    open_check_images,
    resize,
    spaced,
)
from spiritseg.deploy.shortcuts import make_dense, return_to_blocks
from spiritseg.deploy.sliced_head import SlicedHead, can_be_sliced
from spiritseg.deploy.torch_runtime import card_of
from spiritseg.errors import BadImageError, ConfigError, DataError, RunError, listed, unknown
from spiritseg.images import Pixels, read_pixels
from spiritseg.models.heads import StudentHead
from spiritseg.predict.inputs import find_images
from spiritseg.student import Student, bundle_folder, load

__all__ = ["ExportReport", "Format", "Precision", "build", "export"]

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "fp16", "int8"]

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with PyTorch.

    Args:
        paths: the files, the one to open first.
        card: what the export says of itself.
        check: the comparison.
        bytes: of the files.
        skipped: images to calibrate or check with that could not be read, and were left out.
    """

    paths: tuple[Path, ...]
    card: ModelCard
    check: Check
    bytes: int
    skipped: tuple[str, ...] = ()


def export(
    student: str | Path,
    format: Format = "onnx",
    precision: Precision = "fp32",
    size: tuple[int, int] | None = None,
    out: str | Path | None = None,
    *,
    preprocess: bool = True,
    argmax: bool = False,
    fixed: bool = False,
    calibrate: str | Path | Sequence[str | Path] | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int = 64,
    trust: bool = False,
) -> ExportReport:
    """Write a run's student for a deployment engine; check it against PyTorch first.

    The graph takes ``image``, (N, H, W, 3) uint8 RGB as decoders and cameras give it, and
    gives ``logits`` (N, K, H, W) float32 or ``mask`` (N, H, W) uint8. Batch and size are open.

    What was exported is run by its own engine on real images and compared with PyTorch, whole
    and cropped to odd sizes, alone and in a batch; nothing is written if it differs by more
    than `self_check.LIMITS` allow.

    Args:
        student: a run's folder, or a bundle.
        format: onnx (onnxruntime), openvino (.xml and .bin) or pt2 (torch.export; one with
            "same" padding and open size needs spiritseg.deploy.same_padding where it is loaded).
        precision: fp32; fp16: computes in float16 (openvino: stores), for GPUs and
            accelerators; int8: quantised (onnx, openvino).
        size: (H, W) that it is traced with, and that images to calibrate with are brought to;
            by default that of the first image to check with, and all images stay as they are.
        out: the file; by default beside the student, as RUN/student-PRECISION.SUFFIX.
        preprocess: False leaves the max-pool and uint8 out: ``image`` is then (N, 3, h, w)
            float32 in [0, 1] after the pool, and the output is on that grid.
        argmax: give the mask instead of logits.
        fixed: one image of `size` at a time, for engines that want it so; then all images,
            those to check with too, are brought to it.
        calibrate: for int8: folder, glob or files of unlabelled images as the student will
            meet them.
        images: further images to check with, where there is no labelled data set.
        overrides: dotted fields of the student's experiment, such as
            ``{"target.root": DIR}``, for the labelled images that mIOU is measured on; by
            default those of its run, where they are still there.
        limit: how many images to check and calibrate with at the most, evenly spaced; 0 for
            all.
        trust: import your own classes that the bundle names.

    Returns:
        The files and the comparison.

    Raises:
        ConfigError: an unknown format or precision, or one that is not offered.
        DataError: no image to calibrate or check with can be read.
        RunError: the export differs from PyTorch; nothing is left of it.
        BundleError: the student cannot be read.
    """
    _check_choices(format, precision, calibrate is not None, size)
    path = Path(student)
    loaded = load(path, trust=trust)
    target = _target(path, format, precision, out)
    calibration, bad = _read_some(calibrate, limit)
    given, also_bad = _read_some(images, limit)
    checked_on = open_check_images(loaded, overrides, limit, given or calibration)
    as_they_are = size is None and not fixed
    size = size or _size_of(checked_on.images[0])
    if not as_they_are:
        calibration = [resize(image, size) for image in calibration]
    if fixed:
        checked_on = checked_on.resized(size)
    card = dataclasses.replace(
        card_of(loaded, path.resolve().name, size),
        preprocess=preprocess,
        output="mask" if argmax else "logits",
        precision=precision,
        dynamic=not fixed,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
            files = build(loaded, card, format, Path(folder) / target.name, calibration)
            found = _compare(loaded, files[0], card, checked_on)
            for file in reversed(files):  # the one that is opened comes last
                file.replace(target.with_name(file.name))
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}.") from None
    paths = tuple(target.with_name(file.name) for file in files)
    written = sum(file.stat().st_size for file in paths)
    skipped = dict.fromkeys((*bad, *also_bad, *checked_on.skipped))
    return ExportReport(paths, card, found, written, tuple(skipped))


def build(
    student: Student, card: ModelCard, format: Format, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write a student in a format, unchecked.

    Args:
        student: what is written; it stays as it is.
        card: how: precision, size, preprocessing, argmax.
        format: onnx, openvino or pt2.
        path: the file; others stand beside it.
        calibration: images (H, W, 3) uint8, for int8.

    Returns:
        The files, the one to open first.
    """
    half = card.precision == "fp16" and format != "openvino"
    network = copy.deepcopy(student.network).cpu().float().eval()
    if format == "onnx" and can_be_sliced(network.head):
        network.head = SlicedHead(cast(StudentHead, network.head))
    if card.precision == "int8":
        make_dense(network)
    elif format == "onnx":
        return_to_blocks(network)
    replace_same_padding(network, as_operation=format != "pt2" or card.dynamic)
    module = DeployedNetwork(
        network.half() if half else network,
        card.pool,
        card.preprocess,
        card.output == "mask",
        half,
    ).eval()
    if format == "onnx":
        return write_onnx(module, card, path, calibration)
    if format == "openvino":
        return write_openvino(module, card, path, calibration)
    return write_pt2(module, card, path)


def _compare(student: Student, path: Path, card: ModelCard, images: CheckImages) -> Check:
    runtime = open_runtime(path, trust=True)  # written a moment ago
    return check(student, runtime, card, images)


def _check_choices(
    format: str, precision: str, calibrated: bool, size: tuple[int, int] | None
) -> None:
    if format not in get_args(Format):
        raise ConfigError(unknown("format", format, get_args(Format)))
    if precision not in get_args(Precision):
        raise ConfigError(unknown("precision", precision, get_args(Precision)))
    if precision == "int8" and format == "pt2":
        raise ConfigError("int8 is not offered for pt2; use --format onnx or openvino.")
    if precision == "int8" and not calibrated:
        raise ConfigError(
            "int8 is calibrated on unlabelled images as the student will meet them: give "
            "--calibrate DIR."
        )
    if size is not None and (len(size) != 2 or min(size) < 16):
        raise ConfigError(f"expected a size (H, W) of 16 pixels or more, got {tuple(size)}.")


def _target(student: Path, format: str, precision: str, out: str | Path | None) -> Path:
    suffix = _SUFFIX[format]
    if out is None:
        student = bundle_folder(student).resolve()
        return student.with_name(f"{student.name}-{precision}{suffix}")
    target = Path(out)
    if target.suffix != suffix:
        raise ConfigError(f"--out {target}: a file of format {format} ends in {suffix}.")
    if target.is_dir():
        raise ConfigError(f"--out {target} is a folder; expected the name of a file.")
    return target


def _read_some(
    where: str | Path | Sequence[str | Path] | None, limit: int
) -> tuple[list[Pixels], list[str]]:
    """Read evenly spaced images of folders, globs and files; also say which are unreadable."""
    if where is None:
        return [], []
    given = [where] if isinstance(where, str | Path) else list(where)
    files = find_images(given)
    if not files:
        raise DataError(f"no images in {', '.join(map(str, given))}.")
    pixels, bad = [], []
    for number in spaced(len(files), limit):
        try:
            pixels.append(read_pixels(files[number]))
        except BadImageError as error:
            bad.append(f"{error.path}: {error.reason}")
    if not pixels:
        raise DataError(f"no image is left; all are unreadable:\n{listed(bad)}")
    return pixels, bad


def _size_of(image: Pixels) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
