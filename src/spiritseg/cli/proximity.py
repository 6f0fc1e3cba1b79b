"""spiritseg proximity."""

from __future__ import annotations

from functools import partial

from spiritseg.cli.words import make_parser

_MORE = """
A distance is a squared Frechet distance between the teacher's features, as a share of the
reference's own variance, corrected for small samples: 0 is more of the same.

  spiritseg proximity --target camvid --candidates kitti mapillary --out proximity.png
  spiritseg proximity --target camvid --candidates kitti --toward new_city/drive1
"""


def run(words: list[str]) -> None:
    """Rank folders of unlabelled images: which is likely to help as proximity domain?"""
    parser = make_parser("proximity", run)
    parser.epilog = _MORE
    parser.add_argument("--target", required=True, metavar="DIR", help="the labelled images")
    parser.add_argument("--candidates", required=True, nargs="+", metavar="DIR")
    parser.add_argument(
        "--toward", metavar="DIR", help="unlabelled images of where the student will run"
    )
    parser.add_argument("--teacher", default="efficientnet_lite0", help="network of the features")
    parser.add_argument("--weights", default="pretrained", help="its weights, or a file")
    parser.add_argument("--subset", default="first:64", help="training images of the target")
    parser.add_argument("--limit", type=int, default=128, help="most images of a folder")
    parser.add_argument("--side", type=int, default=192, help="shorter side in pixels")
    parser.add_argument("--ratio", type=float, default=0.5, help="of the mixture, with --toward")
    parser.add_argument("--out", metavar="FILE.png", help="draw a figure")
    options = parser.parse_args(words)
    from spiritseg.proximity import proximity

    print(proximity(**vars(options), progress=partial(print, flush=True)))
    if options.out:
        print(f"wrote {options.out}")
