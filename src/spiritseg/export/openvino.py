"""OpenVINO: converted from ONNX, run by OpenVINO on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spiritseg.errors import BundleError
from spiritseg.export.engines import Runtime, import_engine
from spiritseg.export.metadata import ModelCard, read_sidecar
from spiritseg.export.onnx import LargeInputs, quantised, quiet, to_onnx
from spiritseg.images import Pixels

if TYPE_CHECKING:
    from spiritseg.export.module import DeployedNetwork

__all__ = ["OpenVinoRuntime", "write_openvino"]


@cache
def _openvino_core() -> Any:
    """Return the process's one ``openvino.Core``, which is never freed.

    A core replaces its thread's signal stack, and restores the previous one when it is freed. Of
    two that are freed in the order of their creation, the second restores the first's, which is
    freed by then: the next signal (Ctrl-C; a loader's worker that ends) kills the process.
    """
    return import_engine("openvino", "deploy,openvino").Core()


class OpenVinoRuntime(Runtime):
    """An exported ``.xml`` with its ``.bin``, run by OpenVINO; see `open_runtime`."""

    def __init__(
        self, path: Path, threads: int | None = None, device: str = "cpu", streams: int = 1
    ) -> None:
        core = _openvino_core()
        super().__init__(read_sidecar(path), "openvino", path)
        # By default the engine computes in bfloat16 where the processor has it.
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        self._large = LargeInputs()
        try:
            self._compiled = core.compile_model(str(path), "CPU", config)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot run {path}: {error}") from None

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        if self._large.are_over(images):  # 1.0 GB after 10 megapixels through a small student
            self._compiled.release_memory()
        return np.array(self._compiled([images])[0])  # the engine reuses its own buffer


def write_openvino(
    module: DeployedNetwork, card: ModelCard, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write OpenVINO's ``.xml`` and ``.bin``; see `spiritseg.export.formats.Writer`.

    int8 is the quantised ONNX model, whose scales OpenVINO takes over. fp16 stores weights in
    float16; what it computes in is the engine's choice.
    """
    import openvino

    if card.precision == "int8":
        from spiritseg.export.rewrites import make_dense

        make_dense(module.network)
    model = to_onnx(module, card)
    if card.precision == "int8":
        model = quantised(model, card, calibration)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder, quiet():
        source = Path(folder) / "model.onnx"
        source.write_bytes(model.SerializeToString())
        converted = openvino.convert_model(source)
        openvino.save_model(converted, path, compress_to_fp16=card.precision == "fp16")
        del converted  # it may hold the source open
    return [path, path.with_suffix(".bin")]
