"""One self-contained HTML page that says whether distillation helped, and by how much."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spiritseg.compare.drawing import draw_all, sweep
from spiritseg.compare.measured import Images, head_only, latencies, refuse_untrusted
from spiritseg.compare.paper import method_of
from spiritseg.compare.provenance import provenance
from spiritseg.compare.results import Row, Run, read_runs, settings_of, write_results
from spiritseg.compare.sections import Section, cautions, gaps, labelled, make_section, verdict
from spiritseg.compare.statistics import ALPHA, LEAST_SEEDS, RESAMPLES, Difference
from spiritseg.compare.tables import tables
from spiritseg.errors import ConfigError, MissingExtraError, unknown
from spiritseg.files import json_bytes, make_folder, write_atomically

__all__ = ["report"]


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str = "baseline",
    overrides: Mapping[str, Any] | None = None,
    latency: bool = True,
    resamples: int = RESAMPLES,
    trust: bool = False,
) -> Path:
    """Write ``report.html``, ``results.json``, ``results.csv`` and ``figures/*.png``.

    Args:
        runs: folders of runs, at any depth.
        out: where the report goes; by default the first of `runs`.
        baseline: recipe that the others are compared with.
        overrides: fields to open the images with, such as ``{"target.root": DIR}``, where they
            lie elsewhere now.
        latency: whether the students' latency is measured now, turn by turn.
        resamples: of the bootstrap.
        trust: import your own classes that the students' bundles name.

    Returns:
        The page.

    Raises:
        RunError: there is no finished run, or the mIOU of an image is missing or not finite.
        BundleError: a student is of classes of its own, and trust was not given.
        ConfigError: no run is of the baseline's recipe, though another was named.
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
    sections = [make_section(found, one, baseline, resamples) for one in settings_of(found)]
    main = sections[0]
    images = Images(_richest(main).first, dict(overrides or {}))
    missing: list[str] = []
    if latency:
        main.latency = latencies(main.rows)
    _measure_heads(sections, images, missing)
    for section in sections:
        section.tables = tables(section)
        if section is not main and not sweep(section.rows):
            del section.tables["III"]
    make_folder(target)
    drawn = draw_all(main, sections, images, missing, target / "figures")
    about = provenance(found, main, images)
    page = template.render(
        verdict=verdict(main),
        sections=sections,
        figures=drawn,
        missing=[*cautions(main.rows), *missing, *gaps(main)],
        about=about,
        alpha=ALPHA,
        resamples=resamples,
        least_seeds=LEAST_SEEDS,
    )
    write_results(found, target)
    write_atomically(target / "results.json", json_bytes(_plain(found, sections, about)))
    write_atomically(target / "report.html", page.encode())
    return target / "report.html"


def _template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("a report needs Jinja2: pip install 'spiritseg[report]'.") from None
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _richest(section: Section) -> Row:
    """Return a row that uses proximity images, if there is one: its config names all images."""
    rows = list(section.rows.values())
    return next((row for row in rows if row.first.ratio is not None), rows[0])


def _measure_heads(sections: Sequence[Section], images: Images, missing: list[str]) -> None:
    for section in sections:
        for title, row in section.rows.items():
            if method_of(row.recipe) != "ct":
                continue
            section.head[title] = head_only(row, images)
            if lacking := sorted(row.runs.keys() - section.head[title].keys()):
                seeds = ", ".join(map(str, lacking))
                missing.append(
                    f"{title} without fine-tuning, {labelled(section.labels)}, seed {seeds}: its "
                    f"head stage could not be measured on the test images. {images.reason}"
                )


def _plain(runs: Sequence[Run], sections: Sequence[Section], about: Any) -> dict[str, Any]:
    """Return everything that the page shows as plain values."""
    return {
        "runs": [run.as_dict() for run in runs],
        "settings": [
            {
                "labels": section.labels,
                "baseline": section.reference,
                "rows": {
                    title: {
                        "seeds": sorted(row.runs),
                        **{
                            key: {"mean": row.mean(key), "std": row.std(key)}
                            for key in ("mIOU", "HP-Acc", "Var", "dataset mIoU")
                        },
                        "latency_ms": section.latency.get(title),
                    }
                    for title, row in section.rows.items()
                },
                **{f"{title}, head only": head for title, head in section.head.items()},
                "differences": [_difference(one) for one in section.differences],
                "differences to fine-tuned pretrained": [_difference(d) for d in section.picked],
                "note": section.note,
            }
            for section in sections
        ],
        "reproduce": about,
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "verdict": one.verdict, "sentence": one.sentence}
