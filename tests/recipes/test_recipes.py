"""Recipes: read, overridden, checked all at once, found again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spiritseg.config import Experiment
from spiritseg.errors import ConfigError
from spiritseg.recipes import (
    differences,
    fingerprint,
    load_experiment,
    recipe_names,
    recipes,
    recorded_experiment,
    to_yaml,
)

ROOTS = {"target.root": "labelled", "proximity.root": "unlabelled"}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SKD = ("pixelwise", "pairwise", "holistic")
LRASPP = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"


def _whole(name: str) -> Experiment:
    """Load a recipe with what a user has to give."""
    needs_bundle = Path(name).stem.startswith("skd")
    bundle = {"networks.teacher.bundle": "runs/teacher/student"} if needs_bundle else {}
    return load_experiment(name, {**ROOTS, **bundle})


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    experiment = _whole(name)
    path = tmp_path / "copy.yaml"
    path.write_text(to_yaml(experiment))
    again = load_experiment(path)
    assert again == experiment
    assert fingerprint(again) == fingerprint(experiment)


@pytest.mark.parametrize("folder", ["skd", "opponent"])
def test_the_recipes_of_the_benchmarks_are_whole_and_differ(folder: str) -> None:
    found = [_whole(str(path)) for path in (BENCHMARKS / folder).glob("*.yaml")]
    shipped = [_whole(name) for name in recipe_names()]
    prints = [fingerprint(experiment) for experiment in (*found, *shipped)]
    assert len(found) > 5
    assert len(set(prints)) == len(found) + len({fingerprint(one) for one in shipped})


def test_the_recipes_of_the_design_are_there() -> None:
    wanted = {"baseline", "finetune-pretrained", "ct", "sd", "esd", "demo"}
    wanted |= {"paper-baseline", "paper-ct", "paper-sd", "paper-esd"}
    wanted |= {"teacher", "skd-paper", "skd-released", "sd-skd"}
    assert wanted <= set(recipe_names())


def test_the_list_says_what_each_recipe_needs() -> None:
    found = {one.name: one for one in recipes()}
    assert sorted(found) == recipe_names()
    for name, one in found.items():
        experiment = _whole(name)
        stages = experiment.stages.values()
        unlabelled = any(stage.images != "target" for stage in stages)
        assert len(one.summary) > 20
        assert ("unlabelled images" in one.needs) == (unlabelled and name != "demo")
        assert ("bundle" in one.needs) == (
            experiment.networks["teacher"].bundle is not None
            if "teacher" in experiment.networks
            else False
        )
        assert ("paper's" in one.needs) == name.startswith("paper")
    lines = str(recipes()).splitlines()
    assert lines[0] == "labelled images:"


def test_best_scratch_pretrains_its_teachers_only() -> None:
    experiment = _whole("best-scratch")
    weights = {name: one.extractor.weights for name, one in experiment.networks.items()}
    assert weights.pop("student") == "random"
    assert set(weights.values()) == {"pretrained"}
    assert experiment.networks["student"].extractor.base is None


def test_the_skd_presets_hold_the_papers_and_the_released_constants() -> None:
    paper = _whole("skd-paper").stages["distil"].losses
    assert [paper[name].weight for name in SKD] == [10, 10, 0.1]
    assert (paper["pixelwise"].direction, paper["pixelwise"].reduction) == (
        "student_teacher",
        "mean",
    )
    assert (paper["holistic"].kind, paper["holistic"].gradient_penalty) == ("wgan-gp", 10)
    assert paper["holistic"].conditioned
    code = _whole("skd-released").stages["distil"].losses
    assert [code[name].weight for name in SKD] == [10, 0.5, 0.1]
    assert code["pixelwise"].reduction == "batch_sum"
    assert (code["pairwise"].pooling, code["pairwise"].node_size) == ("max", 0.5)
    assert code["pairwise"].detach_norms
    assert (code["holistic"].maps, code["holistic"].conditioned) == ("logits", False)
    assert code["holistic"].spectral_norm


@pytest.mark.parametrize("base", ["skd", "skd-paper", "skd-released"])
def test_the_variants_leave_out_what_their_names_do(base: str) -> None:
    def used(name: str) -> set[str]:
        path = BENCHMARKS / "skd" / f"{name}.yaml"
        return set(_whole(str(path) if path.exists() else name).stages["distil"].losses)

    assert used(base) == {"cross_entropy", "pixelwise", "pairwise", "holistic"}
    assert used(f"{base}-pixel-pair") == {"cross_entropy", "pixelwise", "pairwise"}
    assert used(f"{base}-pixel") == {"cross_entropy", "pixelwise"}


def test_the_paper_recipes_hold_the_papers_figures() -> None:
    stages = load_experiment("paper-esd", ROOTS).stages
    rates = {n: (s.optimizer.name, s.optimizer.lr, s.optimizer.momentum) for n, s in stages.items()}
    assert rates == {
        "mimicry": ("sgd", 3e-3, 0.99),
        "head": ("sgd", 1e-2, 0.9),
        "all": ("sgd", 5e-5, 0.99),
    }
    assert {s.optimizer.weight_decay for s in stages.values()} == {3e-3}
    assert [(s.trains, s.images) for s in stages.values()] == [
        ("extractor", "target+proximity"),
        ("head", "target"),
        ("all", "target"),
    ]
    head = load_experiment("paper-sd", ROOTS).networks["student"].head
    assert (head.channels, head.convolution) == (512, "grouped")


def test_esd_is_sd_but_for_what_the_mimic_sees() -> None:
    found = differences(load_experiment("sd", ROOTS), load_experiment("esd", ROOTS))
    fields = ["images", "num_views", "scale"]
    assert [line.split(":")[0] for line in found] == [f"stages.mimicry.{f}" for f in fields]


@pytest.mark.parametrize(
    ("field", "given", "expected"),
    [
        ("stages.head.max_steps", "7", 7),
        ("stages.head.max_steps", 7, 7),
        ("input.scale", "0.5 2", (0.5, 2.0)),
        ("input.scale", ["0.5", "2"], (0.5, 2.0)),
        ("trainer.devices", "2", 2),
        ("trainer.devices", "auto", "auto"),
        ("proximity.root", ["a", "b"], ["a", "b"]),
        ("input.skip_bad", "true", True),
        ("stages.head.optimizer.lr", "1e-3", 1e-3),
        ("networks.teacher.extractor.args", {"drop": 0.1}, {"drop": 0.1}),
    ],
)
def test_overrides_take_the_type_of_their_field(
    field: str, given: object, expected: object
) -> None:
    value: object = load_experiment("esd", {**ROOTS, field: given})
    for part in field.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_all_problems_are_reported_at_once() -> None:
    wrong = {
        "target.rot": "x",
        "seed": "1.5",
        "stages.head.optimizer.name": "sgdd",
        "networks.student.extractor.strides": ["a"],
        "networks.student.extractor.policy": "spatail",
    }
    with pytest.raises(ConfigError) as caught:
        load_experiment("esd", {**ROOTS, **wrong})
    message = str(caught.value)
    assert "5 problem(s)" in message
    for part in (
        "Did you mean root?",
        "seed: expected a whole number, got '1.5'",
        "Did you mean sgd?",
        "strides",
        "Did you mean spatial",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"stages.mimicry.ratio": -1}, "ratio: expected 0 or more, got -1"),
        ({"target.root": None}, "--target.root DIR"),
        ({"proximity.root": None}, "--proximity.root DIR"),
        ({"result": "studnt"}, "Did you mean student?"),
        ({"stages.mimicry.teacher": "techer"}, "Did you mean teacher?"),
        ({"stages.mimicry.teacher": None}, "mimicry needs a teacher"),
        ({"stages.all.losses.pairwise.weight": 1}, "pairwise needs a teacher"),
        (
            {"stages.all.teacher": "teacher", "stages.all.losses.pixelwise.weight": 1},
            "pixelwise needs logits, teacher has no head",
        ),
        ({"stages.head.losses": {"cross_entropy": None}}, "a stage needs at least one loss"),
        ({"stages.mimicry.trains": "all"}, "mimicry alone trains an extractor, got 'all'"),
        (
            {
                "stages.head.teacher": "teacher",
                "stages.head.losses.mimicry.layers": {"extractor.module": "features"},
            },
            "extractor.module does not train",
        ),
        (
            {"stages.head.teacher": "teacher", "stages.head.losses.mimicry.weight": 1},
            "stages.head.losses.mimicry.layers: features does not train",
        ),
        (
            {"stages.head.teacher": "teacher", "stages.head.losses.pairwise.weight": 1},
            "stages.head.losses.pairwise.layers: features does not train",
        ),
        ({"stages.mimicry.trains": "head"}, "mimicry alone trains an extractor, got 'head'"),
        ({"stages.all.teacher": "teacher"}, "stages.all.teacher: no loss of the stage reads"),
        ({"stages.mimicry.teacher": "student"}, "cannot teach itself"),
        ({"stages.mimicry.co_teachers": ["techer"]}, "Did you mean teacher?"),
        ({"stages.mimicry.co_teachers": ["student"]}, "is the student, the teacher or named twice"),
        ({"stages.mimicry.co_teachers": ["teacher"]}, "no loss reads their class distributions"),
        ({"stages.all.co_teachers": ["teacher"]}, "expected a teacher as well, got none"),
        ({"stages.all.ema_decay": 1}, "ema_decay: expected less than 1, got 1"),
        ({"stages.head.images": "proximity"}, "needs labels"),
        ({"stages.head.max_steps": 0}, "expected a bound"),
        ({"stages.head.optimizer.lr": 0}, "expected more than 0"),
        ({"input.crop": 255}, "not a multiple of input.pool"),
        ({"input.flip": 1.5}, "expected 1 or less, got 1.5"),
        ({"stages.head.losses.cross_entropy": None}, "at least one loss"),
        ({"networks.student.extractor.name": "separable"}, "needs the name of another network"),
        ({"stages.mimicry": 3}, "expected a mapping of fields, got 3"),
        ({"stages.mimicy.max_steps": 3}, "unknown stage 'mimicy'. Did you mean mimicry?"),
        ({"stages.mimicy": None}, "unknown stage 'mimicy'. Did you mean mimicry?"),
        ({"networks.techer.extractor.weights": "x"}, "Did you mean teacher?"),
        ({"stages.mimicry": None, "stages.mimicry.num_views": 1}, "unknown stage 'mimicry'"),
        ({"stages.all.losses.cross_entropy.weight": -1}, "cross_entropy.weight: expected 0 or"),
        (
            {"stages.all.losses.cross_entropy.class_weights": {"road": -1}},
            "class_weights.road: expected 0 or more, got -1",
        ),
        ({"stages.all.losses.cross_entropy.boundary": -1}, "boundary: expected 0 or more, got -1"),
        ({"stages.all.losses.cross_entropy.boundary_width": 0}, "expected 1 or more, got 0"),
        ({"stages.mimicry.losses.mimicry.weight": -1}, "mimicry.weight: expected 0 or more"),
        ({"stages.mimicry.images": "proximity", "stages.mimicry.fda_prob": 0.5}, "changes target"),
        ({"stages.mimicry.teacher_view": "plain", "input.jitter": 0}, "both are 0"),
        ({"stages.mimicry.teacher_view": "plain", "stages.mimicry.jitter": 0}, "both are 0"),
        ({"stages.all.teacher_view": "plain"}, "plain is for a teacher"),
        ({"stages.all.jitter": 2}, "stages.all.jitter: expected 1 or less, got 2"),
        ({"stages.all.scale": [2, 1]}, "stages.all.scale: expected 0 < low <= high"),
        ({"trainer.workers": -1}, "trainer.workers: expected 0 or more, got -1"),
        ({"evaluation.batch_size": 0}, "evaluation.batch_size: expected 1 or more, got 0"),
        ({"evaluation.pictures": -1}, "evaluation.pictures: expected 0 or more, got -1"),
        ({"input.cache_mib": -1}, "input.cache_mib: expected 0 or more, got -1"),
        ({"networks.student.head.channels": 0}, "head.channels: expected 1 or more, got 0"),
        ({"networks.student.head.channels": 10**5}, "channels: expected 16384 or less, got 100000"),
        (
            {"networks.student.extractor.project": 10**5},
            "project: expected 16384 or less, got 100000",
        ),
        (
            {"networks.student.extractor.args": None},
            "args: expected a mapping of fields, got None",
        ),
        (
            {"stages.head.optimizer.lr": None},
            "stages.head.optimizer.lr: expected a number, got None",
        ),
        ({"stages.head.optimizer.lr": "null"}, "optimizer.lr: expected a number, got 'null'"),
        ({"stages.head.optimizer.name": None}, "stages.head.optimizer.name: unknown value 'None'"),
        (
            {"stages.head.optimizer.lr": float("nan")},
            "optimizer.lr: expected a finite number, got nan",
        ),
        ({"input.scale": [1, float("inf")]}, "scale: expected a finite number, got inf"),
        ({"stages": {"x/../../../esc": {}}}, "got 'x/../../../esc'"),
        ({"networks": {"x/../../../esc": {}}}, "expected a name of letters"),
        ({"stages.": {}}, "expected a name of letters"),
        ({"stages": {".hidden": {}}}, "no dot first"),
        ({"stages": {"größe": {}}}, "digits, _, - and ."),
        ({"stages": {"a\n": {}}}, r"got 'a\n'"),
        ({"stages": {"a" * 101: {}}}, "100 characters at most"),
    ],
)
def test_a_problem_is_said_with_its_field(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=r"problem\(s\)") as caught:
        load_experiment("esd", {**ROOTS, **overrides})
    assert said in str(caught.value)


def test_views_that_have_an_effect_are_taken() -> None:
    plain = {**ROOTS, "stages.mimicry.teacher_view": "plain"}
    load_experiment("esd", plain)
    load_experiment("esd", {**plain, "input.jitter": 0, "stages.mimicry.jitter": 0.5})
    load_experiment("esd", {**plain, "input.jitter": 0, "stages.mimicry.fda_prob": 0.5})


def _from_its_own_head(extractor: dict[str, object]) -> Experiment:
    """Distil from the logits of a network's own head, which no stage trains."""
    teacher = {"bundle": None, "head": {"name": "own"}, "extractor": {"base": None, **extractor}}
    losses = {"pairwise": None, "holistic": None}
    fields = {"networks.teacher": teacher, "stages.distil.losses": losses}
    return load_experiment("skd", {**ROOTS, **fields})


