"""A source and a head of the user's own, exactly as CONTRIBUTING.md tells to add them."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch

from spiritseg.cli import main
from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import BundleError, ConfigError
from spiritseg.models import HEADS, SOURCES, build_network, teacher
from spiritseg.models.bundle import BundleInfo, load_bundle
from spiritseg.models.sources import needs_trust, source_of

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


def _follow(heading: str) -> None:
    """Write the files of a section of CONTRIBUTING.md to this folder, and run its commands."""
    section = CONTRIBUTING.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^( *)(?:3\. )?```(\w+)\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)
    commands = []
    for _, language, indented in blocks:
        text = textwrap.dedent(indented)
        if language == "bash":
            commands += text.splitlines()
        elif language in ("python", "yaml"):
            name = text.splitlines()[0].removeprefix("# ")
            Path(name).write_text(text)
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "spiritseg"
        small = ("--trainer.progress", "false", "--evaluation.latency", "false")
        with pytest.raises(SystemExit) as end:
            main([*arguments, *small])
        assert end.value.code == 0


@pytest.mark.parametrize(
    ("heading", "name"),
    [("Add a teacher", "my_nets.py:PLAIN"), ("Add a head", "my_heads.py:PIXELWISE")],
)
def test_contributing_is_what_works(
    heading: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _follow(heading)
    with pytest.raises(BundleError, match=rf"trust for the class {re.escape(name)}\..*trust=True"):
        load_bundle("run/student")
    network, info = load_bundle("run/student", trust=True)
    found = network(torch.rand(1, 3, 33, 50))
    assert found.shape == (1, len(info.classes), 33, 50)
    if heading == "Add a teacher":
        assert teacher(name, args={"width": 8}).extractor.channels == 16
    else:
        assert network.head is not None
        assert "module.0.weight" in network.head.state_dict()


def test_every_entry_says_what_it_is() -> None:
    texts = [source.help for _, source in SOURCES.items()] + [
        head.help for _, head in HEADS.items()
    ]
    assert all(10 < len(text) < 120 for text in texts)
    name = "timm:vit_tiny_patch16_224.augreg_in21k"
    assert source_of(name).normalisation(name) == ((0.5,) * 3, (0.5,) * 3)
    assert source_of(name).licence(name) == "apache-2.0"


@pytest.mark.parametrize(
    ("extractor", "head", "foreign"),
    [
        ("vgg16", "student", []),
        ("timm:resnet18", "none", []),
        ("torchvision.models.resnet18", "own", []),
        ("os.path.join", "own", ["os.path.join"]),
        ("a/b.py:NET", "student", ["a/b.py:NET"]),
        ("separable", "a/b.py:HEAD", ["a/b.py:HEAD"]),
        ("timm:a.py:NET", "unknown", ["timm:a.py:NET"]),
        ("no:such.thing", "none", []),  # unknown: refused when it is built
    ],
)
def test_what_runs_code_of_the_users_is_told_without_running_it(
    extractor: str, head: str, foreign: list[str]
) -> None:
    info = BundleInfo({"a": Network(Extractor(extractor), Head(head))}, "a", ("x",), (), 1)
    assert info.needs_trust == [f"the class {name}" for name in foreign]
    assert needs_trust(extractor) == (extractor in foreign)


def test_what_a_file_names_wrongly_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("NET = 3\n")
    (tmp_path / "broken.py").write_text("1 / 0")
    for name, said in {
        "nets.py:NET": "Source, got int",
        "nets.py:OTHER": "unknown name 'OTHER'",
        "broken.py:NET": "ZeroDivisionError",
        "missing.py:NET": "FileNotFoundError",
    }.items():
        with pytest.raises(ConfigError, match=said):
            teacher(f"{tmp_path}/{name}")
    with pytest.raises(ConfigError, match=r"unknown head 'studnet'. Did you mean student"):
        build_network(Network(Extractor("vgg16"), Head("studnet")), 2, {}, 0)


def test_an_error_of_a_source_names_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from spiritseg.models import Source\n"
        "NET = Source('a broken source', lambda request: 1 / 0)\n"
    )
    with pytest.raises(ConfigError, match=r"nets\.py:NET cannot be made with .*ZeroDivision"):
        build_network(Network(Extractor(f"{tmp_path}/nets.py:NET"), Head("none")), 2, {}, 0)
