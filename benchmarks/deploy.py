"""How fast a student runs where it is deployed, against what the machine can do.

    python benchmarks/deploy.py                        # the Table II student and CT, 2 threads
    python benchmarks/deploy.py --size 256 512 --int8
    python benchmarks/deploy.py --predict RUN FOLDER   # files in, files out

Everything in a table is measured in turn in one run. "Of peak" divides by the fastest float32
matrix product of torch in the same run.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import spiritseg
from spiritseg.bench import int8_instructions, matrix_product, product_rate
from spiritseg.evaluation.cost import in_turn
from spiritseg.export.engines import ExportInfo
from spiritseg.export.export import build
from spiritseg.images import read_pixels
from spiritseg.models import Segmenter
from spiritseg.models.bundle import BundleInfo
from spiritseg.predict.inputs import find_images
from spiritseg.predict.predict import predict
from spiritseg.student import Student, load
from spiritseg.tables import Table, markdown

_SIDE = 2048
_INFO = BundleInfo({}, "network", ("background", "road"), ((70, 70, 70), (128, 64, 128)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="network input")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--int8", action="store_true", help="the student in int8 as well")
    parser.add_argument("--predict", nargs=2, metavar=("STUDENT", "FOLDER"))
    options = parser.parse_args()
    if options.predict:
        measure_predict(Path(options.predict[0]), Path(options.predict[1]), options)
    else:
        measure_networks(options)


def measure_networks(options: argparse.Namespace) -> None:
    """Time the Table II student and CT (dense trunk, the same head) through onnxruntime."""
    size = (int(options.size[0]), int(options.size[1]))
    teacher = spiritseg.teacher("deeplabv3_resnet50")
    student = spiritseg.student(teacher, 2).eval()
    ct = Segmenter(copy.deepcopy(teacher.extractor), copy.deepcopy(student.head)).eval()
    networks = {("CT", "fp32"): ct, ("student", "fp32"): student}
    if options.int8:
        networks["student", "int8"] = student
    image = np.random.default_rng(0).random((1, 3, *size), dtype=np.float32)
    works: dict[str, Callable[[], object]] = {}
    gflops = {}
    with tempfile.TemporaryDirectory() as folder:
        for (name, precision), network in networks.items():
            path = Path(folder) / f"{name}-{precision}.onnx"
            info = _describe(network, size, precision)
            gflops[f"{name} {precision}"] = info.gflops
            pictures = [(image[0].transpose(1, 2, 0) * 255).astype(np.uint8)] * 2
            build(Student(network, _INFO), info, "onnx", path, pictures)
            runtime = load(path, threads=options.threads).engine
            works[f"{name} {precision}"] = partial(runtime.forward, image)
    product = matrix_product(options.threads, _SIDE)
    times = in_turn({**works, "product": product}, options.rounds, budget_s=600)
    peak = product_rate(times["product"], _SIDE)
    base = statistics.median(times["CT fp32"])
    table: Table = [["network", "GFLOPs", "median ms", "best ms", "GFLOP/s", "of peak %", "CT /"]]
    for name in works:
        median, best = statistics.median(times[name]), min(times[name])
        rate = gflops[name] / best * 1e3
        figures = [f"{gflops[name]:.1f}", f"{median:.0f}", f"{best:.0f}", f"{rate:.0f}"]
        table.append([name, *figures, f"{100 * rate / peak:.0f}", f"{base / median:.2f}"])
    print(f"{size[0]}x{size[1]}, {options.threads} threads, {options.rounds} rounds")
    print(f"float32 matrix product of torch: {peak:.0f} GFLOP/s")
    print("8-bit instructions:", ", ".join(int8_instructions()) or "none known")
    print(markdown(table))


def measure_predict(student: Path, folder: Path, options: argparse.Namespace) -> None:
    """Compare frames per second of files in, files out with those of the network alone."""
    runtime = load(student, threads=options.threads)
    busy = load(student, streams=0)
    images = [read_pixels(path)[None] for path in find_images([folder])]
    runtime.masks(images[0])
    bare, whole = [], []
    for _ in range(options.rounds):
        started = time.perf_counter()
        for image in images:
            runtime.masks(image)
        bare.append(len(images) / (time.perf_counter() - started))
        with tempfile.TemporaryDirectory() as out:
            whole.append(predict(busy, folder, out, progress=False).frames_per_second)
    shares = [w / b for w, b in zip(whole, bare, strict=True)]
    print(
        f"{len(images)} images, {options.threads} threads: network {statistics.median(bare):.1f} "
        f"frames/s, predict {statistics.median(whole):.1f} frames/s, "
        f"{100 * statistics.median(shares):.0f} % (median of {options.rounds} pairs)"
    )


def _describe(network: Segmenter, size: tuple[int, int], precision: str) -> ExportInfo:
    costs = spiritseg.cost(network, size)
    return ExportInfo(
        name="network",
        classes=_INFO.classes,
        colours=_INFO.colours,
        pool=1,
        preprocess=False,
        output="logits",
        precision=precision,
        size=size,
        dynamic=False,
        params=costs.params,
        gflops=costs.gflops,
        student_sha256="",
        version=spiritseg.__version__,
    )


if __name__ == "__main__":
    main()
