"""Weights from files and libraries, checked key by key. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiritseg.errors import WeightsError, listed

__all__ = ["State", "fit_weights", "is_file", "read_weights"]

State = dict[str, Tensor]

_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def is_file(weights: str) -> bool:
    """Return whether weights are given as a path, rather than by a library's name."""
    return weights.endswith(_SUFFIXES) or "/" in weights or "\\" in weights


def read_weights(path: str | Path) -> State:
    """Read a state dict from a .pth or .safetensors file.

    Args:
        path: The file. A state dict wrapped in ``{"state_dict": ...}`` or ``{"model": ...}``, or
            saved under data-parallel training (``module.``), is unwrapped.

    Returns:
        The tensors by key, on the CPU.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"expected a file of weights at {path}, found none. Check the path.")
    try:
        state: Any
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise WeightsError(
            f"cannot read the weights {path}: {reason}. "
            "Expected .safetensors, or a .pth that holds only tensors (a state dict)."
        ) from error
    return _plain(state, path)


def _plain(state: Any, path: Path) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path}: expected a state dict (names to tensors), alone or under one of "
            f"{', '.join(_WRAPPERS)}; got {type(state).__name__}. Save model.state_dict()."
        )
    if state and all(k.startswith("module.") for k in state):
        return {k.removeprefix("module."): v for k, v in state.items()}
    return dict(state)


def fit_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    surplus: Callable[[str], bool] = lambda key: False,
) -> None:
    """Load weights whose keys and shapes fit exactly; half precision is cast.

    Args:
        module: Module that takes the weights.
        state: Tensors by key.
        source: Where they are from, for the error message.
        surplus: Whether a key that the module does not have is ignored, rather than refused.
    """
    wanted = module.state_dict()
    problems = {
        "missing": [k for k in wanted if k not in state],
        "unexpected": [k for k in state if k not in wanted and not surplus(k)],
        "of another shape": [
            f"{k}: expected {tuple(v.shape)}, got {tuple(state[k].shape)}"
            for k, v in wanted.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    if any(problems.values()):
        parts = [f"{len(v)} {k}:\n{listed(v)}" for k, v in problems.items() if v]
        raise WeightsError(
            f"{source} does not fit {type(module).__name__}. Of its {len(wanted)} keys\n"
            + "\n".join(parts)
            + "\nUse weights of this very network; num_classes and the like go into args."
        )
    module.load_state_dict({k: state[k] for k in wanted})
