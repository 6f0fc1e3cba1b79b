"""The whole examination: a sound recipe passes, a bad one is told all of its faults at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from spiritseg import scenes
from spiritseg.cli import main
from spiritseg.config import Stage
from spiritseg.data.cache import Budget
from spiritseg.diagnosis import Finding, Report, Section, costs, doctor
from spiritseg.diagnosis.costs import kept_share, misses, pairwise_memory, steps_of
from spiritseg.diagnosis.images import examine_images
from spiritseg.diagnosis.splits import split_points
from spiritseg.diagnosis.steps import StageCost, _weights_bytes, measure_stage
from spiritseg.diagnosis.weights import build_each
from spiritseg.losses import CrossEntropy, Pairwise
from spiritseg.losses.pairwise import pairwise
from spiritseg.models import Segmenter, separable, student_head
from spiritseg.recipes import load_experiment
from spiritseg.training.cache import FrozenOutputs
from spiritseg.training.optim import build_optimizer
from spiritseg.training.stage import StageModule

TINY = """
extends: esd
input: {crop: 32}
target: {subset: "first:4", val: "fraction:0.2"}
networks: {teacher: {extractor: {split: blocks.2}}}
stages:
  mimicry: {max_steps: 20, batch_size: 2, views: 2}
  head: {max_steps: 10, batch_size: 2, views: 2}
  all: {max_steps: 10, batch_size: 2}
