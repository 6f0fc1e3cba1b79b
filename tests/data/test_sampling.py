from __future__ import annotations

import dataclasses
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import _set_sampler_epoch
from PIL import Image
from torch.utils.data import DataLoader

from spiritseg.config import Experiment, Input, Proximity, Scenes, Stage, Target
from spiritseg.data.augment import draw_view, finish
from spiritseg.data.domains import open_domains
from spiritseg.data.sampling import (
    PROXIMITY,
    TARGET,
    StageBatches,
    StageData,
    draws,
    epoch_length,
)
from spiritseg.errors import BadImageError, ConfigError, DataError
from spiritseg.geometry import max_pool
from spiritseg.randomness import derive_seed


@given(
    n_target=st.integers(1, 40),
    n_proximity=st.integers(0, 40),
    ratio=st.sampled_from([0, 0.2, 0.5, 1, 3, 5, 10]),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_each_domain_is_gone_through_before_it_repeats(
    n_target: int, n_proximity: int, ratio: float, seed: int
) -> None:
    epochs = [draws(n_target, n_proximity, ratio, seed, epoch) for epoch in range(4)]
    for domain, count in ((TARGET, n_target), (PROXIMITY, n_proximity)):
        indices = [index for epoch in epochs for d, index, _ in epoch if d == domain]
        for start in range(0, len(indices) - count + 1, count or 1):  # on across epochs
            assert sorted(indices[start : start + count]) == list(range(count))


@pytest.mark.parametrize("ratio", [10, 5, 3, 1, 0.5, 0.2])
def test_the_share_of_target_images_is_r_over_1_plus_r(ratio: float) -> None:
    share, total = ratio / (1 + ratio), 20_000
    drawn = draws(64, 112, ratio, 1, 0, length=total)
    targets = sum(domain == TARGET for domain, *_ in drawn)
    deviation = (total * share * (1 - share)) ** 0.5
    assert abs(targets - total * share) < 4 * deviation
    # Draws are independent: as many changes of domain as chance makes.
    changes = sum(a[0] != b[0] for a, b in pairwise(drawn))
    expected = 2 * share * (1 - share) * (total - 1)
    assert abs(changes - expected) < 6 * expected**0.5


def test_epoch_lengths() -> None:
    assert epoch_length(64, 0, 0.5) == 64
    assert epoch_length(0, 112, 0.5) == 112
    assert epoch_length(64, 112, 0) == 112
    assert epoch_length(64, 112, 0.5) == 192
    assert epoch_length(64, 112, 10) == 70
    assert len(draws(64, 112, 0.5, 0, 0)) == 192
    assert {d for d, *_ in draws(8, 8, 0, 0, 0)} == {PROXIMITY}
    assert {d for d, *_ in draws(8, 0, 0.5, 0, 0)} == {TARGET}
    assert {d for d, *_ in draws(0, 8, 0.5, 0, 0)} == {PROXIMITY}


def test_order_is_a_function_of_seed_and_epoch() -> None:
    state = torch.get_rng_state()
    first = draws(20, 30, 0.5, 0, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert draws(20, 30, 0.5, 0, 3) == first
    assert draws(20, 30, 0.5, 0, 4) != first
    assert draws(20, 30, 0.5, 1, 3) != first


@pytest.mark.parametrize(
    ("counts", "ratio", "message"),
    [((1, 1), -0.1, "from 0, got -0.1"), ((1, 1), float("nan"), "nan"), ((0, 0), 1, "no target")],
)
def test_impossible_mixtures(counts: tuple[int, int], ratio: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draws(*counts, ratio, 0, 0)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment(
        seed=3,
        target=Target(dataset="scenes", scenes=Scenes(train=6, val=1, test=1, size=(40, 48))),
        proximity=Proximity(dataset="scenes", scenes=Scenes(train=8, size=(40, 48))),
        input=Input(crop=32, jitter=0.2, scale=(0.8, 1.2)),
    )


def make(experiment: Experiment, stage: Stage, name: str = "mimicry") -> StageData:
    return StageData(open_domains(experiment).train(stage), stage, experiment, name)


MIXED = Stage(images="target+proximity", ratio=0.5)


def test_a_sample_is_the_augmented_image_after_the_pool(experiment: Experiment) -> None:
    data = make(experiment, MIXED)
    target, proximity = open_domains(experiment).train(MIXED)
    assert target is not None
    assert proximity is not None
    for domain, index, view in [(TARGET, 2, 0), (PROXIMITY, 5, 1)]:
        sample = data[domain, index, view]
        seed = derive_seed(3, "mimicry", "augment", view, domain, index)
        picture, truth = target[index] if domain == TARGET else (proximity[index], None)
        drawn = draw_view(picture, truth, experiment.input, seed)
        image, labels, valid = finish(drawn, experiment.input)
        assert torch.equal(sample["image"], max_pool(image[None], 2)[0])
        assert torch.equal(sample["labels"], labels)
        assert torch.equal(sample["valid"], valid)
        assert (sample["domain"], sample["index"], sample["view"]) == (domain, index, view)
        assert bool((labels == 255).all()) == (domain == PROXIMITY)
    assert not torch.equal(data[0, 2, 0]["image"], data[0, 2, 1]["image"])
    assert [len(whole) for whole in data.prepared()] == [6, 7]
    assert data.prepared()[1][0]["image"].shape == (3, 20, 24)
    other = make(experiment, MIXED, "another stage")
    assert not torch.equal(data[0, 2, 0]["image"], other[0, 2, 0]["image"])


@pytest.mark.parametrize("views", [0, 2])
def test_the_plain_view_is_the_same_crop_without_jitter(experiment: Experiment, views: int) -> None:
    stage = dataclasses.replace(MIXED, teacher_view="plain", num_views=views)
    still = dataclasses.replace(experiment, input=dataclasses.replace(experiment.input, jitter=0))
    jittered, unjittered = make(experiment, stage), make(still, MIXED)
    for key in [(TARGET, 2, 0), (PROXIMITY, 5, 1), (TARGET, 2, 0)]:  # the last one is kept
        sample = jittered[key]
        assert torch.equal(sample["plain"], unjittered[key]["image"])
        assert torch.equal(sample["labels"], unjittered[key]["labels"])
        assert not torch.equal(sample["plain"], sample["image"])
    alike = make(still, stage)[TARGET, 2, 0]
    assert torch.equal(alike["plain"], alike["image"])
    assert "plain" not in make(experiment, MIXED)[TARGET, 2, 0]


def test_fourier_gives_a_share_of_the_target_views_the_light_of_proximity_images(
    experiment: Experiment,
) -> None:
    still = dataclasses.replace(experiment, input=dataclasses.replace(experiment.input, jitter=0))
    domains = open_domains(still)
    stage = dataclasses.replace(MIXED, fda_prob=0.5, teacher_view="plain")
    data = StageData(domains.train(stage), stage, still, "mimicry", domains.styles(stage))
    own = make(still, MIXED)
    keys = [(TARGET, index, view) for index in range(6) for view in range(8)]
    changed = [key for key in keys if not torch.equal(data[key]["image"], own[key]["image"])]
    assert 12 <= len(changed) <= 36
    for key in changed:
        assert torch.equal(data[key]["plain"], own[key]["image"])
        assert torch.equal(data[key]["labels"], own[key]["labels"])
        assert torch.equal(data[key]["image"], data[key]["image"])
    proximity = (PROXIMITY, 3, 0)
    assert torch.equal(data[proximity]["image"], own[proximity]["image"])
    with pytest.raises(ConfigError, match="takes the light \\(fourier\\) of prox"):
        open_domains(still, target_only=True).styles(stage)


def test_a_stage_may_have_its_own_jitter_and_scale(experiment: Experiment) -> None:
    own = make(experiment, dataclasses.replace(MIXED, jitter=0.0, scale=(1.0, 1.0)))
    still = dataclasses.replace(experiment.input, jitter=0.0, scale=(1.0, 1.0))
    plain = make(dataclasses.replace(experiment, input=still), MIXED)
    usual = make(experiment, MIXED)
    for key in [(TARGET, 2, 0), (PROXIMITY, 5, 1)]:
        assert torch.equal(own[key]["image"], plain[key]["image"])
        assert not torch.equal(own[key]["image"], usual[key]["image"])


def test_views_come_round(experiment: Experiment) -> None:
    data = make(experiment, Stage(num_views=3))
    for epoch in range(7):
        keys = data.keys(epoch)
        assert sorted(index for _, index, _ in keys) == list(range(6))
        assert {view for _, _, view in keys} == {epoch % 3}
    free = make(experiment, Stage(num_views=0))
    assert {view for _, _, view in free.keys(41)} == {41}
    mixed = make(experiment, Stage(images="target+proximity", ratio=0.2))
    keys = [key for epoch in range(5) for key in mixed.keys(epoch)]
    assert len(keys) == len(set(keys)) == 5 * 36  # twice in an epoch: two views


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_workers_changes_nothing(experiment: Experiment, workers: int) -> None:
    data = make(experiment, MIXED)
    batches = StageBatches(data, batch_size=4)
    batches.set_epoch(2)
    want = [data[key] for batch in batches for key in batch]
    loader = DataLoader(data, batch_sampler=batches, num_workers=workers)
    got = list(loader)
    assert len(got) == len(loader) == len(batches) == 4
    images = torch.cat([batch["image"] for batch in got])
    assert torch.equal(images, torch.stack([sample["image"] for sample in want]))
    assert got[0]["labels"].dtype == torch.int64
    assert got[0]["index"].tolist() == [sample["index"] for sample in want[:4]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("images", ["target", "proximity"])
def test_an_error_in_a_worker_is_told_as_one_outside(
    camvid: Path, small: Input, images: Literal["target", "proximity"]
) -> None:
    experiment = Experiment(
        target=Target(root=str(camvid), subset="all"),
        proximity=Proximity(root=str(camvid / "train"), held_out=0),
        input=dataclasses.replace(small, cache_mib=0),
    )
    data = make(experiment, Stage(images=images))
    for path in (camvid / "trainannot").iterdir():  # since they were looked at
        Image.new("L", (3, 2)).save(path)
    if images == "proximity":
        for path in (camvid / "train").iterdir():
            path.write_bytes(path.read_bytes()[:500])
    kind, start, end = {
        "target": (DataError, f"the mask {camvid}/trainannot/seq_00", "Make both of one size."),
        "proximity": (
            BadImageError,
            f"cannot read the image {camvid}/train/seq_00",
            "leave such files out with --skip-bad.",
        ),
    }[images]
    loader = DataLoader(data, batch_sampler=StageBatches(data, batch_size=4), num_workers=1)
    with pytest.raises(kind) as caught:
        list(loader)
    said = str(caught.value)
    assert type(caught.value) is kind
    assert said.startswith(start)
    assert said.endswith(end)
    assert "\n" not in said
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (kind, said)


def test_batches_are_full_and_leave_no_image_out(experiment: Experiment) -> None:
    batches = StageBatches(make(experiment, Stage()), batch_size=4)
    assert len(batches) == 1  # 6 images: 4 an epoch
    loader = DataLoader(batches.data, batch_sampler=batches)
    seen = []
    for epoch in range(3):
        _set_sampler_epoch(loader, epoch)  # as Lightning does
        (batch,) = list(batches)
        seen += [index for _, index, _ in batch]
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_fewer_images_than_a_batch_make_one_smaller_batch(experiment: Experiment) -> None:
    data = make(experiment, Stage())
    (batch,) = list(StageBatches(data, batch_size=32))
    assert sorted(index for _, index, _ in batch) == list(range(6))
    shares = [next(iter(StageBatches(data, 32, rank, 4))) for rank in range(4)]
    assert [len(share) for share in shares] == [2, 2, 2, 2]
    assert {key for share in shares for key in share} == set(batch)


def test_processes_share_the_global_batch(experiment: Experiment) -> None:
    data = make(experiment, MIXED)
    whole = list(StageBatches(data, 6))
    halves = [list(StageBatches(data, 6, rank, 2)) for rank in (0, 1)]
    for batch, even, odd in zip(whole, *halves, strict=True):
        assert even == batch[0::2]
        assert odd == batch[1::2]
    with pytest.raises(ConfigError, match="Choose a multiple of 4"):
        StageBatches(data, 6, 0, 4)
    with pytest.raises(ConfigError, match="batch_size: expected 1 or more"):
        StageBatches(data, 0)
