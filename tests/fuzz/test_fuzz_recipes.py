"""Garbled recipes and command lines: each is an experiment, or one of our errors."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuzz.odd import CASES, is_clear, mutate, no_network, odd, paths
from spiritseg.cli import main
from spiritseg.errors import SpiritsegError
from spiritseg.recipes import fingerprint, load_experiment, to_yaml

# What PyYAML reads in its own way, or stumbles over.
SNIPPETS = (
    *("!!timestamp x", "!!int ''", "!!float ''", "!!bool x", "!!binary x", "!!set {a}", "!!null x"),
    *("!!python/object/apply:os.getpid []", "!x y", "2024-99-99", "2024-01-01", "1:99:99", "0x"),
    *(
        "0x" + "f" * 5000,
        "1" * 5000,
        "1e999",
        ".nan",
        "-.inf",
        "0b2",
        "0o9",
        "~",
        "",
        "\t",
        "%",
        "@",
    ),
    *("[" * 5000, "{a: " * 5000, "[" * 150 + "]" * 150, "{a: " * 60 + "1" + "}" * 60),
    *(
        "&a [*a]",
        "&a {a: *a}",
        "*b",
        "{<<: [1]}",
        "{<<: {lr: x}}",
        "{? [a] : b}",
        "{1: 2}",
        "{~: 1}",
    ),
    *("&a {b: &c [&d [1, 1], *d, *d], e: *c}", "{yes: 1}", "'", '"', "|", "- - -", "a: b: c", "é"),
    "["
    + ", ".join(f"&x{i} [{', '.join([f'*x{i - 1}' if i else '1'] * 9)}]" for i in range(9))
    + "]",
)
RECIPES = ("baseline", "best", "esd", "skd-released", "sd-skd", "paper-ct")
ROOTS = {"target.root": "labelled", "proximity.root": "unlabelled"}
NAMES = ("x/../../../esc", ".hidden", "a b", "é", "a" * 300, "1", "sd", "adam", "student", "8 16")


@cache
def _spelled_out(name: str) -> str:
    return to_yaml(load_experiment(name, ROOTS, complete=False))


def _garbled(name: str, draw: random.Random) -> str:
    """Write a recipe with odd values, odd YAML in their places, or odd characters."""
    tree = yaml.safe_load(_spelled_out(name))
    if draw.random() < 0.3:
        tree = {"extends": name, "stages": {"all": {"losses": {"cross_entropy": {}}}}}
    for _ in range(draw.choice([1, 1, 2, 3])):
        mutate(tree, draw, (*["HERE"] * 4, *NAMES))
    for _ in range(draw.choice([0, 0, 1])):
        kind = tree.get(draw.choice(["stages", "networks"]))
        if isinstance(kind, dict) and kind:
            kind[draw.choice(NAMES)] = kind.pop(draw.choice([*kind]))
    text = yaml.safe_dump(tree, allow_unicode=True).replace("HERE", draw.choice(SNIPPETS))
    for _ in range(draw.choice([0, 0, 0, 1, 5])):
        at = draw.randrange(len(text) + 1)
        text = (
            text[:at]
            + draw.choice(["", "\n", " ", ":", "-", "[", "}", "*", "\0", "é"])
            + text[at + 1 :]
        )
    return text


@pytest.mark.parametrize("seed", CASES)
def test_a_garbled_recipe_loads_or_is_refused(seed: int, tmp_path: Path) -> None:
    draw = random.Random(f"recipe {seed}")
    path = tmp_path / "recipe.yaml"
    path.write_text(_garbled(draw.choice(RECIPES), draw), encoding="utf-8")
    if draw.random() < 0.1:
        path.write_bytes(path.read_bytes().replace(b"a", b"\xff", 1))
    try:
        experiment = load_experiment(path, ROOTS, complete=draw.random() < 0.5)
    except SpiritsegError as error:
        is_clear(error)
        return
    assert len(fingerprint(experiment)) == 10
    path.write_text(to_yaml(experiment), encoding="utf-8")
    assert load_experiment(path, complete=False) == experiment
    for name in (*experiment.stages, *experiment.networks):
        assert (tmp_path / f"1-{name}").parent == tmp_path


def _words(draw: random.Random, fields: list[str]) -> Iterator[str]:
    yield draw.choice([*RECIPES, *RECIPES, "nowhere", "x.yaml", "", "-x", "..", "\0", "a" * 300])
    for _ in range(draw.randrange(6)):
        name = draw.choice([*fields, "networks.x", "stages.mimicry.losses", "", ".", "a..b"])
        if draw.random() < 0.1:
            name += draw.choice([".x", ".", ".x.y", "-", "=", " "])
        value = str(odd(draw)) if draw.random() < 0.7 else draw.choice(SNIPPETS[:40])
        yield from draw.choice(
            [
                *([f"--{name}", value], [f"--{name}", value], [f"--{name}={value}"], [f"--{name}"]),
                *(
                    [value],
                    ["--" + value],
                    ["--run-dir", value[:99]],
                    ["--run-dir"],
                    ["--skip-bad"],
                ),
                *(["--print_config"], ["--"], ["--print_config=3"], ["--help"], ["-h"], ["---"]),
            ]
        )


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """End a command before it trains, and without the imports of training."""

    def distill(experiment: Any, run_dir: Path) -> None:
        sys.exit(0)

    def default_run_dir(experiment: Any, name: str) -> Path:
        return Path("runs") / f"{name}-{fingerprint(experiment)}"

    runner = types.SimpleNamespace(distill=distill, default_run_dir=default_run_dir)
    monkeypatch.setitem(sys.modules, "spiritseg.training.run", runner)


@pytest.mark.parametrize("seed", CASES)
@pytest.mark.usefixtures("untrained")
def test_a_garbled_command_line_trains_or_is_refused(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_network(monkeypatch)
    monkeypatch.chdir(tmp_path)
    draw = random.Random(f"words {seed}")
    tree = yaml.safe_load(_spelled_out(draw.choice(RECIPES)))
    fields = [".".join(map(str, path)) for path in paths(tree)]
    with pytest.raises(SystemExit) as caught:
        main(["distill", *_words(draw, fields)])
    assert caught.value.code in (0, 2)
    assert not [*tmp_path.iterdir()]
