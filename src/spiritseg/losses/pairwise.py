"""Pair-wise distillation of similarities between nodes (SKD)."""

from __future__ import annotations

from dataclasses import field
from functools import lru_cache
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass
from torch import Tensor

from spiritseg.errors import ConfigError
from spiritseg.geometry import resize, size_of
from spiritseg.losses.grid import at_least_float32, check_pair, never_negative, valid_on
from spiritseg.losses.loss import Context, Loss, Outputs, Term, layer_pairs
from spiritseg.options import STRICT, Mapping_, check_options

__all__ = ["LOSS", "Pairwise", "cheaper_form", "node_kernel", "pairwise"]

Form = Literal["auto", "direct", "linear"]
Pooling = Literal["average", "max"]

SMALLEST_NORM = 1e-8  # a node below it has no direction: similarity 0, no gradient
DIRECT_NODES = 8192  # above it an N x N matrix of float32 takes more than 256 MiB
BLOCK_CHANNELS = 256  # of the symmetric products: small enough to save, large enough to be fast
CHUNK_ENTRIES = 2**24  # similarities held at once with a connection range


def _whole_or_share(side: float) -> float:
    if side > 1 and side != int(side):
        raise ValueError("a whole number of positions, or a share of the sides below 1")
    return side


@dataclass(frozen=True, config=STRICT)
class Pairwise:
    """Difference between the similarities of nodes (SKD, eqs. 2 and 3).

    Args:
        weight: Factor of the loss in the stage's sum.
        node_size: Side of a node in positions of the teacher's grid; below 1, its share of
            the grid's sides.
        connection_range: Number of nearest nodes that each node is compared with; 0 for all.
        form: direct, linear, or auto: the cheaper one.
        pooling: average (the paper) or max (the released code) over a node's positions.
        detach_norms: Whether the norms are constants for the gradient (the released code).
        layers: Which layer of the student is compared with which of the teacher, as
            module paths; features, the default, is the extractor's output.
    """

    weight: Annotated[float, Ge(0)] = 1.0
    node_size: Annotated[float, Gt(0), AfterValidator(_whole_or_share)] = 1.0
    connection_range: Annotated[int, Ge(0)] = 0
    form: Form = "auto"
    pooling: Pooling = "average"
    detach_norms: bool = False
    layers: Annotated[dict[str, str], Mapping_] = field(default_factory=dict)


