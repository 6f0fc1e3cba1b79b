"""The Lightning Trainer of an experiment's trainer fields."""

from __future__ import annotations

from typing import Any

import pytest

from spiritseg.config import Trainer
from spiritseg.errors import ConfigError
from spiritseg.training.fit import lightning_trainer


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
