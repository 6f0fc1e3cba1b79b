"""One stage on the Lightning Trainer: data, callbacks, loggers, resumption."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.utils.data import DataLoader

from spiritseg.config import Stage, Trainer
from spiritseg.data.sampling import StageBatches, StageData
from spiritseg.errors import ConfigError, RunError
from spiritseg.stopping import patient, stop_behind
from spiritseg.training.checkpoint import AtomicCheckpointIO, EpochCheckpoint, latest
from spiritseg.training.stage import StageModule

__all__ = [
    "MeasuringProgress",
    "discard_checkpoints",
    "fit",
    "interruptible",
    "lightning_trainer",
    "quiet",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # said only of writing


def lightning_trainer(config: Trainer, **further: Any) -> L.Trainer:
    """Make a Lightning Trainer from the experiment's trainer fields.

    Args:
        config: on what machine.
        **further: arguments of this one call, such as ``max_steps``.

    Returns:
        A trainer that leaves sampling to us and writes checkpoints atomically.

    Raises:
        ConfigError: no such machine, strategy or precision here.
    """
    if config.precision.endswith("-true") and config.precision != "32-true":
        raise ConfigError(
            f"trainer.precision {config.precision}: expected 32-true, 16-mixed or bf16-mixed; "
            "teachers, statistics and measurements keep float32 weights."
        )
    if SLURMEnvironment.detect():  # a run continues by its own checkpoints
        further["plugins"] = [*further.get("plugins", ()), SLURMEnvironment(auto_requeue=False)]
    try:
        with quiet():
            trainer = L.Trainer(
                accelerator=config.accelerator,
                **_machines(config),
                strategy=config.strategy,
                precision=config.precision,  # type: ignore[arg-type]  # checked by Lightning
                enable_model_summary=False,
                enable_progress_bar=config.progress,
                **further,
            )
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
        given = ", ".join(f"trainer.{name} {getattr(config, name)}" for name in names)
        raise ConfigError(f"this machine cannot train with {given}: {error}") from error
    if config.sync_batchnorm and config.compile:
        raise ConfigError(
            "trainer.sync_batchnorm and trainer.compile: compiled networks keep batch norms to "
            "themselves; expected one of them to be false."
        )
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigError(
            f"trainer.strategy {config.strategy} with trainer.devices {config.devices} trains in "
            "spawned or forked processes, which keep what they measured to themselves. Use ddp "
            "from the command line or a script, torchrun, or one device."
        )
    return trainer


def _machines(config: Trainer) -> dict[str, Any]:
    """Return the devices and machines; of torchrun's processes where it started this one.

    Otherwise `devices: auto` could mean one, and each process would train by itself.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {"devices": config.devices, "num_nodes": config.num_nodes}
    here, all_of_them = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    return {"devices": here, "num_nodes": all_of_them // here}


def fit(module: StageModule, data: StageData, folder: Path, config: Trainer) -> L.Trainer:
    """Train a stage to its end, from its newest whole checkpoint if there is one.

    Args:
        module: what trains.
        data: the augmented views of its images.
        folder: the stage's folder, for checkpoints and logs.
        config: on what machine.

    Returns:
        The trainer, which knows how many steps it took and whether it stopped early.

    Raises:
        DivergedError: a loss is not finite.
        RunError: the folder cannot be written, or another file fails.
    """
    stage = module.stage
    trainer = lightning_trainer(
        config,
        max_steps=stage.max_steps or -1,
        max_epochs=stage.max_epochs or -1,
        callbacks=_callbacks(stage, folder, config),
        logger=_loggers(folder),
        log_every_n_steps=config.log_every_steps,
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
    )
    if trainer.is_global_zero:  # the others could come before it has claimed the run's folder
        folder.mkdir(parents=True, exist_ok=True)
    checkpoint = latest(folder)
    loader = _loader(module, data, trainer, config, _epochs_done(checkpoint))
    try:
        with quiet(), interruptible(), patient(if_alone=trainer.world_size == 1):
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except OSError as error:
        raise _stopped(error, folder) from error
    return trainer


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt, and the next one too; let SIGTERM be `Terminated`.

    Lightning makes both an exit of the process, the second with code 0; ignores Ctrl-C from then
    on; and may stumble over what was interrupted, such as a loader that starts.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as error:
        stop = stop_behind(error)
        if stop is None:
            raise
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise stop from None


def _stopped(error: OSError, folder: Path) -> RunError:
    """Tell a stage's folder that cannot be written from any other file or device that fails."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    # A data loader's worker hands on a whole traceback, whose last line is the error.
    said = error.strerror or str(error).rstrip().rpartition("\n")[2] or type(error).__name__
    again = "and start the same command again: it continues."
    here = Path(name).resolve().is_relative_to(folder.resolve()) if name else error.errno in _FULL
    if here:
        return RunError(
            f"cannot write to {folder}: {said}. Make room or choose another --run-dir, {again}"
        )
    what = f"{name}: {said}" if name else said
    return RunError(
        f"the operating system stopped the training of {folder.name}: {what}. Mend that, {again}"
    )


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished stage; its logs stay."""
    for path in folder.glob("step-*.ckpt"):
        if path.is_file():
            path.unlink()
    for path in folder.glob(".*.part"):
        path.unlink()


def _epochs_done(checkpoint: Path | None) -> int:
    """Return how many epochs a checkpoint has behind it."""
    if checkpoint is None:
        return 0
    loops = torch.load(checkpoint, map_location="cpu", weights_only=True)["loops"]["fit_loop"]
    return int(loops["epoch_progress"]["current"]["processed"])


def _loader(
    module: StageModule, data: StageData, trainer: L.Trainer, config: Trainer, epoch: int
) -> DataLoader[Any]:
    batches = StageBatches(
        data,
        batch_size=module.stage.batch_size,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    # A resumed Trainer starts the loader's workers, which fetch ahead, before it says the epoch.
    batches.set_epoch(epoch)
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )


def _callbacks(stage: Stage, folder: Path, config: Trainer) -> list[Callback]:
    found: list[Callback] = [EpochCheckpoint(folder, config.checkpoint_every_s)]
    if stage.patience:
        stop = EarlyStopping(
            monitor="loss_epoch",
            min_delta=stage.min_delta,
            patience=stage.patience,
            check_on_train_epoch_end=True,
            check_finite=False,  # the module says more about a loss that is not finite
        )
        found.append(stop)
    if config.progress:
        found.append(StageProgress(folder.name))
    return found


def _loggers(folder: Path) -> list[Logger]:
    # A resumed stage logs beside its earlier attempts: loggers overwrite what they find.
    attempt = f"attempt-{len(list(folder.glob('csv/attempt-*'))) + 1}"
    return [
        TensorBoardLogger(str(folder), name="tensorboard", version=attempt),
        CSVLogger(str(folder), name="csv", version=attempt),
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back Lightning's remarks on choices that were made on purpose."""
    names = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric",
        "lightning.pytorch",
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Few workers are right for cached images on few cores; a checkpoint at the end
            # of the last epoch, or a teacher in eval mode, is what we want.
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # It repeats images to even out the processes; each counts once, by its index.
            warnings.filterwarnings("ignore", message=".*Using `DistributedSampler`.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            warnings.filterwarnings("ignore", message=".*in eval mode.*")
            # Lightning's own use of torch's older names.
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step.*")
            warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists.*")
            warnings.filterwarnings("ignore", message=".*no `LightningModule.*_dataloader.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class StageProgress(RichProgressBar):
    """Progress bar with the stage's name; most stages are bounded in steps, not in epochs."""

    def __init__(self, stage: str) -> None:
        super().__init__(leave=False)
        self._stage = stage

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{self._stage}, epoch {current_epoch + 1}"


class MeasuringProgress(RichProgressBar):
    """Progress bar with the number of images that are measured."""

    def __init__(self, images: int) -> None:
        super().__init__(leave=False)
        self._images = images

    @property
    def test_description(self) -> str:
        """What stands before the bar."""
        return f"measuring {self._images} images"