def pairwise(
    student_features: Tensor,
    teacher_features: Tensor,
    node_size: float = 1,
    connection_range: int | None = None,
    form: Form = "auto",
    valid: Tensor | None = None,
    pooling: Pooling = "average",
    detach_norms: bool = False,
) -> Tensor:
    r"""Squared difference between the teacher's and the student's cosine similarities.

    .. math:: L_{pa} = \frac{1}{N \alpha} \sum_i \sum_{j \in \alpha(i)}
        \left(a^s_{ij} - a^t_{ij}\right)^2, \qquad
        a_{ij} = \frac{f_i^\top f_j}{\|f_i\| \|f_j\|}

    averaged over images (SKD, Liu et al., arXiv:1903.04197, eqs. 2 and 3; node size and
    connection range from its journal version). Without a connection range each node is
    connected to all, alpha = N. Teacher and student may differ in channels.

    With a full range and row-normalised features F (N x C), the ``"linear"`` form
    ||Fs'Fs||^2 - 2 ||Fs'Ft||^2 + ||Ft'Ft||^2 equals ||Fs Fs' - Ft Ft'||^2 and never holds an
    N x N matrix. Its cancellation costs about 1e-5 of ||Ft'Ft||^2 / N^2 in float32.

    The authors' released code takes max-pooling, nodes of half the map's sides (2 x 2 of them on
    a map of even sides, 3 x 3 on its own 65 x 65) and norms outside the gradient:
    ``pooling="max", node_size=0.5, detach_norms=True``.

    Args:
        student_features: (B, C, h, w), of any float type; computed in float32 at least, under
            autocast too. A student on another grid is resized bilinearly to the teacher's.
        teacher_features: (B, C', h', w'); no gradient flows into them.
        node_size: side of a node in positions of the teacher's grid; below 1, its share of
            the grid's sides. Nodes at the lower and right edge may be smaller.
        connection_range: alpha, how many nearest nodes (itself among them; ties by row, then
            column) each is compared with; None, 0, or N and more for all.
        form: ``"direct"`` (N x N), ``"linear"``, or ``"auto"``: the cheaper one. A connection
            range needs the direct form.
        valid: (B, H, W) bool, False on padding. Padding is left out of each node's pool, and
            nodes of padding only are left out altogether.
        pooling: ``"average"`` (the paper) or ``"max"`` over the positions of a node.
        detach_norms: whether the norms count as constants in the gradient.

    Returns:
        A scalar >= 0; 0 for equal features. An image without any valid node is left out.

    Raises:
        ConfigError: shapes that cannot be compared, or a value out of its range.
    """
    check_pair(student_features, teacher_features, "pairwise", channels=False)
    connection_range = connection_range or None
    options = {"connection_range": connection_range or 0, "form": form, "pooling": pooling}
    check_options(Pairwise, "pairwise", node_size=node_size, **options)
    with torch.autocast(student_features.device.type, enabled=False):
        teacher = at_least_float32(teacher_features.detach())
        grid = size_of(teacher)
        common = torch.promote_types(student_features.dtype, teacher.dtype)
        student, teacher = resize(student_features.to(common), grid), teacher.to(common)
        mask = valid_on(valid, teacher, "pairwise")
        kernel = node_kernel(node_size, grid)
        student_nodes = _unit(_pool(student, kernel, mask, pooling), detach_norms)
        teacher_nodes = _unit(_pool(teacher, kernel, mask, pooling), detach_norms)
        nodes = None if mask is None else _pool_mask(mask, kernel)
        losses = [
            _of_image(student_nodes[b], teacher_nodes[b], connection_range, form, kept)
            for b in range(len(teacher))
            if (kept := None if nodes is None else nodes[b]) is None or bool(kept.any())
        ]
        return torch.stack(losses).mean() if losses else student.sum() * 0


