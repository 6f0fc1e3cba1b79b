"""One self-contained HTML page that says whether distillation helped, and by how much."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiritseg.compare.conclusions import (
    Setting,
    Verdict,
    cautions,
    labelled,
    make_setting,
    tables,
    verdict,
)
from spiritseg.compare.figures import draw_all
from spiritseg.compare.results import Row, Run, is_paper, read_runs, settings_of, write_results
from spiritseg.compare.statistics import ALPHA, LEAST_SEEDS, RESAMPLES
from spiritseg.errors import ConfigError, MissingExtraError, SpiritsegError, unknown
from spiritseg.files import json_bytes, make_folder, write_atomically
from spiritseg.recipes import experiment_from_dict, to_yaml
from spiritseg.tables import html, table_text

if TYPE_CHECKING:
    from spiritseg.data.domains import Domains

__all__ = ["Report", "report"]


@dataclass(frozen=True, repr=False)
class Report:
    """A report that was written: its page, and the results per label count."""

    page: Path
    verdict: Verdict  # of the first setting, which has the most runs
    settings: tuple[Setting, ...]

    def _lines(self) -> list[str]:
        return [self.verdict.head, *self.verdict.sentences, f"report: {self.page}"]

    def __repr__(self) -> str:
        return "\n".join([*self._lines(), table_text(tables(self.settings[0])["results"])])

    def _repr_html_(self) -> str:
        lines = html([[line] for line in self._lines()])
        return lines + html(tables(self.settings[0])["results"])


def report(
    runs: str | Path | Sequence[str | Path],
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    baseline: str = "baseline",
    latency: bool = True,
    trust: bool = False,
    resamples: int = RESAMPLES,
) -> Report:
    """Write ``report.html``, ``results.json``, ``results.csv`` and ``figures/*.png``.

    Args:
        runs: Folders of runs, at any depth.
        overrides: Values by dotted field to open the images with, such as
            ``{"target.root": DIR}``, if they have moved.
        out: Folder of the report; by default the first of `runs`.
        baseline: Recipe that the others are compared with.
        latency: Whether the students' latency is measured now, in turn.
        trust: Import your own classes that the students' bundles name.
        resamples: Number of bootstrap resamples.

    Returns:
        The page, the verdict and the results.

    Raises:
        RunError: No finished run, an unreadable mIOU, or an unwritable folder.
        BundleError: A student of classes of its own is loaded without trust.
        ConfigError: No run is of the baseline's recipe, though another was named.
        MissingExtraError: Jinja2 or scipy is not installed.
    """
    template = _template()
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    target = Path(out if out is not None else folders[0])
    found = read_runs(folders, trust)
    recipes = {run.recipe for run in found}
    if baseline not in recipes and baseline != "baseline":
        raise ConfigError(f"--baseline: {unknown('recipe', baseline, recipes)}")
    settings = [make_setting(found, one, baseline, resamples) for one in settings_of(found)]
    main = settings[0]
    make_folder(target)
    if latency:
        main.latency = _latencies(main.rows, trust)
    images, problem = _open_images(main, overrides or {})
    about = _reproduction(found)
    content = {
        "verdict": verdict(main),
        "settings": [(setting, tables(setting)) for setting in settings],
        "figures": draw_all(main, settings, images, trust, target / "figures"),
        "has_paper": any(is_paper(run.recipe) for run in found),
        "missing": cautions(main.rows) + problem,
        "about": about,
        "alpha": ALPHA,
        "resamples": resamples,
        "least_seeds": LEAST_SEEDS,
    }
    write_results(found, target)
    plain = {"settings": [_plain(setting) for setting in settings], "reproduce": about}
    write_atomically(target / "results.json", json_bytes(plain))
    write_atomically(target / "report.html", template.render(content).encode())
    return Report(target / "report.html", verdict(main), tuple(settings))


def _template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise MissingExtraError("a report needs Jinja2: pip install 'spiritseg[report]'.") from None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = lambda table: Markup(html(table))
    environment.filters["labelled"] = labelled
    return environment.get_template("report.html")


def _latencies(rows: Mapping[str, Row], trust: bool) -> dict[str, float]:
    """Return the median latency in ms of one student per row, by title, all measured in turn.

    The size is that of a test image after the max-pool, with batch 1.
    """
    import torch

    from spiritseg.evaluation import latencies_ms
    from spiritseg.student import load

    networks = {
        title: load(row.first.folder, trust=trust).network.to(memory_format=torch.channels_last)
        for title, row in rows.items()
    }
    height, width = next(iter(rows.values())).first.metrics["cost"]["size"]
    times = latencies_ms(networks, (height, width), rounds=25)
    return {title: statistics.median(found) for title, found in times.items()}


def _open_images(main: Setting, overrides: Mapping[str, Any]) -> tuple[Domains | None, list[str]]:
    """Open the images that predictions are shown of; return also why that failed."""
    from spiritseg.data.domains import open_domains

    if not main.reference:
        return None, []
    fields = dataclasses.asdict(main.rows[main.reference].first.experiment)
    try:
        return open_domains(experiment_from_dict(fields, overrides), target_only=True), []
    except SpiritsegError as error:
        reason = str(error).splitlines()[0]
        return None, [f"Predictions: the images cannot be opened here. {reason}"]


def _reproduction(runs: Sequence[Run]) -> dict[str, Any]:
    """Return versions, machines, seeds and configs of runs, as plain values."""
    import platform

    import torch

    from spiritseg.cores import usable_cores

    seeds: dict[str, list[int]] = {}
    configs: dict[str, str] = {}
    for run in runs:
        name = f"{run.title}, {labelled(run.labels)}"
        seeds.setdefault(name, []).append(run.seed)
        configs.setdefault(name, to_yaml(run.experiment))
    versions = (", ".join(f"{k} {v}" for k, v in r.about.get("versions", {}).items()) for r in runs)
    return {
        "versions": list(dict.fromkeys(filter(None, versions))),
        "machines": list(dict.fromkeys(run.about.get("machine", "unknown") for run in runs)),
        "report": f"{platform.platform()}, {usable_cores()} cores, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}",
        "seeds": {name: ", ".join(map(str, sorted(found))) for name, found in seeds.items()},
        "configs": configs,
        "skipped": sorted({path for run in runs for path in run.metrics.get("skipped", [])}),
    }


def _plain(setting: Setting) -> dict[str, Any]:
    """Return the differences and what was measured here as plain values."""
    return {
        "labels": setting.labels,
        "baseline": setting.reference,
        "note": setting.note,
        "latency_ms": setting.latency,
        "differences": [
            {**dataclasses.asdict(one), "verdict": one.verdict, "sentence": one.sentence}
            for one in setting.differences
        ],
    }