@pytest.mark.parametrize(
    "extractor",
    [
        {"name": "segmentation_models_pytorch.Unet", "args": {"encoder_weights": "imagenet"}},
        {"name": LRASPP, "args": {"weights_backbone": "IMAGENET1K_V1"}},
        {"name": LRASPP, "args": {"weights": None}},
        {"name": "mine.Net", "args": {"trunk_weights": "trunk.pth", "pretrained_backbone": True}},
        {"name": "deeplabv3_resnet50", "weights": "IMAGENET1K_V2"},
    ],
)
def test_weights_of_a_trunk_train_no_head(extractor: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="head of 'teacher' is untrained"):
        _from_its_own_head(extractor)


@pytest.mark.parametrize(
    "extractor",
    [
        {"name": "segmentation_models_pytorch.Unet", "weights": "unet.safetensors"},
        {"name": LRASPP, "args": {"weights": "COCO_WITH_VOC_LABELS_V1"}},
        {"name": "mine.Net", "args": {"weights_file": "net.pth"}},
        {"name": "mine.Net", "args": {"pretrained": True}},
        {"name": "deeplabv3_resnet50", "weights": "COCO_WITH_VOC_LABELS_V1"},
        {"name": "deeplabv3_resnet50", "weights": "pretrained"},
        {"name": "deeplabv3_resnet50", "weights": "cityscapes.pth"},
    ],
)
def test_a_network_with_trained_weights_teaches_its_logits(extractor: dict[str, object]) -> None:
    assert _from_its_own_head(extractor).networks["teacher"].head.name == "own"


