"""A stage with the losses of structured knowledge distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from spiritseg.config import Optimizer, Stage
from spiritseg.errors import ConfigError, DivergedError
from spiritseg.losses import (
    LOSSES,
    CrossEntropy,
    Holistic,
    Mimicry,
    Pairwise,
    Pixelwise,
    cross_entropy,
    mimicry,
    pairwise,
    pixelwise,
)
from spiritseg.losses.loss import Context, Outputs
from spiritseg.models import Segmenter
from spiritseg.training.measure import explained_variance, layer_statistics
from spiritseg.training.stage import StageModule
from spiritseg.training.trainer import quiet
from training.fitting import fit


class Trunk(nn.Sequential):
    """A small extractor with two convolutions."""

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, channels, 3, stride=stride, padding=1),
        )
        self.channels, self.stride = channels, stride


class Classifier(nn.Module):
    """A small head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, 4, 1)
        self.classifier = nn.Conv2d(4, 3, 1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        logits = self.classifier(self.body(features).relu())
        return nn.functional.interpolate(logits, size=size, mode="bilinear")


def _network(channels: int, seed: int, stride: int = 2) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(Trunk(channels, stride), Classifier(channels))


def _batches(count: int = 4, size: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(count):
        labels = torch.randint(0, 3, (size, 16, 16), generator=generator)
        labels[1] = 255  # an unlabelled image
        found.append(
            {
                "image": torch.rand(size, 3, 16, 16, generator=generator),
                "labels": labels,
                "valid": torch.ones_like(labels, dtype=torch.bool),
                "domain": torch.tensor([0, 1, 0, 0]),
                "index": torch.arange(size) + size * number,
                "view": torch.zeros(size, dtype=torch.int64),
            }
        )
    return found


def _fit(module: StageModule, folder: Path, steps: int = 4, **further: Any) -> Trainer:
    given = {"precision": "32-true", "max_steps": steps, "default_root_dir": folder, **further}
    return fit(module, _batches(), **given)


ALL_THREE = {
    "cross_entropy": CrossEntropy(),
    "pixelwise": Pixelwise(weight=10),
    "pairwise": Pairwise(weight=10),
    "holistic": Holistic(weight=0.1, width=4),
}


def term(module: StageModule, loss: str) -> nn.Module:
    found = module.terms[loss]
    assert isinstance(found, nn.Module)
    return found


def _stage(losses: dict[str, Any], **further: Any) -> Stage:
    rate = Optimizer("sgd", lr=1e-2, schedule="constant")
    return Stage(teacher="t", losses=losses, optimizer=rate, **further)


def test_the_sum_is_that_of_the_losses_by_their_weights(tmp_path: Path) -> None:
    network, teacher = _network(5, 0), _network(6, 1, stride=4)
    losses: dict[str, Any] = {
        "cross_entropy": CrossEntropy(weight=0.5),
        "pixelwise": Pixelwise(weight=10, temperature=2),
        "pairwise": Pairwise(weight=3, layers={"head.body": "extractor.0"}),
    }
    module = StageModule("s", _stage(losses), network, teacher)
    batch = _batches(1)[0]
    student, taught = network.features(batch["image"]), teacher.features(batch["image"])
    logits = network.classify(student, (16, 16))
    wanted = (
        0.5 * cross_entropy(logits, batch["labels"])
        + 10 * pixelwise(logits, teacher.classify(taught, (16, 16)), temperature=2)
        + 3 * pairwise(network.head.body(student), teacher.extractor[0](batch["image"]))  # type: ignore[union-attr, operator, index]
    )
    outputs = module.outputs(batch)
    found = sum(losses[name].weight * term(outputs) for name, term in module.terms.items())
    assert torch.isclose(torch.as_tensor(found), wanted, rtol=1e-5)


def test_weights_of_classes_go_by_name_in_the_order_of_the_logits() -> None:
    network = _network(5, 0)
    weighted = CrossEntropy(class_weights={"road": 4, "car": 0.5}, boundary=2, boundary_width=1)
    stage = Stage(losses={"cross_entropy": weighted})
    module = StageModule("s", stage, network, classes=("sky", "car", "road"))
    batch = _batches(1)[0]
    outputs = module.outputs(batch)
    logits = outputs.student["logits"]
    wanted = cross_entropy(
        logits, batch["labels"], class_weights=(1, 0.5, 4), boundary=2, boundary_width=1
    )
    assert torch.equal(module.terms["cross_entropy"](outputs), wanted)
    assert not torch.isclose(wanted, cross_entropy(logits, batch["labels"]))
    with pytest.raises(ConfigError, match="unknown class 'car'"):
        StageModule("s", stage, network, classes=("sky", "road"))


def test_teacher_and_student_run_once_a_step() -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    counts = {"student": 0, "teacher": 0}
    for name, one in (("student", network), ("teacher", teacher)):

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        one.extractor.register_forward_hook(count)
    module = StageModule("s", _stage(ALL_THREE), network, teacher)
    counts.update(student=0, teacher=0)
    module.outputs(_batches(1)[0])
    assert counts == {"student": 1, "teacher": 1}


def test_no_gradient_reaches_the_teacher_and_nothing_of_it_is_saved(tmp_path: Path) -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    module = StageModule("s", _stage(ALL_THREE), network, teacher)
    _fit(module, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    kinds = {key.split(".")[0] for key in module.state_dict()}
    assert kinds == {"network", "learnt_terms"}


def test_kept_teacher_outputs_change_nothing(tmp_path: Path) -> None:
    weights = []
    for cache_mib in (0, 16):
        network, teacher = _network(5, 0), _network(5, 1)
        module = StageModule(
            "s", _stage(ALL_THREE, num_views=1, cache_mib=cache_mib), network, teacher
        )
        _fit(module, tmp_path, steps=8)
        assert module._kept_teacher.computed == (32 if cache_mib == 0 else 16)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*weights)


def test_an_adapter_bridges_channels_and_stays_behind(tmp_path: Path) -> None:
    network, teacher = _network(5, 0), _network(7, 1, stride=4)
    losses = {"mimicry": Mimicry(reduction="mean", layers={"features": "features"})}
    module = StageModule("s", _stage(losses, trains="extractor"), network, teacher)
    keys = set(network.state_dict())
    adapter = next(m for m in term(module, "mimicry").modules() if isinstance(m, nn.Conv2d))
    assert (adapter.in_channels, adapter.out_channels) == (5, 7)
    before = adapter.weight.detach().clone()
    batch = _batches(1)[0]
    value = module.terms["mimicry"](module.outputs(batch))
    adapted = adapter(network.features(batch["image"]))
    assert torch.isclose(value, mimicry(adapted, teacher.features(batch["image"]), "mean"))
    _fit(module, tmp_path)
    assert not torch.equal(adapter.weight, before)
    assert set(network.state_dict()) == keys


def test_several_depths_are_averaged() -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    pairs = {"features": "features", "extractor.0": "extractor.0"}
    module = StageModule(
        "s",
        _stage({"mimicry": Mimicry(layers=pairs)}, trains="extractor"),
        network,
        teacher,
    )
    images = _batches(1)[0]["image"]
    ours, theirs = network.outputs(images, pairs), teacher.outputs(images, pairs)
    wanted = torch.stack([mimicry(ours[k], theirs[k]) for k in pairs]).mean()
    value = module.terms["mimicry"](module.outputs(_batches(1)[0]))
    assert torch.isclose(value, wanted)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_critic_steps_beside_the_student(precision: str, tmp_path: Path) -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    module = StageModule("s", _stage(ALL_THREE), network, teacher)
    before = {k: v.clone() for k, v in term(module, "holistic").state_dict().items()}
    trainer = _fit(module, tmp_path, precision=precision)
    after = term(module, "holistic").state_dict()
    assert any(not torch.equal(after[k], v) for k, v in before.items())
    assert trainer.global_step == 4  # the critic's steps do not count
    assert all(
        not p.requires_grad and p.grad is None for p in term(module, "holistic").parameters()
    )
    assert {"loss/holistic", "loss/holistic/adversary"} <= trainer.callback_metrics.keys()
    assert torch.isfinite(torch.cat([p.flatten() for p in network.parameters()])).all()


def test_the_critic_steps_beside_a_student_whose_gradients_are_scaled(tmp_path: Path) -> None:
    """As 16-mixed does it on a GPU; on a CPU Lightning would take bf16-mixed instead."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # the first steps overflow
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    network, teacher = _network(5, 0), _network(5, 1)
    dtypes = set()
    module = StageModule("s", _stage(ALL_THREE), network, teacher)
    # From here on, since a stage looks at the shapes of features first.
    convolution = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    convolution.register_forward_hook(lambda *call: dtypes.add(call[2].dtype))
    start = [p.clone() for p in network.parameters()]
    scales, critics = [], []

    class Watch(Callback):
        def on_train_batch_end(self, *given: object) -> None:
            now = network.parameters()
            moved = any(not torch.equal(a, b) for a, b in zip(start, now, strict=True))
            scales.append((scaler.get_scale(), moved))
            critics.append(
                torch.cat([p.flatten() for p in term(module, "holistic").parameters()]).clone()
            )

    _fit(module, tmp_path, 40, precision=None, plugins=[plugin], callbacks=[Watch()], max_epochs=99)
    assert dtypes == {torch.float16}
    assert scales[0] == (2.0**39, False)  # the student's step was left out ...
    assert not torch.equal(critics[0], critics[1])  # ... and the critic's was not
    assert scales[-1][1]
    assert all(torch.isfinite(p).all() for p in [*network.parameters(), *critics])


def test_the_student_follows_the_critic_of_its_own_step(tmp_path: Path) -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    stage = _stage({"holistic": Holistic(weight=1.0, width=4)})
    module = StageModule("s", stage, network, teacher)
    _fit(module, tmp_path, steps=1)
    moved = _network(5, 0)
    different = [
        not torch.equal(a, b) for a, b in zip(network.parameters(), moved.parameters(), strict=True)
    ]
    assert any(different)


def test_a_resumed_critic_ends_where_one_that_was_not_interrupted_does(tmp_path: Path) -> None:
    def run(steps: list[int]) -> list[Tensor]:
        path: Path | None = None
        for count in steps:
            module = StageModule("s", _stage(ALL_THREE), _network(5, 0), _network(5, 1))
            trainer = fit(module, _batches(), path, max_epochs=count)
            path = tmp_path / f"{len(steps)}-{count}.ckpt"
            with quiet():
                trainer.save_checkpoint(path)
        return list(module.state_dict().values())

    for one, other in zip(run([3]), run([1, 3]), strict=True):
        assert torch.equal(one, other)


def test_a_diverging_critic_stops_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    losses = {"holistic": Holistic(width=4, divergence_limit=1e-6)}
    module = StageModule("s", _stage(losses), _network(5, 0), _network(5, 1))
    with pytest.raises(DivergedError, match=r"critic .* has diverged.*limit 1e-06.*optimizer\.lr"):
        _fit(module, tmp_path)


def test_a_network_without_a_head_has_none_to_train() -> None:
    stage = Stage(trains="head", losses={"cross_entropy": CrossEntropy()})
    with pytest.raises(ConfigError, match="no head that could be trained apart"):
        StageModule("s", stage, Segmenter(Trunk(4), None))


def test_explained_variance_goes_through_the_adapter() -> None:
    class Identity(nn.Module):
        channels, stride = 3, 1

        def forward(self, images: Tensor) -> Tensor:
            return images

    teacher, network = Segmenter(Trunk(5, stride=1), None), Segmenter(Identity(), None)
    losses = {"mimicry": Mimicry()}
    module = StageModule("s", _stage(losses, trains="extractor"), network, teacher)
    adapter = next(m for m in term(module, "mimicry").modules() if isinstance(m, nn.Conv2d))
    data: Any = [{"image": image} for image in _batches(1)[0]["image"]]
    low = explained_variance(module, data, torch.device("cpu"))
    # The best linear map of the images, by least squares, is what a trained adapter would be.
    inputs = torch.stack([d["image"] for d in data]).movedim(1, -1).reshape(-1, 3)
    with torch.no_grad():
        wanted = teacher.features(_batches(1)[0]["image"]).movedim(1, -1).reshape(-1, 5)
    with_bias = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution = torch.linalg.lstsq(with_bias, wanted).solution
    residual = (wanted - with_bias @ solution).square().sum()
    best = 1 - residual / (wanted - wanted.mean(0)).square().sum()
    with torch.no_grad():
        adapter.weight.copy_(solution[:3].T[..., None, None])
        assert adapter.bias is not None
        adapter.bias.copy_(solution[3])
    found = explained_variance(module, data, torch.device("cpu"))
    assert low < found
    assert found == pytest.approx(float(best), abs=1e-4)


def test_what_is_measured_of_a_mimic_can_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    losses = {"mimicry": Mimicry(normalise=True)}
    images = [{"image": torch.rand(3, 16, 16)} for _ in range(3)]
    device, plain = torch.device("cpu"), nn.Module.to

    def moved(module: nn.Module, *given: Any, **further: Any) -> nn.Module:
        """Convert as a move to another device does: into new tensors."""
        return plain(plain(module.double(), *given, **further), torch.float32)

    monkeypatch.setattr(nn.Module, "to", moved)
    data: Any = images
    statistics = layer_statistics(teacher, {"features"}, [data], device)
    module = StageModule(
        "s", _stage(losses, trains="extractor"), network, teacher, statistics=statistics
    )
    assert explained_variance(module, data, device) <= 1
    for one in (network, teacher):
        assert not any(parameter.is_inference() for parameter in one.parameters())


def test_the_critic_sees_no_difference_on_padding() -> None:
    def score(logits: Tensor, valid: Tensor) -> Tensor:
        return critic(Outputs(valid, valid, images, {"logits": logits}))

    context = Context((), lambda of, layers: {"logits": 3}, {}, seed=lambda *words: 0)
    critic = LOSSES["holistic"].make(Holistic(conditioned=False, width=4), context)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 32, 32, generator=generator)
    one, other = (torch.randn(1, 3, 32, 32, generator=generator) for _ in range(2))
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    valid[..., 16:] = False
    other[..., :16] = one[..., :16]
    with torch.no_grad():
        assert torch.equal(score(one, valid), score(other, valid))
        everywhere = torch.ones_like(valid)
        assert not torch.equal(score(one, everywhere), score(other, everywhere))


def test_a_teacher_that_is_not_finite_is_told_before_anything_is_learnt(tmp_path: Path) -> None:
    network, teacher = _network(5, 0), _network(5, 1)
    with torch.no_grad():
        next(teacher.parameters()).fill_(torch.inf)
    module = StageModule("s", _stage({"pixelwise": Pixelwise()}), network, teacher)
    with pytest.raises(DivergedError, match=r"the logits of the teacher .* are not finite"):
        _fit(module, tmp_path)
