"""Measuring a saved student: code runs only when asked for, and only one split is opened."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spiritseg.cli import main
from spiritseg.config import Experiment, Extractor, Head, Network
from spiritseg.errors import BundleError, ConfigError, DataError
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.networks import build_networks
from spiritseg.recipes import load_experiment, to_yaml
from spiritseg.training.evaluate import evaluate
from spiritseg.training.run import distill

FIELDS: dict[str, Any] = {
    "target.dataset": "scenes",
    "target.scenes": {"train": 2, "val": 1, "test": 2, "size": [64, 72]},
    "input.crop": 64,
    "evaluation.latency": False,
    "evaluation.pictures": 0,
    "trainer.progress": False,
    "trainer.accelerator": "cpu",
}
OWN = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()


class Tiny(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3, stride=8, padding=1)
"""


def _save(
    folder: Path, extractor: Extractor, experiment: Experiment, classes: tuple[str, ...] = ()
) -> Path:
    """Save an untrained student, as a run of the experiment keeps it."""
    networks = {"student": Network(extractor, Head(channels=8))}
    info = BundleInfo(
        networks,
        "student",
        classes or ("background", "road"),
        ((70, 70, 70), (128, 64, 128)),
        pool=2,
        training={"experiment": dataclasses.asdict(experiment)},
    )
    save_bundle(folder / "student", build_networks(networks, 2, seed=1)["student"], info)
    return folder


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder from somebody else, whose bundle names a class that can be imported here."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/test_evaluate_foreign.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "code")
    experiment = load_experiment("baseline", FIELDS)
    run = _save(tmp_path / "run", Extractor("test_evaluate_foreign.Tiny"), experiment)
    (run / "config.yaml").write_text(to_yaml(experiment))
    (tmp_path / "code/ran").unlink()
    del sys.modules["test_evaluate_foreign"]
    return run


def test_a_config_beside_a_bundle_is_no_trust(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (foreign, foreign / "student"):
        with pytest.raises(BundleError, match=r"test_evaluate_foreign.Tiny.*trust=True \(--trust"):
            evaluate(run)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(foreign)])
    assert caught.value.code == 2
    assert "--trust" in capsys.readouterr().err
    assert not (foreign.parent / "code/ran").exists()
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(foreign), "--trust"])
    assert caught.value.code == 0
    assert (foreign.parent / "code/ran").exists()


@pytest.fixture
def road(tmp_path: Path) -> Path:
    """Ten labelled images of 40 x 48."""
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[20 + number :] = 1
        for kind, values in (("images", pixels), ("masks", mask)):
            (tmp_path / "road" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "road" / kind / f"{number}.png")
    return tmp_path / "road"


def test_only_the_split_that_is_asked_for_is_opened(road: Path, tmp_path: Path) -> None:
    trained = {"target.subset": "first:64", "input.crop": 256}  # more and larger than there are
    run = _save(
        tmp_path / "run",
        Extractor("efficientnet_lite0", cut_at="blocks.1"),
        load_experiment("baseline", {**FIELDS, **trained, "target.dataset": "auto",
                                     "target.root": str(road)}),
    )  # fmt: skip
    found = evaluate(run, {"target.test": "fraction:0.4"})
    assert found["images"] == 4
    assert found["skipped"] == []
    held_out = sorted((road / "images").iterdir())[0]
    listed = tmp_path / "list.txt"
    listed.write_text(held_out.name)
    (road / "images/9.png").write_bytes(b"")  # a bad image of another split
    assert evaluate(run, {"target.val": f"list:{listed}"}, "val")["images"] == 1
    with pytest.raises(ConfigError, match="unknown split 'tset'"):
        evaluate(run, split="tset")  # type: ignore[arg-type]


def test_other_classes_are_refused(road: Path, tmp_path: Path) -> None:
    experiment = load_experiment("baseline", {**FIELDS, "target.root": str(road)})
    extractor = Extractor("efficientnet_lite0", cut_at="blocks.1")
    run = _save(tmp_path / "run", extractor, experiment, ("road", "background"))
    with pytest.raises(DataError, match="knows the classes road, background"):
        evaluate(run)


@pytest.mark.parametrize(
    ("classes", "pool", "said"),
    [
        (("road", "background"), 2, "knows 2 classes .road, background.*in the same order"),
        (("background", "road"), 1, "behind a max-pool of 2, input.pool is 1"),
    ],
)
def test_a_run_refuses_a_teacher_of_other_classes_or_another_pool(
    tmp_path: Path, classes: tuple[str, ...], pool: int, said: str
) -> None:
    extractor = Extractor("efficientnet_lite0", cut_at="blocks.1")
    bundle = _save(tmp_path / "teacher", extractor, Experiment(), classes) / "student"
    fields = {**FIELDS, "networks.teacher.bundle": str(bundle), "input.pool": pool}
    fields["target.classes"] = "road"
    with pytest.raises(ConfigError, match=said):
        distill(load_experiment("skd", fields), tmp_path / "run")
