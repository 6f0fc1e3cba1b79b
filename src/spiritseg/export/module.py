"""The module that is exported, its trace, and PyTorch as the engine of bundles and ``.pt2`` files.

Where sizes are open, convolutions with TensorFlow's "same" padding become one operation of the
graph: their padding depends on the image's size, and traced as arithmetic it takes minutes to
export and many nodes to run. ONNX has it as an attribute (SAME_UPPER).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import spiritseg
from spiritseg.errors import BundleError, ConfigError
from spiritseg.evaluation.cost import cost
from spiritseg.export.engines import ExportInfo, Runtime, quiet, read_sidecar
from spiritseg.geometry import max_pool
from spiritseg.images import Pixels
from spiritseg.models.bundle import BundleInfo
from spiritseg.models.segmenter import Segmenter

__all__ = [
    "DeployedNetwork",
    "TorchRuntime",
    "example_input",
    "in_torch",
    "info_of",
    "open_pt2",
    "same_padding_to_onnx",
    "trace",
    "write_pt2",
]

_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] dilation, int groups) -> Tensor"
)


class DeployedNetwork(nn.Module):
    """A student with its preprocessing and its answer on the image's grid.

    Args:
        network: Student.
        pool: Side of the max-pool before it.
        preprocess: Whether the input is (N, H, W, 3) uint8 RGB, and the output on its grid.
            Otherwise the input is what the network takes, and the output on the network's grid.
        argmax: Whether the output is the mask (N, H, W) uint8 instead of logits.
    """

    def __init__(
        self, network: Segmenter, pool: int, preprocess: bool = True, argmax: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.pool = pool
        self.preprocess = preprocess
        self.argmax = argmax
        self.half_precision = False

    def in_half(self) -> DeployedNetwork:
        """Compute in float16, in place; input and output keep their types."""
        self.network.half()
        self.half_precision = True
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Segment images; see the class for the shapes."""
        size = (images.shape[1], images.shape[2])
        if self.preprocess:
            images = max_pool(images.permute(0, 3, 1, 2).float() / 255, self.pool)
        images = images.half() if self.half_precision else images
        if self.preprocess:
            logits = self.network.before_pool(images, self.pool, size)
        else:
            logits = cast(Tensor, self.network(images))
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits.float()


class TorchRuntime(Runtime):
    """A module whose input and output are what its metadata say."""

    def __init__(self, module: nn.Module, info: ExportInfo, path: Path, device: str) -> None:
        super().__init__(info, "torch", path)
        self.module = module
        self.device = torch.device(device)

    def forward(self, images: NDArray[Any]) -> NDArray[Any]:
        """Run the network as it was exported."""
        with torch.inference_mode():
            whole = np.require(images, requirements=["C", "W"])  # torch wants to own it
            given = torch.from_numpy(whole).to(self.device)
            return cast(NDArray[Any], self.module(given).cpu().numpy())


def in_torch(network: Segmenter, info: ExportInfo, path: Path, device: str = "cpu") -> TorchRuntime:
    """Run a student in torch as its export would run.

    Args:
        network: Network of the student; it is moved to the device.
        info: Metadata: preprocessing and output.
        path: Where it came from.
        device: cpu or cuda.
    """
    network = network.to(memory_format=torch.channels_last)
    module = DeployedNetwork(network, info.pool, info.preprocess, info.output == "mask")
    return TorchRuntime(module.to(device).eval(), info, path, device)


