"""The report says what was planted, next to the paper's numbers, and needs no network."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare.conftest import NAMES, TINY, Planted, per_image, steps
from spiritseg.cli import main
from spiritseg.compare import figures
from spiritseg.compare.conclusions import Setting, cautions, make_setting, tables, verdict
from spiritseg.compare.figures import _side_by_side
from spiritseg.compare.matrix import plan, run
from spiritseg.compare.report import Report, report
from spiritseg.compare.results import Row, Run, read_runs, rows_of, settings_of
from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import BundleError, ConfigError, RunError
from spiritseg.files import fields_digest
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.separable import separable
from spiritseg.recipes import load_experiment


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out where a test looks at words only: it takes a second a report."""
    monkeypatch.setattr(figures, "drawn", lambda draw: b"")


def _text(found: Report) -> str:
    """Return the page's words, one space between them."""
    plain = re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]*"', "", found.page.read_text()))
    return " ".join(plain.split()).replace("&#39;", "'").replace("&lt;", "<")


@pytest.mark.usefixtures("undrawn")
def test_a_planted_gain_is_significant_and_none_is_not(planted: Planted) -> None:
    runs = planted({"baseline": 0.0, "sd": 0.03, "esd@0.5": 0.0, "finetune-pretrained": 0.03})
    found = report(runs, latency=False, resamples=1000)
    said = json.loads((runs / "results.json").read_text())["settings"][0]
    verdicts = {d["name"]: d["verdict"] for d in said["differences"] if d["metric"] == "mIOU"}
    assert verdicts == {
        "SD": "significant gain",
        "ESD r=0.5": "no significant gain",
        "fine-tuned pretrained": "significant gain",
    }
    text = _text(found)
    assert "distillation helped: SD gained mIOU over S" in text
    assert found.verdict.head in repr(found)
    assert f"report: {runs / 'report.html'}" in repr(found)
    assert "SD" in found._repr_html_()
    assert re.search(r"ESD r=0.5: mIOU [+-]\d.\d points .*? no significant gain", text)


@pytest.mark.usefixtures("undrawn")
def test_below_five_seeds_there_is_no_verdict(planted: Planted) -> None:
    runs = planted({"baseline": 0.0, "sd": 0.2}, seeds=4)
    text = _text(report(runs, latency=False, resamples=100))
    assert "too few for a verdict" in text
    assert "too few seeds (4 of the 5 that a verdict needs)" in text
    assert "significant gain" not in text


def _setting(runs: Path) -> Setting:
    return make_setting(read_runs([runs]), "64", "baseline", 10)


def test_tables_hold_means_and_only_what_was_run(planted: Planted) -> None:
    gains = {"baseline": 0.0, "ct": -0.02, "sd": 0.02, "esd@0.5": 0.02, "esd@0": 0.02}
    found = tables(_setting(planted(gains, seeds=2)))
    values = np.array([per_image(0.02, seed, 2) for seed in range(2)])
    miou, var = 100 * values.mean(1), 1000 * values.var(1)
    own = ["GFLOPs", "params M", "mIOU %", "HP-Acc %", "Var e-3", "dataset mIoU %"]
    assert found["results"][0] == ["network", "seeds", *own]
    rows = {row[0]: row for row in found["results"]}
    assert list(rows)[1:] == ["S", "CT", "SD", "ESD r=0.5", "ESD r=0"]
    assert rows["CT"][1:4] == ["2", "1.90", "3.400"]
    assert rows["SD"][4] == f"{miou.mean():.1f} ± {miou.std(ddof=1):.1f}"
    assert rows["SD"][6] == f"{var.mean():.2f} ± {var.std(ddof=1):.2f}"


def test_the_papers_numbers_stand_next_to_its_recipes(planted: Planted) -> None:
    recipes = ["baseline", "sd", "paper-baseline", "paper-ct", "paper-sd"]
    recipes += ["paper-esd@0.5", "paper-esd@0", "paper-esd@5"]
    table = tables(_setting(planted(dict.fromkeys(recipes, 0.0), seeds=1)))["results"]
    rows = {row[0]: row[-5:] for row in table}
    own, names = " (paper's network)", ("GFLOPs", "params M", "mIOU %", "HP-Acc %", "Var e-3")
    assert rows["network"] == [f"paper {name}" for name in names]
    assert rows["S" + own] == ["169.4", "9.5", "81.7", "81.2", "5.77"]
    assert rows["SD" + own] == ["169.4", "9.5", "83.5", "84.6", "5.70"]
    assert rows[f"ESD{own} r=0.5"] == ["169.4", "9.5", "83.3", "89.2", "4.71"]
    assert rows[f"ESD{own} r=0"] == ["169.4", "9.5", "83.1", "89.4", "4.51"]
    assert rows[f"CT{own}"] == ["405.7", "23.6", "58.9 to 62.6", "–", "–"]
    assert {*rows["S"], *rows["SD"], *rows[f"ESD{own} r=5"]} == {"–"}


