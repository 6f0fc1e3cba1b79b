"""A student on disk: comes back bit for bit; what is missing, altered or foreign is refused."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pickle
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import spiritseg
from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import BundleError, ConfigError, DataError, SpiritsegError
from spiritseg.evaluation.iou import ImageIoU
from spiritseg.files import without_folders
from spiritseg.models import Segmenter
from spiritseg.models.bundle import BundleInfo, load_bundle, save_bundle
from spiritseg.models.external import _ARCHITECTURE, untrusted_argument
from spiritseg.models.networks import build_networks
from spiritseg.scenes import STYLES, render
from tiny_bundle import INFO, NETWORKS, rewrite, tiny_network

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def network() -> Segmenter:
    return tiny_network()


@pytest.fixture
def bundle(network: Segmenter, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "student", network, INFO)
    return tmp_path / "student"


def _describe(folder: Path, network: Segmenter, **networks: Network) -> Path:
    """Save a network under a description of any others, of which it is the last."""
    *_, name = networks
    save_bundle(folder, network, BundleInfo(networks, name, INFO.classes, INFO.colours, 2))
    return folder


def _extractor(**fields: object) -> Change:
    return lambda card: card["networks"]["teacher"]["extractor"].update(fields)


def test_a_network_comes_back_bit_for_bit(network: Segmenter, bundle: Path) -> None:
    again, info = load_bundle(bundle)
    images = torch.rand(1, 3, 50, 70)
    assert torch.equal(again(images), network(images))
    assert (info.classes, info.colours, info.pool) == (INFO.classes, INFO.colours, 2)
    assert not again.training
    assert json.loads((bundle / "student.json").read_text())["metrics"]["test"]["worst"] is None


SMP = {"encoder_name": "mobilenet_v2", "encoder_weights": None}
LRASPP = Extractor("torchvision.models.segmentation.lraspp_mobilenet_v3_large", cut_at="backbone")


@pytest.mark.parametrize(
    "student",
    [
        Network(NETWORKS["student"].extractor, Head("pyramid", channels=8)),
        Network(LRASPP, Head("own")),
        Network(Extractor("segmentation_models_pytorch.FPN", args=SMP), Head("own")),
    ],
)
def test_networks_of_known_libraries_come_back_without_trust(
    student: Network, tmp_path: Path
) -> None:
    pytest.importorskip(
        student.extractor.name.split(".")[0] if student.head.name == "own" else "torch"
    )
    networks = {**NETWORKS, "student": student}
    network = build_networks(networks, 2, seed=1)["student"].eval()
    again, _ = load_bundle(_describe(tmp_path, network, **networks))
    images, wanted = torch.rand(1, 3, 50, 70), ("features", "logits")
    with torch.no_grad():
        one, two = again.outputs(images, wanted), network.outputs(images, wanted)
    assert all(torch.equal(one[name], two[name]) for name in wanted)


def test_an_image_becomes_a_mask(network: Segmenter, bundle: Path, tmp_path: Path) -> None:
    student = spiritseg.load(bundle.parent)  # a run leads to its student
    pixels = np.random.default_rng(0).integers(0, 256, (51, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    mask = student(tmp_path / "image.png")
    assert mask.shape == (51, 70)
    assert mask.dtype == np.uint8
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for same in (pixels, Image.fromarray(pixels), tensor, str(tmp_path / "image.png")):
        assert np.array_equal(student(same), mask)
    # Independently: pool, network, resize, argmax.
    pooled = torch.nn.functional.max_pool2d(tensor[None] / 255, 2, ceil_mode=True)
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(
            network(pooled), size=(51, 70), mode="bilinear", align_corners=False
        )
    assert np.array_equal(logits.argmax(1)[0].numpy(), mask)
    assert student.overlay(pixels).size == (70, 51)
    assert student.colourise(mask).shape == (51, 70, 3)


def test_a_float_tensor_of_any_precision_is_an_image(bundle: Path) -> None:
    student = spiritseg.load(bundle)
    image = torch.rand(3, 16, 24)
    image[0, 0, 0] = 1 + 1e-6  # as resizing leaves it
    wanted = student.logits(image)
    assert torch.equal(student.logits(image.double().requires_grad_()), wanted)
    assert torch.allclose(student.logits(image.half()), wanted, atol=0.02 * float(wanted.std()))


def test_what_is_no_image_is_refused(bundle: Path) -> None:
    student = spiritseg.load(bundle)
    arrays: tuple[Any, ...] = (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32))
    for image in (*arrays, torch.zeros(1, 8, 8)):
        with pytest.raises(DataError, match="expected"):
            student(image)
    for tensor, came in (
        (torch.full((3, 8, 8), 7), r"torch\.int64\."),
        (torch.full((3, 8, 8), 255.0), r"torch\.float32 from 255 to 255\."),
        (torch.full((3, 8, 8), float("nan")), r"torch\.float32 from nan to nan\."),
    ):
        with pytest.raises(DataError, match=f"uint8, or of float in .0, 1.; got {came}"):
            student(tensor)


def test_what_a_bundle_cannot_do_is_one_clear_error(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot run on 'cuda:99'.* Expected cpu"):
        spiritseg.load(bundle, "cuda:99")
    with pytest.raises(BundleError, match="saved without its experiment"):
        spiritseg.load(bundle).experiment()
    (tmp_path / "run").mkdir()
    with pytest.raises(BundleError, match=r"cannot read .*student\.json"):
        spiritseg.load(tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(BundleError, match="has not finished, so it has no student yet"):
        spiritseg.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("student.json", None, r"cannot read .*student\.json"),
        ("student.safetensors", None, r"cannot read .*student\.safetensors"),
        ("student.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "SHA-256"),
        ("student.json", lambda data: data.replace(b"road", b"roam"), "SHA-256"),
        ("student.json", lambda data: b"{", "not valid JSON"),
        ("student.json", lambda data: b'{"format": 99}', "expected a bundle of format 2, got 99"),
    ],
)
def test_a_missing_or_altered_file_is_refused(
    bundle: Path, name: str, change: Callable[[bytes], bytes] | None, said: str
) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).unlink()
    if change is not None:
        (bundle / name).write_bytes(change(data))
    with pytest.raises(BundleError, match=said):
        load_bundle(bundle)


WRONG: dict[str, list[Any]] = {  # None: the field is missing
    "pool": [None, 0, "2", True, 10**6],
    "network": [None, "other", ["student"]],
    "classes": ["ab", [1, 2], [], ["a"] * 20_000],
    "colours": [None, [[1, 2, 3]], [[1, 2, 256], [0] * 3], [[1, 2], [0] * 3]],
    "metrics": [[]],
    "training": ["x"],
    "networks": [None, [], {"student": []}],
    "extractor": [3, {"name": 3}, {"project": 1.5}, {"strides": [[8]]}, {"args": []}],
    "head": [{"name": []}, {"channels": "wide"}, {"channels": 2**63}, {"other": 1}],
}


@pytest.mark.parametrize(("key", "value"), [(k, value) for k in WRONG for value in WRONG[k]])
def test_a_description_with_a_wrong_field_is_refused(bundle: Path, key: str, value: Any) -> None:
    def change(card: dict[str, Any]) -> None:
        fields = card["networks"]["student"] if key in ("extractor", "head") else card
        fields[key] = value
        if value is None:
            del fields[key]

    rewrite(bundle, change)
    with pytest.raises(BundleError, match=r"student\.json is not a valid description: .{9}"):
        load_bundle(bundle)


def test_a_bundle_imports_nothing_unless_it_is_trusted(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own_nets"
    package.mkdir()
    for file in ("__init__.py", "y:x.py"):
        (package / file).write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_nets:x.Net", "own_nets.y:x.Net", "timm.models:x.Net"):  # no class path
        rewrite(bundle, _extractor(name=name))
        with pytest.raises(SpiritsegError):
            load_bundle(bundle)
    rewrite(bundle, _extractor(name="own_nets.Net"))
    with pytest.raises(BundleError, match=r"the class own_nets\.Net.*runs its code.*trust=True"):
        load_bundle(bundle)
    with pytest.raises(SystemExit, match="it was imported"):
        load_bundle(bundle, trust=True)
    assert "own_nets" not in sys.modules


@pytest.mark.parametrize(
    ("path", "args", "said"),
    [
        *(
            (path, {}, f"the class {path}")
            for path in ("os.path.join", "torchvision.io.write_file", "timm.create_model")
        ),
        ("torchvision.models.segmentation", {}, "the class"),  # a module
        ("timm.models.resnet18", {"cache_dir": [{"x": "local-dir:/x"}]}, "argument cache_dir="),
        *(
            ("timm:resnet10t", args, f"argument {next(iter(args))}=.*numbers up to 16384")
            for args in (
                *({"num_classes": 10**5}, {"depths": [1, -(10**9)]}, {"drop_rate": 1e300}),
                *({"layers": [[[[[1]]]]]}, {"aux_params": {"weights": "x"}}, {"a": 1}),
            )
        ),
    ],
)
def test_anything_but_architectures_of_known_libraries_needs_trust(
    path: str, args: dict[str, Any], said: str, bundle: Path
) -> None:
    rewrite(bundle, _extractor(name=path, args=args))
    with pytest.raises(BundleError, match=f"{said}.*trust=True"):
        load_bundle(bundle)


class Payload:
    """What a pickled file would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it ran"),)