def info_of(network: Segmenter, bundle: BundleInfo, name: str, size: tuple[int, int]) -> ExportInfo:
    """Return the metadata of a student's default export: preprocessing, logits, fp32, open sizes.

    Args:
        network: Network of the student.
        bundle: Its description.
        name: Its name.
        size: (H, W) of its images, at which GFLOPs are counted.
    """
    pool = bundle.pool
    costs = cost(network, (-(-size[0] // pool), -(-size[1] // pool)))
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return ExportInfo(
        name=name,
        classes=bundle.classes,
        colours=bundle.colours,
        pool=pool,
        preprocess=True,
        output="logits",
        precision="fp32",
        size=size,
        dynamic=True,
        params=costs.params,
        gflops=costs.gflops,
        student_sha256=digest.hexdigest(),
        version=spiritseg.__version__,
    )


def open_pt2(path: Path, threads: int | None, device: str, streams: int) -> TorchRuntime:
    """Open a ``.pt2``, which torch may unpickle; see `spiritseg.export.formats.Opener`."""
    if threads:
        torch.set_num_threads(threads)
    info = read_sidecar(path)  # first: an altered file must not even be opened
    try:
        with warnings.catch_warnings():
            # Some versions of torch warn of a buffer that they only read.
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            module = torch.export.load(path).module()
    except Exception as error:  # torch raises whatever it meets
        raise BundleError(f"torch cannot load {path}: {error}") from None
    return TorchRuntime(module, info, path, device)


def write_pt2(
    module: DeployedNetwork, info: ExportInfo, path: Path, calibration: Sequence[Pixels]
) -> list[Path]:
    """Write a ``.pt2`` of torch.export; see `spiritseg.export.formats.Writer`."""
    if info.precision == "fp16":
        module.in_half()
    with quiet():
        torch.export.save(trace(module, info), path)
    return [path]


def example_input(info: ExportInfo) -> Tensor:
    """Return zeros of the shape and type that an export takes, two images if sizes are open.

    Args:
        info: Metadata of the export.

    Returns:
        (N, H, W, 3) uint8, or without preprocessing (N, 3, ceil(H / pool), ceil(W / pool)) float32.
    """
    count = 2 if info.dynamic else 1  # torch takes a batch of 1 for a constant
    height, width = info.size
    if info.preprocess:
        return torch.zeros(count, height, width, 3, dtype=torch.uint8)
    return torch.zeros(count, 3, -(-height // info.pool), -(-width // info.pool))


def trace(module: DeployedNetwork, info: ExportInfo) -> torch.export.ExportedProgram:
    """Trace a module with torch.export; batch, height and width stay open if `info` says so.

    Args:
        module: In eval mode. For open sizes its "same" padding becomes, in place, the operation
            that `same_padding_to_onnx` translates.
        info: Metadata of the export.

    Returns:
        The program. Conditions that hold for this size only become checks in it.

    Raises:
        ConfigError: if the network cannot be traced.
    """
    shapes = None
    if info.dynamic:
        _replace_same_padding(module)
        axes = (0, 1, 2) if info.preprocess else (0, 2, 3)
        shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    try:
        with torch.no_grad():
            return torch.export.export(
                module,
                (example_input(info),),
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch.export raises whatever it meets
        hint = (
            "The network's computation depends on the size: try a fixed one (--fixed)."
            if info.dynamic
            else "torch.export does not know one of its operations."
        )
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the student cannot be traced: {first[:300]} {hint}") from error


class _ConvSame(nn.Module):
    """A convolution whose output has ceil(side / stride) positions a side."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias
        self.stride, self.dilation = list(source.stride), list(source.dilation)
        self.groups = source.groups

    def forward(self, x: Tensor) -> Tensor:
        run: Callable[..., Tensor] = torch.ops.spiritseg.conv_same
        return run(x, self.weight, self.bias, self.stride, self.dilation, self.groups)


def _replace_same_padding(network: nn.Module) -> None:
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _ConvSame(child))


def same_padding_to_onnx() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation table for torch.onnx: the operation as a Conv with auto_pad."""
    from onnxscript import opset20 as op

    def conv_same(
        x: Any, weight: Any, bias: Any, stride: Sequence[int], dilation: Sequence[int], groups: int
    ) -> Any:
        return op.Conv(
            *((x, weight) if bias is None else (x, weight, bias)),
            auto_pad="SAME_UPPER",
            strides=list(stride),
            dilations=list(dilation),
            group=groups,
        )

    found: Callable[..., Any] = torch.ops.spiritseg.conv_same.default
    return {found: conv_same}


def _padded(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    pads: list[int] = []
    for axis in (1, 0):  # F.pad counts from the last axis
        reach = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
        side, step = x.shape[2 + axis], stride[axis]
        total = max((-(-side // step) - 1) * step + reach - side, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, bias, list(stride), 0, list(dilation), groups)


def _empty(x: Tensor, weight: Tensor, bias: Any, stride: Sequence[int], *more: Any) -> Tensor:
    """Return a tensor of the shape of the result."""
    height, width = ((x.shape[2 + a] + stride[a] - 1) // stride[a] for a in (0, 1))
    return x.new_empty(x.shape[0], weight.shape[0], height, width)


_operation = torch.library.custom_op(
    "spiritseg::conv_same", _padded, mutates_args=(), schema=_SCHEMA
)
_operation.register_fake(_empty)
