"""A stage trains what it says, freezes the rest, and computes only what its losses need."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from spiritseg.config import Optimizer, Stage
from spiritseg.errors import DivergedError
from spiritseg.losses import CrossEntropy, Mimicry, Pixelwise
from spiritseg.models import Segmenter
from spiritseg.training.optim import build_optimizer, build_schedule
from spiritseg.training.stage import StageModule, _averaged
from training.fitting import fit


class Trunk(nn.Sequential):
    """A small extractor with batch norm and dropout."""

    channels, stride = 4, 2

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2)
        )


class Classifier(nn.Module):
    """A small head with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(self.layers(features), size=size)


class Forbidden(nn.Module):
    """Fails when it runs."""

    channels, stride = 4, 2

    def forward(self, *inputs: Any) -> Tensor:
        raise AssertionError("this part must not run")


def _batches(count: int = 4, size: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        labels = torch.randint(0, 2, (size, 8, 8), generator=generator)
        found.append(
            {
                "image": torch.rand(size, 3, 8, 8, generator=generator),
                "labels": labels,
                "valid": torch.ones_like(labels, dtype=torch.bool),
                "domain": torch.zeros(size, dtype=torch.int64),
                "index": torch.arange(size) + size * number,
                "view": torch.zeros(size, dtype=torch.int64),
            }
        )
    return found


def _fit(module: StageModule, folder: Path, steps: int = 8) -> Trainer:
    return fit(module, _batches(), max_steps=steps, default_root_dir=folder)


def _digest(module: nn.Module) -> str:
    state = module.state_dict()
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in state.values())).hexdigest()


SUPERVISED = Stage(losses={"cross_entropy": CrossEntropy()})
MIMICRY = Stage(trains="extractor", teacher="teacher", losses={"mimicry": Mimicry()})
HEAD = Stage(trains="head", losses={"cross_entropy": CrossEntropy()}, num_views=1)


@pytest.mark.parametrize(
    ("stage", "frozen", "trained"),
    [
        (HEAD, lambda n: n.extractor, lambda n: n.head),
        (MIMICRY, lambda n: n.head, lambda n: n.extractor),
    ],
    ids=["head", "extractor"],
)
def test_frozen_means_weights_statistics_and_buffers(
    stage: Stage,
    frozen: Callable[[Segmenter], nn.Module],
    trained: Callable[[Segmenter], nn.Module],
    tmp_path: Path,
) -> None:
    network, teacher = Segmenter(Trunk(), Classifier()), Segmenter(Trunk(), None)
    before = _digest(frozen(network)), _digest(trained(network)), _digest(teacher)
    _fit(StageModule("s", stage, network, teacher), tmp_path)
    assert _digest(frozen(network)) == before[0]
    assert _digest(trained(network)) != before[1]
    assert _digest(teacher) == before[2]


def test_a_stage_trains_in_train_mode_whatever_ran_before(tmp_path: Path) -> None:
    network = Segmenter(Trunk(), Classifier()).eval()  # an evaluation leaves it so
    before = network.extractor.state_dict()["1.running_mean"].clone()
    _fit(StageModule("s", SUPERVISED, network), tmp_path)
    assert not torch.equal(network.extractor.state_dict()["1.running_mean"], before)


def test_frozen_parts_stay_in_eval_mode_after_every_train() -> None:
    module = StageModule("s", HEAD, Segmenter(Trunk(), Classifier()))
    for mode in (True, False, True):
        module.train(mode)
        assert not any(part.training for part in module.network.extractor.modules())
    assert module.network.head is not None
    assert module.network.head.training


def test_mimicry_never_runs_a_head(tmp_path: Path) -> None:
    network, teacher = Segmenter(Trunk(), Forbidden()), Segmenter(Trunk(), Forbidden())
    _fit(StageModule("s", MIMICRY, network, teacher), tmp_path)


def test_a_supervised_stage_never_runs_a_teacher(tmp_path: Path) -> None:
    network, teacher = Segmenter(Trunk(), Classifier()), Segmenter(Forbidden(), Forbidden())
    _fit(StageModule("s", SUPERVISED, network, teacher), tmp_path)