# Of the names of arguments: what takes a file, an address, weights, or a name on a hub.
OPENS = re.compile(
    r"(?<!drop_)path|dir|file|url|weights|pretrained|checkpoint|cache|cfg|config|hub|repo|revision|"
    r"\btoken|state|proxies|subfolder"
)


def _arguments_that_open() -> list[tuple[str, str]]:
    """Name each such argument of the libraries' constructors, with a network that takes it."""
    import timm
    from torchvision.models import get_model_builder, list_models, segmentation

    made: dict[str, tuple[Any, ...]] = {
        "timm:resnet10t": (timm.create_model, timm.models.build_model_with_cfg),
        "timm.models.resnet10t": (timm.create_model, timm.models.load_pretrained),
        "efficientnet_lite1": (timm.create_model,),
    }
    for name in list_models(segmentation):
        made[f"torchvision.models.segmentation.{name}"] = (get_model_builder(name),)
    if importlib.util.find_spec("segmentation_models_pytorch"):
        smp: Any = importlib.import_module("segmentation_models_pytorch")
        made["segmentation_models_pytorch.Unet"] = (smp.create_model, smp.from_pretrained)
        kinds = [n for n, kind in vars(smp).items() if inspect.isclass(kind)]
        made |= {f"segmentation_models_pytorch.{n}": (getattr(smp, n),) for n in kinds}
    found = [(n, key) for n, makers in made.items() for f in makers for key in _opening(f)]
    by_hand = ("pretrained_backbone", "hub_id", "pretrained_model_name_or_path", "model_dir")
    return sorted({*found, *(("timm.models.resnet10t", key) for key in by_hand)})


