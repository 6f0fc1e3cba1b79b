"""The game of SKD's holistic loss as plain loops over float64 numbers, slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Scorer = Callable[[Tensor, Tensor | None], Tensor]


def scores(critic: Scorer, maps: Tensor, images: Tensor | None) -> list[float]:
    """Each map by itself."""
    return [
        float(critic(maps[b : b + 1], None if images is None else images[b : b + 1])[0])
        for b in range(len(maps))
    ]


def slope(critic: Scorer, point: Tensor, image: Tensor | None, step: float = 1e-5) -> float:
    """Length of the gradient of one map's score, by central differences."""
    total = 0.0
    for index in range(point.numel()):
        change = torch.zeros_like(point).flatten()
        change[index] = step
        change = change.view_as(point)
        up = float(critic((point + change)[None], image)[0])
        down = float(critic((point - change)[None], image)[0])
        total += ((up - down) / (2 * step)) ** 2
    return math.sqrt(total)


def slope_penalty(
    critic: Scorer, student: Tensor, teacher: Tensor, images: Tensor | None, epsilons: Tensor
) -> float:
    """Mean of (slope - 1)^2 at epsilon * teacher + (1 - epsilon) * student."""
    total = 0.0
    for b in range(len(teacher)):
        e = float(epsilons[b])
        image = None if images is None else images[b : b + 1]
        total += (slope(critic, e * teacher[b] + (1 - e) * student[b], image) - 1) ** 2
    return total / len(teacher)


def critic_loss(
    critic: Scorer,
    student: Tensor,
    teacher: Tensor,
    images: Tensor | None,
    kind: str,
    gradient_penalty: float,
    epsilons: Tensor,
) -> float:
    """Both kinds, with the penalty."""
    fake, real = scores(critic, student, images), scores(critic, teacher, images)
    batch = len(fake)
    if kind == "wgan-gp":
        loss = sum(fake) / batch - sum(real) / batch
    else:
        loss = sum(max(0.0, 1 - r) for r in real) / batch
        loss += sum(max(0.0, 1 + f) for f in fake) / batch
    penalty = slope_penalty(critic, student, teacher, images, epsilons)
    return loss + gradient_penalty * penalty


def self_attention(x: Tensor, matrices: list[Tensor], biases: list[Tensor], gamma: float) -> Tensor:
    """SAGAN's, of one image's features (C, h, w): query, key and value as matrices (C', C)."""
    query, key, value = matrices
    channels, h, w = x.shape
    places = [x[:, y, z] for y in range(h) for z in range(w)]
    q = [query @ p + biases[0] for p in places]
    k = [key @ p + biases[1] for p in places]
    v = [value @ p + biases[2] for p in places]
    found = torch.zeros(channels, h * w, dtype=x.dtype)
    for j in range(h * w):
        weights = [math.exp(float(q[j] @ k[i])) for i in range(h * w)]
        for i in range(h * w):
            found[:, j] += weights[i] / sum(weights) * v[i]
    return x + gamma * found.view(channels, h, w)


def released_critic(weights: dict[str, Tensor], maps: Tensor) -> Tensor:
    """SKD's released critic, written out: logits only, spectral norm but on the last layer.

    Of 4x4 convolutions with stride 2; the last one has stride and padding too, where the
    released one has neither.
    """
    x = maps
    for stage in (1, 2, 3, 4):
        name = f"stage{stage}.0"
        w = weights[f"{name}.parametrizations.weight.original"]
        u, v = (weights[f"{name}.parametrizations.weight.0.{k}"] for k in ("_u", "_v"))
        largest = u @ w.flatten(1) @ v  # singular value
        x = F.conv2d(x, w / largest, weights[f"{name}.bias"], stride=2, padding=1)
        x = torch.where(x > 0, x, 0.1 * x)
        if stage >= 3:
            x = _released_attention(weights, f"attention{stage}", x)
    x = F.conv2d(x, weights["score.weight"], weights["score.bias"], stride=2, padding=1)
    return x.flatten(1).mean(1)


def _released_attention(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q, k, v = (
        torch.einsum("oi,bin->bon", weights[f"{name}.{part}.weight"][:, :, 0, 0], x.flatten(2))
        + weights[f"{name}.{part}.bias"][:, None]
        for part in ("query", "key", "value")
    )
    attention = torch.einsum("bcm,bcn->bmn", q, k).exp()
    attention = attention / attention.sum(2, keepdim=True)
    return x + weights[f"{name}.gamma"] * torch.einsum("bcn,bmn->bcm", v, attention).view(
        b, c, h, w
    )
