"""Kept views: the numbers stay, the memory is bounded and goes back."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spiritseg.config import Experiment, Input, Proximity, Stage, Target
from spiritseg.data.augment import View, draw_view, finish
from spiritseg.data.cache import Budget, Cache
from spiritseg.data.domains import open_domains
from spiritseg.data.sampling import StageData
from spiritseg.geometry import max_pool

STAGE = Stage(images="target+proximity", ratio=1, num_views=2)


@pytest.fixture
def experiment(camvid: Path) -> Experiment:
    return Experiment(
        target=Target(root=str(camvid), subset="first:4"),
        proximity=Proximity(root=str(camvid / "train"), subset="first:4", held_out=0),
        input=Input(crop=40, scale=(0.5, 1.5), jitter=0.3, pool=2, cache_mib=1),
    )


def data_of(experiment: Experiment, stage: Stage = STAGE) -> StageData:
    return StageData(open_domains(experiment).train(stage), stage, experiment, "stage")


def samples(data: StageData) -> list[Tensor]:
    found = [data[key] for epoch in range(4) for key in data.keys(epoch)]
    return [one[name] for one in found for name in ("image", "labels", "valid")]


def test_what_is_kept_changes_no_number(experiment: Experiment) -> None:
    data, small = data_of(experiment), data_of(experiment)
    none = data_of(replace(experiment, input=replace(experiment.input, cache_mib=0)))
    small.cache = Cache(Budget(0.015))
    drawn = samples(none)
    for one in (data, small):
        for a, b in zip(samples(one), drawn, strict=True):
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
    assert 8 < len(data.cache) <= 16  # four images of two domains, two views of each
    assert 0 < len(small.cache) < 8
    assert len(none.cache) == 0


def test_views_that_never_come_again_are_not_kept(experiment: Experiment) -> None:
    data = data_of(experiment, replace(STAGE, num_views=0))
    samples(data)
    assert len(data.cache) == 0


def test_a_sample_does_not_share_the_memory_of_what_is_kept(experiment: Experiment) -> None:
    data = data_of(experiment)
    key = data.keys(0)[0]
    before = {name: value.clone() for name, value in data[key].items() if name in "image labels"}
    data[key]["image"].zero_()
    data[key]["labels"].zero_()
    for name, value in before.items():
        assert torch.equal(data[key][name], value)


def test_pooling_eight_bits_is_pooling_floats() -> None:
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    config = Input(crop=39, pool=2, jitter=0.4)
    view = draw_view(image, image[0] % 3, config, seed=5)
    pooled, labels, valid = finish(view._replace(image=max_pool(view.image, 2)), config)
    plain = finish(view, config)
    assert torch.equal(pooled, max_pool(plain[0], 2))
    assert torch.equal(labels, plain[1])
    assert torch.equal(valid, plain[2])


def _cut(view: View) -> View:
    return View(view.image.clone(), None, None)


def test_memory_is_bounded_and_goes_back() -> None:
    budget = Budget(1)
    views = Cache(budget, _cut)
    whole = torch.zeros(3, 400, 400, dtype=torch.uint8)  # a crop must not keep its image
    for index in range(30):
        views((0, index, 0), lambda: View(whole[:, :200, :200], None, None))
    assert len(views) == 2**20 // 120_000
    assert budget.left == 2**20 - views.nbytes == 2**20 - len(views) * 120_000
    kept = views((0, 0, 0), lambda: View(whole, None, None))
    assert kept.image.untyped_storage().nbytes() == 120_000
    assert views.get((0, 0, 0)) is kept
    assert views.get((0, 29, 0)) is None  # what came first stays
    assert len(pickle.loads(pickle.dumps(views))) == 0
    del views
    assert budget.left == 2**20


def test_a_mapping_of_tensors_counts_with_all_its_parts() -> None:
    cache: Cache[dict[str, Tensor]] = Cache(Budget(1))
    cache.keep("a", {"x": torch.zeros(8), "y": torch.zeros(4, dtype=torch.float16)})
    assert cache.nbytes == 8 * 4 + 4 * 2
    cache.keep("a", {"x": torch.zeros(800)})  # not new: neither kept nor counted
    assert cache.nbytes == 40


def test_a_budget_starts_anew_in_another_process() -> None:
    budget = Budget(1)
    assert budget.take(2**20 - 1)
    assert not budget.take(2)
    assert budget.take(1)
    assert budget.left == 0
    assert pickle.loads(pickle.dumps(budget)).left == 2**20
