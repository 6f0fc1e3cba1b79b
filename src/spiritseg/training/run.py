"""Runs a recipe: opens the images, builds the networks, trains stage by stage, measures."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spiritseg.config import Experiment, Network, Stage
from spiritseg.data.domains import Domains, open_domains
from spiritseg.data.sampling import StageData
from spiritseg.errors import BundleError, ConfigError
from spiritseg.evaluation.cost import cost
from spiritseg.evaluation.evaluate import Scores
from spiritseg.evaluation.pictures import draw_predictions
from spiritseg.files import fields_digest, figures_are_whole, without_folders, write_atomically
from spiritseg.losses import used_losses
from spiritseg.losses.loss import FEATURES, LOGITS
from spiritseg.models import Segmenter
from spiritseg.models.bundle import (
    BundleInfo,
    bundle_digest,
    bundle_info,
    check_bundles,
    load_bundle,
    save_bundle,
)
from spiritseg.models.networks import build_networks
from spiritseg.models.segmenter import layer_channels
from spiritseg.recipes import fingerprint, load_experiment
from spiritseg.student import Student, load
from spiritseg.training.allocator import freed_memory_kept
from spiritseg.training.measure import score, stage_figures, teacher_statistics
from spiritseg.training.run_files import refuse_other_files, refuse_other_weights, run_record
from spiritseg.training.run_folder import RunFolder, is_first_process
from spiritseg.training.stage import stage_module
from spiritseg.training.stage_weights import NETWORK, load_state, refuse_not_finite, state_bytes
from spiritseg.training.trainer import discard_checkpoints, fit, lightning_trainer

__all__ = ["Result", "default_run_dir", "distill"]


@dataclass(frozen=True)
class Result:
    """What a run ended with.

    Args:
        run_dir: its folder.
        metrics: ``test`` and ``val`` figures in [0, 1], ``stages`` and ``cost``.
    """

    run_dir: Path
    metrics: dict[str, Any]

    @property
    def student(self) -> Student:
        """The network that was measured, ready: an image in, a mask out."""
        return load(self.run_dir / "student", trust=True)


def distill(
    recipe: Experiment | str | Path,
    run_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    skip_bad: bool = False,
) -> Result:
    """Run an experiment; one that was interrupted continues.

    Args:
        recipe: Experiment from `load_experiment`, name of a recipe, or path of a YAML file.
        run_dir: Folder of the run; by default ``runs/<recipe>-<hash of the config>``, so that
            the same call finds its run again.
        overrides: Values by dotted field, such as ``{"target.root": DIR}``; for a name or path.
        skip_bad: Whether unreadable images are left out, as input.skip_bad; for a name or path.

    Returns:
        The metrics and the student.

    Raises:
        SpiritsegError: for anything that a user can mend; nothing half-written stays.
    """
    name = "run"
    if isinstance(recipe, Experiment):
        experiment = recipe
    else:
        name = Path(recipe).stem
        bad = {"input.skip_bad": True} if skip_bad else {}
        experiment = load_experiment(recipe, {**(overrides or {}), **bad})
    path = Path(run_dir) if run_dir is not None else default_run_dir(experiment, name)
    folder = RunFolder(path, writes=is_first_process())
    # These come first: a run whose images or machine are unusable leaves no folder behind.
    finished = (path / "metrics.json").exists()
    domains = None if finished else open_domains(experiment)
    if not finished:
        lightning_trainer(experiment.trainer, logger=False, enable_checkpointing=False)
    with folder.claim(experiment), freed_memory_kept():
        metrics = _finished_metrics(folder)
        if metrics is not None:
            refuse_other_weights(path, experiment)
        else:
            run = _Run(experiment, folder, domains or open_domains(experiment))
            metrics = run.to_the_end()
    return Result(path, metrics)


def _finished_metrics(folder: RunFolder) -> dict[str, Any] | None:
    """Return the metrics of a finished run whose student is the one that was measured."""
    metrics: dict[str, Any] | None = folder.read("metrics.json")
    if metrics is None:
        return None
    if not figures_are_whole(folder.path, metrics):
        folder.say(f"the figures of {folder.path} were changed after the run: measured again.")
        return None
    try:
        load_bundle(folder.path / "student", trust=True)  # checks its digests
        digest = bundle_digest(folder.path / "student")
    except BundleError as error:
        folder.say(f"{error} The student is written again.")
        return None
    if metrics.get("student", digest) != digest:
        folder.say(f"{folder.path / 'student'} is of another run. It is written again.")
        return None
    return metrics


def default_run_dir(experiment: Experiment, name: str) -> Path:
    """Return the folder in which a call without ``run_dir`` runs."""
    return Path("runs") / f"{name}-{fingerprint(experiment)}"


class _Run:
    """One run on its way through the stages."""

    def __init__(self, experiment: Experiment, folder: RunFolder, domains: Domains) -> None:
        self.experiment = experiment
        self.folder = folder
        self.domains = domains
        self.classes = list(domains.classes.names)
        check_bundles(experiment.networks, self.classes, experiment.input.pool)
        self.networks = build_networks(experiment.networks, len(self.classes), experiment.seed)
        for name, stage in experiment.stages.items():  # now, not hours later in that stage
            try:
                _check_names(stage, self.networks, self.classes)
            except ConfigError as error:
                raise ConfigError(f"stages.{name}.losses.{error}") from error
        self.device = _device(experiment)

    def to_the_end(self) -> dict[str, Any]:
        """Train what is not trained yet, then measure and save the result."""
        record = run_record(self.experiment, self.domains)
        before = self.folder.read("run.json") or {}
        refuse_other_files(self.folder.path, before.get("files", {}), record["files"])
        self.folder.write("run.json", record)
        stages = {
            name: self._stage(number, name)
            for number, name in enumerate(self.experiment.stages, start=1)
        }
        return self._result(stages)

    def _stage(self, number: int, name: str) -> dict[str, Any]:
        """Train one stage, or take it from the folder if it is finished."""
        path = self.folder.stage(number, name)
        network = self.networks[self.experiment.stages[name].network]
        below = path.relative_to(self.folder.path)
        report: dict[str, Any] | None = self.folder.read(f"{below}/stage.json")
        if report is not None and (reason := load_state(network, path, report)):
            self.folder.say(f"{path / NETWORK} {reason}: the stage is trained again.")
            report = None
        if report is None:
            report = self._train(name, path)
            refuse_not_finite(network, name)
            if self.folder.writes:
                weights = state_bytes(network)
                write_atomically(path / NETWORK, weights)
                report["sha256"] = hashlib.sha256(weights).hexdigest()
                self.folder.write(f"{below}/stage.json", report)
        if self.folder.writes:
            discard_checkpoints(path)
        return report

    def _train(self, name: str, path: Path) -> dict[str, Any]:
        stage = self.experiment.stages[name]
        images, styles = self.domains.train(stage), self.domains.styles(stage)
        data = StageData(images, stage, self.experiment, name, styles)
        statistics = teacher_statistics(stage, self.networks, data, self.device)
        module = stage_module(name, self.experiment, self.networks, self.classes, statistics)
        lightning = fit(module, data, path, self.experiment.trainer)
        module.settle()
        return {
            "seconds": round(module.seconds, 2),
            "steps": lightning.global_step,
            "epochs": module.epochs,
            "converged": bool(lightning.should_stop),
            "loss": module.loss,
            **stage_figures(module, self.experiment, self.domains, self.device),
        }

    def _last_val(self, stages: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """Take the figures that were measured when the result's last stage had ended."""
        named = self.experiment.stages.items()
        last = [name for name, stage in named if stage.network == self.experiment.result][-1:]
        return stages[last[0]].get("val") if last else None

    def _score(self, network: Segmenter, split: str) -> Scores:
        data = self.domains.evaluation(split)
        return score(network, data, self.classes, self.experiment)

    def _result(self, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
        experiment, network = self.experiment, self.networks[self.experiment.result]
        test = self._score(network, "test")
        metrics: dict[str, Any] = {
            "test": test.as_dict(),
            "val": self._last_val(stages) or self._score(network, "val").as_dict(),
            "stages": stages,
            "cost": self._cost(network),
            "skipped": self.domains.skipped(),
            "warnings": self.domains.warnings(),
        }
        if not self.folder.writes:
            return metrics
        info = BundleInfo(
            networks=_made_from(experiment.networks, experiment.result),
            network=experiment.result,
            classes=tuple(self.classes),
            colours=self.domains.classes.colours,
            pool=experiment.input.pool,
            metrics={"test": metrics["test"], "val": metrics["val"]},
            training={
                "experiment": without_folders(dataclasses.asdict(experiment)),
                "stages": stages,
            },
        )
        save_bundle(self.folder.path / "student", network, info)
        metrics["student"] = bundle_digest(self.folder.path / "student")
        _write_per_image(self.folder.path / "per_image.csv", test, self.domains)
        if experiment.evaluation.pictures:
            draw_predictions(
                {"prediction": load(self.folder.path, trust=True)},
                self.domains.test,
                self.domains.classes,
                experiment.evaluation.pictures,
                self.folder.path / "predictions.png",
            )
        per_image = (self.folder.path / "per_image.csv").read_bytes()
        metrics["per_image"] = hashlib.sha256(per_image).hexdigest()
        metrics["sha256"] = fields_digest(metrics)
        self.folder.write("metrics.json", metrics)
        return metrics

    def _cost(self, network: Segmenter) -> dict[str, Any]:
        """Measure the cost at the network's input size: a test image after the pool."""
        image = self.domains.evaluation("test")[0]["image"]
        size = (int(image.shape[-2]), int(image.shape[-1]))
        found = cost(network.cpu(), size)
        report: dict[str, Any] = {"size": size, "params": found.params, "gflops": found.gflops}
        if self.experiment.evaluation.latency and self.folder.writes:  # by one, undisturbed
            report["latency_ms"] = found.latency_ms
        return report


def _check_names(stage: Stage, networks: dict[str, Segmenter], classes: list[str]) -> None:
    """Check the classes and layers that the losses of a stage name."""
    for name, loss, options in used_losses(stage.losses):
        problems = list(loss.problems(options, classes))
        if problems:
            raise ConfigError(f"{name}.{problems[0]}")
        read = ((stage.network, loss.student(options)), (stage.teacher, loss.teacher(options)))
        for network, layers in read:
            inner = layers - {FEATURES, LOGITS}
            if network is None or not inner:
                continue
            try:
                layer_channels(networks[network], inner)
            except ConfigError as error:
                raise ConfigError(f"{name}.layers, of {network}: {error}") from error


def _made_from(networks: dict[str, Network], name: str) -> dict[str, Network]:
    """Return a network and those that its extractor is made from, the sources first.

    A network from a bundle stands for the networks that the bundle names, under its own name.
    """
    bundle, of = networks[name].bundle, networks[name].extractor.base
    if bundle is not None:
        info = bundle_info(bundle)
        names = {k: name if k == info.network else f"{name}/{k}" for k in info.networks}
        return {names[k]: _renamed(n, names) for k, n in info.networks.items()}
    return {**(_made_from(networks, of) if of else {}), name: networks[name]}


def _renamed(network: Network, names: dict[str, str]) -> Network:
    extractor = network.extractor
    if extractor.base is None:
        return network
    return dataclasses.replace(
        network, extractor=dataclasses.replace(extractor, base=names[extractor.base])
    )


def _device(experiment: Experiment) -> torch.device:
    wanted = experiment.trainer.accelerator
    if wanted in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
        return torch.device("cuda", local)
    return torch.device("cpu")


def _write_per_image(path: Path, scores: Scores, domains: Domains) -> None:
    names = domains.names("test")
    lines = [
        f"{names[index]},{miou:.6f}"
        for index, miou in zip(scores.images, scores.per_image, strict=True)
    ]
    write_atomically(path, "\n".join(["image,mIOU", *lines, ""]).encode())
