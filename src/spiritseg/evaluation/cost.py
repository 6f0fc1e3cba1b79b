"""What a network costs: parameters, GFLOPs and latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spiritseg.errors import ConfigError
from spiritseg.models.tracing import evaluating

__all__ = ["Cost", "cost", "in_turn", "latencies_ms"]

WARM_UP = 3  # forward passes before the clock starts; fewer of a slow network
ROUNDS = 15  # forward passes on the clock
BUDGET_S = 10.0  # a slow network gets fewer of them, but three at least


@dataclass(frozen=True)
class Cost:
    """Costs of a network at one input size.

    Args:
        params: Number of parameters; shared ones count once, buffers do not.
        gflops: 10^9 floating-point operations an image, 2 for each multiply-add, over
            convolutions and matrix products.
        size: (H, W) of the input, after any preprocessing.
    """

    params: int
    gflops: float
    size: tuple[int, int]
    _module: nn.Module = field(repr=False, compare=False)

    @cached_property
    def latency_ms(self) -> float:
        """Median time of a forward pass of one image, measured on first access, in ms."""
        return statistics.median(latencies_ms({"": self._module}, self.size)[""])


def cost(module: nn.Module, size: tuple[int, int]) -> Cost:
    """Count parameters and operations of a network; measure its latency when asked.

    Operations are counted on the meta device, where nothing is computed, and by a real pass
    where a network cannot run there; in eval mode, without touching the module.

    Args:
        module: (B, 3, H, W) -> anything.
        size: (H, W) of the input, after any preprocessing (the papers' 2x2 max-pool).

    Raises:
        ConfigError: if a side is below 1.
    """
    _check_size(size)
    params = sum(p.numel() for p in module.parameters())
    return Cost(params, _flops(module, size) / 1e9, size, module)


def latencies_ms(
    modules: Mapping[str, nn.Module], size: tuple[int, int], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Time the forward passes of several networks in turn, so that their ratios are fair.

    Each round runs every network once, in an order that rotates: a machine that slows down
    or is shared slows all of them alike. Compare medians.

    Args:
        modules: Networks by name, (B, 3, H, W) -> anything.
        size: (H, W) of the input.
        rounds: Measured passes of each network; fewer where they would take longer than 10 s in
            all, but at least 3.

    Returns:
        The times of each network in ms, in their order.

    Raises:
        ConfigError: if a side or the number of rounds is below 1.
    """
    _check_size(size)
    if rounds < 1:
        raise ConfigError(f"latency: rounds must be 1 or more, got {rounds}.")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        works = {}
        for name, module in modules.items():
            stack.enter_context(evaluating(module))
            works[name] = partial(_pass, module, _image(module, size))
        return in_turn(works, rounds, BUDGET_S)


def in_turn(
    works: Mapping[str, Callable[[], object]], rounds: int, budget_s: float
) -> dict[str, list[float]]:
    """Time functions in turn, in an order that rotates, after some rounds of warming up.

    Args:
        works: Functions by name.
        rounds: Number of measured calls of each; fewer where the budget is used up, but at
            least 3.
        budget_s: Time for all measured calls in s; a quarter of it for warming up.

    Returns:
        The times of each in ms, in their order.
    """
    started = time.perf_counter()
    for _ in range(WARM_UP):
        for work in works.values():
            work()
        if time.perf_counter() - started > budget_s / 4:
            break
    times: dict[str, list[float]] = {name: [] for name in works}
    started = time.perf_counter()
    names = list(works)
    for done in range(rounds if names else 0):
        if done >= 3 and time.perf_counter() - started > budget_s:
            break
        for name in names:
            before = time.perf_counter()
            works[name]()
            times[name].append((time.perf_counter() - before) * 1e3)
        names.append(names.pop(0))
    return times


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"cost: expected a size (H, W) of 1 or more, got {size}.")


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def _image(module: nn.Module, size: tuple[int, int]) -> Tensor:
    device, dtype = _place(module)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, *size, generator=generator).to(device, dtype)


def _pass(module: nn.Module, images: Tensor) -> None:
    module(images)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Undo what a forward pass keeps on its module, such as a grid of the input's size."""
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)


def _flops(module: nn.Module, size: tuple[int, int]) -> int:
    device, dtype = _place(module)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad(), evaluating(module):
        try:
            meta = {name: tensor.detach().to("meta") for name, tensor in state.items()}
            image = torch.zeros(1, 3, *size, dtype=dtype, device="meta")
            with _attributes_kept(module), FlopCounterMode(display=False) as counter:
                torch.func.functional_call(module, meta, (image,))
        except Exception:  # a value was asked for, or a tensor made on another device
            image = torch.zeros(1, 3, *size, dtype=dtype, device=device)
            with FlopCounterMode(display=False) as counter:
                module(image)
    return int(counter.get_total_flops())
