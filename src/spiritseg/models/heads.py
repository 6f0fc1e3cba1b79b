"""Heads: features to logits of the image's size."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spiritseg.config import Convolution, Policy
from spiritseg.errors import ConfigError, unknown
from spiritseg.geometry import resize
from spiritseg.models.compact import compact
from spiritseg.models.segmenter import Segmenter, check_counts
from spiritseg.randomness import derive_seed, seeded
from spiritseg.registry import Registry, is_in_file

__all__ = [
    "BINS",
    "HEADS",
    "HeadKind",
    "PyramidHead",
    "ResizedHead",
    "StudentHead",
    "is_foreign_head",
    "pyramid_head",
    "student",
    "student_head",
]

BINS = (1, 2, 3, 6)


@dataclass(frozen=True)
class HeadKind:
    """A kind of head: everything that the rest of the code needs to know of it.

    Args:
        help: One line for --help and the documentation.
        build: (in_channels, num_classes, seed=seed, **options) to a module from features
            (B, C, h, w) and a size (H, W) to logits (B, K, H, W); torch's generator is seeded
            with the seed already. None where nothing is built.
        options: Fields of `spiritseg.config.Head` that are handed to `build`.
        own: Whether it is the network's own head, which its source brings along.
    """

    help: str
    build: Callable[..., nn.Module] | None = None
    options: tuple[str, ...] = ()
    own: bool = False

    @property
    def gives_logits(self) -> bool:
        """Whether a network with such a head segments images, rather than being a trunk only."""
        return self.own or self.build is not None


class StudentHead(nn.Module):
    """The student head of Table V; see `student_head`."""

    def __init__(
        self, in_channels: int, num_classes: int, channels: int, convolution: Convolution
    ) -> None:
        super().__init__()
        self.at_quarter = _group(3, in_channels, channels, convolution)
        self.at_half = _group(4, channels, channels, convolution)
        groups = math.gcd(channels, num_classes) if convolution == "grouped" else 1
        self.classifier = nn.Conv2d(channels, num_classes, 1, groups=groups)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        quarter = self.at_quarter(features)
        half = self.at_half(quarter)
        return resize(self.classifier(half), size)


class ResizedHead(nn.Module):
    """Any module from features to logits, then a bilinear resize to the image's size."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        return resize(self.module(features), size)


