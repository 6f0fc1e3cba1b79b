"""What the examinations know of an experiment: each adds to it for those that follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from spiritseg.config import Experiment
from spiritseg.data.domains import Domains
from spiritseg.models import Segmenter

__all__ = ["Known"]

T = TypeVar("T")


@dataclass
class Known:
    """An experiment, its images and its networks as far as they could be opened.

    Args:
        experiment: the experiment.
        num_classes: K, the background included; 2 while unknown.
        classes: names of the classes; empty while unknown.
        samples: prepared training images (1, 3, h, w) in [0, 1]; empty where none is readable.
        size: (H, W) of a test image as a network sees it.
        domains: the opened images; None where something is wrong with them.
        nbytes: bytes of all images, decoded.
        read_s: seconds to decode, or to render, once each image that is then kept in memory.
        networks: the networks that could be built, by name.
    """

    experiment: Experiment
    num_classes: int = 2
    classes: tuple[str, ...] = ()
    samples: list[Tensor] = field(default_factory=list)
    size: tuple[int, int] = (128, 128)
    domains: Domains | None = None
    nbytes: int = 0
    read_s: float = 0.0
    networks: dict[str, Segmenter] = field(default_factory=dict)

    @property
    def dry(self) -> Experiment:
        """The experiment in this process alone: one device, uncompiled, without progress bars."""
        trainer = replace(
            self.experiment.trainer,
            devices=1,
            num_nodes=1,
            strategy="auto",
            sync_batchnorm=False,
            compile=False,
            progress=False,
            workers=0,
        )
        return replace(self.experiment, trainer=trainer)

    @property
    def images_fit(self) -> bool:
        """Whether all decoded images fit input.cache_mib."""
        return self.nbytes <= self.experiment.input.cache_mib * 2**20

    def tracked(self, items: Iterable[T], title: str, count: int) -> Iterator[T]:
        """Yield items under a progress bar on stderr; only on a terminal or in a notebook.

        Args:
            items: what is worked on.
            title: what stands before the bar.
            count: how many items there are.
        """
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        seen = console.is_terminal or console.is_jupyter
        hidden = not (seen and self.experiment.trainer.progress)
        yield from track(items, title, count, console=console, transient=True, disable=hidden)
