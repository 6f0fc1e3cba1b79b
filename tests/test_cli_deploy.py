"""spiritseg export, predict and bench: the words reach the functions; errors are one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from spiritseg.cli import main
from spiritseg.deploy.bench import BenchRow
from spiritseg.deploy.export import ExportReport
from spiritseg.deploy.self_check import Check


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(words)
    shown = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, shown.out, shown.err


@pytest.mark.parametrize("command", ["export", "predict", "bench"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call([command, "--help"], capsys)
    assert code == 0
    assert f"spiritseg {command} " in out.split("options:")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "nowhere"], "nowhere"),
        (["export", "nowhere", "--precision", "int8"], "--calibrate"),
        (["export", "nowhere", "stray"], "stray"),
        (["predict", "nowhere.onnx", ".", "--out", "o", "--kind", "mas"], "mask"),
        (["predict", "nowhere.onnx"], "INPUT"),
        (["predict", "nowhere.onnx", "nothing.jpg", "--out", "o"], "nothing.jpg"),
        (["bench", "nowhere"], "nowhere"),
        (["bench", "nowhere", "--threads", "-1"], "1 or more, got -1"),
    ],
)
def test_mistakes_are_one_clear_error(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = _call(words, capsys)
    assert code == 2
    assert err.startswith("spiritseg: error: ")
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches `bench`, which measures nothing here."""
    given: dict[str, Any] = {}

    def bench(**options: Any) -> list[BenchRow]:
        options.pop("report")("measuring ...")
        given.update(options)
        rates = {(512, 1024): 90.0, (256, 512): 80.0}
        return [
            BenchRow("ct", runtime, "int8", size, 9, 8.0, 7, None, [6.0], [5.0], peak)
            for size, peak in rates.items()
            for runtime in ("torch", "onnxruntime")
        ]

    monkeypatch.setattr("spiritseg.deploy.bench.bench", bench)
    return given


def test_bench_leaves_defaults_to_the_function(
    benched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _call(["bench", "a", "b"], capsys)
    assert benched == {"students": ["a", "b"]}
    words = ["--size", "64", "96", "--size", "32", "48", "--runtimes", "torch", "--threads", "2"]
    _call(["bench", "a", *words, "--precisions", "fp16", "--rounds", "4", "--trust"], capsys)
    assert benched == {
        "students": ["a"],
        "sizes": [(64, 96), (32, 48)],
        "runtimes": ["torch"],
        "precisions": ["fp16"],
        "threads": 2,
        "rounds": 4,
        "trust": True,
    }


@pytest.mark.parametrize("columns", [None, 80, 120, 200])
def test_bench_fits_its_table_to_where_it_goes(
    benched: dict[str, Any],
    columns: int | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns or 80))
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("TERM", "dumb")  # no escape sequences
    monkeypatch.setattr(sys.stdout, "isatty", lambda: columns is not None)
    code, out, err = _call(["bench", "a"], capsys)
    assert code == 0
    assert err == "measuring ...\n"
    assert "\u2026" not in out  # nothing is folded away
    assert "matrix product beside 512 x 1024: 90 GFLOP/s" in out
    assert "matrix product beside 256 x 512: 80 GFLOP/s" in out
    assert "8-bit instructions" in out
    if columns is None:  # a pipe or a file
        assert out.startswith("| student |     runtime | precision |")
    else:
        assert max(map(len, out.splitlines())) <= columns
        assert ("ct at 512 x 1024: " in out) == (columns < 200)
        assert out.count("onnxruntime") == 2


def test_export_lists_what_was_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Check(0.001, 0.0001, 0.9999, 0.5, 0.49, 3, "the given images")
    card: Any = None
    report = ExportReport((), card, found, 0, ("a/b.jpg: the file is empty",))
    monkeypatch.setattr("spiritseg.deploy.export.export", lambda *words, **options: report)
    code, out, _ = _call(["export", "run", "--images", "a"], capsys)
    assert code == 0
    assert "1 unreadable images were left out" in out
    assert "a/b.jpg: the file is empty" in out
    assert "50.00 -> 49.00 % (+1.00 lost)" in out
