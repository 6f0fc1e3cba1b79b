"""A run's folder: whose it is, what is finished in it, what may be written there.

::

    RUN/config.yaml                     every field, spelled out
    RUN/run.json                        versions and machine
    RUN/stages/1-mimicry/csv/ tensorboard/   logs
    RUN/stages/1-mimicry/step-*.ckpt    while the stage runs
    RUN/stages/1-mimicry/stage.json     once it is finished: steps, seconds, measurements
    RUN/stages/1-mimicry/network.safetensors
    RUN/student/                        the bundle
    RUN/predictions.png, per_image.csv
    RUN/metrics.json                    written last: the run is finished
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spiritseg.config import Experiment
from spiritseg.errors import RunError, SpiritsegError, listed
from spiritseg.files import json_bytes, write_atomically
from spiritseg.recipes import differences, fingerprint, load_experiment, to_yaml
from spiritseg.registry import names_in_files

__all__ = ["RunFolder"]

# Weights of three sets (network, optimizer twice) in two checkpoints, logs and pictures.
_LEAST_FREE_MIB = 256


class RunFolder:
    """The folder of one run.

    Args:
        path: where it is, or shall be.
        writes: whether this process writes; of a distributed run only the first does.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    def stage(self, number: int, name: str) -> Path:
        """Return the folder of a stage, counted from 1."""
        return self.path / "stages" / f"{number}-{name}"

    @contextmanager
    def claim(self, experiment: Experiment) -> Iterator[None]:
        """Hold the folder for this experiment while it runs.

        Args:
            experiment: what runs in it.

        Raises:
            RunError: the folder belongs to another config, is in use, or is full.
        """
        if not self.writes:
            yield
            return
        self._refuse_foreign()
        is_absent, is_new = not self.path.exists(), False
        self._check_space()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunError(f"cannot make the run folder {self.path}: {error.strerror}.") from None
        try:
            with lock:
                self._lock(lock.fileno())
                self._check(experiment)  # now that no other process can claim it meanwhile
                is_new = is_absent  # known only now: another process may have made it since
                if not (self.path / "config.yaml").exists():
                    write_atomically(self.path / "config.yaml", to_yaml(experiment).encode())
                yield
        except SpiritsegError:
            if is_new and not any(self.path.glob("stages/*/*")):
                shutil.rmtree(self.path, ignore_errors=True)  # nothing was done in it yet
            raise

    def _refuse_foreign(self) -> None:
        """Refuse a folder of something else, before a lock is put into it."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"the run folder {self.path} is a file; choose another --run-dir.")
        if not self.path.exists() or (self.path / "config.yaml").exists():
            return
        # A process that was killed before it wrote the config leaves its lock, or a part of it.
        found = sorted(path.name for path in self.path.iterdir())
        foreign = [n for n in found if n != ".lock" and not n.startswith(".config.yaml.")]
        if foreign:
            raise RunError(
                f"{self.path} is not empty and not a run of spiritseg:\n{listed(foreign)}\n"
                "Choose another --run-dir."
            )

    def _check(self, experiment: Experiment) -> None:
        config = self.path / "config.yaml"
        self._refuse_foreign()
        if not config.exists():
            return
        files = names_in_files(dataclasses.asdict(experiment))
        before = load_experiment(config, trust=files)
        if fingerprint(before) != fingerprint(experiment):
            raise RunError(
                f"{self.path} belongs to another config; what differs:\n"
                f"{listed(differences(before, experiment))}\n"
                "Choose another --run-dir (or none: the default is a new one for each config)."
            )

    def _check_space(self) -> None:
        folder = self.path
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free / 2**20
        if free < _LEAST_FREE_MIB:
            raise RunError(
                f"no disk space for {self.path}: a run needs about {_LEAST_FREE_MIB} MiB, "
                f"{free:.0f} MiB are free. Make room, or choose another --run-dir."
            )

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{self.path} is in use by another process; wait for it, or choose another "
                "--run-dir."
            ) from None

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, atomically; other processes write nothing.

        Args:
            name: path below the run's folder.
            value: plain values; NaN becomes null.
        """
        if self.writes:
            write_atomically(self.path / name, json_bytes(value))

    def read(self, name: str) -> Any:
        """Read a JSON file of the run; None where it is not there, or cannot be read.

        The latter is said: what such a file stands for is done again.
        """
        path = self.path / name
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            if isinstance(found, dict):
                return found
            reason = f"it holds {type(found).__name__}, not fields"
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        self.say(f"{path} cannot be read ({reason}): what it stands for is done again.")
        return None

    def say(self, what: str) -> None:
        """Tell the user what was found amiss; one process does."""
        if self.writes:
            print(f"spiritseg: {what}", file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this is the process that writes, of one or of a distributed run."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    # Lightning's own launcher counts processes within each machine, in a shell of SLURM too,
    # whose number all of them inherit.
    if "LOCAL_RANK" in os.environ:
        return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))
    return os.environ.get("SLURM_PROCID", os.environ.get("NODE_RANK", "0")) == "0"
