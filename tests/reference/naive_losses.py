"""The losses' formulas as plain loops over float64 numbers, slow and obvious."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def near(labels: Tensor, y: int, x: int, width: int, ignore_index: int = 255) -> bool:
    """Whether a pixel has another class within `width` rows and columns."""
    h, w = labels.shape
    here = int(labels[y, x])
    around = {
        int(labels[v, u])
        for v in range(max(0, y - width), min(h, y + width + 1))
        for u in range(max(0, x - width), min(w, x + width + 1))
    }
    return here != ignore_index and bool(around - {here, ignore_index})


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: tuple[float, ...] | None = None,
    boundary: float = 0,
    boundary_width: int = 2,
) -> float:
    """Equation 3: each labelled pixel looks at the position that covers its centre."""
    classes, (h, w), (high, wide) = logits.shape[1], logits.shape[2:], labels.shape[1:]
    rows, columns = max(h, high), max(w, wide)
    on_grid = torch.tensor(
        [
            [
                [
                    int(one[int((y + 0.5) * high / rows), int((x + 0.5) * wide / columns)])
                    for x in range(columns)
                ]
                for y in range(rows)
            ]
            for one in labels
        ]
    )
    total, count = 0.0, 0.0
    for b, image in enumerate(on_grid):
        for y in range(rows):
            for x in range(columns):
                label = int(image[y, x])
                if label == ignore_index:
                    continue
                there = logits[b, :, int((y + 0.5) * h / rows), int((x + 0.5) * w / columns)]
                z = [float(there[k]) for k in range(classes)]
                weight = class_weights[label] if class_weights else 1.0
                if boundary and near(image, y, x, boundary_width, ignore_index):
                    weight *= 1 + boundary
                total += weight * (math.log(sum(math.exp(v) for v in z)) - z[label])
                count += weight
    return total / count if count else 0.0


def mimicry(student: Tensor, teacher: Tensor) -> float:
    """Equation 2: sum over channels, mean over positions and images."""
    batch, channels, h, w = teacher.shape
    total = 0.0
    for b in range(batch):
        for y in range(h):
            for x in range(w):
                for c in range(channels):
                    total += (float(teacher[b, c, y, x]) - float(student[b, c, y, x])) ** 2
    return total / (batch * h * w)


def pixelwise(p_logits: Tensor, q_logits: Tensor, temperature: float, valid: Tensor) -> float:
    """tau^2 KL(p || q), mean over valid pixels."""
    batch, classes, h, w = p_logits.shape
    total, count = 0.0, 0
    for b in range(batch):
        for y in range(h):
            for x in range(w):
                if not bool(valid[b, y, x]):
                    continue
                count += 1
                p = [math.exp(float(p_logits[b, k, y, x]) / temperature) for k in range(classes)]
                q = [math.exp(float(q_logits[b, k, y, x]) / temperature) for k in range(classes)]
                for k in range(classes):
                    pk, qk = p[k] / sum(p), q[k] / sum(q)
                    total += pk * math.log(pk / qk)
    return total * temperature**2 / count


def nodes(features: Tensor, valid: Tensor, size: int) -> list[tuple[int, int, Tensor]]:
    """Row, column and mean vector of every node of (C, h, w) that is not padding only."""
    found = []
    h, w = features.shape[1:]
    for top in range(0, h, size):
        for left in range(0, w, size):
            inside = [
                features[:, y, x]
                for y in range(top, min(top + size, h))
                for x in range(left, min(left + size, w))
                if bool(valid[y, x])
            ]
            if inside:
                found.append((top // size, left // size, torch.stack(inside).mean(0)))
    return found


def cosine(f: Tensor, g: Tensor) -> Tensor:
    """f'g / (|f| |g|)."""
    return (f * g).sum() / (f.square().sum().sqrt() * g.square().sum().sqrt())


def pairwise(
    student: Tensor,
    teacher: Tensor,
    node_size: int = 1,
    connection_range: int | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean over images and pairs of (a^s - a^t)^2; keeps the student's gradient."""
    if valid is None:
        valid = torch.ones(len(teacher), *teacher.shape[2:], dtype=torch.bool)
    losses = []
    for s, t, v in zip(student, teacher, valid, strict=True):
        nodes_s, nodes_t = nodes(s, v, node_size), nodes(t, v, node_size)
        terms = []
        for i, (row, column, _) in enumerate(nodes_t):
            others = sorted(
                range(len(nodes_t)),
                key=lambda j: (
                    (nodes_t[j][0] - row) ** 2 + (nodes_t[j][1] - column) ** 2,
                    j,
                ),
            )[:connection_range]
            for j in others:
                a_s = cosine(nodes_s[i][2], nodes_s[j][2])
                a_t = cosine(nodes_t[i][2], nodes_t[j][2])
                terms.append((a_s - a_t) ** 2)
        if terms:
            losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


def released_pixelwise(student: Tensor, teacher: Tensor) -> Tensor:
    """SKD's released code: cross-entropy summed over the batch, divided by one image's pixels."""
    batch, classes, h, w = teacher.shape
    terms = []
    for b in range(batch):
        for y in range(h):
            for x in range(w):
                p = [math.exp(float(teacher[b, k, y, x])) for k in range(classes)]
                log_sum = torch.stack([student[b, k, y, x].exp() for k in range(classes)]).sum()
                for k in range(classes):
                    terms.append(-p[k] / sum(p) * (student[b, k, y, x] - log_sum.log()))
    return torch.stack(terms).sum() / (h * w)


def released_pairwise(student: Tensor, teacher: Tensor, scale: float = 0.5) -> Tensor:
    """SKD's released code: windows of a share of the map, max-pooled; norms are constants."""
    h, w = teacher.shape[2:]
    tall, wide = int(h * scale), int(w * scale)

    def similarities(features: Tensor) -> list[Tensor]:
        found = [
            features[:, y : y + tall, x : x + wide].amax((1, 2))
            for y in range(0, h, tall)
            for x in range(0, w, wide)
        ]
        directions = [f / f.detach().square().sum().sqrt() for f in found]
        return [f @ g for f in directions for g in directions]

    total = torch.zeros((), dtype=teacher.dtype)
    for s, t in zip(student, teacher, strict=True):
        pairs = list(zip(similarities(s), similarities(t), strict=True))
        total = total + torch.stack([(a - b) ** 2 for a, b in pairs]).sum() / len(pairs)
    return total / len(teacher)
