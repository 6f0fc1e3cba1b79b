"""ONNX: written by torch.onnx, quantised and run by onnxruntime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from spiritseg.cores import usable_cores
from spiritseg.errors import BundleError, ConfigError
from spiritseg.export.engines import Runtime, import_engine, prepare
from spiritseg.export.metadata import KEY, ModelCard
from spiritseg.files import write_atomically
from spiritseg.images import Pixels

if TYPE_CHECKING:
    from spiritseg.export.module import DeployedNetwork

__all__ = ["LARGE_BYTES", "LargeInputs", "OnnxRuntime", "quantised", "to_onnx", "write_onnx"]

LARGE_BYTES = 12_000_000  # of an input: 4 megapixels
_SHRINK = "memory.enable_memory_arena_shrinkage"
_OPSET = 20
_AXES = ("N", "H", "W")
_QUANTISED = ["Conv", "Add", "Relu", "Clip", "MaxPool", "Concat", "Resize"]


class LargeInputs:
    """Tells when an engine should give back the working memory of its largest input.

    It is when the first much smaller input follows a large one. Doing so after every large input
    would cost a fifth of their speed (OpenVINO), after every input a quarter (onnxruntime).
    """

    def __init__(self) -> None:
        self._largest = 0  # bytes of an input since memory was given back

    def are_over(self, images: NDArray[Any]) -> bool:
        """Take the next input, and return whether memory is to be given back now."""
        over = self._largest > max(LARGE_BYTES, 4 * images.nbytes)
        self._largest = images.nbytes if over else max(self._largest, images.nbytes)
        return over


class OnnxRuntime(Runtime):
    """An exported ``.onnx``, run by onnxruntime; see `open_runtime`."""

    def __init__(
        self, path: Path, threads: int | None = None, device: str = "cpu", streams: int = 1
    ) -> None:
        onnxruntime = import_engine("onnxruntime", "deploy")
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
            data = path.read_bytes()
            self._session = onnxruntime.InferenceSession(data, options, [wanted[device]])
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
        super().__init__(ModelCard.from_json(text, path), "onnxruntime", path, streams)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        options = self._shrinking if self._large.are_over(images) else None
        return cast(NDArray[Any], self._session.run(None, {self._input: images}, options)[0])


def _shared(streams: int, threads: int | None) -> tuple[int, int | None]:
    """Return the number of streams and the threads of each, at most `threads` in all.

    Streams of 0 are chosen here; threads of None are the engine's choice.
    """
    if streams == 1:
        return 1, threads
    cores = usable_cores()
    total = threads or cores
    streams = streams or min(4, cores, total)
    return streams, max(1, total // streams)


def write_onnx(
    module: DeployedNetwork, card: ModelCard, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write an ``.onnx`` that holds its metadata; see `spiritseg.export.formats.Writer`."""
    from spiritseg.export.rewrites import make_dense, return_to_blocks, slice_head

    sliced = slice_head(module.network)
    if card.precision == "int8":
        make_dense(module.network)
        model = quantised(to_onnx(module, card), card, calibration, sliced)
    else:
        return_to_blocks(module.network)
        model = to_onnx(module.in_half() if card.precision == "fp16" else module, card)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, card.to_json()
    write_atomically(path, model.SerializeToString())
    return [path]


def to_onnx(module: DeployedNetwork, card: ModelCard) -> Any:
    """Convert a module to an onnx.ModelProto.

    Args:
        module: In eval mode.
        card: Metadata of the export.
    """
    import torch

    from spiritseg.export.module import same_padding_to_onnx, trace

    with quiet():
        program = torch.onnx.export(
            trace(module, card),
            dynamo=True,
            input_names=["image"],
            output_names=[card.output],
            opset_version=_OPSET,
            custom_translation_table=same_padding_to_onnx(),
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _clean(model, card)
    return model


def _clean(model: Any, card: ModelCard) -> None:
    """Remove the tracer's notes, which name files of this machine; name the open axes."""
    del model.metadata_props[:]
    model.doc_string = ""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]
    if not card.dynamic:
        return
    places = (
        ((0, 1, 2) if card.preprocess else (0, 2, 3)),
        ((0, 1, 2) if card.output == "mask" else (0, 2, 3)),
    )
    for value, axes in zip((model.graph.input[0], model.graph.output[0]), places, strict=True):
        for name, axis in zip(_AXES, axes, strict=True):
            value.type.tensor_type.shape.dim[axis].dim_param = name


def quantised(model: Any, card: ModelCard, calibration: Sequence[Pixels], sliced: int = 0) -> Any:
    """Quantise weights (a scale per channel) and activations (calibrated) to 8 bits.

    Args:
        model: onnx.ModelProto in float32.
        card: Metadata of the export.
        calibration: Images (H, W, 3) uint8.
        sliced: Number of convolutions at the end that stay in float32.

    Returns:
        The quantised model.
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
            return {"image": image[None] if card.preprocess else prepare(image[None], card.pool)}

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
            nodes_to_exclude=_kept_float(onnx.load(ready), sliced),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # The mean of the images' ranges: one odd image must not make all others coarse.
            extra_options={"CalibMovingAverage": True},
        )
        found = onnx.load(done)
    del found.metadata_props[:]
    return found


def _kept_float(model: Any, sliced: int) -> list[str]:
    """Return the names of the nodes that stay in float32.

    Before the first convolution and after the last dense one, 8 bits save no time. Nor do they in
    a convolution that has groups and is not depthwise, which no engine has in 8 bits. The last
    ``sliced`` convolutions are those of a sliced head, in which only the classifier is dense.
    """
    nodes = list(model.graph.node)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    convolutions = [number for number, node in enumerate(nodes) if node.op_type == "Conv"]
    groups = {
        number: next((int(a.i) for a in nodes[number].attribute if a.name == "group"), 1)
        for number in convolutions
    }
    trunk = convolutions[: len(convolutions) - sliced]
    dense = [number for number in trunk if groups[number] == 1]
    outside = [*nodes[: convolutions[0]], *nodes[(dense or trunk)[-1] + 1 :]]
    kept = {node.name for node in outside}
    makers = {output: node for node in nodes for output in node.output}
    for number, count in groups.items():
        node = nodes[number]
        weight = shapes.get(node.input[1], ())
        if count > 1 and weight[:2] != (count, 1):
            # Between quantised neighbours onnxruntime would quantise it all the same.
            kept |= {node.name, makers[node.input[0]].name}
    return sorted(kept)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings and log lines, which a user cannot act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