evaluation: {latency: false, pictures: 1}
trainer: {progress: false, accelerator: cpu}
"""


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[20 + number :] = 1
        _save(tmp_path / f"road/images/{number}.png", pixels)
        _save(tmp_path / f"road/masks/{number}.png", mask)
        _save(tmp_path / f"near/{number}.png", pixels[::-1, :, ::-1][4:28])
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def _doctor(images: Path, **overrides: object) -> Report:
    roots = {"target.root": str(images / "road"), "proximity.root": str(images / "near")}
    fields = {**roots, **{k.replace("__", "."): v for k, v in overrides.items()}}
    return doctor(load_experiment(images / "tiny.yaml", fields, complete=False))


def _images(images: Path, **overrides: object) -> Report:
    """Only the section on images, which is quick."""
    roots = {"target.root": str(images / "road"), "proximity.root": str(images / "near")}
    fields = {**roots, **{k.replace("__", "."): v for k, v in overrides.items()}}
    experiment = load_experiment(images / "tiny.yaml", fields, complete=False)
    return Report([examine_images(experiment).section])


def _said(report: Report, level: str = "problem") -> str:
    return "\n".join(f.what for f in report.findings if f.level == level)


def test_a_sound_recipe_has_no_problem(images: Path) -> None:
    report = _doctor(images)
    assert not report.problems, report.problems
    titles = [section.title for section in report.sections]
    assert titles == [
        "Recipe", "Images and labels", "Weights", "Input normalisation",
        "Split points and cost", "Memory", "Time",
    ]  # fmt: skip
    said = _said(report, "ok")
    assert "33 of 33" not in said  # the layers behind the split are gone
    assert "10 of 10 proximity images are enlarged so that the crop fits, by up to 1.33" in said
    assert "the run takes about" in said
    tables = {title: table for s in report.sections for title, table in s.tables.items()}
    stages = next(t for title, t in tables.items() if title.startswith("estimated time"))
    assert [row[:2] for row in stages[1:4]] == [["mimicry", "20"], ["head", "10"], ["all", "10"]]
    pixels = next(t for title, t in tables.items() if title.startswith("pixels"))
    assert [row[0] for row in pixels[1:]] == ["background", "road", "(ignored)"]
    assert pixels[1][1].endswith("(4)")


def test_all_faults_are_told_at_once(images: Path) -> None:
    road = images / "road"
    _save(road / "masks/1.png", np.full((40, 48), 7, np.uint8))
    _save(road / "masks/2.png", np.zeros((10, 48), np.uint8))
    data = (road / "images/3.png").read_bytes()
    (road / "images/3.png").write_bytes(data[: len(data) // 2])
    report = _doctor(
        images,
        target__subset="all",
        proximity__root=str(images / "nowhere"),
        networks__teacher__extractor__split="blocks.9",
    )
    said = _said(report)
    for part in ("masks/1.png", "masks/2.png", "images/3.png", "nowhere"):
        assert part in said
    assert "blocks.9" in said
    assert len(report.problems) == 4  # masks, an image, a folder, a network


def test_figures_that_one_image_decides_are_a_warning(images: Path) -> None:
    said = _said(_images(images, target__val="fraction:0.2"), "warning")
    assert "val: 2 images; one image is 50 points of HP-Acc" in said
    assert "target.val" in said


def test_missing_root_and_missing_folder(images: Path) -> None:
    report = doctor(load_experiment(images / "tiny.yaml", {}, complete=False))
    said = _said(report)
    assert "target.root" in said
    assert "proximity.root" in said
    assert "there is no folder" in _said(_images(images, target__root=str(images / "gone")))


def test_skip_bad_makes_an_unreadable_image_a_warning(images: Path) -> None:
    (images / "road/images/3.png").write_bytes(b"\x89PNG")
    report = _images(images, target__subset="all", input__skip_bad=True)
    assert not report.problems
    assert "images/3.png" in _said(report, "warning")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_skip_bad_that_leaves_no_image_of_a_split_is_a_problem(images: Path, split: str) -> None:
    fields = {"target.root": str(images / "road"), "input.skip_bad": True}
    for own in ("val", "test"):
        for kind, values in (("images", np.full((40, 48, 3), 90)), ("masks", np.eye(40, 48))):
            _save(images / f"{own}/{kind}/a.png", values.astype(np.uint8))
        fields[f"target.{own}"] = f"folder:{images / own}"
    folder = images / ("road" if split == "train" else split)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"\x89PNG")
    experiment = load_experiment(
        images / "tiny.yaml", {**fields, "target.subset": "all"}, complete=False
    )
    found = examine_images(experiment)
    assert f"{split}: no image is left" in _said(Report([found.section]))
    memory, clock = costs.examine_costs(experiment, {}, found)
    assert found.domains is None
    assert "not measured before the problems" in str(memory) + str(clock)


def test_a_crop_that_does_not_fit_says_which_would(images: Path) -> None:
    report = _images(images, input__crop=64)
    found = next(f for f in report.problems if "does not fit" in f.what)
    assert "--input.crop 40" in found.do


def test_the_scales_of_stages_are_looked_at(images: Path) -> None:
    padded = "asks for windows of up to 64 pixels, the smallest side is 40"
    assert padded not in _said(_images(images), "warning")
    of_all = _images(images, input__scale=[0.5, 1.0])
    assert f"input.scale 0.5 {padded}" in _said(of_all, "warning")
    of_one = _images(images, stages__head__scale=[0.5, 2.0], stages__all__scale=[0.75, 2.0])
    assert f"stages.head.scale 0.5 {padded}" in _said(of_one, "warning")
    own = {f"stages__{name}__scale": [1.0, 1.0] for name in ("mimicry", "head", "all")}
    assert "padding" not in _said(_images(images, input__scale=[0.5, 1.0], **own), "warning")
    unlabelled = {"stages__mimicry__images": "proximity", "stages__mimicry__scale": [0.5, 1.0]}
    assert "padding" not in _said(_images(images, **unlabelled), "warning")


def test_labels_that_say_too_little(images: Path) -> None:
    for number in range(3):
        _save(images / f"road/masks/{number}.png", np.zeros((40, 48), np.uint8))
    names = ["background", "road", "sky"]
    (images / "road/classes.yaml").write_text(f"names: {names}\n")
    mask = np.zeros((40, 48), np.uint8)
    mask[:10], mask[30:] = 2, 1
    _save(images / "road/val/images/a.png", np.full((40, 48, 3), 90, np.uint8))
    _save(images / "road/val/masks/a.png", mask)
    report = _images(images, target__classes="all", target__val="auto", target__subset="all")
    said = _said(report, "warning")
    assert "no training image shows sky, val do" in said
    assert "train images show no road" in said


def test_a_fresh_teacher_is_a_warning(images: Path) -> None:
    report = _doctor(images, networks__teacher__extractor__weights="random")
    assert "features of an untrained network" in _said(report, "warning")


def test_command_exits_with_2_for_a_problem(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", str(images / "tiny.yaml"), "--target.root", str(images / "road")]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--proximity.root", str(images / "nowhere"), "--input.crop", "64"])
    shown = capsys.readouterr()
    assert caught.value.code == 2
    assert "nowhere" in shown.out
    assert "does not fit" in shown.out
    assert "2 problems" in shown.err
    assert "Traceback" not in shown.err


def test_findings_are_wrapped_behind_their_level() -> None:
    section = Section("Title", [Finding("warning", "a\n  b", "c")])
    assert str(section) == "Title\n  warning  a\n             b\n           -> c"


def test_pairwise_memory_by_hand() -> None:
    # N = 64 x 64 > 512 channels: linear; the products are C x C, C x C' and C' x C'
    assert pairwise_memory(Pairwise(), (2, 16, 64, 64), (2, 32, 64, 64)) == (
        4096, "linear", 4 * 2 * (16 * 16 + 16 * 32 + 32 * 32),
    )  # fmt: skip
    # nodes of 8 x 8 positions: N = 64 against 512 channels: direct
    found = pairwise_memory(Pairwise(node_size=8), (2, 512, 64, 64), (2, 512, 64, 64))
    assert found == (64, "direct", 4 * 2 * 64 * 64)


def test_pairwise_memory_of_the_direct_form_is_what_autograd_keeps() -> None:
    student = torch.randn(2, 64, 24, 24, requires_grad=True)
    teacher = torch.randn(2, 64, 24, 24)
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept: list[object] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept.append(pairwise(student, teacher, form="direct"))
    nodes, form, nbytes = pairwise_memory(Pairwise(form="direct"), (2, 64, 24, 24), (2, 64, 24, 24))
    assert (nodes, form) == (576, "direct")
    assert sum(v for v in sizes.values() if v >= 576 * 576 * 4) == nbytes


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        (Stage(max_steps=100), 100),
        (Stage(max_steps=0, max_epochs=3, batch_size=8), 24),
        (Stage(max_steps=10, max_epochs=3, batch_size=8), 10),
    ],
)
def test_steps_of_a_stage(stage: Stage, steps: int) -> None:
    assert steps_of(stage, 64) == steps


@pytest.mark.parametrize("cache_images", [0, 10, 32, 1000])
def test_misses_are_those_of_the_cache(cache_images: int) -> None:
    """Twelve images in four views, shown 25 times over: against the real cache."""
    kept = 2 * 256
    stage = Stage(max_steps=300, batch_size=4, views=4, cache_mib=1)
    cost = StageCost((12, 0), 12, {}, {}, 0, 0, kept * 2048 // max(1, cache_images), 0, 0, 0, 0)
    if cache_images == 0:
        stage, cost = Stage(max_steps=300, batch_size=4, views=0), cost
    size = cost.kept
    budget = Budget(1 if stage.views else 0)
    cache = FrozenOutputs(lambda x: {"f": x.expand(len(x), size // 2)}, budget)
    for epoch in range(100):
        for index in range(12):
            cache(torch.zeros(1, 1), [(0, index, epoch % 4)])
    assert misses(stage, cost) == pytest.approx(cache.computed, rel=0.03)
    if cache_images >= 48:
        assert kept_share(stage, cost) == 1


def test_the_average_of_the_weights_is_counted() -> None:
    network = Segmenter(separable(8, 8), student_head(8, 2, 8, "dense"))
    found = []
    for average in (0.0, 0.9):
        stage = Stage("student", losses={"cross_entropy": CrossEntropy()}, average=average)
        module = StageModule("all", stage, network)
        optimizer = build_optimizer(stage.optimizer, module.trained_parameters())
        found.append(_weights_bytes(module, optimizer))
    assert found[1] - found[0] == sum(p.nbytes for p in network.parameters())


class Whole(nn.Module):
    """A network of one's own, whose logits come without a head apart from it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(4, num_classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.classifier(self.backbone(images))
        return found


