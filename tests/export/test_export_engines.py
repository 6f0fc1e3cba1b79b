"""Whatever a student was saved as, it opens the same; what is foreign or altered does not."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spiritseg
from spiritseg import export
from spiritseg.errors import BundleError, ConfigError, DataError
from spiritseg.export.engines import LARGE_BYTES, LargeInputs, _largest, prepare
from spiritseg.export.export import ExportReport
from spiritseg.images import Pixels
from spiritseg.student import load


def test_a_bundle_and_its_export_agree(
    exported: ExportReport, student_folder: Path, scenes: list[Pixels]
) -> None:
    images = np.stack(scenes[:2])
    onnx_runtime, torch_runtime = load(exported.paths[0]).engine, load(student_folder).engine
    assert (onnx_runtime.name, torch_runtime.name) == ("onnxruntime", "torch")
    assert np.array_equal(onnx_runtime.masks(images), torch_runtime.masks(images))
    assert torch_runtime.info.student_sha256 == onnx_runtime.info.student_sha256


def test_a_truncated_onnx_is_one_clear_error(exported: ExportReport, tmp_path: Path) -> None:
    data = exported.paths[0].read_bytes()
    for length in (0, 1, 50, len(data) // 2):
        (tmp_path / "a.onnx").write_bytes(data[:length])
        with pytest.raises(BundleError):
            load(tmp_path / "a.onnx")


def test_a_foreign_onnx_is_refused(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "foreign", [info], [out]
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(BundleError, match="not exported by spiritseg"):
        load(tmp_path / "foreign.onnx")


SIGNALLED = """
import gc, os, signal, sys
from spiritseg.student import load
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
first, second = load(sys.argv[1]), load(sys.argv[1])
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGINT)
print(seen)
"""


@pytest.mark.usefixtures("traced")
def test_openvino_files_belong_together_and_leave_signals_alone(
    student_folder: Path, tmp_path: Path
) -> None:
    path = export(student_folder, "openvino", out=tmp_path / "a.xml").paths[0]
    command = [sys.executable, "-c", SIGNALLED, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[2]"), run.stderr
    weights = path.with_suffix(".bin")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"a\.bin is not as it was exported"):
        load(path)
    weights.unlink()
    with pytest.raises(BundleError, match=r"a\.bin is missing"):
        load(path)
    (tmp_path / "a.xml.json").unlink()
    with pytest.raises(BundleError, match="keep the files"):
        load(path)


def test_memory_is_given_back_at_the_first_much_smaller_input() -> None:
    large = LargeInputs()
    inputs = [np.zeros(size, np.uint8) for size in (100, LARGE_BYTES + 1, LARGE_BYTES, 100, 100)]
    assert [large.are_over(one) for one in inputs] == [False, False, False, True, False]


@pytest.mark.parametrize("name", ["nowhere.onnx", "text.txt", "empty"])
def test_what_is_no_student_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        load(tmp_path / name)


@pytest.mark.parametrize("kind", ["onnx", "bundle"])
@pytest.mark.parametrize(("threads", "streams"), [(-1, 1), (0, 0), (None, -1), (2, 3)])
def test_threads_and_streams_that_cannot_be_are_one_clear_error(
    exported: ExportReport, student_folder: Path, kind: str, threads: int | None, streams: int
) -> None:
    path = exported.paths[0] if kind == "onnx" else student_folder
    with pytest.raises(ConfigError, match="streams"):
        load(path, threads=threads, streams=streams)


@pytest.mark.parametrize("device", ["cuda", "banana"])
@pytest.mark.parametrize("suffix", ["xml", "pt2"])
def test_a_device_that_a_file_cannot_run_on_is_one_clear_error(
    tmp_path: Path, suffix: str, device: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.touch()
    with pytest.raises(ConfigError, match=f"cannot run .* on '{device}'.*Use cpu"):
        load(path, device, trust=True)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 8, 4), (1, 0, 8, 3), (0, 8, 8, 3)])
def test_what_is_no_image_is_refused(exported: ExportReport, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        load(exported.paths[0]).masks(np.zeros(shape, np.uint8))


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 4))
def test_argmax_takes_the_first_of_equals(seed: int, classes: int, levels: int) -> None:
    values = np.random.default_rng(seed).integers(0, levels, (2, classes, 5, 4)).astype(np.float32)
    assert np.array_equal(_largest(values), values.argmax(1))


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5), (1, 1)])
def test_prepare_is_the_papers_max_pool(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = prepare(image, 2)
    for n, c, y, x in np.ndindex(found.shape):
        window = image[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c]
        assert found[n, c, y, x] == np.float32(window.max()) / np.float32(255)


def test_functions_keep_their_place_over_modules_of_the_same_name() -> None:
    for name in ("bench", "export", "export.formats"):
        import_module(f"spiritseg.{name}")
    assert [spiritseg.bench.__name__, spiritseg.export.__name__] == ["bench", "export"]


def test_predicting_from_onnx_imports_no_torch(exported: ExportReport, pictures: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from spiritseg.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not [m for m in sys.modules if m.startswith(('torchvision', 'yaml'))]"
    )
    words = ["predict", str(exported.paths[0]), str(pictures), "--out", str(pictures / "../out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((pictures / "../out").rglob("*.png"))) == 6
