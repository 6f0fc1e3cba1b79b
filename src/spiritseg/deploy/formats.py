"""Writers of the formats: ONNX, OpenVINO and torch.export."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spiritseg.deploy.card import KEY, ModelCard, seal, sidecar
from spiritseg.deploy.graph import DeployedNetwork, trace
from spiritseg.deploy.runtime import prepare
from spiritseg.deploy.same_padding import translations
from spiritseg.deploy.sliced_head import SlicedHead
from spiritseg.errors import ConfigError, MissingExtraError
from spiritseg.files import json_bytes, write_atomically
from spiritseg.images import Pixels

__all__ = ["write_onnx", "write_openvino", "write_pt2"]

_OPSET = 20
_AXES = ("N", "H", "W")


def write_onnx(
    module: DeployedNetwork, card: ModelCard, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write an ``.onnx`` that carries its card and its own checksum.

    Args:
        module: what is exported, in eval mode.
        card: what it is.
        path: the file.
        calibration: images (H, W, 3) uint8, for int8.

    Returns:
        The file.
    """
    model = _to_onnx(module, card)
    if card.precision == "int8":
        head = module.network.head
        sliced = head.convolutions if isinstance(head, SlicedHead) else 0
        model = _quantised(model, card, calibration, sliced)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, card.to_json()
    write_atomically(path, seal(model.SerializeToString()))
    return [path]


def write_openvino(
    module: DeployedNetwork, card: ModelCard, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write OpenVINO's ``.xml`` and ``.bin``, and a ``.json`` with the card.

    int8 is the quantised ONNX model, whose scales OpenVINO takes over.

    Args:
        module: what is exported, in eval mode.
        card: what it is.
        path: the ``.xml``.
        calibration: images (H, W, 3) uint8, for int8.

    Returns:
        The three files.
    """
    try:
        import openvino
    except ImportError:
        raise _missing("openvino", "openvino") from None
    model = _to_onnx(module, card)
    if card.precision == "int8":
        model = _quantised(model, card, calibration)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx-") as folder, _quiet():
        source = Path(folder) / "model.onnx"
        source.write_bytes(model.SerializeToString())
        converted = openvino.convert_model(source)
        openvino.save_model(converted, path, compress_to_fp16=card.precision == "fp16")
        del converted  # it may hold the source open
    return _with_sidecar(card, [path, path.with_suffix(".bin")])


def write_pt2(module: DeployedNetwork, card: ModelCard, path: Path) -> list[Path]:
    """Write a ``.pt2`` of torch.export, and a ``.json`` with the card.

    Args:
        module: what is exported, in eval mode.
        card: what it is.
        path: the file.

    Returns:
        Both files.
    """
    with _quiet():
        torch.export.save(_traced(module, card), path)
    return _with_sidecar(card, [path])


def _with_sidecar(card: ModelCard, files: list[Path]) -> list[Path]:
    beside = files[0].with_name(f"{files[0].name}.json")
    contents = {file.name: file.read_bytes() for file in files}
    write_atomically(beside, json_bytes(sidecar(card, contents)))
    return [*files, beside]


def _traced(module: DeployedNetwork, card: ModelCard) -> torch.export.ExportedProgram:
    try:
        return trace(module, card.size, card.dynamic)
    except Exception as error:  # torch.export raises whatever it stumbles over
        hint = (
            "The network's computation depends on the size: try a fixed one (--fixed)."
            if card.dynamic
            else "torch.export does not know one of its operations."
        )
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the student cannot be traced: {first[:300]} {hint}") from error


def _to_onnx(module: DeployedNetwork, card: ModelCard) -> Any:
    """Return the module as an onnx.ModelProto."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _missing(error.name or "onnx", "deploy") from None
    with _quiet():
        program = torch.onnx.export(
            _traced(module, card),
            dynamo=True,
            input_names=["image"],
            output_names=[card.output],
            opset_version=_OPSET,
            custom_translation_table=translations(),
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _clean(model, card)
    return model


def _clean(model: Any, card: ModelCard) -> None:
    """Drop the tracer's notes, which name files of this machine; name the open axes."""
    del model.metadata_props[:]
    model.doc_string = ""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]
    if not card.dynamic:
        return
    image, answer = model.graph.input[0], model.graph.output[0]
    places = (
        ((0, 1, 2) if card.preprocess else (0, 2, 3)),
        ((0, 1, 2) if card.output == "mask" else (0, 2, 3)),
    )
    for value, axes in zip((image, answer), places, strict=True):
        for name, axis in zip(_AXES, axes, strict=True):
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _quantised(model: Any, card: ModelCard, calibration: Sequence[Pixels], sliced: int = 0) -> Any:
    """Quantise weights (a scale a channel) and activations (calibrated) to 8 bits."""
    import onnx

    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise _missing("onnxruntime", "deploy") from None

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            if image is None:
                return None
            whole = image[None]
            return {"image": whole if card.preprocess else prepare(whole, card.pool)}

    with tempfile.TemporaryDirectory(prefix="spiritseg-int8-") as folder, _quiet():
        plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("a", "b", "c"))
        plain.write_bytes(model.SerializeToString())
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(done),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Relu", "Clip", "MaxPool", "Concat", "Resize"],
            nodes_to_exclude=_kept_float(onnx.load(ready), sliced),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # The mean of the images' ranges: one odd image must not make all others coarse.
            extra_options={"CalibMovingAverage": True},
        )
        quantised = onnx.load(done)
    del quantised.metadata_props[:]
    return quantised


def _kept_float(model: Any, sliced: int) -> list[str]:
    """Name the nodes that stay in float32.

    What stands before the first convolution and after the last dense one stays exact: there
    8 bits save no time. Nor do they in between where a convolution has groups and is not
    depthwise, which no engine has in 8 bits. The last ``sliced`` convolutions are those of a
    sliced head, which has nothing dense but its classifier.
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


def _missing(name: str, extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"exporting needs {name}, which is not installed: pip install 'spiritseg[{extra}]'."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' warnings and log lines, which a user cannot act on, to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
