"""spiritseg predict."""

from __future__ import annotations

import argparse

from spiritseg.cli.words import make_parser
from spiritseg.errors import DataError, listed

_MORE = """
Outputs that exist are kept, so the same command continues one that was stopped. Unreadable files
are left out and listed at the end; if no input can be read, that is an error. An .onnx needs no
torch.

  spiritseg predict runs/esd camvid/test --out masks
  spiritseg predict student.onnx drive.mp4 --out drive --kind video
  spiritseg predict student.onnx 'day*/**/*.jpg' --out overlays --kind overlay
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command; its options are the arguments of `predict`."""
    words = make_parser("predict", run)
    words.epilog = _MORE
    add = words.add_argument
    add("student", help="run, bundle or exported file")
    add("inputs", nargs="+", metavar="INPUT", help="file, folder or glob")
    add("--out", required=True, metavar="DIR", help="folder of the outputs")
    add(
        "--kind",
        default="mask",
        help="mask: class-index PNGs (default); overlay: coloured PNGs; video: coloured videos "
        "with their sound",
    )
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add("--batch", type=int, default=1, help="images of one size in a forward pass")
    add("--workers", type=int, default=2, help="threads that decode, and threads that encode")
    add("--opacity", type=float, default=0.5, help="opacity of the colours, 0 to 1")
    add("--threads", type=int, help="CPU threads of the network in all; default: every core")
    add(
        "--streams",
        type=int,
        default=0,
        help="passes of an .onnx at once on the CPU, which share the threads; 0, the default: "
        "one a core, at most 4",
    )
    add("--device", default="cpu", help="cpu or cuda")
    add("--frames", type=int, default=0, help="largest number of frames of a video; 0: all")
    add("--trust", action="store_true", help="open a .pt2, or import a bundle's own classes")
    add("--progress", action=argparse.BooleanOptionalAction, default=True, help="progress bar")
    return words


def run(words: list[str]) -> None:
    """Segment images and videos; write masks, overlays or videos."""
    options = parser().parse_args(words)
    from spiritseg.predict.predict import predict

    report = predict(**vars(options))
    if report.skipped and not report.frames + report.kept:
        reasons = [f"{path}: {reason}" for path, reason in report.skipped]
        raise DataError(f"none of the inputs could be read:\n{listed(reasons)}")
    print(report)
