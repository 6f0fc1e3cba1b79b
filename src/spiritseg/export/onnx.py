"""ONNX, written by torch.onnx, quantised and run by onnxruntime; OpenVINO, converted from it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from spiritseg.cores import usable_cores
from spiritseg.errors import BundleError, ConfigError
from spiritseg.export.engines import (
    KEY,
    ExportInfo,
    LargeInputs,
    Runtime,
    import_engine,
    prepare,
    quiet,
    read_sidecar,
)
from spiritseg.files import write_atomically
from spiritseg.images import Pixels

if TYPE_CHECKING:
    from spiritseg.export.module import DeployedNetwork

__all__ = ["OnnxRuntime", "OpenVinoRuntime", "to_onnx", "write_onnx", "write_openvino"]

_SHRINK = "memory.enable_memory_arena_shrinkage"
_OPSET = 20
_AXES = ("N", "H", "W")
_QUANTISED = ["Conv", "Add", "Relu", "Clip", "MaxPool", "Concat", "Resize"]


class OnnxRuntime(Runtime):
    """An exported ``.onnx``, run by onnxruntime; `spiritseg.load` explains the arguments."""

    def __init__(
        self, path: Path, threads: int | None = None, device: str = "cpu", streams: int = 1
    ) -> None:
        onnxruntime = import_engine("onnxruntime", "deploy")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        streams, threads = _shared(streams, threads) if device == "cpu" else (1, threads)
        if threads:
            options.intra_op_num_threads = threads
        wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        providers = onnxruntime.get_available_providers()
        if wanted not in providers:
            raise ConfigError(
                f"onnxruntime cannot run on {device!r} here; it has {', '.join(providers)}. Use "
                "cpu, or install the package of onnxruntime for your device."
            )
        try:
            self._session = onnxruntime.InferenceSession(path.read_bytes(), options, [wanted])
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}.") from None
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise BundleError(
                f"onnxruntime cannot run {path}: {error}. If it is truncated, copy it again."
            ) from None
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise BundleError(
                f"{path} was not exported by spiritseg: it does not name its classes. Expected a "
                "file that `spiritseg export RUN` wrote."
            )
        self._input = self._session.get_inputs()[0].name
        self._large = LargeInputs()
        self._shrinking = onnxruntime.RunOptions() if device == "cpu" else None
        if self._shrinking is not None:
            self._shrinking.add_run_config_entry(_SHRINK, "cpu:0")
        super().__init__(ExportInfo.from_json(text, path), "onnxruntime", path, streams)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        options = self._shrinking if self._large.are_over(images) else None
        return cast(NDArray[Any], self._session.run(None, {self._input: images}, options)[0])


def _shared(streams: int, threads: int | None) -> tuple[int, int | None]:
    """Return the number of streams and the threads of each, at most `threads` in all."""
    if streams == 1:
        return 1, threads
    cores = usable_cores()
    total = threads or cores
    streams = streams or min(4, cores, total)
    return streams, max(1, total // streams)


@cache
def _openvino_core() -> Any:
    """Return the process's one ``openvino.Core``, which is never freed.

    A core replaces its thread's signal stack, and restores the previous one when it is freed. Of
    two that are freed in the order of their creation, the second restores the first's, which is
    freed by then: the next signal (Ctrl-C; a loader's worker that ends) kills the process.
    """
    return import_engine("openvino", "deploy,openvino").Core()


class OpenVinoRuntime(Runtime):
    """An exported ``.xml`` with its ``.bin``, run by OpenVINO on the CPU."""

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


def write_onnx(
    module: DeployedNetwork, info: ExportInfo, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write an ``.onnx`` that holds its metadata; see `spiritseg.export.formats.Writer`."""
    from spiritseg.export.rewrites import make_dense, return_to_blocks, slice_head

    sliced = slice_head(module.network)
    if info.precision == "int8":
        make_dense(module.network)
        model = _quantised(to_onnx(module, info), info, calibration, sliced)
    else:
        return_to_blocks(module.network)
        model = to_onnx(module.in_half() if info.precision == "fp16" else module, info)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, info.to_json()
    write_atomically(path, model.SerializeToString())
    return [path]


def write_openvino(
    module: DeployedNetwork, info: ExportInfo, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write OpenVINO's ``.xml`` and ``.bin``; see `spiritseg.export.formats.Writer`.

    int8 is the quantised ONNX model, whose scales OpenVINO takes over. fp16 stores weights in
    float16; what it computes in is the engine's choice.
    """
    import openvino

    from spiritseg.export.rewrites import make_dense

    if info.precision == "int8":
        make_dense(module.network)
    model = to_onnx(module, info)
    if info.precision == "int8":
        model = _quantised(model, info, calibration)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder, quiet():
        source = Path(folder) / "model.onnx"
        source.write_bytes(model.SerializeToString())
        converted = openvino.convert_model(source)
        openvino.save_model(converted, path, compress_to_fp16=info.precision == "fp16")
        del converted  # it may hold the source open
    return [path, path.with_suffix(".bin")]


def to_onnx(module: DeployedNetwork, info: ExportInfo) -> Any:
    """Convert a module in eval mode to an onnx.ModelProto."""
    import torch

    from spiritseg.export.module import same_padding_to_onnx, trace

    with quiet():
        program = torch.onnx.export(
            trace(module, info),
            dynamo=True,
            input_names=["image"],
            output_names=[info.output],
            opset_version=_OPSET,
            custom_translation_table=same_padding_to_onnx(),
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _clean(model, info)
    return model


def _clean(model: Any, info: ExportInfo) -> None:
    """Remove the tracer's notes, which name files of this machine; name the open axes."""
    del model.metadata_props[:]
    model.doc_string = ""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]
    if not info.dynamic:
        return
    first, around = (0, 1, 2), (0, 2, 3)  # N, H, W of (N, H, W, ...) and of (N, C, H, W)
    places = (
        first if info.preprocess else around,
        first if info.output == "mask" else around,
    )
    for value, axes in zip((model.graph.input[0], model.graph.output[0]), places, strict=True):
        for name, axis in zip(_AXES, axes, strict=True):
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _quantised(model: Any, info: ExportInfo, calibration: Sequence[Pixels], sliced: int = 0) -> Any:
    """Quantise weights (a scale per channel) and activations (calibrated) to 8 bits.

    The last `sliced` convolutions stay in float32.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            if image is None:
                return None
            return {"image": image[None] if info.preprocess else prepare(image[None], info.pool)}

    with tempfile.TemporaryDirectory(prefix="spiritseg-int8-") as folder, quiet():
        plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        plain.write_bytes(model.SerializeToString())
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(done),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            nodes_to_exclude=_kept_float(onnx.load(ready).graph, sliced),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # The mean of the images' ranges: one odd image must not make all others coarse.
            extra_options={"CalibMovingAverage": True},
        )
        found = onnx.load(done)
    del found.metadata_props[:]
    return found


def _kept_float(graph: Any, sliced: int) -> list[str]:
    """Return the names of the nodes that stay in float32.

    Before the first convolution and after the last dense one, 8 bits save no time. Nor do they in
    a convolution that has groups and is not depthwise, which no engine has in 8 bits. The last
    `sliced` convolutions are those of a sliced head, in which only the classifier is dense.
    """
    nodes = list(graph.node)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    groups = {
        number: next((int(a.i) for a in node.attribute if a.name == "group"), 1)
        for number, node in enumerate(nodes)
        if node.op_type == "Conv"
    }
    trunk = list(groups)[: len(groups) - sliced]
    last = ([number for number in trunk if groups[number] == 1] or trunk)[-1]
    kept = {node.name for node in [*nodes[: trunk[0]], *nodes[last + 1 :]]}
    makers = {output: node for node in nodes for output in node.output}
    for number, count in groups.items():
        node = nodes[number]
        if count > 1 and shapes.get(node.input[1], ())[:2] != (count, 1):
            # Between quantised neighbours onnxruntime would quantise it all the same.
            kept |= {node.name, makers[node.input[0]].name}
    return sorted(kept)
