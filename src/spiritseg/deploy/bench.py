"""Students through every engine and precision, measured in turn on one machine."""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spiritseg.deploy.card import ModelCard
from spiritseg.deploy.memory import peak_memory_mib
from spiritseg.deploy.runtime import Runtime, open_runtime, prepare
from spiritseg.errors import ConfigError, unknown
from spiritseg.pixels import Pixels
from spiritseg.tables import Table

__all__ = ["BenchRow", "bench", "bench_table", "in_turn", "int8_instructions", "product_rates"]

RUNTIMES = ("torch", "onnxruntime", "openvino")
_OFFERED = {
    "torch": ("fp32",),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
}
_WARM_UP = 2
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
        gflops: of the network at that size.
        bytes: of the files.
        memory_mib: peak, above the engine alone; None where unknown.
        network_ms: times of the network alone, prepared floats to logits; empty for a file
            that has the preprocessing inside.
        whole_ms: times from the uint8 image to the mask.
        peak: of the machine, in GFLOP/s: the fastest float32 matrix product of the same run.
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
    runtimes: Sequence[str] = RUNTIMES,
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
        runtimes: torch, onnxruntime, openvino.
        precisions: fp32, fp16, int8; those that an engine does not offer are left out.
        threads: of the networks; by default all the machine's.
        rounds: passes of each on the clock; fewer where a size takes longer than `budget_s`,
            but 3 at least.
        budget_s: seconds a size.
        trust: open bundles of your own classes, and .pt2 files.
        report: gets a line on what is done.

    Returns:
        A row for each student, engine, precision and size.

    Raises:
        ConfigError: an unknown engine or precision, or nothing to measure.
        BundleError: a student cannot be opened.
    """
    for kind, given, known in (
        ("runtime", runtimes, RUNTIMES),
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
    threads = threads or os.cpu_count() or 1
    _limit_torch(threads)
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory(prefix="spiritseg-bench-") as folder:
        entries: list[_Entry] = []
        for number, student in enumerate(students):
            own = Path(folder) / str(number)
            own.mkdir()
            entries += _entries(Path(student), own, runtimes, precisions, threads, trust, report)
        if not entries:
            raise ConfigError("bench: no engine offers the chosen precisions.")
        for size in sizes:
            report(f"measuring {size[0]}x{size[1]} ...")
            rows += _measure(entries, size, threads, rounds, budget_s)
    return rows


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Tabulate rows.

    Args:
        rows: from `bench`.
    """
    table = [
        [
            "student",
            "runtime",
            "precision",
            "H x W",
            "params M",
            "GFLOPs",
            "file MB",
            "memory MiB",
            "network ms",
            "p95",
            "frames/s",
            "image to mask ms",
            "p95",
            "frames/s",
            "of peak %",
        ]
    ]
    for row in rows:
        memory = "-" if row.memory_mib is None else f"{row.memory_mib:.0f}"
        table.append(
            [
                row.student,
                row.runtime,
                row.precision,
                f"{row.size[0]} x {row.size[1]}",
                f"{row.params / 1e6:.3f}",
                f"{row.gflops:.2f}",
                f"{row.bytes / 1e6:.2f}",
                memory,
                *_figures(row.network_ms),
                *_figures(row.whole_ms),
                f"{100 * row.share:.0f}",
            ]
        )
    return table


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, budget_s: float
) -> dict[str, list[float]]:
    """Time works in turn, in an order that rotates.

    Args:
        works: by name.
        rounds: of each; fewer where the budget is used up, but 3 at least.
        budget_s: seconds in all.

    Returns:
        The times of each in ms, round by round.
    """
    for work in works.values():
        for _ in range(_WARM_UP):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - started > budget_s:
            break
        for name in names:
            before = time.perf_counter()
            works[name]()
            times[name].append((time.perf_counter() - before) * 1e3)
        names.append(names.pop(0))
    return times


def product_rates(threads: int, side: int = 2048) -> dict[str, Callable[[], object]]:
    """Return float32 matrix products of `side`, by library: what the machine can do.

    Args:
        threads: of each.
        side: of the matrices; a product takes 2 side^3 FLOPs.
    """
    import torch

    torch.set_num_threads(threads)
    values = np.random.default_rng(0).random((side, side), dtype=np.float32)
    tensor = torch.from_numpy(values)
    works: dict[str, Callable[[], object]] = {"torch": lambda: torch.mm(tensor, tensor)}
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return works
    kind, shape = onnx.TensorProto.FLOAT, [side, side]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", kind, shape)],
        [onnx.helper.make_tensor_value_info("c", kind, shape)],
        [onnx.numpy_helper.from_array(values, "b")],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    works["onnxruntime"] = lambda: session.run(None, {"a": values})
    return works


def int8_instructions() -> list[str]:
    """Name the processor's instructions for 8-bit products; empty where it has none known."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


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
        yield _Entry(runtime.card, runtime.name, None, runtime, path, size)
        return
    from spiritseg.deploy.export import build
    from spiritseg.deploy.graph import DeployedNetwork
    from spiritseg.deploy.torch_runtime import TorchRuntime, card_of
    from spiritseg.inference import load

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
                yield _Entry(own, name, bare, whole, path, _bundle_bytes(path))
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
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    works: dict[str, Callable[[], object]] = {}
    for number, entry in enumerate(entries):
        if entry.bare is not None:
            works[f"network {number}"] = _call(entry.bare.forward, prepare(image, entry.card.pool))
        works[f"whole {number}"] = _call(entry.whole.masks, image)
    side = 2048
    products = {f"product {k}": work for k, work in product_rates(threads, side).items()}
    times = in_turn({**works, **products}, rounds, budget_s)
    peak = max(2 * side**3 / min(times[name]) / 1e6 for name in products)
    rows = []
    for number, entry in enumerate(entries):
        card = entry.card
        share = size[0] * size[1] / (card.size[0] * card.size[1])
        rows.append(
            BenchRow(
                card.name,
                entry.runtime,
                card.precision,
                size,
                card.params,
                card.gflops * share,
                entry.bytes,
                peak_memory_mib(entry.path, size, threads),
                times.get(f"network {number}", []),
                times[f"whole {number}"],
                peak,
            )
        )
    return rows


def _call(work: Callable[[Any], object], given: Any) -> Callable[[], object]:
    return lambda: work(given)


def _figures(times: list[float]) -> list[str]:
    if not times:
        return ["-", "-", "-"]
    median, p95 = statistics.median(times), float(np.percentile(times, 95))
    return [f"{median:.1f}", f"{p95:.1f}", f"{1e3 / median:.1f}"]


def _bundle_bytes(path: Path) -> int:
    folder = path / "student" if (path / "student").is_dir() else path
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _scenes() -> list[Pixels]:
    from spiritseg.data.scenes import STYLES, render

    return [render(0, index, (128, 256), STYLES["test"]).image for index in range(2)]


def _limit_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