def node_kernel(node_size: float, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the sides (rows, columns) of a node, in positions of a grid (H, W)."""
    if node_size < 1:
        return max(1, int(grid[0] * node_size)), max(1, int(grid[1] * node_size))
    # a node beyond the map is the whole map
    return min(int(node_size), grid[0]), min(int(node_size), grid[1])


def _pool(x: Tensor, kernel: tuple[int, int], mask: Tensor | None, pooling: str) -> Tensor:
    """Pool maps (B, C, h, w) to nodes, over valid positions only."""
    if kernel == (1, 1):
        return x
    if pooling == "max":
        filled = x if mask is None else x.masked_fill(~mask[:, None], -torch.inf)
        pooled = F.max_pool2d(filled, kernel, ceil_mode=True)
        return pooled.masked_fill(pooled.isneginf(), 0)
    # the sum over valid positions has their mean's direction, and a cosine asks no more
    filled = x if mask is None else x.masked_fill(~mask[:, None], 0)
    return F.avg_pool2d(filled, kernel, ceil_mode=True)


def _pool_mask(mask: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Whether a node holds any valid position, (B, rows, columns) bool."""
    return F.max_pool2d(mask[:, None].float(), kernel, ceil_mode=True)[:, 0] > 0


def _unit(x: Tensor, detach_norms: bool) -> Tensor:
    """Scale each node of (B, C, rows, columns) to length 1."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    norm = torch.where(norm > SMALLEST_NORM, norm, torch.inf)  # x / inf: no value, no gradient
    return x / (norm.detach() if detach_norms else norm)


def _of_image(
    student: Tensor, teacher: Tensor, connection_range: int | None, form: str, kept: Tensor | None
) -> Tensor:
    """The loss of one image from unit nodes (C, rows, columns) and (C', rows, columns)."""
    rows, columns = teacher.shape[-2:]
    fs, ft = student.flatten(1).T, teacher.flatten(1).T
    if kept is not None:
        fs, ft = fs[kept.flatten()], ft[kept.flatten()]
    n = len(ft)
    if connection_range is not None and connection_range < n:
        if form == "linear":
            raise ConfigError(
                f"pairwise: the linear form needs the full range of {n} nodes, got "
                f"connection_range={connection_range}. Leave one of them out."
            )
        if kept is None:
            near = _nearest_on_grid(rows, columns, connection_range)
        else:
            near = _nearest(kept.nonzero().cpu(), connection_range)
        return _ranged(fs, ft, near.to(ft.device))
    if form == "auto":
        form = cheaper_form(n, fs.shape[1], ft.shape[1])
    total = _linear(fs, ft) if form == "linear" else (fs @ fs.T - ft @ ft.T).square().sum()
    return total / n**2


def cheaper_form(n: int, student_channels: int, teacher_channels: int) -> str:
    """Name the form with fewer multiply-adds forward and backward, unless the memory would fill."""
    s, t = student_channels, teacher_channels
    half = 1 if s == t else 0.5  # of the symmetric products, see _linear
    direct, linear = n * n * (3 * s + t), n * (half * (3 * s * s + t * t) + 2 * s * t)
    return "direct" if direct <= linear and n <= DIRECT_NODES else "linear"


def _linear(fs: Tensor, ft: Tensor) -> Tensor:
    # With as many channels the products of equal features must be the same computation, for
    # the loss to be exactly 0; with other numbers half of each symmetric one is enough.
    width = BLOCK_CHANNELS if fs.shape[1] != ft.shape[1] else fs.shape[1]
    a, b, c = _gram_square(fs, width), _square(fs.T @ ft), _gram_square(ft, width)
    return never_negative(a - 2 * b + c).to(ft.dtype)


def _gram_square(f: Tensor, width: int) -> Tensor:
    """||F'F||^2 from the blocks on and above the diagonal."""
    blocks = torch.split(f, width, dim=1)
    terms = [
        _square(left.T @ right) * (1 if i == j else 2)
        for i, left in enumerate(blocks)
        for j, right in enumerate(blocks[i:], start=i)
    ]
    return torch.stack(terms).sum()


def _square(m: Tensor) -> Tensor:
    return m.square().sum(dtype=torch.float64)  # in float64, for the three nearly cancel


def _ranged(fs: Tensor, ft: Tensor, near: Tensor) -> Tensor:
    """Mean over each node's nearest ones (N, alpha), by chunks of rows."""
    total = fs.new_zeros(())
    rows = max(1, CHUNK_ENTRIES // len(ft))
    for some_s, some_t, some in zip(*(torch.split(x, rows) for x in (fs, ft, near)), strict=True):
        difference = (some_s @ fs.T).gather(1, some) - (some_t @ ft.T).gather(1, some)
        total = total + difference.square().sum()
    return total / near.numel()


@lru_cache(maxsize=8)
def _nearest_on_grid(rows: int, columns: int, alpha: int) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve autograd later
        return _nearest(torch.cartesian_prod(torch.arange(rows), torch.arange(columns)), alpha)


def _nearest(places: Tensor, alpha: int) -> Tensor:
    """Indices of the alpha nearest of N places (N, 2), itself first, (N, alpha)."""
    n = len(places)
    near = []
    for some in torch.split(places, max(1, CHUNK_ENTRIES // n)):
        squared = (some[:, None] - places[None]).square().sum(-1)
        # one key for distance and order, so that ties do not depend on the sort
        key = squared * n + torch.arange(n)
        near.append(key.topk(alpha, largest=False).values % n)
    return torch.cat(near)


def _term(options: Pairwise, context: Context) -> Term:
    pairs = layer_pairs(options.layers)

    def compare(outputs: Outputs, student: str, teacher: str) -> Tensor:
        return pairwise(
            outputs.student[student],
            outputs.teacher[teacher],
            node_size=options.node_size,
            connection_range=options.connection_range,
            form=options.form,
            valid=outputs.valid,
            pooling=options.pooling,
            detach_norms=options.detach_norms,
        )

    def compute(outputs: Outputs) -> Tensor:
        return torch.stack([compare(outputs, *pair) for pair in pairs.items()]).mean()

    return compute


LOSS = Loss(
    Pairwise,
    _term,
    student=lambda options: frozenset(layer_pairs(options.layers)),
    teacher=lambda options: frozenset(layer_pairs(options.layers).values()),
)
