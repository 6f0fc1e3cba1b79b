"""Garbled bundles: each is loaded and runs, or is refused with one of our errors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from fuzz.odd import CASES, is_clear, mutate, no_network
from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import SpiritsegError
from spiritseg.models.bundle import bundle_info, load_bundle, save_bundle
from spiritseg.models.networks import build_networks
from tiny_bundle import INFO, TINY, sealed

SOURCES = {
    "compact": (Extractor("compact", base="teacher", policy="all"), Head("student", channels=8)),
    "copy": (Extractor("copy", base="teacher", project=4), Head("pyramid", channels=8)),
    "separable": (Extractor("separable", base="teacher", args=TINY.args), Head("student", 8)),
}
NAMES = (
    *("vgg16", "copy", "compact", "separable", "teacher", "student", "own", "none", "pyramid"),
    *("timm:nothing", "timm:resnet10t", "timm:local-dir:/tmp", "timm:hf-hub:a/b", "timm:"),
    *("os.path.join", "os:path.join", "a.b:c.D", "timm.models.resnet10t", "timm.models.load"),
    *("torchvision.models.squeezenet1_1", "segmentation_models_pytorch.Unet"),
    *({"checkpoint_path": "x"}, {"num_classes": -1}, {"in_chans": 3}, {"encoder_weights": "x"}),
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    found = {}
    for name, (extractor, head) in SOURCES.items():
        networks = {"teacher": Network(TINY, Head("none")), "student": Network(extractor, head)}
        folder = tmp_path_factory.mktemp(name)
        network = build_networks(networks, 2, seed=1)["student"]
        info = dataclasses.replace(INFO, networks=networks)
        save_bundle(folder, network, info)
        card, weights = folder / "student.json", folder / "student.safetensors"
        found[name] = card.read_bytes(), weights.read_bytes()
    return found


def _garbled(data: bytes, draw: random.Random) -> bytes:
    """Flip bits, most of them at the beginning, cut the end off, or put a piece in."""
    found = bytearray(data)
    how = draw.random()
    if how < 0.6:
        for _ in range(draw.choice([1, 1, 2, 8])):
            end = draw.choice([8, 400, len(found)])
            found[draw.randrange(min(end, len(found)))] ^= 1 << draw.randrange(8)
    elif how < 0.85:
        del found[draw.randrange(len(found)) :]
    else:
        at = draw.randrange(len(found))
        found[at:at] = draw.randbytes(draw.choice([1, 8, 100]))
    return bytes(found)


@pytest.mark.parametrize("seed", CASES)
def test_a_garbled_bundle_loads_or_is_refused(
    seed: int,
    bundles: dict[str, tuple[bytes, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_network(monkeypatch)
    draw = random.Random(f"bundle {seed}")
    text, weights = bundles[draw.choice([*bundles])]
    kind = draw.choice(["weights", "card", "fields", "fields", "fields", "networks", "networks"])
    if kind == "weights":
        weights = _garbled(weights, draw)
    card = json.loads(text)
    for _ in range(draw.choice([1, 1, 2, 4]) if kind in ("fields", "networks") else 0):
        mutate(card["networks"] if kind == "networks" else card, draw, NAMES)
        if not card.get("networks"):
            break
    text = sealed(card, weights)
    (tmp_path / "student.json").write_bytes(_garbled(text, draw) if kind == "card" else text)
    (tmp_path / "student.safetensors").write_bytes(weights)
    try:
        network, _ = load_bundle(tmp_path)
    except SpiritsegError as error:
        is_clear(error)
        return
    with torch.no_grad():
        assert network.features(torch.rand(1, 3, 32, 48)).ndim == 4


@pytest.mark.parametrize("deep", [60, 250, 900, 5000])
@pytest.mark.parametrize("field", ["networks", "args", "pool", "metrics"])
def test_a_description_that_is_nested_deep_is_one_error(
    deep: int, field: str, bundles: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    text, weights = bundles["compact"]
    card = json.loads(text)
    (card["networks"]["teacher"]["extractor"] if field == "args" else card)[field] = "HERE"
    text = json.dumps(card).replace('"HERE"', '{"a":' * deep + "1" + "}" * deep).encode()
    with contextlib.suppress(RecursionError):
        text = sealed(json.loads(text), weights)
    (tmp_path / "student.json").write_bytes(text)
    (tmp_path / "student.safetensors").write_bytes(weights)
    passes = field == "metrics"  # whose content is anybody's
    with contextlib.suppress(SpiritsegError) if passes else pytest.raises(SpiritsegError):
        load_bundle(tmp_path)
    with contextlib.suppress(SpiritsegError):
        bundle_info(tmp_path)
