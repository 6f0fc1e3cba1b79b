"""A student on disk: comes back bit for bit; what is missing, altered or foreign is refused."""

from __future__ import annotations

import hashlib
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
from spiritseg.data.scenes import STYLES, render
from spiritseg.deploy.model_card import model_card
from spiritseg.errors import BundleError, ConfigError, DataError, SpiritsegError
from spiritseg.evaluation.image_iou import ImageIoU
from spiritseg.files import json_bytes, without_folders
from spiritseg.models import Segmenter
from spiritseg.models.bundle import BundleInfo, _card_digest, load_bundle, save_bundle
from spiritseg.models.external import _ARCHITECTURE, untrusted_argument
from spiritseg.models.networks import build_networks

NETWORKS = {
    "teacher": Network(Extractor("efficientnet_lite0"), Head("none")),
    "student": Network(Extractor("separable", of="teacher"), Head("student", channels=16)),
}
INFO = BundleInfo(
    networks=NETWORKS,
    network="student",
    classes=("background", "road"),
    colours=((70, 70, 70), (128, 64, 128)),
    pool=2,
    metrics={"test": {"mIOU": 0.5, "worst": float("nan")}},
)


@pytest.fixture(scope="module")
def network() -> Segmenter:
    found = build_networks(NETWORKS, 2, seed=1)["student"]
    with torch.no_grad():
        found(torch.rand(2, 3, 64, 64))  # batch-norm statistics of its own
    return found.eval()


@pytest.fixture
def bundle(network: Segmenter, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "student", network, INFO)
    return tmp_path / "student"


def test_a_network_comes_back_bit_for_bit(network: Segmenter, bundle: Path) -> None:
    again, info = load_bundle(bundle)
    images = torch.rand(1, 3, 50, 70)
    assert torch.equal(again(images), network(images))
    assert info.classes == INFO.classes
    assert info.colours == INFO.colours
    assert not again.training


def test_an_image_becomes_a_mask(network: Segmenter, bundle: Path, tmp_path: Path) -> None:
    student = spiritseg.load(bundle)
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


def test_a_run_folder_leads_to_its_student(bundle: Path) -> None:
    assert spiritseg.load(bundle.parent).classes == INFO.classes


def test_a_run_that_has_not_finished_is_told_from_a_wrong_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read .*student\.json"):
        spiritseg.load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BundleError, match="has not finished, so it has no student yet"):
        spiritseg.load(tmp_path)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), torch.zeros(1, 8, 8)]
)
def test_what_is_no_image_is_refused(bundle: Path, image: object) -> None:
    with pytest.raises(DataError, match="expected"):
        spiritseg.load(bundle)(image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "came"),
    [
        (torch.full((3, 8, 8), 7), r"torch\.int64\."),
        (torch.full((3, 8, 8), 255.0), r"torch\.float32 from 255 to 255\."),
        (torch.linspace(-1, 1, 192).reshape(3, 8, 8), r"torch\.float32 from -1 to 1\."),
        (torch.full((3, 8, 8), float("nan")), r"torch\.float32 from nan to nan\."),
    ],
)
def test_a_tensor_of_another_type_or_range_is_refused(
    bundle: Path, image: torch.Tensor, came: str
) -> None:
    student = spiritseg.load(bundle)
    for use in (student, student.logits, student.overlay):
        with pytest.raises(DataError, match=f"uint8, or of float in .0, 1.; got {came}"):
            use(image)


def test_a_float_tensor_of_any_precision_is_an_image(bundle: Path) -> None:
    student = spiritseg.load(bundle)
    image = torch.rand(3, 16, 24)
    image[0, 0, 0] = 1 + 1e-6  # as resizing leaves it
    wanted = student.logits(image)
    assert torch.equal(student.logits(image.double().requires_grad_()), wanted)
    assert torch.allclose(student.logits(image.half()), wanted, atol=0.02 * float(wanted.std()))


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)


def test_altered_weights_are_refused(bundle: Path) -> None:
    path = bundle / "student.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(bundle)


