"""The report says what was planted, next to the paper's numbers, and needs no network."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import spiritseg
from compare.conftest import NAMES, per_image
from spiritseg.cli import main
from spiritseg.compare import figures
from spiritseg.compare.conclusions import Setting, cautions, make_setting, verdict
from spiritseg.compare.figures import _shown
from spiritseg.compare.matrix import plan, run
from spiritseg.compare.measured import MeasuredImages, head_only
from spiritseg.compare.report import Report, report
from spiritseg.compare.results import Row, Run, read_runs, rows_of, settings_of
from spiritseg.compare.tables import tables
from spiritseg.config import Extractor, Head, Network
from spiritseg.data.domains import open_domains
from spiritseg.errors import BundleError, ConfigError, RunError
from spiritseg.models.bundle import BundleInfo, save_bundle
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.separable import separable
from spiritseg.recipes import load_experiment

Planted = Callable[..., Path]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out where a test looks at words only: it takes a second a report."""
    monkeypatch.setattr(figures, "drawn", lambda draw, is_photo: (b"", b""))


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
    # The three real gains are at their own level: neither is a gain over the other.
    picked = said["differences to fine-tuned pretrained"]
    assert {d["verdict"] for d in picked if d["name"] == "SD"} == {"no significant gain"}


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
    assert found["cost"][0] == ["network", "seeds", *own]
    rows = {row[0]: row for row in found["cost"]}
    assert list(rows)[1:] == ["S", "CT, head only", "CT, fine-tuned", "SD", "ESD r=0.5"]
    assert rows["SD"][4] == f"{miou.mean():.1f} ± {miou.std(ddof=1):.1f}"
    assert rows["SD"][6] == f"{var.mean():.2f} ± {var.std(ddof=1):.2f}"
    assert rows["CT, head only"][1:] == ["0", "1.90", "3.400", *["–"] * 4]
    assert [row[0] for row in found["ratios"][1:]] == ["S", "SD", "ESD r=0.5", "ESD r=0"]
    assert found["ratios"][0][2:] == ["mIOU %", "HP-Acc %", "Var e-3"]


def test_the_papers_numbers_stand_next_to_its_recipes(planted: Planted) -> None:
    recipes = ["baseline", "sd", "paper-baseline", "paper-ct", "paper-sd"]
    recipes += ["paper-esd@0.5", "paper-esd@0", "paper-esd@5"]
    found = tables(_setting(planted(dict.fromkeys(recipes, 0.0), seeds=1)))
    cost = {row[0]: row[-4:] for row in found["cost"]}
    ratios = {row[0]: row[-3:] for row in found["ratios"]}
    own = " (paper's network)"
    assert cost["network"] == [f"paper {n}" for n in ("GFLOPs", "params M", "mIOU %", "HP-Acc %")]
    assert cost["S" + own] == ["169.4", "9.5", "81.7", "81.2"]
    assert cost["SD" + own] == ["169.4", "9.5", "83.5", "84.6"]
    assert cost[f"ESD{own} r=0.5"] == ["169.4", "9.5", "83.3", "89.2"]
    assert cost[f"CT{own}, head only"] == ["405.7", "23.6", "58.9 to 62.6", "–"]
    assert cost[f"CT{own}, fine-tuned"] == ["405.7", "23.6", "58.9 to 62.6", "–"]
    assert ratios["S" + own] == ["81.7", "81.2", "5.77"]
    assert ratios["SD" + own] == ["83.5", "84.6", "5.70"]
    assert ratios[f"ESD{own} r=0.5"] == ["83.3", "89.2", "4.71"]
    assert ratios[f"ESD{own} r=0"] == ["83.1", "89.4", "4.51"]
    assert {*cost["S"], *cost["SD"], *ratios["S"], *ratios[f"ESD{own} r=5"]} == {"–"}


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_the_papers_networks(planted: Planted) -> None:
    runs = planted({"paper-baseline": 0.0, "paper-ct": 0.0, "paper-sd": 0.03})
    text = _text(report(runs, baseline="paper-baseline", latency=False, resamples=100))
    assert "distillation helped: SD (paper's network) gained mIOU over S (paper's network)" in text
    assert "CT (paper's network) without fine-tuning, the first 64 labelled images" in text
    assert "Cost and accuracy as in the paper's Table II" in text
    assert "Table III" not in text  # no ratio was run
    said = json.loads((runs / "results.json").read_text())["settings"][0]
    assert said["CT (paper's network), head only"] == {}


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
    assert f"Pass --baseline to spiritseg report, one of: {', '.join(names)} (~" in text
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
    runs = planted({"baseline": 0.0}, seeds=2)
    networks = {"student": Network(Extractor("os.path.join"), Head("none"))}
    info = BundleInfo(networks, "student", ("a", "b"), ((0, 0, 0), (1, 1, 1)), 2)
    save_bundle(runs / "baseline-n64-s1" / "student", Segmenter(separable(8, 8), None), info)
    with pytest.raises(SystemExit) as caught:  # its config.yaml makes it nobody's own
        main(["report", str(runs), "--no-latency"])
    assert caught.value.code == 2
    assert re.search(r"os\.path\.join.*\(--trust", capsys.readouterr().err, re.S)
    with pytest.raises(BundleError, match="trust=True"):
        report(runs, latency=False, resamples=10)
    assert report(runs, latency=False, resamples=10, trust=True).page.is_file()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """S, CT and SD, really run for a step a stage on embedded scenes."""
    out = tmp_path_factory.mktemp("real")
    scenes = {"train": 4, "val": 1, "test": 6, "size": [64, 72]}
    fields: dict[str, Any] = {
        "target.dataset": "scenes",
        "target.scenes": scenes,
        "input.crop": 64,
        "networks.teacher.extractor.weights": "random",
        "evaluation.latency": False,
        "evaluation.pictures": 0,
        "trainer.progress": False,
        "trainer.accelerator": "cpu",
    }
    # Fine-tuning changes no mask, so that the head stage's are known from the student's.
    fields |= {"stages.all.optimizer.lr": 1e-12, "stages.all.optimizer.schedule": "constant"}
    for stage in ("supervised", "mimicry", "head", "all"):
        fields |= {f"stages.{stage}.max_steps": 1, f"stages.{stage}.batch_size": 2}
    assert all(
        one.state == "finished" for one in run(plan(["baseline", "ct", "sd"], fields, 1), out)
    )
    return out