@pytest.mark.usefixtures("undrawn")
def test_results_are_tidy(planted: Planted) -> None:
    runs = planted({"baseline": 0.0, "esd@5": 0.02}, seeds=2)
    report(runs, latency=False, resamples=10)
    rows = list(csv.DictReader(io.StringIO((runs / "results.csv").read_text())))
    assert [(r["recipe"], r["ratio"], r["labels"], r["seed"]) for r in rows] == [
        ("baseline", "", "64", "0"),
        ("baseline", "", "64", "1"),
        ("esd", "5.0", "64", "0"),
        ("esd", "5.0", "64", "1"),
    ]
    assert float(rows[2]["mIOU"]) == pytest.approx(per_image(0.02, 0, 1).mean())
    assert rows[2]["R2 proximity"] == "0.3"
    assert rows[2]["seconds mimicry"] == "12.5"
    assert "IoU road" in rows[0]


def test_runs_are_told_apart(planted: Planted) -> None:
    runs = planted({"baseline": 0.0, "esd@5": 0.0, "esd@0": 0.0}, seeds=2)
    planted({"baseline": 0.0}, seeds=1, **{"target.subset": "first:16"})
    found = read_runs([runs])
    assert settings_of(found) == ["64", "16"]
    assert list(rows_of(found, "64")) == ["S", "ESD r=5", "ESD r=0"]
    assert sorted(rows_of(found, "64")["S"].runs) == [0, 1]
    assert found[0].per_image.keys() == set(NAMES)
    shutil.copytree(runs / "baseline-n64-s0", runs / "again" / "baseline-n64-s0")
    assert len(read_runs([runs])) == len(found)  # the same run twice counts once
    other = planted({"baseline": 0.0}, seeds=1, **{"input.flip": 0.0, "target.subset": "all"})
    (other / "baseline-all-s0").rename(other / "baseline-s0-0123456789")
    assert {run.recipe for run in read_runs([other / "baseline-s0-0123456789"])} == {"baseline"}


@pytest.mark.usefixtures("undrawn")
def test_variants_of_the_baseline_are_named(planted: Planted, tmp_path: Path) -> None:
    planted({"baseline": 0.0, "sd": 0.0}, seeds=1).rename(tmp_path / "first")
    planted({"baseline": 0.0}, seeds=1, **{"input.flip": 0.0})
    text = _text(report(tmp_path, latency=False, resamples=10))
    names = sorted({one.recipe for one in read_runs([tmp_path])} - {"sd"})
    assert len(names) == 2
    assert all(re.fullmatch(r"baseline~[0-9a-f]{4}", name) for name in names)
    named = re.search(r"Pass --baseline to spiritseg report, one of: ([^(]+) \(~", text)
    assert named
    assert set(named[1].split(", ")) == {*names, "sd"}
    text = _text(report(tmp_path, baseline=names[0], latency=False, resamples=10))
    assert f"Differences from S ({names[0].partition('~')[2]})" in text
    assert "Pass --baseline" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_missing_baseline_is_said_of_every_number_of_labels(planted: Planted) -> None:
    gone = {"target.dataset": "folder", "target.root": "gone"}
    runs = planted({"baseline": 0.0, "sd": 0.0}, seeds=2, **gone)
    planted({"sd": 0.0}, seeds=1, **{"target.subset": "first:16"})
    text = _text(report(runs, latency=False, resamples=10))
    assert "Predictions: the images cannot be opened here" in text
    assert text.count("No run is of the recipe baseline: nothing to compare with.") == 1


def test_few_images_are_no_verdict(planted: Planted) -> None:
    found = read_runs([planted({"baseline": 0.0, "sd": 0.2})])
    for one in found:
        one.__dict__["per_image"] = dict(list(one.per_image.items())[:4])  # where it is cached
    setting = make_setting(found, "64", "baseline", 100)
    assert {one.verdict for one in setting.differences} == {"too few images"}
    head = verdict(setting).head
    assert "4 test images, too few for a verdict" in head
    assert "significant" not in head


def _alike(found: list[Run], recipe: str, alike: bool) -> None:
    """Measure on two drives; one recipe's gain comes and goes slowly, or is not there at all."""
    names = [f"drive{i // 75}_frame{i % 75}.png" for i in range(150)]
    reference = np.random.default_rng(4).uniform(0.5, 0.9, 150)
    slow = np.sin(np.arange(150) / 12) + 0.5
    for one in found:
        values = reference + 0.05 * slow * (alike and one.recipe == recipe)
        one.__dict__["per_image"] = dict(zip(names, values.tolist(), strict=True))


