"""The table: every engine and precision, in turn, with figures that fit together."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

import spiritseg
from spiritseg.bench import BenchReport, BenchRow, bench
from spiritseg.errors import BundleError, ConfigError, MissingExtraError
from spiritseg.export import onnx as onnx_format
from spiritseg.export.engines import ExportInfo
from spiritseg.export.export import ExportReport
from spiritseg.export.module import DeployedNetwork, TorchRuntime, info_of
from spiritseg.student import Student

benching = importlib.import_module("spiritseg.bench")  # the function has the module's name
SIZE = (128, 256)  # also that of the images that `bench` calibrates on


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "_SIDE", 256)


@pytest.fixture
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare seconds: a graph of one size, traced once for all engines and precisions."""
    trace = onnx_format.to_onnx
    kept: dict[tuple[bool, str], onnx.ModelProto] = {}

    def once(module: DeployedNetwork, info: ExportInfo) -> onnx.ModelProto:
        key = (info.preprocess, info.output)
        if key not in kept:
            kept[key] = trace(module, dataclasses.replace(info, size=SIZE, dynamic=False))
        return copy.deepcopy(kept[key])

    monkeypatch.setattr(onnx_format, "to_onnx", once)


@pytest.mark.usefixtures("_traced_once")
def test_every_engine_and_precision_and_an_export_in_one_table(
    exported: ExportReport,
    student_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = bench(
        [student_folder, exported.paths[0]],
        sizes=[SIZE],
        precisions=["fp32", "int8"],
        threads=1,
        rounds=3,
    )
    assert [(row.student, row.runtime, row.precision) for row in rows] == [
        ("student", "torch", "fp32"),
        ("student", "onnxruntime", "fp32"),
        ("student", "onnxruntime", "int8"),
        ("student", "openvino", "fp32"),
        ("student", "openvino", "int8"),
        ("student", "onnxruntime", "fp32"),
    ]
    *bundles, file = rows
    assert {row.params for row in rows} == {exported.info.params}
    assert [len(row.network_ms) for row in rows] == [3, 3, 3, 3, 3, 0]
    assert {len(row.whole_ms) for row in rows} == {3}
    files = [p for p in student_folder.iterdir() if p.is_file()]
    assert bundles[0].bytes == sum(p.stat().st_size for p in files)
    assert file.bytes == exported.bytes
    assert bundles[2].bytes < bundles[1].bytes
    for row in rows:
        assert file.gflops == pytest.approx(row.gflops, rel=0.2)  # 45 x 60 is seen as 48 x 64
        assert row.share > 0
    assert capsys.readouterr().err.splitlines()[-1] == "measuring 128x256 ..."


class _Recorded(TorchRuntime):
    """A file that tells what it was given."""

    def forward(self, images: np.ndarray) -> np.ndarray:
        self.shapes.add(images.shape)
        return super().forward(images)

    shapes: set[tuple[int, ...]]


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("preprocess", [True, False])
def test_a_file_of_fixed_size_computes_its_own_size(
    student_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dynamic: bool,
    preprocess: bool,
) -> None:
    student = spiritseg.load(student_folder)
    path = tmp_path / "file.onnx"
    path.write_bytes(b"12345")
    info = dataclasses.replace(
        info_of(student.network, student.info, "file", (32, 48)),
        preprocess=preprocess,
        dynamic=dynamic,
    )
    module = DeployedNetwork(student.network, 2, preprocess).eval()
    runtime = _Recorded(module, info, path, "cpu")
    runtime.shapes = set()
    monkeypatch.setattr(benching, "load", lambda *words, **options: Student(runtime))
    rows = bench([path], [(32, 48), (64, 96)], threads=1, rounds=3, quiet=True)
    own, twice = rows
    assert own.gflops == info.gflops
    assert twice.gflops == pytest.approx(info.gflops * (4 if dynamic else 1))
    sizes = {(32, 48), (64, 96)} if dynamic else {(32, 48)}
    wanted = {(1, *size, 3) if preprocess else (1, 3, size[0] // 2, size[1] // 2) for size in sizes}
    assert runtime.shapes == wanted
    for row in rows:
        assert len(row.network_ms) == (0 if preprocess else 3)
        times = row.whole_ms if preprocess else row.network_ms
        rate = row.gflops / (sorted(times)[1] / 1e3)
        assert row.share == pytest.approx(rate / row.peak)


def _hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in names else find(name)
    )


def test_engines_that_are_not_installed_are_left_out_of_the_default_alone(
    student_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _hide(monkeypatch, "openvino", "onnxruntime")
    rows = bench([student_folder], [(32, 48)], threads=1, rounds=1)
    assert [row.runtime for row in rows] == ["torch"]
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("onnxruntime is left out: onnxruntime is not installed")
    assert second.startswith("openvino is left out: onnxruntime, openvino is not installed")
    assert "spiritseg[deploy,openvino]" in second
    with pytest.raises(MissingExtraError, match=r"onnxruntime: onnxruntime is not installed"):
        bench([student_folder], runtimes=["torch", "onnxruntime"])


def _row(runtime: str, precision: str, size: tuple[int, int] = (512, 1024)) -> BenchRow:
    times = [1032.21, 1045.32, 1100.0]
    return BenchRow("ct", runtime, precision, size, 740_123, 412.62, 2_950_000, [], times, 98)


ROWS = [_row("torch", "fp32"), _row("onnxruntime", "int8"), _row("openvino", "fp16", (256, 512))]


def test_the_report_prints_a_table_for_each_student_and_size() -> None:
    report = str(BenchReport(ROWS))
    first, table, second, _, instructions = report.split("\n\n")
    assert first == (
        "ct at 512 x 1024: 0.740 M parameters, 412.62 GFLOPs; matrix product 98 GFLOP/s"
    )
    assert second.startswith("ct at 256 x 512")
    assert instructions.startswith("8-bit instructions: ")
    head, rule, *lines = table.splitlines()
    assert set(rule) == set("|-: ")
    assert {len(line) for line in (head, rule, *lines)} == {len(head)}
    assert len(head) <= 82
    titles, *rows = ([c.strip() for c in line.strip("|").split("|")] for line in (head, *lines))
    row = dict(zip(titles, rows[0], strict=True))
    assert (row["runtime"], row["MB"]) == ("torch fp32", "2.95")
    assert (row["net ms"], row["mask ms"], row["p95"]) == ("-", "1045.3", "1094.5")
    assert row["fps"] == "1.0"
    assert row["peak %"] == f"{100 * 412.62 / 1.04532 / 98:.0f}"
    assert rows[1][:2] == ["onnxruntime int8", "2.95"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"runtimes": ["tensorrt"]}, "Choices: onnxruntime, openvino, torch"),
        ({"precisions": ["int4"]}, "Did you mean int8"),
        ({"runtimes": ["torch"], "precisions": ["int8"]}, "no engine offers"),
        ({"sizes": [(4, 4)]}, "16 pixels"),
        ({"threads": -1}, "1 or more, got -1"),
        ({"threads": 0}, "1 or more, got 0"),
    ],
)
def test_wrong_options_are_one_clear_error(
    student_folder: Path, words: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        bench([student_folder], **words)  # type: ignore[arg-type]


def test_a_name_that_is_too_long_is_one_clear_error(student_folder: Path) -> None:
    for name in ("x" * 5000, f"{'x' * 5000}.onnx"):
        with pytest.raises(BundleError, match="File name too long"):
            bench([student_folder, name])