def test_the_teacher_is_not_part_of_what_is_saved() -> None:
    network, teacher = Segmenter(Trunk(), Classifier()), Segmenter(Trunk(), None)
    module = StageModule("s", MIMICRY, network, teacher)
    assert module.state_dict().keys() == {f"network.{key}" for key in network.state_dict()}


def test_a_cached_stage_ends_with_the_same_weights(tmp_path: Path) -> None:
    digests = set()
    for cache_mib in (0, 16):
        torch.manual_seed(3)
        network = Segmenter(Trunk(), Classifier())
        stage = Stage(trains="head", losses=HEAD.losses, num_views=1, cache_mib=cache_mib)
        module = StageModule("s", stage, network)
        _fit(module, tmp_path, steps=8)
        digests.add(_digest(network))
        assert module._kept_features.computed == (32 if cache_mib == 0 else 16)
    assert len(digests) == 1


def test_dropout_is_a_function_of_seed_stage_and_step(tmp_path: Path) -> None:
    def weights(seed: int, name: str, noise: int) -> str:
        torch.manual_seed(3)
        network = Segmenter(Trunk(), Classifier())
        torch.manual_seed(noise)  # global state has no say
        _fit(StageModule(name, SUPERVISED, network, seed=seed), tmp_path)
        return _digest(network)

    assert weights(0, "s", 1) == weights(0, "s", 2)
    assert weights(1, "s", 1) != weights(0, "s", 1) != weights(0, "t", 1)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    network = Segmenter(Trunk(), Classifier())
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match=r"stage 's': the loss is not finite at step 0"):
        _fit(StageModule("s", SUPERVISED, network), tmp_path)