def test_images_that_are_too_alike_are_no_verdict(planted: Planted) -> None:
    found = read_runs([planted({"baseline": 0.0, "sd": 0.0})])
    _alike(found, "sd", alike=True)
    setting = make_setting(found, "64", "baseline", 100)
    said = next(one for one in setting.differences if one.metric == "mIOU")
    assert said.verdict == "too few independent images"
    assert "of the 10 blocks of frames that a verdict needs" in said.sentence
    head = verdict(setting).head
    assert "too few independent images for a verdict on SD" in head
    assert "150 test images make fewer than 10 independent blocks" in head
    assert "significant" not in head
    assert "150 test images from 2 sequences" in setting.note
    assert "below 10 blocks there is no verdict" in setting.note
    assert tables(setting)["differences"][1][-1] == "too few independent images"


def test_equal_results_are_no_difference(planted: Planted) -> None:
    found = read_runs([planted({"baseline": 0.0, "sd": 0.0})])
    _alike(found, "sd", alike=False)
    setting = make_setting(found, "64", "baseline", 100)
    assert {one.verdict for one in setting.differences} == {"no difference"}
    head = verdict(setting).head
    assert "every distilled network has exactly the results of S" in head
    row = tables(setting)["differences"][1]
    assert row[2:6] == ["+0.0", "+0.0 to +0.0", "1.0000", "1.0000"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("value", ["nan", ""])
def test_a_miou_that_is_no_number_names_the_run_and_the_image(planted: Planted, value: str) -> None:
    runs = planted({"baseline": 0.0, "sd": 0.0}, seeds=4)
    path = runs / "sd-n64-s3" / "per_image.csv"
    lines = path.read_text().splitlines()
    lines[20] = f"{NAMES[19]},{value}"
    path.write_text("\n".join(lines))
    wanted = rf"sd-n64-s3.*finite mIOU of image {NAMES[19]}, got '{value}'. Delete the run's folder"
    with pytest.raises(RunError, match=wanted):
        report(runs, latency=False, resamples=10)
    path.write_text("image,mIOU\n")
    with pytest.raises(RunError, match=r"sd-n64-s3.*mIOU of each test image, got none"):
        report(runs, latency=False, resamples=10)
    path.unlink()
    with pytest.raises(RunError, match=r"cannot read .*sd-n64-s3.*leave it out"):
        report(runs, latency=False, resamples=10)


def test_figures_that_were_edited_are_refused(planted: Planted) -> None:
    runs = planted({"baseline": 0.0, "sd": 0.0}, seeds=2)
    path = runs / "sd-n64-s1" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["sha256"] = fields_digest(metrics)
    path.write_text(json.dumps(metrics))
    read_runs([runs])
    metrics["test"]["mIOU"] = 0.999
    path.write_text(json.dumps(metrics))
    with pytest.raises(RunError, match=r"sd-n64-s1 was changed after the run"):
        read_runs([runs])


def test_a_teacher_that_no_loss_reads_distils_nothing(planted: Planted) -> None:
    found = read_runs([planted({"baseline": 0.0, "finetune-pretrained": 0.0})])
    idle = []
    for one in found:
        stages = {n: replace(s, teacher="teacher") for n, s in one.experiment.stages.items()}
        idle.append(replace(one, experiment=replace(one.experiment, stages=stages)))
    head = verdict(make_setting(idle, "64", "baseline", 100)).head
    assert "no distilled network has been run besides the baseline" in head


@pytest.mark.usefixtures("undrawn")
def test_what_names_say_is_escaped(planted: Planted) -> None:
    runs = planted({"baseline": 0.0, "sd": 0.0}, seeds=1)
    path = runs / "sd-n64-s0"
    manifest = {"runs": {"sd-n64-s0": {"recipe": "<script>alert(1)</script>"}}}
    (runs / "matrix.json").write_text(json.dumps(manifest))
    assert path.is_dir()
    page = report(runs, latency=False, resamples=10).page.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_no_runs_and_unknown_baselines_are_one_clear_error(
    planted: Planted, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="no finished run"):
        report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown recipe 'basline'"):
        report(planted({"baseline": 0.0}, seeds=1), baseline="basline")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot make the folder .*file"):
        report(tmp_path / "runs", out=tmp_path / "file")


@pytest.mark.usefixtures("undrawn")
def test_a_report_loads_no_class_of_a_student_unasked(
    planted: Planted, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planted({"baseline": 0.0}, seeds=1)
    networks = {"student": Network(Extractor("os.path.join"), Head("none"))}
    info = BundleInfo(networks, "student", ("a", "b"), ((0, 0, 0), (1, 1, 1)), 2)
    save_bundle(runs / "baseline-n64-s0" / "student", Segmenter(separable(8, 8), None), info)
    with pytest.raises(SystemExit) as caught:  # its config.yaml makes it nobody's own
        main(["report", str(runs)])
    assert caught.value.code == 2
    assert re.search(r"os\.path\.join.*\(--trust", capsys.readouterr().err, re.S)
    with pytest.raises(BundleError, match="trust=True"):
        report(runs, resamples=10)
    assert report(runs, latency=False, resamples=10).page.is_file()  # which loads none


def test_students_are_loaded_for_latency_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {
        **TINY,
        **steps(1, "supervised", "mimicry", "head", "all"),
        "networks.teacher.extractor.weights": "random",
    }
    outcomes = run(plan(["baseline", "sd"], fields, 1), tmp_path)
    assert {one.state for one in outcomes} == {"finished"}
    with pytest.raises(SystemExit) as caught:
        main(["report", str(tmp_path), "--out", str(tmp_path / "report")])
    assert caught.value.code == 0, capsys.readouterr().err
    setting = json.loads((tmp_path / "report/results.json").read_text())["settings"][0]
    assert setting["latency_ms"].keys() == {"S", "SD"}
    assert all(value > 0 for value in setting["latency_ms"].values())
    page = (tmp_path / "report/report.html").read_text()
    assert "Predictions <small>as in the paper's Figure 6" in page
    names = {path.stem for path in (tmp_path / "report/figures").iterdir()}
    assert names == {"cost", "histogram", "predictions", "steadiness"}


def test_the_page_needs_no_other_file_and_its_figures_show_something(planted: Planted) -> None:
    gains = {"baseline": 0.0, "sd": 0.02, "esd@5": 0.0, "esd@0": 0.02, "finetune-pretrained": 0.03}
    runs = planted(gains, seeds=2)
    planted({"baseline": -0.05, "sd": -0.02}, seeds=1, **{"target.subset": "first:16"})
    page = report(runs, latency=False, resamples=100).page.read_text()
    assert not re.search(r"<script|url\(|@import", page)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("data:") for link in links)
    pictures = [link.partition("base64,")[2] for link in links if "image/png" in link]
    assert len(pictures) == 5
    for picture in map(base64.b64decode, pictures):
        with Image.open(io.BytesIO(picture)) as image:
            assert image.width > 800
            assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10
    names = {path.stem for path in (runs / "figures").iterdir()}
    assert names == {"cost", "histogram", "ratio", "steadiness", "labels"}


def _row(recipe: str, **fields: int) -> Row:
    given = {name.replace("__", "."): value for name, value in fields.items()}
    experiment = load_experiment(recipe, given, complete=False)
    return Row(recipe, {0: Run(Path(), recipe, experiment, {}, {})})


def test_the_pictures_show_the_papers_networks_too() -> None:
    recipes = ("paper-baseline", "paper-ct", "best", "paper-sd", "paper-esd")
    shown = _side_by_side({recipe: _row(recipe) for recipe in recipes}, "paper-baseline")
    assert list(shown)[:3] == ["paper-baseline", "paper-sd", "paper-esd"]
    assert "paper-ct" not in shown


def _taken(row: Row, **steps: int) -> Run:
    metrics = {"stages": {name: {"steps": count} for name, count in steps.items()}}
    return replace(row.first, metrics=metrics)


def test_unequal_budgets_and_seeds_are_named() -> None:
    rows = {"S": _row("baseline"), "SD": _row("sd"), "CT": _row("ct")}
    assert cautions(rows) == []
    rows["SD"] = _row("sd", stages__all__max_steps=20)  # and 100 of the head
    unequal = ["Unequal budgets. Supervised steps: S 300, SD 120, CT 300."]
    assert cautions(rows) == unequal
    rows["best"] = _row("best")  # it sees no label itself, so that steps with labels do not count
    assert cautions(rows) == unequal
    few = Row("few", dict.fromkeys(range(2), rows["S"].first))
    assert cautions({"S": rows["S"], "few": few}) == ["Fewer seeds than the others: S (1 of 2)."]
    # Steps that were taken count, not those that epochs and patience allow; mean over seeds.
    alone, distilled = _row("paper-baseline"), _row("paper-sd")
    seeds = {seed: _taken(alone, supervised=count) for seed, count in enumerate((800, 900))}
    for count, expected in (
        (350, []),
        (40, ["Unequal budgets. Supervised steps: S 850, SD 540."]),
    ):
        taken = _taken(distilled, mimicry=3000, head=500, all=count)
        assert cautions({"S": Row("S", seeds), "SD": Row("SD", {0: taken, 1: taken})}) == expected
