"""Students through every engine and precision, measured in turn on one machine."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from spiritseg.cores import usable_cores
from spiritseg.errors import BundleError, ConfigError, MissingExtraError, unknown
from spiritseg.export.engines import ExportInfo, Runtime, prepare
from spiritseg.export.formats import FORMATS, PRECISIONS
from spiritseg.files import read_fields
from spiritseg.images import Pixels
from spiritseg.predict.inputs import check_path
from spiritseg.registry import is_in_file
from spiritseg.student import bundle_folder, load

__all__ = [
    "BenchReport",
    "BenchRow",
    "bench",
    "int8_instructions",
    "matrix_product",
    "product_rate",
]

_SIDE = 2048  # of the matrices whose product is the peak
_BUDGET_S = 60.0  # for one size
_HEAD = ("runtime", "MB", "net ms", "mask ms", "p95", "fps", "peak %")


@dataclass(frozen=True)
class BenchRow:
    """A student in one engine, at one precision and size."""

    student: str
    runtime: str
    precision: str
    size: tuple[int, int]  # of the image; the network sees it after the max-pool
    params: int
    gflops: float  # of the network at that size; of a file of fixed size at its own
    bytes: int  # of the files
    network_ms: list[float]  # from prepared floats to the output; empty if preprocessing is inside
    whole_ms: list[float]  # from the uint8 image to the mask
    peak: float  # rate of a float32 matrix product in the same run, in GFLOP/s

    @property
    def share(self) -> float:
        """Rate of the network (median) as a share of the matrix product's."""
        median = statistics.median(self.network_ms or self.whole_ms)
        return self.gflops / median * 1e3 / self.peak

    def cells(self) -> list[str]:
        """Return the row of the table: medians and 95th percentiles in ms, "-" for unknown."""
        median = statistics.median(self.whole_ms)
        return [
            f"{self.runtime} {self.precision}",
            f"{self.bytes / 1e6:.2f}",
            f"{statistics.median(self.network_ms):.1f}" if self.network_ms else "-",
            f"{median:.1f}",
            f"{np.percentile(self.whole_ms, 95):.1f}",
            f"{1e3 / median:.1f}",
            f"{100 * self.share:.0f}",
        ]