def test_an_altered_description_is_refused(bundle: Path) -> None:
    path = bundle / "student.json"
    card = json.loads(path.read_text())
    card["classes"] = ["road", "background"]
    path.write_text(json.dumps(card))
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(bundle)
    path.write_text("{")
    with pytest.raises(BundleError, match="not valid JSON"):
        load_bundle(bundle)
    path.write_text('{"format": 99}')
    with pytest.raises(BundleError, match="expected a bundle of format 2, got 99"):
        load_bundle(bundle)


def test_a_bundle_imports_nothing_unless_it_is_trusted(network: Segmenter, tmp_path: Path) -> None:
    own = {"student": Network(Extractor("os.path.join"), Head("none"))}
    info = BundleInfo(own, "student", INFO.classes, INFO.colours, 2)
    save_bundle(tmp_path / "own", network, info)
    with pytest.raises(BundleError, match="trust=True"):
        load_bundle(tmp_path / "own")


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a description, and its digests with it."""
    card = json.loads((folder / "student.json").read_text())
    change(card)
    weights = (folder / "student.safetensors").read_bytes()
    card["sha256"]["student.safetensors"] = hashlib.sha256(weights).hexdigest()
    card["sha256"]["student.json"] = _card_digest(card)
    (folder / "student.json").write_text(json.dumps(card))


def _set_extractor(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda card: card["networks"]["teacher"]["extractor"].update(fields)


@pytest.mark.parametrize("name", ["own_nets:x.Net", "own_nets.y:x.Net", "timm.models:x.Net"])
def test_no_spelling_of_a_class_path_is_imported_without_trust(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own_nets"
    package.mkdir()
    for file in ("__init__.py", "y:x.py"):
        (package / file).write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    _rewrite(bundle, _set_extractor(name=name))
    with pytest.raises(SpiritsegError):
        load_bundle(bundle)
    assert "own_nets" not in sys.modules


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
    if importlib.util.find_spec("transformers"):
        transformers: Any = importlib.import_module("transformers")
        made["timm:resnet14t"] = (transformers.PreTrainedModel.from_pretrained,)
    found = [(n, key) for n, makers in made.items() for f in makers for key in _opening(f)]
    by_hand = ("pretrained_backbone", "hub_id", "pretrained_model_name_or_path", "model_dir")
    return sorted({*found, *(("timm.models.resnet10t", key) for key in by_hand)})


def _opening(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if OPENS.search(f"{p.name} {p.annotation}".lower())]


def test_what_takes_files_and_addresses_is_found() -> None:
    names = {argument for _, argument in _arguments_that_open()}
    wanted = {"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"}
    assert wanted | {"pretrained", "weights", "weights_backbone"} <= names
    assert not [name for name in _ARCHITECTURE if OPENS.search(name)]


def test_no_argument_opens_or_fetches_anything_without_trust(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kw: object) -> None:
        raise SystemExit(f"something was opened or fetched: {args}")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("folder/extra.pth", "extra"):
        (tmp_path / file).write_bytes(pickle.dumps(Payload()))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    values = ("folder/extra.pth", "extra", "http://127.0.0.1:9/x", "hf-hub:a/b", "DEFAULT", True)
    for name, argument in _arguments_that_open():
        for value in (*values, {"file": "folder/extra.pth"}, ["extra"]):
            args = {argument: value}
            _rewrite(bundle, _set_extractor(name=name, args=args))
            with pytest.raises(BundleError, match=f"argument {argument}=.*trust=True"):
                load_bundle(bundle)
    for value in ("folder/extra.pth", "extra", "tu-hf-hub:a/b", ["../x"], {"classes": "a:b"}):
        assert all(untrusted_argument({argument: value}) for argument in _ARCHITECTURE)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "args",
    [
        *({"num_classes": 10**5}, {"depths": [1, -(10**9)]}, {"drop_rate": 1e300}, {"a": 1}),
        *({"layers": [[[[[1]]]]]}, {"aux_params": {"weights": "x"}}, {"out_indices": {"a": 1}}),
    ],
)
def test_arguments_beyond_an_architecture_need_trust(args: dict[str, Any], bundle: Path) -> None:
    _rewrite(bundle, _set_extractor(name="timm:resnet10t", args=args))
    with pytest.raises(BundleError, match=f"argument {next(iter(args))}=.*numbers up to 16384"):
        load_bundle(bundle)


@pytest.mark.parametrize("channels", [100_000, -1, 2**63])
@pytest.mark.parametrize("head", ["student", "pyramid"])
def test_a_head_of_absurd_width_is_refused(head: str, channels: int, bundle: Path) -> None:
    def widen(card: dict[str, Any]) -> None:
        card["networks"]["student"]["head"].update(name=head, channels=channels)

    _rewrite(bundle, widen)
    with pytest.raises(ConfigError, match=r"expected channels (up to 16384|of 1 or more), got"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"widths": [8, 8, 8, 16_385]}, "numbers up to 16384"),
        ({"depths": [1, 1, 101]}, "depths of whole numbers from 0 to 100"),
        ({"widths": "abcd"}, "widths of whole numbers"),
        ({"widths": 3}, "widths of whole numbers"),
        ({"depths": [1, True, 1.5]}, "depths of whole numbers"),
        ({"mean": [0, 0]}, "mean of three numbers"),
        ({"std": "abc"}, "std of three numbers"),
        ({"seed": "x"}, "seed of whole numbers"),
        ({"stride": [8]}, "gives stride"),
    ],
)
def test_an_extractor_of_absurd_sizes_is_refused(
    args: dict[str, Any], said: str, bundle: Path
) -> None:
    _rewrite(bundle, lambda card: card["networks"]["student"]["extractor"].update(args=args))
    with pytest.raises(SpiritsegError, match=said):
        load_bundle(bundle)


def test_networks_beyond_a_number_of_parameters_need_trust(bundle: Path) -> None:
    def widen(card: dict[str, Any]) -> None:
        card["networks"]["student"]["head"].update(channels=16_384, convolution="dense")

    _rewrite(bundle, widen)  # 7 convolutions of 9.7 GB each, and the system gives nothing before
    with pytest.raises(SpiritsegError, match=r"at most 1,000,000,000 parameters|allocate"):
        load_bundle(bundle)
    again = build_networks(NETWORKS, 2, seed=0)  # the limit ends with the loading
    assert len(again) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    value: float, bundle: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    name = "head.at_half.1.2.running_var"
    broken, _ = load_bundle(bundle)
    broken.state_dict()[name][3] = value
    said = rf"NaN or infinity in {re.escape(name)} \(1 of 16 values\)"
    with pytest.raises(BundleError, match=said):
        save_bundle(tmp_path / "new", broken, INFO)
    assert not (tmp_path / "new").exists()
    path = bundle / "student.safetensors"
    save_file({**load_file(path), name: broken.state_dict()[name]}, path)
    _rewrite(bundle, lambda card: None)
    with pytest.raises(BundleError, match=said):
        load_bundle(bundle)


@pytest.mark.parametrize("weights", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"cut"])
def test_weights_that_are_no_safetensors_are_one_error(weights: bytes, bundle: Path) -> None:
    data = (bundle / "student.safetensors").read_bytes()
    weights = data[: len(data) // 2] if weights == b"cut" else weights
    (bundle / "student.safetensors").write_bytes(weights)
    _rewrite(bundle, lambda card: None)
    with pytest.raises(BundleError, match=r"not a valid safetensors file|of another network"):
        load_bundle(bundle)


LIBRARIES = {
    "torchvision": Extractor(
        "torchvision.models.segmentation.lraspp_mobilenet_v3_large", split="backbone"
    ),
    "segmentation_models_pytorch": Extractor(
        "segmentation_models_pytorch.FPN",
        args={"encoder_name": "mobilenet_v2", "encoder_weights": None},
    ),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_networks_of_known_libraries_come_back_without_trust(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    networks = {"student": Network(LIBRARIES[library], Head("own"))}
    network = build_networks(networks, 2, seed=1)["student"].eval()
    info = BundleInfo(networks, "student", INFO.classes, INFO.colours, 2)
    save_bundle(tmp_path / "student", network, info)
    again, _ = load_bundle(tmp_path / "student")
    images = torch.rand(1, 3, 50, 70)
    wanted = ("features", "logits")
    with torch.no_grad():
        one, two = again.outputs(images, wanted), network.outputs(images, wanted)
    assert all(torch.equal(one[name], two[name]) for name in wanted)


def test_a_pyramid_comes_back(tmp_path: Path) -> None:
    networks = {
        "teacher": NETWORKS["teacher"],
        "student": Network(Extractor("separable", of="teacher"), Head("pyramid", channels=8)),
    }
    network = build_networks(networks, 2, seed=1)["student"].eval()
    info = BundleInfo(networks, "student", INFO.classes, INFO.colours, 2)
    save_bundle(tmp_path / "student", network, info)
    images = torch.rand(1, 3, 50, 70)
    assert torch.equal(load_bundle(tmp_path / "student")[0](images), network(images))


@pytest.mark.parametrize(
    ("path", "args"),
    [
        ("torchvision.datasets.utils.download_url", {"url": "x", "root": "y"}),
        ("torchvision.io.write_file", {"filename": "x"}),
        ("timm.create_model", {"model_name": "resnet18", "checkpoint_path": "x"}),
        ("timm.models.resnet18", {"cache_dir": [{"x": "local-dir:/x"}]}),
        ("torchvision.models.segmentation", {}),
    ],
)
def test_the_rest_of_these_libraries_needs_trust(
    network: Segmenter, tmp_path: Path, path: str, args: dict[str, object]
) -> None:
    own = {"student": Network(Extractor(path, args=args), Head("own"))}
    info = BundleInfo(own, "student", INFO.classes, INFO.colours, 2)
    save_bundle(tmp_path / "own", network, info)
    with pytest.raises(BundleError, match="trust=True"):
        load_bundle(tmp_path / "own")


def test_no_bundle_asks_for_weights(network: Segmenter, tmp_path: Path) -> None:
    asks = {"weights_backbone": "IMAGENET1K_V1", "pretrained": True, "encoder_weights": "imagenet"}
    names = ["timm:resnet18", "torchvision.models.segmentation.fcn_resnet50"]
    given = [Extractor(name, weights="pretrained", args={**asks, "width": 3}) for name in names]
    networks = {extractor.name: Network(extractor, Head("none")) for extractor in given}
    info = BundleInfo(networks, names[0], INFO.classes, INFO.colours, 2)
    save_bundle(tmp_path / "own", network, info)
    card = json.loads((tmp_path / "own" / "student.json").read_text())
    for name in names:
        extractor = card["networks"][name]["extractor"]
        assert (extractor["weights"], extractor["args"]) == ("random", {"width": 3})


def test_the_description_is_valid_json_with_nan_as_null(bundle: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    card = json.loads((bundle / "student.json").read_text(), parse_constant=refuse)
    assert card["metrics"]["test"] == {"mIOU": 0.5, "worst": None}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/camvid", ".../camvid"),
        ("folder:/home/me/val", "folder:.../val"),
        ("~/secret/x", ".../x"),
        ("~me", ".../"),
        ("list:../../home/me/l.txt", "list:.../l.txt"),
        ("data/../../me/x", ".../x"),
        ("../..", ".../"),
        ("C:\\Users\\me\\road", ".../road"),
        ("list:C:/me/l.txt", "list:.../l.txt"),
        ("file:///home/me/x", "file:.../x"),
        # Nothing of these is of a machine.
        ("https://h/x/y", "https://h/x/y"),
        ("data/camvid", "data/camvid"),
        ("first:64", "first:64"),
        ("blocks.2+blocks.3", "blocks.2+blocks.3"),
        ("a..b/c", "a..b/c"),
        ("", ""),
    ],
)
def test_of_paths_only_names_are_kept(given: str, kept: str) -> None:
    assert without_folders({"a": [given, 1, None]}) == {"a": [kept, 1, None]}


def test_arguments_keep_no_folder_of_a_machine_but_where_a_class_may_need_it(
    network: Segmenter, tmp_path: Path
) -> None:
    args = {"cache_dir": "/home/me/x", "in_chans": 3, "overlay": {"file": "~/me/x.pth"}}
    names = ["timm:resnet18", "own.package.Network"]
    networks = {name: Network(Extractor(name, args=args), Head("none")) for name in names}
    info = BundleInfo(networks, names[0], INFO.classes, INFO.colours, 2)
    save_bundle(tmp_path / "own", network, info)
    card = json.loads((tmp_path / "own" / "student.json").read_text())
    found = [card["networks"][name]["extractor"]["args"] for name in names]
    assert found == [{"in_chans": 3, "overlay": {"file": ".../x.pth"}}, args]


def test_a_bundle_without_its_experiment_says_so(bundle: Path) -> None:
    with pytest.raises(BundleError, match="saved without the experiment"):
        spiritseg.load(bundle).experiment()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("pool", None, "lacks 'pool'"),
        ("networks", None, "lacks 'networks'"),
        ("network", "other", "lacks 'other'"),
        ("networks", {"student": {}}, "lacks 'extractor'"),
        ("colours", [1, 2], "is not what"),
        ("networks", [], "is not what"),
        ("networks", {"student": []}, "is not what"),
        ("networks", {"student": {"extractor": 3, "head": {}}}, "is not what"),
        ("networks", {"student": {"extractor": {"name": 3}, "head": {}}}, "is not what"),
        ("networks", {"student": {"extractor": {"project": True}, "head": {}}}, "is not what"),
        ("networks", {"student": {"extractor": {"strides": [[8]]}, "head": {}}}, "is not what"),
        ("networks", {"student": {"extractor": {}, "head": {"name": []}}}, "is not what"),
        ("networks", {"student": {"extractor": {}, "head": {"channels": "64"}}}, "is not what"),
        ("networks", {"student": {"extractor": {"args": []}, "head": {}}}, "is not what"),
        ("network", ["student"], "is not what"),
        ("classes", "ab", "is not what"),
        ("classes", [1, 2], "is not what"),
        ("classes", [], "is not what"),
        ("colours", [[1, 2, 3]], "is not what"),
        ("colours", [[1, 2, 256], [0, 0, 0]], "is not what"),
        ("pool", 0, "is not what"),
        ("pool", "2", "is not what"),
        ("pool", True, "is not what"),
        ("metrics", [], "is not what"),
        ("training", "x", "is not what"),
    ],
)
def test_a_description_that_lacks_something_is_refused(
    bundle: Path, key: str, value: object, said: str
) -> None:
    path = bundle / "student.json"
    card = json.loads(path.read_text())
    card[key] = value
    if value is None:
        del card[key]
    card["sha256"]["student.json"] = _card_digest(card)
    path.write_bytes(json_bytes(card))
    with pytest.raises(BundleError, match=f"student.json {said}"):
        load_bundle(bundle)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_one_clear_error(bundle: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot run on '{device}'.* Expected cpu"):
        spiritseg.load(bundle, device)


# mIOU in per cent of the first version itself, on the scenes below.
FIRST_VERSION = {(227, 319): 72.9, (229, 325): 90.4, (219, 311): 90.6, (235, 331): 81.8}


def test_a_bundle_of_the_first_version_gets_the_new_geometry_and_loses_nothing() -> None:
    folder = Path(__file__).parent / "fixtures" / "first-version"
    student = spiritseg.load(folder)
    assert student.info.measured_before_one_geometry
    assert "measured by spiritseg before version 0.2" in model_card(folder, "old", False)

    def miou(size: tuple[int, int]) -> float:
        metric = ImageIoU(2)
        for index in range(100, 116):
            scene = render(0, index, (240, 336), STYLES["target"])
            image, labels = (x[: size[0], : size[1]] for x in (scene.image, scene.labels))
            mask, road = student(image.copy()), (labels == 3).astype(np.int64)
            pair = (torch.from_numpy(x[:216, :304])[None].long() for x in (mask, road))
            metric.update(*pair)
        return 100 * float(metric.compute()["mIOU"])

    at_multiples = miou((224, 320))
    assert at_multiples > 97
    for size, before in FIRST_VERSION.items():
        assert miou(size) > max(before, at_multiples - 1), size
