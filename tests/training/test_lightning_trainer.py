"""The Lightning Trainer of an experiment's trainer fields."""

from __future__ import annotations

from typing import Any

import pytest

from spiritseg.config import Trainer
from spiritseg.errors import ConfigError
from spiritseg.training.trainer import lightning_trainer


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accelerator", "nope"),
        ("devices", 0),
        ("devices", "foo"),
        ("num_nodes", 0),
        ("strategy", "nope"),
        ("precision", "foo"),
    ],
)
def test_a_machine_that_is_not_there_is_one_clear_error(field: str, value: Any) -> None:
    fields: dict[str, Any] = {"accelerator": "cpu", "devices": 1, field: value}
    with pytest.raises(ConfigError, match=rf"trainer\.{field} {value}"):
        lightning_trainer(Trainer(**fields), logger=False, enable_checkpointing=False)


def test_a_gpu_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.accelerator gpu.*No supported gpu"):
        lightning_trainer(Trainer(accelerator="gpu"), logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_weights_of_another_precision_are_refused(precision: str) -> None:
    given = Trainer(accelerator="cpu", devices=1, precision=precision)
    with pytest.raises(ConfigError, match="expected 32-true, 16-mixed or bf16-mixed"):
        lightning_trainer(given, logger=False, enable_checkpointing=False)


def test_processes_that_would_keep_what_they_measured_are_refused() -> None:
    given = Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn")
    with pytest.raises(ConfigError, match="spawned or forked"):
        lightning_trainer(given, logger=False, enable_checkpointing=False)


def test_slurm_does_not_requeue_by_checkpoints_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train"}
    for name, value in {**given, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    trainer = lightning_trainer(
        Trainer(accelerator="cpu", devices=1), logger=False, enable_checkpointing=False
    )
    environment: Any = trainer._accelerator_connector.cluster_environment
    assert environment.auto_requeue is False


def test_batch_norms_that_cannot_be_synchronised_are_refused() -> None:
    given = Trainer(accelerator="cpu", devices=1, sync_batchnorm=True, compile=True)
    with pytest.raises(ConfigError, match=r"trainer\.sync_batchnorm and trainer\.compile"):
        lightning_trainer(given, logger=False, enable_checkpointing=False)