class BenchReport(list[BenchRow]):
    """Rows of `bench`; prints as a Markdown table for each student and size."""

    def __str__(self) -> str:
        groups: dict[str, list[list[str]]] = {}
        for row in self:
            title = (
                f"{row.student} at {row.size[0]} x {row.size[1]}: {row.params / 1e6:.3f} M "
                f"parameters, {row.gflops:.2f} GFLOPs; matrix product {row.peak:.0f} GFLOP/s"
            )
            groups.setdefault(title, [list(_HEAD)]).append(row.cells())
        lines = [line for rows in groups.values() for line in rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        parts = [f"{title}\n\n{_markdown(rows, widths)}" for title, rows in groups.items()]
        if any(row.precision == "int8" for row in self):
            found = ", ".join(int8_instructions()) or "none known: int8 may not be faster"
            parts.append(f"8-bit instructions: {found}")
        return "\n\n".join(parts)

    __repr__ = __str__
    _repr_markdown_ = __str__


def bench(
    students: Sequence[str | Path],
    sizes: Sequence[tuple[int, int]] = ((512, 1024),),
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    *,
    threads: int | None = None,
    rounds: int = 15,
    trust: bool = False,
    quiet: bool = False,
) -> BenchReport:
    """Measure students in every engine, precision and size, in turn.

    Each round runs every row once, in an order that rotates, and a matrix product: a machine
    that slows down or is shared slows all of them alike. int8 is calibrated on the embedded
    scenes here: its speed does not depend on them, its accuracy does (see `spiritseg.export`).

    Args:
        students: Runs and bundles, which are exported for each engine; or exported files, which
            run as they are.
        sizes: (H, W) of the images, before the max-pool.
        runtimes: torch, and the engines of the export formats, or path/to/file.py:NAME of a
            format; by default those that are installed.
        precisions: fp32, fp16, int8; those that an engine does not offer are left out.
        threads: Number of CPU threads; by default one a core that this process may use.
        rounds: Number of measured passes of each; fewer where a size takes more than a minute,
            but at least 3.
        trust: Whether to open bundles of your own classes, and .pt2 files.
        quiet: Whether to print no progress to stderr.

    Returns:
        A row for each student, engine, precision and size.

    Raises:
        ConfigError: for an unknown engine or precision, nothing to measure, or no thread.
        MissingExtraError: if an engine that was asked for is not installed.
        BundleError: if a student cannot be opened.
    """
    _check_options(students, sizes, precisions, threads, rounds)
    for student in students:
        check_path(student, BundleError)
    say: Callable[[str], None] = (lambda line: None) if quiet else partial(print, file=sys.stderr)
    threads = threads or usable_cores()
    rows = BenchReport()
    exports = all(Path(student).is_file() for student in students)
    engines = {} if exports else _engines(runtimes, say)
    with tempfile.TemporaryDirectory(prefix="spiritseg-bench-") as folder:
        entries: list[_Entry] = []
        for number, student in enumerate(map(Path, students)):
            if student.is_file():
                entries.append(_opened(student, threads, trust))
            else:
                own = Path(folder) / str(number)
                own.mkdir()
                entries += _exported(student, own, engines, precisions, threads, trust, say)
        if not entries:
            raise ConfigError("bench: no engine offers the chosen precisions.")
        for size in sizes:
            say(f"measuring {size[0]}x{size[1]} ...")
            rows += _measure(entries, size, threads, rounds)
    return rows


@dataclass(frozen=True)
class _Entry:
    """One row of the table, before it is measured."""

    info: ExportInfo
    bare: Runtime | None
    whole: Runtime
    bytes: int


def _opened(path: Path, threads: int, trust: bool) -> _Entry:
    runtime = load(path, trust=trust, threads=threads).engine
    names = read_fields(path.with_name(f"{path.name}.json")).get("sha256", [path.name])
    size = sum(path.with_name(name).stat().st_size for name in names)
    return _Entry(runtime.info, None if runtime.info.preprocess else runtime, runtime, size)


def _exported(
    path: Path,
    folder: Path,
    engines: dict[str, str | None],
    precisions: Sequence[str],
    threads: int,
    trust: bool,
    say: Callable[[str], None],
) -> Iterator[_Entry]:
    """Export a student for each engine and precision, and open the exports."""
    from spiritseg.export.export import build
    from spiritseg.export.module import in_torch, info_of

    student = load(path, trust=trust)
    plain = info_of(student.network, student.info, path.resolve().name, (256, 512))
    for engine, format in engines.items():
        offered = FORMATS[format].precisions if format else ("fp32",)
        for precision in (name for name in precisions if name in offered):
            say(f"{plain.name}: {engine} {precision} ...")
            info = dataclasses.replace(plain, precision=precision)
            bare = dataclasses.replace(info, preprocess=False)
            if format is None:
                files = [path, *(f for f in bundle_folder(path).iterdir() if f.is_file())]
                opened: list[Runtime] = [
                    in_torch(student.network, kind, path) for kind in (bare, info)
                ]
            else:
                opened = []
                for kind in (bare, dataclasses.replace(info, output="mask")):
                    target = f"{engine}-{precision}-{kind.output}{FORMATS[format].suffix}"
                    pictures = _scenes() if precision == "int8" else []
                    files = build(student, kind, format, folder / target, pictures)
                    opened.append(FORMATS[format].open(files[0], threads, "cpu", 1))
            size = sum(file.stat().st_size for file in files if file.is_file())
            yield _Entry(info, opened[0], opened[1], size)


def _measure(
    entries: Sequence[_Entry], size: tuple[int, int], threads: int, rounds: int
) -> list[BenchRow]:
    from spiritseg.evaluation.cost import in_turn

    works: dict[str, Callable[[], object]] = {"product": matrix_product(threads, _SIDE)}
    for number, entry in enumerate(entries):
        info = entry.info
        if entry.bare is not None:
            own = _noise(size if info.dynamic else info.size)
            works[f"network {number}"] = partial(entry.bare.forward, prepare(own, info.pool))
        works[f"whole {number}"] = partial(entry.whole.masks, _noise(size))
    times = in_turn(works, rounds, _BUDGET_S)
    return [
        BenchRow(
            student=entry.info.name,
            runtime=entry.whole.name,
            precision=entry.info.precision,
            size=size,
            params=entry.info.params,
            gflops=_gflops(entry.info, size),
            bytes=entry.bytes,
            network_ms=times.get(f"network {number}", []),
            whole_ms=times[f"whole {number}"],
            peak=product_rate(times["product"], _SIDE),
        )
        for number, entry in enumerate(entries)
    ]


def matrix_product(threads: int, side: int = _SIDE) -> Callable[[], object]:
    """Return a float32 matrix product of torch to time; torch keeps the number of threads."""
    import torch

    torch.set_num_threads(threads)
    values = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    return lambda: torch.mm(values, values)


def product_rate(times_ms: Sequence[float], side: int = _SIDE) -> float:
    """Return the rate of the fastest product in GFLOP/s: 2 side^3 FLOPs in its time."""
    return 2 * side**3 / min(times_ms) / 1e6


def int8_instructions() -> list[str]:
    """Return the processor's instructions for 8-bit products, as Linux names them."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return sorted(flags & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def _gflops(info: ExportInfo, size: tuple[int, int]) -> float:
    height, width = size if info.dynamic else info.size
    return info.gflops * (height * width) / (info.size[0] * info.size[1])


def _noise(size: tuple[int, int]) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)


def _scenes() -> list[Pixels]:
    from spiritseg.scenes import STYLES, render

    return [render(0, index, (128, 256), STYLES["test"]).image for index in range(2)]


def _check_options(
    students: Sequence[str | Path],
    sizes: Sequence[tuple[int, int]],
    precisions: Sequence[str],
    threads: int | None,
    rounds: int,
) -> None:
    for name in precisions:
        if name not in PRECISIONS:
            raise ConfigError(unknown("precision", name, PRECISIONS))
    if not students or not sizes or rounds < 1 or min(min(s) for s in sizes) < 16:
        raise ConfigError(
            "bench: expected a student, sizes (H, W) of 16 pixels or more and 1 round or more, "
            f"got {list(students)}, {list(sizes)} and {rounds}."
        )
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: expected 1 or more, got {threads}; by default all cores.")


def _engines(asked: Sequence[str] | None, say: Callable[[str], None]) -> dict[str, str | None]:
    """Return engines and the format that each runs; None for torch, which runs the bundle."""
    known: dict[str, str | None] = {entry.engine: name for name, entry in FORMATS.items()}
    known["torch"] = None
    found: dict[str, str | None] = {}
    for name in ["torch", *(n for n in known if n != "torch")] if asked is None else asked:
        if name not in known and not is_in_file(name):
            raise ConfigError(unknown("runtime", name, known))
        format = known.get(name, name)
        missing = FORMATS[format].missing() if format else ""
        if missing and asked is not None:
            raise MissingExtraError(
                f"runtime {name}: {missing}. Or leave {name} out of --runtimes."
            )
        if missing:
            say(f"{name} is left out: {missing}")
        else:
            found[FORMATS[format].engine if format else name] = format
    return found


def _markdown(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Return a Markdown table with aligned columns: the first to the left, figures to the right."""
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
