"""Class paths: nothing is fetched unasked, K is filled, little is trusted."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from torch import nn

from spiritseg.errors import ConfigError, MissingExtraError, WeightsError
from spiritseg.models.external import construct, is_library_network, untrusted_argument

LRASPP = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"


class Told(nn.Module):
    """It keeps what it was told."""

    def __init__(self, weights: str = "mine", classes: int = 1, broken: bool = False) -> None:
        super().__init__()
        self.told = (weights, classes)
        if broken:
            raise KeyError("broken")


def test_the_number_of_classes_is_filled_and_what_is_given_is_kept() -> None:
    path = f"{__name__}.Told"
    module: Any = construct(path, {}, 7)
    assert module.told == ("mine", 7)  # weights mean something of its own in a class of one's own
    module = construct(path, {"classes": 3}, 7)
    assert module.told == ("mine", 3)
    module = construct(path, {})
    assert module.told == ("mine", 1)
    with pytest.raises(ConfigError, match=r"Told cannot be made with .*KeyError: 'broken'"):
        construct(path, {"broken": True}, 7)
    with pytest.raises(ConfigError, match=r"unexpected keyword argument .colour"):
        construct(path, {"colour": 3})


def test_weights_that_args_ask_for_are_fetched_and_failures_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.models._api import WeightsEnum

    def refuse(self: Any, **kw: Any) -> None:
        raise OSError(f"no route to {self.name}")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(WeightsError, match=r"no route to IMAGENET1K_V1.*args"):
        construct(LRASPP, {"weights_backbone": "IMAGENET1K_V1"}, 2)
    with pytest.raises(ConfigError, match=r"cannot be made with .*num_classes"):
        construct(LRASPP, {"weights": "COCO_WITH_VOC_LABELS_V1"}, 2)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(name, name="segmentation_models_pytorch")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"spiritseg\[smp\]"):
        construct("segmentation_models_pytorch.Unet", {})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (LRASPP, True),
        ("torchvision.models.resnet18", True),
        ("timm.models.resnet18", True),
        ("torchvision.models.segmentation.LRASPP", False),  # takes modules, not plain values
        ("torchvision.datasets.utils.download_url", False),
        ("torchvision.io.write_file", False),
        ("timm.create_model", False),
        ("timm.models.load_checkpoint", False),
        ("os.path.join", False),
        ("segmentation_models_pytorch.Unet", True),
        ("segmentation_models_pytorch.from_pretrained", False),
        ("segmentation_models_pytorch.create_model", False),
        ("segmentation_models_pytorch.nothing", False),
    ],
)
def test_only_known_networks_of_known_libraries_are_trusted(path: str, expected: bool) -> None:
    pytest.importorskip(path.split(".")[0])
    assert is_library_network(path) is expected


@pytest.mark.parametrize(
    "args",
    [
        {"num_classes": 2, "output_stride": 8, "drop_path_rate": 0.1, "features_only": True},
        {"encoder_name": "tu-vit_base_patch16_224.augreg_in21k", "encoder_weights": None},
        {"decoder_channels": [256, 128], "aux_params": {"classes": 2, "pooling": "max"}},
        {"weights": None, "weights_backbone": None, "pretrained": False, "global_pool": ""},
        {"widths": (8, 8, 8, 16_384), "depths": [0, 0, 0], "mean": [0.5] * 3, "seed": 2**63},
    ],
)
def test_arguments_that_describe_an_architecture_need_no_trust(args: dict[str, Any]) -> None:
    assert untrusted_argument(args) == ""


def test_the_first_argument_that_needs_trust_is_named() -> None:
    assert untrusted_argument({"num_classes": 2, "cache_dir": "x"}) == "cache_dir='x'"
    assert untrusted_argument({"pretrained": True, "weights": "x"}) == "pretrained=True"
    assert untrusted_argument({"act_layer": "a" * 129}).startswith("act_layer='aaaa")
