"""A student that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from spiritseg.cores import usable_cores
from spiritseg.deploy.card import KEY, ModelCard, check_sealed
from spiritseg.deploy.runtime import Runtime, import_engine
from spiritseg.errors import BundleError, ConfigError

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Runtime):
    """An exported ``.onnx``, run by onnxruntime; see `open_runtime`."""

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
        text = self._session.get_modelmeta().custom_metadata_map[KEY]
        super().__init__(ModelCard.from_json(text, path), "onnxruntime", path, streams)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        return cast(NDArray[Any], self._session.run(None, {self._input: images})[0])


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
