"""Export formats: how a student is written, opened and run in each.

An entry of `FORMATS` carries all that checks, help, the bench and the docs need to know of a
format. Your own is a `Format` in a Python file (``--format path/to/file.py:NAME``), or an entry
point of an installed package in the group ``spiritseg.formats``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritseg.errors import BundleError, ConfigError, MissingExtraError, unknown
from spiritseg.export.engines import ExportInfo, Runtime, import_engine
from spiritseg.files import read_fields
from spiritseg.images import Pixels
from spiritseg.registry import Registry, is_in_file

if TYPE_CHECKING:
    from spiritseg.export.module import DeployedNetwork

__all__ = ["FORMATS", "PRECISIONS", "Format", "describe_formats", "open_file"]

PRECISIONS = ("fp32", "fp16", "int8")
Writer = Callable[["DeployedNetwork", ExportInfo, Path, Sequence[Pixels]], list[Path]]
Opener = Callable[[Path, int | None, str, int], Runtime]


@dataclass(frozen=True)
class Format:
    """An export format.

    Args:
        about: One line for help and documentation.
        suffix: Suffix of the file that is opened (``".onnx"``).
        engine: Name of the library that runs it.
        write: Function (module, info, path, calibration) that writes the student `module`, a copy
            in eval mode that may be changed, with the metadata `info`; images (H, W, 3) uint8 to
            quantise with are empty unless the precision is int8. Returns the files, the one to
            open first.
        open: Function (path, threads, device, streams) that returns the `Runtime` of a file;
            `read_sidecar` reads its metadata. Threads of None and streams of 0 are its choice.
        precisions: Those of `PRECISIONS` that it offers.
        devices: Devices that it runs on.
        requires: Modules that writing and running it import.
        extra: Extras of spiritseg that install them; empty if none does.
        has_info: Whether the file holds its metadata itself; otherwise `spiritseg.export` writes
            them to a .json next to it.
        needs_trust: Whether opening a file may run code that it holds.
    """

    about: str
    suffix: str
    engine: str
    write: Writer
    open: Opener
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ("cpu",)
    requires: tuple[str, ...] = ()
    extra: str = ""
    has_info: bool = False
    needs_trust: bool = False

    def missing(self) -> str:
        """Return what is not installed and how to install it; empty if nothing is missing."""
        names = [name for name in self.requires if importlib.util.find_spec(name) is None]
        package = f"'spiritseg[{self.extra}]'" if self.extra else " ".join(names)
        return f"{', '.join(names)} is not installed: pip install {package}" if names else ""

    def check(self, name: str, precision: str) -> None:
        """Raise an error if a student cannot be exported to this format.

        Args:
            name: Name of the format, for the message.
            precision: Precision that was asked for.
        """
        if precision not in PRECISIONS:
            raise ConfigError(unknown("precision", precision, PRECISIONS))
        if precision not in self.precisions:
            others = [n for n, f in FORMATS.items() if precision in f.precisions]
            raise ConfigError(
                f"{precision} is not offered for {name}; use --format {' or '.join(others)}."
            )
        if missing := self.missing():
            raise MissingExtraError(f"format {name}: {missing}.")


def _lazily(path: str) -> Callable[..., Any]:
    """Return a function that is imported when it is called: a list of formats loads no engine."""
    module, _, name = path.partition(":")

    def call(*args: Any) -> Any:
        return getattr(import_engine(f"spiritseg.export.{module}", ""), name)(*args)

    return call


FORMATS = Registry("format", "spiritseg.formats", Format)

FORMATS.register(
    "onnx",
    Format(
        about="one .onnx for onnxruntime; needs no torch to run",
        suffix=".onnx",
        engine="onnxruntime",
        write=_lazily("onnx:write_onnx"),
        open=_lazily("onnx:OnnxRuntime"),
        precisions=PRECISIONS,
        devices=("cpu", "cuda"),
        requires=("onnx", "onnxscript", "onnxruntime"),
        extra="deploy",
        has_info=True,
    ),
)
FORMATS.register(
    "openvino",
    Format(
        about=".xml and .bin for OpenVINO on Intel processors; fp16 halves the file",
        suffix=".xml",
        engine="openvino",
        write=_lazily("onnx:write_openvino"),
        open=_lazily("onnx:OpenVinoRuntime"),
        precisions=PRECISIONS,
        requires=("onnx", "onnxscript", "onnxruntime", "openvino"),
        extra="deploy,openvino",
    ),
)
FORMATS.register(
    "pt2",
    Format(
        about="a .pt2 of torch.export; opening one needs trust",
        suffix=".pt2",
        engine="torch",
        write=_lazily("module:write_pt2"),
        open=_lazily("module:open_pt2"),
        precisions=("fp32", "fp16"),
        needs_trust=True,
    ),
)


def open_file(path: Path, threads: int | None, device: str, trust: bool, streams: int) -> Runtime:
    """Open an exported file in its engine; `spiritseg.load` explains the arguments.

    Raises:
        BundleError: if the file is missing, of no known format, or needs trust.
        ConfigError: if its engine does not run on the device.
    """
    if not path.exists():
        raise BundleError(f"there is no {path}. Expected a run, a bundle, or an exported file.")
    entry = _format_of(path, trust)
    if device not in entry.devices:
        raise ConfigError(
            f"{entry.engine} cannot run {path} on {device!r}: such a file runs on "
            f"{', '.join(entry.devices)} alone. Use cpu, or give an .onnx, a run or a bundle."
        )
    return entry.open(path, threads, device, streams)


def _format_of(path: Path, trust: bool) -> Format:
    """Find the format of a file: by its suffix, or by the .json next to it."""
    known = dict(FORMATS.items())
    found = next((entry for entry in known.values() if entry.suffix == path.suffix), None)
    name = str(read_fields(path.with_name(f"{path.name}.json")).get("format", ""))
    if found is None and not (is_in_file(name) or name in known):
        *others, last = (entry.suffix for entry in known.values())
        raise BundleError(
            f"{path}: expected a run, a bundle, or a file that ends in {', '.join(others)} or "
            f"{last}."
        )
    if not trust and (found.needs_trust if found else is_in_file(name)):
        reason = "torch may unpickle it" if found else f"its format is in {name}"
        raise BundleError(
            f"{path}: opening it may run code ({reason}). Pass trust=True (--trust) if the file is "
            "yours; an .onnx needs no trust."
        )
    return found or FORMATS[name]


def describe_formats() -> list[tuple[str, str]]:
    """Return name and description of each format, for help and documentation."""
    return [
        (name, f"{entry.about} ({', '.join(entry.precisions)})") for name, entry in FORMATS.items()
    ]
