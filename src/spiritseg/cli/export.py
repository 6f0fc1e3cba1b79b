"""spiritseg export."""

from __future__ import annotations

import argparse

from spiritseg.cli.words import make_parser, read_words

_MORE = """
The graph takes `image`, (N, H, W, 3) uint8 RGB, and gives `logits` (N, K, H, W) float32, or
with --argmax `mask` (N, H, W) uint8. The export is run by its own engine on real images and
compared with PyTorch; one that differs is not written. It is verified on --images, or on the test
images of the run or of --target.root DIR (any field as in distill).

formats:
{formats}
  path/to/file.py:NAME  your own

  spiritseg export runs/esd --argmax
  spiritseg export runs/esd --precision int8 --calibrate kitti
  spiritseg export runs/esd --format openvino --precision fp16
"""


def run(words: list[str]) -> None:
    """Write a run's student for a deployment engine, verified against PyTorch."""
    from spiritseg.export.formats import describe_formats

    parser = make_parser("export", run)
    parser.epilog = _MORE.format(
        formats="\n".join(f"  {name:10} {text}" for name, text in describe_formats())
    )
    parser.argument_default = argparse.SUPPRESS  # defaults are those of the function
    parser.add_argument("student", metavar="RUN", help="a run's folder, or a bundle")
    parser.add_argument("--format", help="see below; default: onnx")
    parser.add_argument("--precision", help="fp32 (default), fp16 or int8")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of the images; default: the first image's size",
    )
    parser.add_argument("--out", help="the file; default: student-PRECISION.SUFFIX in the run")
    parser.add_argument("--argmax", action="store_true", help="give the mask, not logits")
    parser.add_argument("--fixed", action="store_true", help="one image of --size at a time only")
    parser.add_argument(
        "--bare", action="store_true", help="float input after the max-pool, nothing around"
    )
    parser.add_argument("--calibrate", nargs="+", metavar="DIR", help="unlabelled images, for int8")
    parser.add_argument("--images", nargs="+", metavar="DIR", help="images to verify on")
    parser.add_argument(
        "--limit", type=int, help="images to verify and calibrate with (default: 64); 0: all"
    )
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options, overrides = read_words(parser, words)
    given = vars(options)
    if "size" in given:
        given["size"] = tuple(given["size"])
    from spiritseg.export.export import export

    print(export(**given, overrides=overrides))
