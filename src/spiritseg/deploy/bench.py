"""Students through every engine and precision, measured in turn on one machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spiritseg.cores import usable_cores
from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.memory import peak_memory_mib
from spiritseg.deploy.opening import open_runtime
from spiritseg.deploy.runtime import Runtime, prepare
from spiritseg.deploy.timing import in_turn, matrix_products, product_rate
from spiritseg.errors import BundleError, ConfigError, MissingExtraError, unknown
from spiritseg.images import Pixels
from spiritseg.predict.inputs import check_path

__all__ = ["BenchRow", "bench"]

RUNTIMES = ("torch", "onnxruntime", "openvino")
_OFFERED = {
    "torch": ("fp32",),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
}
_EXTRA = {"onnxruntime": "deploy", "openvino": "deploy,openvino"}
_SIDE = 2048  # of the matrices whose product is the peak
_EXPORTED = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True)
class BenchRow:
    """A student in one engine, at one precision and size.

    Args:
        student: its name.
        runtime: the engine.
        precision: fp32, fp16 or int8.
        size: (H, W) of the image; the network sees it after the max-pool.
        params: of the network.
        gflops: of the network at that size; of a file of fixed size at its own, to which the
            image is brought.
        bytes: of the files.
        memory_mib: peak, above the engine alone; None where unknown.
        network_ms: times of the network alone, prepared floats to what it gives; empty for a
            file that has the preprocessing inside.
        whole_ms: times from the uint8 image to the mask.
        peak: of the machine, in GFLOP/s: the fastest float32 matrix product beside
            this size.
    """

    student: str
    runtime: str
    precision: str
    size: tuple[int, int]
    params: int
    gflops: float
    bytes: int
    memory_mib: float | None
    network_ms: list[float]
    whole_ms: list[float]
    peak: float

    @property
    def share(self) -> float:
        """Rate of the network (median) as a share of the matrix-product peak."""
        median = statistics.median(self.network_ms or self.whole_ms)
        return self.gflops / median * 1e3 / self.peak


def bench(
    students: Sequence[str | Path],
    sizes: Sequence[tuple[int, int]] = ((512, 1024),),
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    *,
    threads: int | None = None,
    rounds: int = 15,
    budget_s: float = 60.0,
    trust: bool = False,
    report: Callable[[str], None] = print,
) -> list[BenchRow]:
    """Measure students in every engine, precision and size, in turn.

    Each round runs every row once, in an order that rotates, and a matrix product: a machine
    that slows down or is shared slows all of them alike. int8 is calibrated on the embedded
    scenes here: its speed does not depend on them, its accuracy does (see `export`).

    Args:
        students: runs and bundles, which are exported for each engine; or exported files,
            which run as they are.
        sizes: (H, W) of the images, before the max-pool.
        runtimes: torch, onnxruntime, openvino; by default those that are installed.
        precisions: fp32, fp16, int8; those that an engine does not offer are left out.
        threads: of the networks; by default one a core that this process may use.
        rounds: passes of each on the clock; fewer where a size takes longer than `budget_s`,
            but 3 at least.
        budget_s: seconds a size.
        trust: open bundles of your own classes, and .pt2 files.
        report: gets a line on what is done.

    Returns:
        A row for each student, engine, precision and size.

    Raises:
        ConfigError: an unknown engine or precision, nothing to measure, or no thread.
        MissingExtraError: an engine that was asked for by name is not installed.
        BundleError: a student cannot be opened.
    """
    _check_options(students, sizes, runtimes, precisions, threads, rounds)
    for student in students:
        check_path(student, BundleError)
    if any(Path(student).suffix not in _EXPORTED for student in students):
        runtimes = _engines(runtimes, precisions, report)
    threads = threads or usable_cores()
    _limit_torch(threads)
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory(prefix="spiritseg-bench-") as folder:
        entries: list[_Entry] = []
        for number, student in enumerate(students):
            own = Path(folder) / str(number)
            own.mkdir()
            entries += _entries(
                Path(student), own, runtimes or (), precisions, threads, trust, report
            )
        if not entries:
            raise ConfigError("bench: no engine offers the chosen precisions.")
        for size in sizes:
            report(f"measuring {size[0]}x{size[1]} ...")
            rows += _measure(entries, size, threads, rounds, budget_s)
    return rows


@dataclass(frozen=True)
class _Entry:
    """One line of the table, before it is measured."""

    card: ModelCard
    runtime: str
    bare: Runtime | None
    whole: Runtime
    path: Path  # what a fresh process opens to measure memory
    bytes: int


def _entries(
    path: Path,
    folder: Path,
    runtimes: Sequence[str],
    precisions: Sequence[str],
    threads: int,
    trust: bool,
    report: Callable[[str], None],
) -> Iterator[_Entry]:
    if path.suffix in _EXPORTED:
        runtime = open_runtime(path, threads, trust=trust)
        beside = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
        size = sum(file.stat().st_size for file in beside)
        bare = None if runtime.card.preprocess else runtime
        yield _Entry(runtime.card, runtime.name, bare, runtime, path, size)
        return
    from spiritseg.deploy.export import build
    from spiritseg.deploy.graph import DeployedNetwork
    from spiritseg.deploy.torch_runtime import TorchRuntime, card_of
    from spiritseg.student import bundle_folder, load

    student = load(path, trust=trust)
    card = card_of(student, path.resolve().name, (256, 512))
    for name in runtimes:
        for precision in precisions:
            if precision not in _OFFERED[name]:
                continue
            report(f"{card.name}: {name} {precision} ...")
            own = dataclasses.replace(card, precision=precision)
            bare_card = dataclasses.replace(own, preprocess=False)
            if name == "torch":
                whole = open_runtime(path, threads, trust=trust)
                assert isinstance(whole, TorchRuntime)
                assert isinstance(whole.module, DeployedNetwork)
                bare = TorchRuntime(whole.module.network, bare_card, path, "cpu")
                size = sum(f.stat().st_size for f in bundle_folder(path).iterdir() if f.is_file())
                yield _Entry(own, name, bare, whole, path, size)
                continue
            suffix = "onnx" if name == "onnxruntime" else "xml"
            format: Any = "onnx" if name == "onnxruntime" else "openvino"
            whole_card = dataclasses.replace(own, output="mask")
            opened, files = [], []
            for kind, wanted in (("bare", bare_card), ("whole", whole_card)):
                target = folder / f"{kind}-{precision}.{suffix}"
                pictures = _scenes() if precision == "int8" else []
                files = build(student, wanted, format, target, pictures)
                opened.append(open_runtime(target, threads))
            size = sum(file.stat().st_size for file in files)
            yield _Entry(own, name, opened[0], opened[1], files[0], size)


def _measure(
    entries: Sequence[_Entry], size: tuple[int, int], threads: int, rounds: int, budget_s: float
) -> list[BenchRow]:
    works: dict[str, Callable[[], object]] = {}
    for number, entry in enumerate(entries):
        card = entry.card
        if entry.bare is not None:
            own = _noise(size if card.dynamic else card.size)
            works[f"network {number}"] = partial(entry.bare.forward, prepare(own, card.pool))
        works[f"whole {number}"] = partial(entry.whole.masks, _noise(size))
    products = {f"product {k}": work for k, work in matrix_products(threads, _SIDE).items()}
    times = in_turn({**works, **products}, rounds, budget_s)
    peak = max(product_rate(times[name], _SIDE) for name in products)
    return [
        BenchRow(
            student=entry.card.name,
            runtime=entry.runtime,
            precision=entry.card.precision,
            size=size,
            params=entry.card.params,
            gflops=_gflops(entry.card, size),
            bytes=entry.bytes,
            memory_mib=peak_memory_mib(entry.path, size, threads),
            network_ms=times.get(f"network {number}", []),
            whole_ms=times[f"whole {number}"],
            peak=peak,
        )
        for number, entry in enumerate(entries)
    ]


def _gflops(card: ModelCard, size: tuple[int, int]) -> float:
    if not card.dynamic:
        return card.gflops  # whatever comes, it computes its own size
    return card.gflops * (size[0] * size[1]) / (card.size[0] * card.size[1])


def _noise(size: tuple[int, int]) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)


def _check_options(
    students: Sequence[str | Path],
    sizes: Sequence[tuple[int, int]],
    runtimes: Sequence[str] | None,
    precisions: Sequence[str],
    threads: int | None,
    rounds: int,
) -> None:
    for kind, given, known in (
        ("runtime", runtimes or (), RUNTIMES),
        ("precision", precisions, _OFFERED["onnxruntime"]),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(unknown(kind, name, known))
    if not students or not sizes or rounds < 1 or min(min(s) for s in sizes) < 16:
        raise ConfigError(
            "bench: expected a student, sizes (H, W) of 16 pixels or more and 1 round or more, "
            f"got {list(students)}, {list(sizes)} and {rounds}."
        )
    if threads is not None and threads < 1:
        raise ConfigError(
            f"threads: expected 1 or more, got {threads}. Without it all cores are used."
        )


def _engines(
    asked: Sequence[str] | None, precisions: Sequence[str], report: Callable[[str], None]
) -> list[str]:
    """Return the engines that students are exported for: those asked for, else the installed."""
    engines = []
    for name in RUNTIMES if asked is None else asked:
        missing = _missing(name, precisions)
        if not missing:
            engines.append(name)
            continue
        said = f"{', '.join(missing)} is not installed: pip install 'spiritseg[{_EXTRA[name]}]'"
        if asked is not None:
            raise MissingExtraError(f"runtime {name}: {said}. Or leave {name} out of --runtimes.")
        report(f"{name} is left out: {said}")
    return engines


def _missing(runtime: str, precisions: Sequence[str]) -> list[str]:
    """Name the modules that exporting for an engine and running it lack."""
    if runtime == "torch":
        return []
    needed = ["onnx", "onnxscript", runtime]
    if "int8" in precisions and runtime != "onnxruntime":
        needed.append("onnxruntime")  # it quantises
    return [name for name in needed if importlib.util.find_spec(name) is None]


def _scenes() -> list[Pixels]:
    from spiritseg.scenes import STYLES, render

    return [render(0, index, (128, 256), STYLES["test"]).image for index in range(2)]


def _limit_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
