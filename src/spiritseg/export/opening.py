"""Open a student, whatever it was saved as; only numpy is imported before its engine."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from spiritseg.errors import BundleError, ConfigError
from spiritseg.export.engines import Runtime, import_engine
from spiritseg.export.formats import format_of_file

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
        path: An exported file, of any format of `spiritseg.export.formats.FORMATS`; or a run or a
            bundle, which torch runs.
        threads: Number of CPU threads in all, over the streams; by default the engine's own
            choice for one stream, and the machine's cores for several.
        device: cpu or cuda; an ``.xml`` and a ``.pt2`` run on the CPU alone.
        trust: Whether to import your own classes that a bundle names, to open a ``.pt2``, which
            torch may unpickle, and to run the file that a format of your own is in.
        streams: Number of passes that run at once, in the caller's threads, each with its share
            of the threads; 0 for one a core, at most 4 and at most the threads. An ``.onnx`` on
            a CPU can; the others run one.

    Returns:
        The student: ``open_runtime(path).masks(images)``.

    Raises:
        BundleError: if it is missing, altered, truncated, or not of spiritseg.
        ConfigError: for impossible threads or streams, or a device that the engine lacks.
        MissingExtraError: if its engine is not installed.
    """
    _check_shares(streams, threads)
    path = Path(path)
    if not path.exists():
        raise BundleError(f"there is no {path}. Expected a run, a bundle, or an exported file.")
    if path.is_dir():
        torch_runtime = import_engine("spiritseg.export.pytorch", "")
        return cast(Runtime, torch_runtime.open_bundle(path, threads, device, trust))
    entry = format_of_file(path, trust)
    if device not in entry.devices:
        raise ConfigError(
            f"{entry.engine} cannot run {path} on {device!r}: such a file runs on "
            f"{', '.join(entry.devices)} alone. Use cpu, or give an .onnx, a run or a bundle."
        )
    return entry.open(path, threads, device, streams)


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
