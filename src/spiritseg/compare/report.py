"""One self-contained HTML page that says whether distillation helped, and by how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spiritseg.compare.conclusions import (
    Setting,
    Verdict,
    cautions,
    labelled,
    make_setting,
    verdict,
)
from spiritseg.compare.figures import draw_all
from spiritseg.compare.measured import (
    MeasuredImages,
    head_only,
    latencies,
    refuse_untrusted,
    reproduction,
)
from spiritseg.compare.paper import is_paper, method_of
from spiritseg.compare.results import Row, Run, read_runs, settings_of, write_results
from spiritseg.compare.statistics import ALPHA, LEAST_SEEDS, RESAMPLES, Difference
from spiritseg.compare.tables import tables
from spiritseg.errors import ConfigError, MissingExtraError, unknown
from spiritseg.files import json_bytes, make_folder, write_atomically
from spiritseg.tables import html, table_text

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
        return "\n".join([*self._lines(), table_text(self.settings[0].tables["cost"])])

    def _repr_html_(self) -> str:
        lines = html([[line] for line in self._lines()])
        return lines + html(self.settings[0].tables["cost"])


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
        The page, the verdict and the tables.

    Raises:
        RunError: There is no finished run, the mIOU of an image is missing or not finite, or the
            folder of the report cannot be written.
        BundleError: A student is of classes of its own, and trust was not given.
        ConfigError: No run is of the baseline's recipe, though another was named.
        MissingExtraError: Jinja2 or scipy is not installed.
    """
    template = _template()
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    target = Path(out if out is not None else folders[0])
    found = read_runs(folders)
    if not trust:
        refuse_untrusted(found)
    recipes = {run.recipe for run in found}
    if baseline not in recipes and baseline != "baseline":
        raise ConfigError(f"--baseline: {unknown('recipe', baseline, recipes)}")
    settings = [make_setting(found, one, baseline, resamples) for one in settings_of(found)]
    main = settings[0]
    images = MeasuredImages(_richest(main).first, dict(overrides or {}))
    make_folder(target)
    if latency:
        main.latency = latencies(main.rows)
    missing = cautions(main.rows)
    for setting in settings:
        missing += _measure_heads(setting, images)
        setting.tables = tables(setting)
    content = {
        "verdict": verdict(main),
        "settings": settings,
        "figures": draw_all(main, settings, images, missing, target / "figures"),
        "has_paper": any(is_paper(run.recipe) for run in found),
        "missing": missing,
        "about": reproduction(found, images),
        "alpha": ALPHA,
        "resamples": resamples,
        "least_seeds": LEAST_SEEDS,
    }
    write_results(found, target)
    plain = _plain(found, settings, content["about"])
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


def _richest(setting: Setting) -> Row:
    """Return a row that uses proximity images, if there is one: its config names all images."""
    rows = list(setting.rows.values())
    return next((row for row in rows if row.first.ratio is not None), rows[0])


def _measure_heads(setting: Setting, images: MeasuredImages) -> list[str]:
    """Measure CT before its fine-tuning; return what could not be measured."""
    missing = []
    for title, row in setting.rows.items():
        if method_of(row.recipe) != "ct":
            continue
        setting.head_only[title] = head_only(row, images)
        if lacking := sorted(row.runs.keys() - setting.head_only[title].keys()):
            seeds = ", ".join(map(str, lacking))
            missing.append(
                f"{title} without fine-tuning, {labelled(setting.labels)}, seed {seeds}: its "
                f"head stage could not be measured on the test images. {images.reason}"
            )
    return missing


def _plain(runs: Sequence[Run], settings: Sequence[Setting], about: Any) -> dict[str, Any]:
    """Return everything that the page shows as plain values."""
    return {
        "runs": [run.as_dict() for run in runs],
        "settings": [
            {
                "labels": setting.labels,
                "baseline": setting.reference,
                "rows": {title: _row(setting, row) for title, row in setting.rows.items()},
                **{f"{title}, head only": head for title, head in setting.head_only.items()},
                "differences": [_difference(one) for one in setting.differences],
                "differences to fine-tuned pretrained": [_difference(d) for d in setting.picked],
                "note": setting.note,
            }
            for setting in settings
        ],
        "reproduce": about,
    }


def _row(setting: Setting, row: Row) -> dict[str, Any]:
    metrics = ("mIOU", "HP-Acc", "Var", "dataset mIoU")
    return {
        "seeds": sorted(row.runs),
        **{key: {"mean": row.mean(key), "std": row.std(key)} for key in metrics},
        "latency_ms": setting.latency.get(row.title),
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "verdict": one.verdict, "sentence": one.sentence}