OLD_NAMES = {
    "networks.student.extractor.split": "cut_at",
    "networks.student.extractor.of": "base",
    "stages.mimicry.views": "num_views",
    "stages.mimicry.average": "ema_decay",
    "stages.mimicry.fourier": "fda_prob",
    "stages.all.losses.pixelwise.confidence": "min_confidence",
    "stages.all.losses.holistic.limit": "divergence_limit",
}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_old_names_are_read_with_a_warning(old: str, tmp_path: Path) -> None:
    *_, word = old.split(".")
    new = old.removesuffix(word) + OLD_NAMES[old]
    value = {"base": "teacher", "cut_at": "blocks.2", "num_views": 3}.get(OLD_NAMES[old], 0.5)
    further = {"stages.all.teacher": "teacher", "networks.teacher.head.name": "student"}
    fields = {**ROOTS, **further} if "losses" in old else ROOTS
    if "losses" in old:
        fields = {**fields, "networks.teacher.bundle": "runs/teacher/student"}
    with pytest.warns(FutureWarning, match=f"the field {word} is now called {OLD_NAMES[old]}"):
        found = load_experiment("esd", {**fields, old: value})
    assert found == load_experiment("esd", {**fields, new: value})


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean sd or skd"):
        load_experiment("sdd")


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".yaml", "a\0", ".yaml"])
def test_a_name_that_no_file_has_is_an_unknown_recipe(name: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe|there is no recipe file"):
        load_experiment(name)


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match="extends itself"):
        load_experiment(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: {all: {optimizer: {lr: null}}}", "optimizer.lr: expected a number, got None"),
        ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "nested too deep"),
        ("a: " + "[" * 60 + "]" * 60, "at most 40 levels"),
        ("networks: &a {x: *a}", "at most 40 levels"),
        ("seed: !!timestamp x", "not valid YAML"),
        ("seed: !!int ''", "not valid YAML"),
        ("seed: " + "1" * 5000, "not valid YAML"),
        ("seed: 0x" + "f" * 5000, "seed: expected a number of 64 bits"),
        ("target: {root: 2024-01-01}", r"target.root: .*got datetime.date\(2024, 1, 1\)"),
    ],
)
def test_yaml_that_no_recipe_holds_is_one_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("extends: sd\n" + text)
    with pytest.raises(ConfigError, match=said):
        load_experiment(tmp_path / "odd.yaml", ROOTS)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"seed": 10**30}, "seed: expected a number of 64 bits"),
        ({"stages": {1: {}}}, "stages: expected words as names of fields, got 1. Put it in quotes"),
        ({"networks.student.extractor.args": {"a": {1: 2}}}, "args.a: expected words as names"),
        ({"networks.student.extractor.args": {"a": b"x"}}, "args.a: expected words, numbers"),
        ({"networks.student.extractor.args" + 50 * ".a": 1}, "at most 40 levels"),
    ],
)
def test_a_value_that_no_field_takes_is_said_at_once(
    overrides: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment("esd", {**ROOTS, **overrides})
    assert said in str(caught.value)


def test_aliases_cannot_make_a_recipe_endless(tmp_path: Path) -> None:
    levels = [f"&x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 9)]
    text = "seed: [" + ", ".join(["&x0 [1]", *levels]) + "]"  # 9 to the power of 8 values
    (tmp_path / "laughs.yaml").write_text(text)
    with pytest.raises(ConfigError, match="100000 values, got more in seed"):
        load_experiment(tmp_path / "laughs.yaml", ROOTS)


def test_names_with_dots_dashes_and_digits_are_taken() -> None:
    stages: dict[str, object] = {"stages": {"2-fine_tune.v1": {"losses": {"cross_entropy": {}}}}}
    assert "2-fine_tune.v1" in load_experiment("esd", {**ROOTS, **stages}).stages


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("seed: !!python/object/apply:os.getpid []")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_experiment(tmp_path / "evil.yaml")


EVIL = """
from pathlib import Path
from spiritseg.losses import LOSSES
Path("ran").touch()
LOSS = LOSSES["pixelwise"]
"""


def test_python_files_that_a_record_names_need_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    losses: dict[str, Any] = {"mimicry": {}, "evil.py:LOSS": {}}
    recipe: dict[str, Any] = {"extends": "sd", "stages": {"mimicry": {"losses": losses}}}
    recipe["networks"] = {"teacher": {"head": {"name": "student"}, "bundle": "runs/teacher"}}
    (tmp_path / "theirs.yaml").write_text("extends: further.yaml")
    (tmp_path / "further.yaml").write_text(yaml.safe_dump(recipe))
    named = r"names Python files \(evil.py:LOSS\)"
    with pytest.raises(ConfigError, match=named):
        load_experiment("theirs.yaml", ROOTS, trust=False)
    with pytest.raises(ConfigError, match=named):
        load_experiment("theirs.yaml", ROOTS, trust={"mine.py:LOSS"})
    with pytest.raises(ConfigError, match=named):
        recorded_experiment({"experiment": recipe}, ROOTS)
    assert not (tmp_path / "ran").exists()
    assert load_experiment("theirs.yaml", ROOTS, trust={"evil.py:LOSS"}).stages
    assert (tmp_path / "ran").exists()
    layout = {"experiment": yaml.safe_load(to_yaml(load_experiment("sd", ROOTS)))}
    layout["experiment"]["target"]["dataset"] = "evil.py:LAYOUT"
    with pytest.raises(ConfigError, match=r"names Python files \(evil.py:LAYOUT\)"):
        recorded_experiment(layout)
    found = recorded_experiment(layout, {"target.dataset": "camvid"})
    assert found.target.dataset == "camvid"


def test_the_fingerprint_ignores_what_cannot_change_the_result() -> None:
    plain = load_experiment("esd", ROOTS)
    same = {"trainer.workers": 3, "trainer.progress": False, "stages.head.cache_mib": 0}
    assert fingerprint(load_experiment("esd", {**ROOTS, **same})) == fingerprint(plain)
    assert fingerprint(dataclasses.replace(plain, seed=1)) != fingerprint(plain)
    other = load_experiment("esd", {**ROOTS, "stages.head.max_steps": 201})
    assert fingerprint(other) != fingerprint(plain)


def test_a_stage_is_taken_out_with_null() -> None:
    assert list(load_experiment("esd", {**ROOTS, "stages.mimicry": None}).stages) == ["head", "all"]


def test_a_stage_and_a_network_are_added_by_their_fields() -> None:
    stage = {"network": "other", "losses": {"cross_entropy": {}}}
    fields = {"networks.other": {}, "networks.other.head.channels": 8, "stages.more": stage}
    found = load_experiment("esd", {**ROOTS, **fields, "stages.more.max_steps": 3})
    assert found.networks["other"].head.channels == 8
    assert list(found.stages) == ["mimicry", "head", "all", "more"]
    assert found.stages["more"].max_steps == 3


def test_a_config_spells_out_every_field() -> None:
    tree = yaml.safe_load(to_yaml(load_experiment("sd", ROOTS)))
    assert tree.keys() == {field.name for field in dataclasses.fields(Experiment)}
    assert tree["stages"]["mimicry"]["patience"] == 0


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, spiritseg, spiritseg.cli, spiritseg.recipes; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("word", "found"),
    [("[]", ()), ("[8]", (8,)), ("[8, 16]", (8, 16)), ("8 16", (8, 16)), ("8,16", (8, 16))],
)
def test_a_list_on_the_command_line(word: str, found: tuple[int, ...]) -> None:
    fields = {"networks.student.extractor.strides": word}
    experiment = load_experiment("finetune-pretrained", fields, complete=False)
    assert experiment.networks["student"].extractor.strides == found


@pytest.mark.parametrize("base", ["[sd, best]", "3"])
def test_a_recipe_extends_one_other(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: {base}")
    with pytest.raises(ConfigError, match="extends names one recipe or YAML file"):
        load_experiment(tmp_path / "mine.yaml", ROOTS)


def test_masks_and_logits_need_a_head() -> None:
    with pytest.raises(ConfigError, match="result: teacher has no head"):
        load_experiment("sd", {**ROOTS, "result": "teacher"})
    with pytest.raises(ConfigError, match="logits for cross_entropy need a head"):
        load_experiment("baseline", {**ROOTS, "networks.student.head.name": "none"})
