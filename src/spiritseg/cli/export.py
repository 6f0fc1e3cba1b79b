"""spiritseg export."""

from __future__ import annotations

from spiritseg.cli.words import make_parser, read_words

_MORE = """
The graph takes `image`, (N, H, W, 3) uint8 RGB, and gives `logits` (N, K, H, W) float32, or
with --argmax `mask` (N, H, W) uint8. The export is run by its own engine on real images and
compared with PyTorch; one that differs is not written. The loss of mIOU is measured on the
labelled test images of the run, or of --target.root DIR (any field as in distill).

  spiritseg export runs/esd --argmax
  spiritseg export runs/esd --precision int8 --calibrate kitti --target.root camvid
  spiritseg export runs/esd --format openvino --precision fp16
"""


def run(words: list[str]) -> None:
    """Write a run's student for a deployment engine, checked against PyTorch."""
    parser = make_parser("export", run)
    parser.epilog = _MORE
    parser.add_argument("student", metavar="RUN", help="a run's folder, or a bundle")
    parser.add_argument("--format", default="onnx", help="onnx (default), openvino or pt2")
    parser.add_argument("--precision", default="fp32", help="fp32 (default), fp16 or int8")
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
    parser.add_argument("--images", nargs="+", metavar="DIR", help="unlabelled images to check on")
    parser.add_argument(
        "--limit", type=int, default=64, help="images to check and calibrate with; 0: all"
    )
    parser.add_argument("--trust", action="store_true", help="import the bundle's own classes")
    options, overrides = read_words(parser, words)
    from spiritseg.deploy.export import export
    from spiritseg.tables import print_notes

    report = export(
        options.student,
        options.format,
        options.precision,
        tuple(options.size) if options.size else None,
        options.out,
        preprocess=not options.bare,
        argmax=options.argmax,
        fixed=options.fixed,
        calibrate=options.calibrate,
        images=options.images,
        overrides=overrides,
        limit=options.limit,
        trust=options.trust,
    )
    print_notes({"skipped": report.skipped})
    found = report.check
    print(f"checked on {found.images} images of {found.where}:")
    if found.max_difference is not None and found.relative_difference is not None:
        share = found.relative_difference
        print(f"  largest difference of a logit  {found.max_difference:.3g} ({share:.2g} of range)")
    print(f"  equal labels                   {100 * found.equal_labels:.3f} %")
    if found.miou is not None and found.miou_pytorch is not None:
        lost = 100 * (found.miou_pytorch - found.miou)
        before, after = 100 * found.miou_pytorch, 100 * found.miou
        print(f"  mIOU                           {before:.2f} -> {after:.2f} % ({lost:+.2f} lost)")
    else:
        print("  mIOU                           not measured: no labelled images (--target.root)")
    for path in report.paths:
        print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
