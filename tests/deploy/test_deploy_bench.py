"""The table: every engine and precision, in turn, with figures that fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from spiritseg.deploy.bench import bench, bench_table, in_turn
from spiritseg.deploy.export import ExportReport
from spiritseg.errors import ConfigError


@pytest.mark.usefixtures("traced")
def test_a_bundle_and_an_export_in_one_table(exported: ExportReport, student_folder: Path) -> None:
    said: list[str] = []
    rows = bench(
        [student_folder, exported.paths[0]],
        sizes=[(64, 96)],
        runtimes=["torch"],
        threads=1,
        rounds=3,
        report=said.append,
    )
    assert [(row.student, row.runtime) for row in rows] == [
        ("student", "torch"),
        ("student", "onnxruntime"),
    ]
    bundle, file = rows
    assert bundle.params == file.params == exported.card.params
    assert len(bundle.network_ms) == len(bundle.whole_ms) == len(file.whole_ms) == 3
    assert file.network_ms == []
    assert file.bytes == exported.bytes
    assert file.gflops == pytest.approx(bundle.gflops, rel=0.1)
    for row in rows:
        assert row.memory_mib is None or 0 < row.memory_mib < 2000
        assert 0 < row.share < 1.5
    table = bench_table(rows)
    assert {len(line) for line in table} == {len(table[0])}
    assert said[-1].startswith("measuring 64x96")


def test_works_are_timed_in_turn() -> None:
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = in_turn(works, 4, budget_s=60)
    assert {len(found) for found in times.values()} == {4}
    assert "".join(order) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"runtimes": ["tensorrt"]}, "Choices: onnxruntime, openvino, torch"),
        ({"precisions": ["int4"]}, "Did you mean int8"),
        ({"runtimes": ["torch"], "precisions": ["int8"]}, "no engine offers"),
        ({"sizes": [(4, 4)]}, "16 pixels"),
    ],
)
def test_wrong_options_are_one_clear_error(
    student_folder: Path, words: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        bench([student_folder], **words)  # type: ignore[arg-type]