def test_the_average_of_the_weights_becomes_the_result(tmp_path: Path) -> None:
    steps: list[dict[str, Tensor]] = []

    def learnt(module: StageModule) -> dict[str, Tensor]:
        state = module.network.state_dict(prefix="network.")
        state.update(module.learnt_terms.state_dict(prefix="terms."))
        return {k: v.clone() for k, v in state.items() if v.is_floating_point()}

    class Noted(StageModule):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            steps.append(learnt(self))

    network = Segmenter(Trunk(), Classifier())
    teacher = Segmenter(nn.Conv2d(3, 6, 3, stride=2, padding=1), None)  # 6 channels, not 4
    losses = {"cross_entropy": CrossEntropy(), "mimicry": Mimicry()}
    module = Noted("s", Stage(teacher="t", losses=losses, ema_decay=0.5), network, teacher)
    _fit(module, tmp_path, steps=11)
    module.settle()
    expected = steps[0]
    for n, state in enumerate(steps[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))  # 0.5 from the eighth on
        expected = {k: decay * v + (1 - decay) * state[k] for k, v in expected.items()}
    found = learnt(module)
    assert any("running_mean" in key for key in expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    for key in ("network.extractor.0.weight", "terms.0.adapters.0.weight"):
        assert not torch.allclose(found[key], steps[-1][key])


def test_the_average_of_a_short_stage_forgets_its_first_steps() -> None:
    network = nn.BatchNorm2d(1)
    average = _averaged(network, 0.999)
    for step in range(300):
        with torch.no_grad():
            network.weight.fill_(float(step < 30))
        average.update_parameters(network)
    assert float(average.module.get_parameter("weight")) < 1e-6


def test_counters_are_not_averaged() -> None:
    network = nn.BatchNorm2d(1)
    counter = network.get_buffer("num_batches_tracked").fill_(29)  # 29 d + 29 (1 - d) < 29
    average = _averaged(network, 0.9)
    for _ in range(20):
        average.update_parameters(network)
    assert int(average.module.get_buffer("num_batches_tracked")) == int(counter) == 29


def test_a_layer_of_a_network_that_an_earlier_stage_compiled_is_noted() -> None:
    network, images = Segmenter(Trunk(), None).eval(), torch.rand(2, 3, 8, 8)
    network.extractor.compile(backend="eager")
    wanted = network.features(images)  # compiled code, which knows of no hooks
    found = network.outputs(images, ("extractor.1", "features"))
    torch.testing.assert_close(found["extractor.1"], wanted)
    torch.autograd.backward(found["extractor.1"].square().mean())
    assert all(p.grad is not None for p in network.extractor.parameters())


def test_the_teacher_sees_the_plain_view() -> None:
    teacher, network = Segmenter(Trunk(), Classifier()).eval(), Segmenter(Trunk(), Classifier())
    losses = {"pixelwise": Pixelwise()}
    stage = Stage(teacher="t", teacher_view="plain", losses=losses)
    module = StageModule("s", stage, network, teacher)
    batch = _batches(1)[0]
    plain = {**batch, "plain": torch.rand_like(batch["image"])}
    found = module.outputs(plain).teacher["logits"]
    assert torch.equal(found, module.outputs({**batch, "image": plain["plain"]}).teacher["logits"])
    assert torch.equal(module.outputs(plain).images, batch["image"])


def test_mimicry_descends_to_the_teacher(tmp_path: Path) -> None:
    teacher = Segmenter(nn.Conv2d(3, 4, 3, stride=2, padding=1), None)
    network = Segmenter(nn.Conv2d(3, 4, 3, stride=2, padding=1), None)
    rate = Optimizer(name="adam", lr=5e-2, schedule="constant")
    stage = Stage(trains="extractor", teacher="t", losses={"mimicry": Mimicry()}, optimizer=rate)
    trainer = _fit(StageModule("s", stage, network, teacher), tmp_path, steps=300)
    assert float(trainer.callback_metrics["loss_epoch"]) < 1e-2


def test_schedules_end_where_they_should() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    ends = {}
    for name in ("constant", "one_cycle", "poly"):
        config = Optimizer(name="sgd", lr=0.1, schedule=name)
        optimizer = build_optimizer(config, [parameter])
        schedule = build_schedule(config, optimizer, steps=10)
        rates = []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if schedule is not None:
                schedule.step()
        ends[name] = rates
    assert set(ends["constant"]) == {0.1}
    assert ends["poly"][5] == pytest.approx(0.1 * 0.5**0.9)
    assert 0.09 < max(ends["one_cycle"]) <= 0.1
    assert ends["one_cycle"][0] == pytest.approx(0.004)
    assert ends["one_cycle"][-1] < 0.005


def _one_cycle(steps: int, warmup: float) -> tuple[list[float], list[float]]:
    """Return the rates of our schedule, and those of torch's where it has any."""
    rates: tuple[list[float], list[float]] = ([], [])
    config = Optimizer(name="sgd", lr=0.1, warmup=warmup)
    for found, own in zip(rates, (True, False), strict=True):
        optimizer = build_optimizer(config, [nn.Parameter(torch.zeros(1))])
        further = {"total_steps": steps + 1, "pct_start": warmup, "cycle_momentum": False}
        try:
            schedule = (
                build_schedule(config, optimizer, steps)
                if own
                else torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, **further)  # type: ignore[arg-type]
            )
        except ZeroDivisionError:
            continue
        assert schedule is not None
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return rates


@pytest.mark.parametrize(
    ("steps", "warmup"), [(9, 0.1), (19, 0.05), (3, 0.25), (99, 0.01), (1, 0.5), (49, 0.02)]
)
def test_a_warm_up_of_no_step_starts_low(steps: int, warmup: float) -> None:
    ours, torchs = _one_cycle(steps, warmup)
    assert not torchs  # it divides by zero
    assert ours[0] == pytest.approx(0.1 / 25)
    longer = _one_cycle(steps, warmup + 1e-6)[1]
    assert ours == pytest.approx(longer, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 99, 100, 300])
@pytest.mark.parametrize("warmup", [0.3, 0.1000001, 0.0099, 0.9])
def test_other_warm_ups_are_torchs(steps: int, warmup: float) -> None:
    ours, torchs = _one_cycle(steps, warmup)
    assert ours == torchs
    assert len(ours) == steps