def test_the_time_of_measuring_a_whole_network_is_counted(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"extractor": {"name": f"{__name__}.Whole", "split": "backbone"}, "head": {"name": "own"}}
    stage = {"losses": {"cross_entropy": {}}, "max_steps": 2, "batch_size": 2}
    recipe = {"networks": {"student": own}, "stages": {"supervised": stage}, "input": {"crop": 32}}
    (images / "own.yaml").write_text(yaml.safe_dump({**recipe, "trainer": {"accelerator": "cpu"}}))
    target = {"root": str(images / "road"), "subset": "all", "val": "fraction:0.2"}
    experiment = load_experiment(images / "own.yaml", {"target": target})
    monkeypatch.setattr(costs, "_evaluation_s", lambda *given: 1000.0)  # an image
    networks, _ = build_each(experiment, 2)
    clock = list(costs.examine_costs(experiment, networks, examine_images(experiment)))[1]
    rows = {row[0]: row for table in clock.tables.values() for row in table}
    assert rows["supervised"][-1] == "33 min"  # 2 validation images
    assert rows["(measuring the result)"][1:3] == ["3", "1000000"]  # and a test image


SLOW_S = 0.2


def test_decoding_is_counted_once_an_image_not_each_step(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"train": 4, "val": 1, "test": 1, "size": [40, 48]}
    fields = {"subset": "all", "dataset": "scenes", "val": "auto", "scenes": few}
    near = {"dataset": "scenes", "scenes": {"size": [40, 48], "train": 30}}
    stages = {"stages.mimicry.images": "proximity", "stages.mimicry.views": 2}
    overrides = {"target": fields, "proximity": near, **stages}
    experiment = load_experiment(images / "tiny.yaml", overrides)
    found = examine_images(experiment)
    networks, _ = build_each(experiment, 2)

    render = scenes.render

    def slow(*given: Any) -> Any:
        time.sleep(SLOW_S)
        return render(*given)

    monkeypatch.setattr(scenes, "render", slow)
    assert found.domains is not None
    for name in ("mimicry", "all"):
        cost = measure_stage(name, experiment, networks, found.domains, torch.device("cpu"))
        assert cost.load_s <= cost.draw_s < 2 * SLOW_S  # a batch of 2
    domains = found.domains
    count, each = costs._decoding(experiment, domains)
    assert count == 6 + len(domains.proximity[0]) + len(domains.proximity[1])
    assert each == pytest.approx(SLOW_S, rel=0.5)
    monkeypatch.setattr(costs, "measure_stage", lambda *given: cost)
    clock = list(costs.examine_costs(experiment, networks, found))[1]
    rows = {row[0]: row for table in clock.tables.values() for row in table}
    assert rows["(decoding the images)"][1] == str(count)


def test_views_that_are_kept_are_drawn_once() -> None:
    experiment = load_experiment("esd", complete=False)
    stage = Stage(max_steps=300, batch_size=4, views=4)
    cost = StageCost((12, 0), 12, {}, {}, 0, 0, 0, 1.0, 3.0, 0, 0)
    assert costs._drawing(experiment, stage, cost) == 12 * 4 / 4 * 2.0
    assert costs._drawing(experiment, Stage(max_steps=300, batch_size=4), cost) == 0


def test_strides_of_blocks_are_those_of_the_network_at_any_size() -> None:
    found = split_points("efficientnet_lite0", (180, 240))
    assert [one.stride for one in found] == [2, 4, 8, 16, 16, 32, 32]
    assert found[3].size == (12, 15)
