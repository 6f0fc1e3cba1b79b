"""A student that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from spiritseg.cores import usable_cores
from spiritseg.deploy.card import KEY, ModelCard, check_sealed
from spiritseg.deploy.runtime import Runtime, import_engine
from spiritseg.errors import BundleError, ConfigError

__all__ = ["LARGE_BYTES", "OnnxRuntime"]

LARGE_BYTES = 12_000_000  # of an input: 4 megapixels
_SHRINK = "memory.enable_memory_arena_shrinkage"


class OnnxRuntime(Runtime):
    """An exported ``.onnx``, run by onnxruntime; see `open_runtime`.

    The engine keeps the working memory of its largest input. After a large input, the first one
    that is much smaller gives that memory back on the CPU. To do so after every input would cost
    ordinary images up to a quarter of their speed.
    """

    def __init__(
        self, path: Path, threads: int | None = None, device: str = "cpu", streams: int = 1
    ) -> None:
        onnxruntime = import_engine("onnxruntime", "deploy")
        data = _read(path)
        check_sealed(data, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        streams, threads = _shared(streams, threads) if device == "cpu" else (1, threads)
        if threads:
            options.intra_op_num_threads = threads
        wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        providers = onnxruntime.get_available_providers()
        if wanted.get(device) not in providers:
            raise ConfigError(
                f"onnxruntime cannot run on {device!r} here; it has {', '.join(providers)}. Use "
                "cpu, or install the package of onnxruntime for your device."
            )
        try:
            self._session = onnxruntime.InferenceSession(data, options, [wanted[device]])
        except Exception as error:  # the engine's own exceptions have no common base
            raise BundleError(f"onnxruntime cannot run {path}: {error}") from None
        self._input = self._session.get_inputs()[0].name
        self._largest = 0  # bytes of an input since memory was given back
        self._shrinking = onnxruntime.RunOptions() if device == "cpu" else None
        if self._shrinking is not None:
            self._shrinking.add_run_config_entry(_SHRINK, "cpu:0")
        text = self._session.get_modelmeta().custom_metadata_map[KEY]
        super().__init__(ModelCard.from_json(text, path), "onnxruntime", path, streams)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        options = None
        if self._largest > max(LARGE_BYTES, 4 * images.nbytes):
            options, self._largest = self._shrinking, 0
        self._largest = max(self._largest, images.nbytes)
        return cast(NDArray[Any], self._session.run(None, {self._input: images}, options)[0])


def _shared(streams: int, threads: int | None) -> tuple[int, int | None]:
    """Choose the streams where they are 0, and the threads of each; None is the engine's choice.

    Streams times the threads of each are not more than the threads that were given.
    """
    if streams == 1:
        return 1, threads
    cores = usable_cores()
    total = threads or cores
    streams = streams or min(4, cores, total)
    return streams, max(1, total // streams)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from None
