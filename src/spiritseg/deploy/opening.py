"""Open a student, whatever it was saved as.

This module imports numpy alone; the engine is imported when a file is opened.
"""

from __future__ import annotations

from pathlib import Path

from spiritseg.deploy.onnx_runtime import OnnxRuntime
from spiritseg.deploy.openvino_runtime import OpenVinoRuntime
from spiritseg.deploy.runtime import Runtime, import_engine
from spiritseg.errors import BundleError, ConfigError

__all__ = ["open_runtime"]


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
        device: cpu or cuda; an ``.xml`` and a ``.pt2`` run on the CPU alone.
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
    _check_device(path, device)
    if path.suffix == ".onnx":
        return OnnxRuntime(path, threads, device, streams)
    if path.suffix == ".xml":
        return OpenVinoRuntime(path, threads)
    if path.is_file() and path.suffix != ".pt2":
        raise BundleError(
            f"{path}: expected a run, a bundle, or a file that ends in .onnx, .xml or .pt2."
        )
    import_engine("torch", "")
    from spiritseg.deploy.torch_runtime import open_torch

    return open_torch(path, threads, device, trust)


def _check_device(path: Path, device: str) -> None:
    """Refuse what would run on the CPU without a word."""
    engine = {".xml": "OpenVINO", ".pt2": "torch"}.get(path.suffix)
    if engine and device != "cpu":
        raise ConfigError(
            f"{engine} cannot run {path} on {device!r}: such a file runs on the CPU alone. Use "
            "cpu, or give an .onnx, a run or a bundle."
        )


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