def _opening(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if OPENS.search(f"{p.name} {p.annotation}".lower())]


def test_no_argument_opens_or_fetches_anything_without_trust(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise SystemExit(f"something was opened or fetched: {args}")

    opening = _arguments_that_open()
    wanted = {"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"}
    wanted |= {"pretrained", "weights", "weights_backbone"}
    assert wanted <= {argument for _, argument in opening}
    assert not [name for name in _ARCHITECTURE if OPENS.search(name)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("folder/extra.pth", "extra"):
        (tmp_path / file).write_bytes(pickle.dumps(Payload()))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    values: tuple[object, ...] = (
        "extra",
        "http://127.0.0.1:9/x",
        "DEFAULT",
        True,
        {"file": "folder/extra.pth"},
    )
    for name, argument in opening:
        for value in values:
            rewrite(bundle, _extractor(name=name, args={argument: value}))
            with pytest.raises(BundleError, match=f"argument {argument}=.*trust=True"):
                load_bundle(bundle)
    for value in ("folder/extra.pth", "extra", "tu-hf-hub:a/b", ["../x"], {"classes": "a:b"}):
        assert all(untrusted_argument({argument: value}) for argument in _ARCHITECTURE)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        # 7 convolutions of 9.7 GB each, and the system gives nothing before.
        (
            "head",
            {"channels": 16_384, "convolution": "dense"},
            r"at most 1,000,000,000 parameters|allocate",
        ),
        *(
            ("extractor", {"args": args}, said)
            for args, said in (
                ({"widths": [8, 8, 8, 16_385]}, "numbers up to 16384"),
                ({"depths": [1, 1, 101]}, "depths: expected 100 or less"),
                ({"widths": 3}, "widths: expected a list"),
                ({"depths": [1, 1, 1.5]}, "depths: expected a whole number"),
                ({"mean": [0, 0]}, "mean: expected the right number of values"),
                ({"seed": "x"}, "seed: expected a whole number"),
                ({"stride": [8]}, "stride: unknown value"),
            )
        ),
    ],
)
def test_a_network_of_absurd_sizes_is_refused(
    part: str, fields: dict[str, Any], said: str, bundle: Path
) -> None:
    rewrite(bundle, lambda card: card["networks"]["student"][part].update(fields))
    with pytest.raises(SpiritsegError, match=said):
        load_bundle(bundle)
    assert len(build_networks(NETWORKS, 2, seed=0)) == 2  # the limits end with the loading


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    bundle: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    name, path = "head.at_half.1.2.running_var", bundle / "student.safetensors"
    said = rf"NaN or infinity in {re.escape(name)} \(1 of 16 values\)"
    broken, _ = load_bundle(bundle)
    for value in (float("nan"), -float("inf")):
        broken.state_dict()[name][3] = value
        with pytest.raises(BundleError, match=said):
            save_bundle(tmp_path / "new", broken, INFO)
        save_file({**load_file(path), name: broken.state_dict()[name]}, path)
        rewrite(bundle, lambda card: None)
        with pytest.raises(BundleError, match=said):
            load_bundle(bundle)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("weights", [b"\x02\0\0\0\0\0\0\0{}", b"cut"])