def _invert(weights: Path) -> None:
    """Make a network of two classes answer the other one."""
    tensors = load_file(weights)
    for name in list(tensors)[-2:]:
        assert tensors[name].shape[0] == 2  # the classifier
        tensors[name] = -tensors[name]
    save_file(tensors, weights)


def _naive_miou(run: Path) -> float:
    """Measure the inverted masks of a run's student with plain numpy."""
    student = spiritseg.load(run)
    domains = open_domains(load_experiment(run / "config.yaml"), target_only=True)
    found = []
    for index in range(len(domains.test)):
        image, labels = domains.test[index]
        mask, truth = 1 - student(image), labels.numpy()
        valid = truth != 255
        pairs = [(valid & (mask == k), valid & (truth == k)) for k in (0, 1)]
        found.append(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs if (a | b).any()]))
    return float(np.mean(found))


def test_students_are_loaded_for_latency_pictures_and_the_head_stage(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _invert(real / "ct-n64-s0/stages/1-head/network.safetensors")
    with pytest.raises(SystemExit) as caught:
        main(["report", str(real), "--out", str(real / "report")])
    assert caught.value.code == 0, capsys.readouterr().err
    said = json.loads((real / "report/results.json").read_text())
    setting = said["settings"][0]
    assert all(row["latency_ms"] > 0 for row in setting["rows"].values())
    head = setting["CT, head only"]["0"]
    assert head["images"] == 6
    assert head["mIOU"] == pytest.approx(_naive_miou(real / "ct-n64-s0"), abs=1e-6)
    assert {s: m["count"] for s, m in said["reproduce"]["images"].items()} == {
        "train": 4,
        "val": 1,
        "test": 6,
    }
    page = (real / "report/report.html").read_text()
    assert page.count('src="data:image/png') == 1
    assert "Predictions <small>as in the paper's Figure 6" in page
    names = {path.stem for path in (real / "report/figures").iterdir()}
    assert names == {"cost", "histogram", "predictions", "steadiness", "thresholds"}


def test_what_was_measured_of_the_head_stage_is_of_the_runs_own_images(real: Path) -> None:
    row = rows_of(read_runs([real]), "64")["CT"]
    kept = real / "ct-n64-s0/stages/1-head/test.json"
    head_only(row, MeasuredImages(row.first, {}))
    kept.write_text(json.dumps({"images": -1}))
    assert head_only(row, MeasuredImages(row.first, {})) == {0: {"images": -1}}
    other = head_only(row, MeasuredImages(row.first, {"target.scenes.test": 3}))
    assert other[0]["images"] == 3
    assert json.loads(kept.read_text()) == {"images": -1}
    kept.unlink()
    head_only(row, MeasuredImages(row.first, {"target.scenes.test": 3}))
    assert not kept.exists()


def _browser() -> tuple[Any, str]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    return playwright, found


_PIXELS = """() => Promise.all([...document.images].map(async image => {
    await image.decode();
    const canvas = document.createElement('canvas');
    canvas.width = 200; canvas.height = 120;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0, 200, 120);
    const data = context.getImageData(0, 0, 200, 120).data;
    const seen = new Set();
    for (let i = 0; i < data.length; i += 4)
        if (data[i + 3]) seen.add([data[i], data[i + 1], data[i + 2]].join());
    return {name: image.alt, width: image.naturalWidth, colours: seen.size};
}))"""


def test_the_page_opens_in_a_browser_alone(planted: Planted) -> None:
    playwright, browser = _browser()
    gains = {"baseline": 0.0, "sd": 0.02, "esd@5": 0.0, "esd@0": 0.02, "finetune-pretrained": 0.03}
    runs = planted(gains)
    planted({"baseline": -0.05, "sd": -0.02}, seeds=1, **{"target.subset": "first:16"})
    page = report(runs, latency=False, resamples=100).page
    flags = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
    with playwright.sync_playwright() as session:
        chromium = session.chromium.launch(
            executable_path=browser, args=[*flags, "--disable-component-update", "--disable-sync"]
        )
        for scripts in (True, False):
            tab = chromium.new_context(java_script_enabled=scripts).new_page()
            said: list[str] = []
            asked: list[str] = []
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(page.as_uri(), wait_until="load")
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
            if scripts:
                images = tab.evaluate(_PIXELS)
                wide = tab.evaluate("document.documentElement.scrollWidth > window.innerWidth")
            assert tab.inner_text("h1") == "Does distillation help?"
        chromium.close()
    assert len(images) == 6
    for image in images:
        assert image["width"] > 300, image
        assert image["colours"] > 10, image
    assert not wide


def _row(recipe: str, **fields: int) -> Row:
    given = {name.replace("__", "."): value for name, value in fields.items()}
    experiment = load_experiment(recipe, given, complete=False)
    return Row(recipe, {0: Run(Path(), recipe, experiment, {}, {})})


def test_the_pictures_show_the_papers_networks_too() -> None:
    recipes = ("paper-baseline", "paper-ct", "best", "paper-sd", "paper-esd")
    shown = _shown({recipe: _row(recipe) for recipe in recipes}, "paper-baseline")
    assert list(shown)[:3] == ["paper-baseline", "paper-sd", "paper-esd"]
    assert "paper-ct" not in shown


def test_unequal_budgets_are_said() -> None:
    rows = {"S": _row("baseline"), "SD": _row("sd"), "CT": _row("ct")}
    assert cautions(rows) == []
    rows["SD"] = _row("sd", stages__all__max_steps=20)  # and 100 of the head
    said = ["Unequal budgets. Supervised steps: S 300, SD 120, CT 300."]
    assert cautions(rows) == said
    few = Row("few", dict.fromkeys(range(2), rows["S"].first))
    assert cautions({"S": rows["S"], "few": few}) == ["Fewer seeds than the others: S (1 of 2)."]
    rows["best"] = _row("best")  # it sees no label itself, so that steps with labels do not count
    assert cautions(rows) == said


def _taken(row: Row, **steps: int) -> Run:
    metrics = {"stages": {name: {"steps": count} for name, count in steps.items()}}
    return replace(row.first, metrics=metrics)


def test_budgets_are_the_steps_that_were_taken() -> None:
    alone, distilled = _row("paper-baseline"), _row("paper-sd")  # bounded by epochs and patience
    seeds = {seed: _taken(alone, supervised=steps) for seed, steps in enumerate((800, 900))}
    equal = _taken(distilled, mimicry=3000, head=500, all=350)
    rows = {"S": Row("S", seeds), "SD": Row("SD", {0: equal, 1: equal})}
    assert cautions(rows) == []
    fewer = _taken(distilled, mimicry=3000, head=500, all=40)
    rows["SD"] = Row("SD", {0: fewer, 1: fewer})
    assert cautions(rows) == ["Unequal budgets. Supervised steps: S 850, SD 540."]
