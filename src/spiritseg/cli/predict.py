"""spiritseg predict."""

from __future__ import annotations

from spiritseg.cli.words import make_parser
from spiritseg.errors import DataError, listed

_MORE = """
Unreadable files are left out and listed at the end; where no input can be read, that is an error.
The same command continues a prediction that was stopped. An .onnx needs no torch.

  spiritseg predict runs/esd camvid/test --out masks
  spiritseg predict student.onnx drive.mp4 --out drive --kind video
  spiritseg predict student.onnx 'day*/**/*.jpg' camera:0 --out overlays --kind overlay
"""


def run(words: list[str]) -> None:
    """Segment images, folders, videos or a camera; write masks, overlays or videos."""
    parser = make_parser("predict", run)
    parser.epilog = _MORE
    parser.add_argument("student", help="a run, a bundle, or an exported .onnx, .xml or .pt2")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="file, folder, glob or camera:0")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the outputs")
    parser.add_argument(
        "--kind",
        default="mask",
        help="mask: class-index PNGs (default); overlay: coloured PNGs; video: coloured videos "
        "with their sound",
    )
    parser.add_argument("--batch", type=int, default=1, help="images of one size at once")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode and encode")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours, 0 to 1")
    parser.add_argument("--threads", type=int, help="of the network in all; default: every core")
    parser.add_argument(
        "--streams",
        type=int,
        default=0,
        help="passes of an .onnx at once on the CPU, which share the threads; 0, the default: "
        "one a core, up to 4",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--frames", type=int, default=0, help="stop a video after so many")
    parser.add_argument("--trust", action="store_true", help="a .pt2, or a bundle's own classes")
    options = parser.parse_args(words)
    from spiritseg.deploy.predict import predict

    report = predict(
        options.student,
        options.inputs,
        options.out,
        options.kind,
        batch=options.batch,
        workers=options.workers,
        opacity=options.opacity,
        threads=options.threads,
        device=options.device,
        frames=options.frames,
        trust=options.trust,
        streams=options.streams,
    )
    if report.skipped and not report.frames + report.kept:
        reasons = [f"{path}: {reason}" for path, reason in report.skipped]
        raise DataError(f"none of the inputs could be read:\n{listed(reasons)}")
    rate = f", {report.frames_per_second:.1f} a second" if report.frames else ""
    print(f"{report.frames} frames in {report.seconds:.1f} s{rate}: {options.out}")
    if report.kept:
        print(f"{report.kept} outputs were there already")
    if report.skipped:
        print(f"{len(report.skipped)} inputs were left out, end early, or lack their sound:")
        for path, reason in report.skipped:
            print(f"  {path}: {reason}")