def test_weights_that_are_no_safetensors_are_one_error(weights: bytes, bundle: Path) -> None:
    data = (bundle / "student.safetensors").read_bytes()
    weights = data[: len(data) // 2] if weights == b"cut" else weights
    (bundle / "student.safetensors").write_bytes(weights)
    rewrite(bundle, lambda card: None)
    with pytest.raises(BundleError, match=r"not a valid safetensors file|of another network"):
        load_bundle(bundle)


def test_a_bundle_keeps_no_weights_to_fetch_and_no_folder_of_a_machine(
    network: Segmenter, tmp_path: Path
) -> None:
    asks = {"weights_backbone": "IMAGENET1K_V1", "pretrained": True, "encoder_weights": "imagenet"}
    paths = {"cache_dir": "/home/me/x", "overlay": {"file": "~/me/x.pth"}}
    library, own = "torchvision.models.segmentation.fcn_resnet50", "own.package.Network"
    networks = {
        name: Network(Extractor(name, weights="pretrained", args={"width": 3, **asks, **paths}))
        for name in ("timm:resnet18", library, own)
    }
    fields = json.loads((_describe(tmp_path, network, **networks) / "student.json").read_text())
    found = {name: fields["networks"][name]["extractor"] for name in networks}
    assert {one["weights"] for one in found.values()} == {"random"}
    for name in ("timm:resnet18", library):
        assert found[name]["args"] == {"width": 3, "overlay": {"file": ".../x.pth"}}
    assert found[own]["args"] == {"width": 3, **asks, **paths}  # it may need them


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/camvid", ".../camvid"),
        ("folder:/home/me/val", "folder:.../val"),
        ("~/secret/x", ".../x"),
        ("list:../../home/me/l.txt", "list:.../l.txt"),
        ("../..", ".../"),
        ("C:\\Users\\me\\road", ".../road"),
        ("file:///home/me/x", "file:.../x"),
        # None of these is a path of a machine.
        *((name, name) for name in ("https://h/x/y", "data/camvid", "first:64", "a..b/c", "")),
        ("blocks.2+blocks.3", "blocks.2+blocks.3"),
    ],
)
def test_of_paths_only_names_are_kept(given: str, kept: str) -> None:
    assert without_folders({"a": [given, 1, None]}) == {"a": [kept, 1, None]}


# mIOU in per cent of the first version itself, on the scenes below.
FIRST_VERSION = {(227, 319): 72.9, (219, 311): 90.6}


@pytest.mark.filterwarnings("ignore:the field")  # its field names are old
def test_a_bundle_of_the_first_version_gets_the_new_geometry_and_loses_nothing() -> None:
    student = spiritseg.load(Path(__file__).parent / "fixtures" / "first-version")
    assert student.info.measured_before_one_geometry
    scenes = [render(0, index, (240, 336), STYLES["target"]) for index in range(100, 116)]

    def miou(size: tuple[int, int]) -> float:
        metric = ImageIoU(2)
        for scene in scenes:
            image, labels = (x[: size[0], : size[1]] for x in (scene.image, scene.labels))
            mask, road = student(image.copy()), (labels == 3).astype(np.int64)
            pair = (torch.from_numpy(x[:216, :304])[None].long() for x in (mask, road))
            metric.update(*pair)
        return 100 * float(metric.compute()["mIOU"])

    at_multiples = miou((224, 320))
    assert at_multiples > 97
    for size, before in FIRST_VERSION.items():
        assert miou(size) > max(before, at_multiples - 1), size