class PyramidHead(nn.Module):
    """PSPNet's head; see `pyramid_head`."""

    def __init__(self, in_channels: int, num_classes: int, channels: int) -> None:
        super().__init__()
        width = in_channels // len(BINS)
        self.branches = nn.ModuleList(_branch(in_channels, width, bins) for bins in BINS)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(in_channels + len(BINS) * width, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Classify features (B, C, h, w); return logits (B, K, H, W) of a size (H, W)."""
        grid = features.shape[-2:]
        pooled = [resize(b(features), grid) for b in self.branches]
        context = self.bottleneck(torch.cat([features, *pooled], 1))
        logits = self.classifier(self.dropout(context))
        return resize(logits, size)


def student_head(
    in_channels: int,
    num_classes: int,
    channels: int = 512,
    convolution: Convolution = "grouped",
    seed: int = 0,
) -> StudentHead:
    """Make the student head of Table V.

    Bilinear x2; 3 x (3x3 conv, BN, ReLU); bilinear x2; 4 x the same (the text has 3); 1x1
    classifier; bilinear to the input's (H, W), so that any size works.

    Args:
        in_channels: Channels of the features.
        num_classes: K, the background included.
        channels: Width of the head, 1 to `MAX_CHANNELS`; the paper's is 512.
        convolution: "grouped", the paper's: groups = gcd(in, out), in the classifier as
            well. Between equal widths it mixes no channels.
            "separable": depthwise 3x3 and dense 1x1. The first 1x1 of each group comes before
            the upsampling, with which it commutes and where it costs a quarter.
            "dense": plain convolutions.
        seed: Random seed for initialisation.

    Returns:
        A head: (features, (H, W)) to logits (B, K, H, W).

    Source: Wu et al., Spirit Distillation, arXiv:2103.13733, Table V.
    """
    if convolution not in get_args(Convolution):
        raise ConfigError(unknown("convolution", convolution, get_args(Convolution)))
    counts = {"in_channels": in_channels, "num_classes": num_classes, "channels": channels}
    check_counts("student_head", **counts)
    with seeded(seed):
        return StudentHead(in_channels, num_classes, channels, convolution)


def pyramid_head(
    in_channels: int, num_classes: int, channels: int = 512, seed: int = 0
) -> PyramidHead:
    """Make PSPNet's head.

    Average pooling to 1x1, 2x2, 3x3 and 6x6 bins; for each a 1x1 convolution to in_channels / 4,
    BN, ReLU and bilinear upsampling; concatenated with the features; a 3x3 convolution to
    `channels`, BN, ReLU (``head.bottleneck``, the feature map of SKD's pair-wise loss);
    dropout of 0.1; 1x1 classifier; bilinear to the input's (H, W).

    With one image in the batch, the 1x1 bin has one value per channel, which has no variance:
    in training its BN then uses the running statistics and does not update them.

    SKD's released networks differ: leaky ReLU (0.01), dropout of whole channels, corners aligned
    when resizing, a second classifier in training.

    Args:
        in_channels: Channels of the features, 4 or more; a ResNet's at stride 8 (dilated).
        num_classes: K, the background included.
        channels: Channels of the bottleneck: 512 on a ResNet-101, 128 on a ResNet-18.
        seed: Random seed for initialisation: Kaiming normal convolutions.

    Returns:
        A head: (features, (H, W)) to logits (B, K, H, W).

    Source: Zhao et al., Pyramid Scene Parsing Network, arXiv:1612.01105, fig. 3 and sec. 3.2;
    its use with SKD: Liu et al., arXiv:1903.04197, sec. 4.1.
    """
    check_counts("pyramid_head", len(BINS), in_channels=in_channels)
    check_counts("pyramid_head", num_classes=num_classes, channels=channels)
    with seeded(seed):
        head = PyramidHead(in_channels, num_classes, channels)
        for conv in head.modules():
            if isinstance(conv, nn.Conv2d) and conv is not head.classifier:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return head


def student(
    teacher: Segmenter,
    num_classes: int,
    policy: Policy = "spatial",
    channels: int = 512,
    convolution: Convolution = "grouped",
    seed: int = 0,
) -> Segmenter:
    """Make the paper's student of a teacher: its extractor made compact, and a student head.

    Args:
        teacher: Network whose extractor is copied; it is not changed.
        num_classes: K, the background included.
        policy: Which convolutions become compact; see `spiritseg.compact`.
        channels: Width of the head.
        convolution: Kind of the head's convolutions; see `student_head`.
        seed: Random seed for initialisation.

    Returns:
        A trainable, randomly initialised network.
    """
    extractor = compact(teacher.extractor, policy, seed=derive_seed(seed, "extractor"))
    in_channels, head_seed = teacher.extractor.channels, derive_seed(seed, "head")
    head = student_head(in_channels, num_classes, channels, convolution, head_seed)
    return Segmenter(extractor, head).requires_grad_(True).train()


def _group(count: int, in_channels: int, channels: int, convolution: Convolution) -> nn.Sequential:
    """Make a x2 upsampling and `count` blocks of convolution, BN and ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    up = nn.Upsample(scale_factor=2.0, mode="bilinear")
    if convolution == "separable":
        layers["reduce"] = nn.Conv2d(in_channels, channels, 1, bias=False)
        layers["up"] = up
        layers["0"] = _block([_conv(channels, channels, channels)], channels)
    else:
        layers["up"] = up
        groups = math.gcd(in_channels, channels) if convolution == "grouped" else 1
        layers["0"] = _block([_conv(in_channels, channels, groups)], channels)
    for index in range(1, count):
        layers[str(index)] = _block(_equal(channels, convolution), channels)
    return nn.Sequential(layers)


def _equal(channels: int, convolution: Convolution) -> list[nn.Module]:
    if convolution == "dense":
        return [_conv(channels, channels, 1)]
    depthwise = _conv(channels, channels, channels)
    if convolution == "grouped":  # gcd of equal widths is the width
        return [depthwise]
    return [depthwise, nn.Conv2d(channels, channels, 1, bias=False)]


def _conv(in_channels: int, out_channels: int, groups: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups, bias=False)


def _block(convolutions: list[nn.Module], channels: int) -> nn.Sequential:
    return nn.Sequential(*convolutions, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class _Pool(nn.Module):
    """Average pooling to bins x bins; bins overlap where a side is not a multiple of their number.

    Bin i of n covers positions floor(i h / n) to ceil((i + 1) h / n).
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return F.adaptive_avg_pool2d(x, self.bins)
        # Adaptive pooling would be exported for the example's size alone.
        rows, columns = (self._weights(x, x.shape[dim]) for dim in (-2, -1))
        return ((x @ columns.mT).mT @ rows.mT).mT

    def _weights(self, like: Tensor, side: int) -> Tensor:
        bin_ = torch.arange(self.bins, device=like.device)[:, None]
        position = torch.arange(side, device=like.device)
        starts, ends = bin_ * side // self.bins, -(-(bin_ + 1) * side // self.bins)
        inside = ((position >= starts) & (position < ends)).to(like.dtype)
        return inside / inside.sum(1, keepdim=True)

    def extra_repr(self) -> str:
        return f"bins={self.bins}"


class _PooledNorm(nn.BatchNorm2d):
    """Batch norm that uses the running statistics where the batch has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            mean, var = cast(Tensor, self.running_mean), cast(Tensor, self.running_var)
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _branch(in_channels: int, width: int, bins: int) -> nn.Sequential:
    return nn.Sequential(
        _Pool(bins),
        nn.Conv2d(in_channels, width, 1, bias=False),
        _PooledNorm(width),
        nn.ReLU(inplace=True),
    )


_OWN = {
    "student": HeadKind(
        help="the student head of Table V",
        build=student_head,
        options=("channels", "convolution"),
    ),
    "pyramid": HeadKind(
        help="PSPNet's pooling at 1, 2, 3 and 6 bins, then a classifier",
        build=pyramid_head,
        options=("channels",),
    ),
    "own": HeadKind(help="the network's own head", own=True),
    "none": HeadKind(help="no head: a trunk that gives features only"),
}
HEADS: Registry[HeadKind] = Registry("head", "spiritseg.heads", HeadKind)
for _name, _kind in _OWN.items():
    HEADS.register(_name, _kind)


def is_foreign_head(name: str) -> bool:
    """Return whether a head's code is the user's or another package's; nothing is imported."""
    return name not in _OWN and (is_in_file(name) or name in HEADS)
