"""A student that OpenVINO runs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiritseg.deploy.card import read_sidecar
from spiritseg.deploy.runtime import Runtime, import_engine
from spiritseg.errors import BundleError

__all__ = ["OpenVinoRuntime"]


@cache
def _openvino_core() -> Any:
    """Return the process's one ``openvino.Core``, which is never let go.

    A core replaces its thread's signal stack, and when it goes puts back what it found. Of two
    that go in the order in which they came, the second puts back the first's, which is freed by
    then: the next signal (Ctrl-C; a loader's worker that ends) kills the process.
    """
    return import_engine("openvino", "openvino").Core()


class OpenVinoRuntime(Runtime):
    """An exported ``.xml`` with its ``.bin``, run by OpenVINO; see `open_runtime`."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        core = _openvino_core()
        super().__init__(read_sidecar(path), "openvino", path)
        # Left to itself the engine computes in bfloat16 where the processor has it.
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(str(path), "CPU", config)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot run {path}: {error}") from None

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        return np.array(self._compiled([images])[0])  # the engine's own buffer is used again
