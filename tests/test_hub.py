"""Students to and from a local stand-in of the Hugging Face Hub, and their model cards."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import inspect
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import spiritseg
from spiritseg import pull, push
from spiritseg.cli import main
from spiritseg.config import Extractor, Head, Network
from spiritseg.errors import BundleError, ConfigError, RunError
from spiritseg.model_card import model_card
from spiritseg.models.bundle import save_bundle
from spiritseg.recipes import load_experiment
from tiny_bundle import INFO, rewrite, tiny_network

pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
# The Hub's client calls its HTTP client in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

COMMIT = "0" * 40
BUNDLE = {"student.json", "student.safetensors"}


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a Hub, for models, in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.tokens: set[str] = set()
        self.answer: tuple[int, str] | None = None  # to everything: a status and an error code
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Request(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def _send(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._send({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        self._route(body)

    def do_GET(self) -> None:
        self._route(b"")

    def do_HEAD(self) -> None:
        self._route(b"")

    def _route(self, body: bytes) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if hub.answer is not None:
            return self._refuse(*hub.answer)
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name, action, rest = _parse(path)
        if name not in hub.repos:
            return self._refuse(404, "RepoNotFound")
        files = hub.repos[name]
        revision, _, file = rest.partition("/")
        if revision not in ("", "main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if action in ("", "revision"):
            return self._send({"id": name, "sha": COMMIT, "private": name in hub.private})
        if action == "tree":
            listed = [{"type": "file", "path": p, "size": len(files[p]), "oid": p} for p in files]
            return self._send(listed)
        if action == "preupload":
            asked = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self._send({"files": [{"path": one["path"], **mode} for one in asked]})
        if action == "commit":
            for value in (line["value"] for line in map(json.loads, body.splitlines())):
                if "content" in value:
                    files[value["path"]] = base64.b64decode(value["content"])
            url = f"{hub.address}/{name}/commit/{COMMIT}"
            return self._send({"commitUrl": url, "commitOid": COMMIT})
        assert action == "resolve", path
        if file not in files:
            return self._refuse(404, "EntryNotFound")
        tag = f'"{hashlib.sha256(files[file]).hexdigest()}"'
        return self._send(files[file], X_Repo_Commit=COMMIT, ETag=tag)

    def _create(self, asked: dict[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        body = {"url": f"{self.server.address}/{name}", "name": name}
        if name in self.server.repos:
            return self._send(body, 409)
        self.server.repos[name] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        return self._send(body)


def _parse(path: str) -> tuple[str, str, str]:
    """Split /api/models/OWNER/NAME/ACTION/REST, or the same without /api/models."""
    owner, name, action, rest, *_ = (path.removeprefix("/api/models").strip("/") + "///").split(
        "/", 3
    )
    return f"{owner}/{name}", action, rest.strip("/")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        # Xet's own protocol would go to other servers; plain HTTP is the other way up.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "student"
    save_bundle(folder, tiny_network(), INFO)
    return folder


def _same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in BUNDLE)


def test_a_student_comes_back(saved: Path, tmp_path: Path, hub: Hub) -> None:
    url = push(saved.parent, "you/road", private=True)  # a run leads to its student
    assert url == f"{hub.address}/you/road/commit/{COMMIT}"
    assert set(hub.repos["you/road"]) == BUNDLE | {"README.md"}
    assert (hub.private, hub.tokens) == ({"you/road"}, {"Bearer hf_x"})
    back = pull("hf://you/road", tmp_path / "new/back")
    assert {path.name for path in back.iterdir()} == BUNDLE | {"README.md", "hub.json"}
    assert [path.name for path in back.parent.iterdir()] == ["back"]
    assert _same(back, saved)
    assert spiritseg.load(back).classes == INFO.classes
    origin = {"repository": "you/road", "revision": "main", "commit": COMMIT}
    assert json.loads((back / "hub.json").read_text()) == origin
    # A second push keeps the card, where the licence was filled in; other files are not fetched.
    hub.repos["you/road"] |= {"README.md": b"license: mine", "deep/student.json": b"", "x.py": b""}
    push(back, "you/road")
    assert hub.repos["you/road"]["README.md"] == b"license: mine"
    with pytest.raises(RunError, match=r"holds a bundle already.*--force"):
        pull("you/road", back)
    pull("you/road", back, revision=COMMIT, force=True)
    assert {path.name for path in back.iterdir()} == BUNDLE | {"README.md", "hub.json"}
    assert (back / "README.md").read_text() == "license: mine"
    assert json.loads((back / "hub.json").read_text())["revision"] == COMMIT


def test_a_folder_keeps_what_is_no_bundle(
    saved: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(saved, "you/road")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert pull("you/road", ".") == Path()
    assert _same(Path(), saved)  # the folder itself, not another of its name
    (tmp_path / "link").symlink_to(tmp_path / "here")
    Path("student.json").write_bytes(b"{}")
    Path("mine.txt").write_text("x")
    pull("you/road", tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert _same(Path(), saved)
    assert Path("mine.txt").read_text() == "x"
    Path("student.json").unlink()
    with pytest.raises(RunError, match="exists and is not a bundle"):
        pull("you/road", tmp_path / "here", force=True)


def test_a_link_in_a_pulled_to_folder_is_replaced_not_followed(
    saved: Path, tmp_path: Path, hub: Hub
) -> None:
    push(saved, "you/road")
    back, other = pull("you/road", tmp_path / "back"), tmp_path / "other"
    other.write_text("not yours")
    (back / "student.safetensors").unlink()
    (back / "student.safetensors").symlink_to(other)
    pull("you/road", back, force=True)
    assert _same(back, saved)
    assert other.read_text() == "not yours"


@pytest.mark.parametrize("name", sorted(BUNDLE))
def test_a_link_in_a_bundle_is_not_published(
    saved: Path, tmp_path: Path, hub: Hub, name: str
) -> None:
    shutil.copytree(saved, tmp_path / "run/student")
    (tmp_path / "run/student" / name).rename(tmp_path / "private")
    (tmp_path / "run/student" / name).symlink_to(tmp_path / "private")
    for source in (tmp_path / "run", tmp_path / "run/student"):
        with pytest.raises(BundleError, match=f"{name} is a symbolic link to .*private"):
            push(source, "you/road")
    assert hub.repos == {}


def test_only_the_given_folder_may_be_a_link(saved: Path, tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "link").symlink_to(saved)
    push(tmp_path / "link", "you/road")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/student").symlink_to(saved)
    with pytest.raises(BundleError, match="student is a symbolic link"):
        push(tmp_path / "run", "you/other")
    assert set(hub.repos) == {"you/road"}


@pytest.mark.parametrize("name", ["road", "a/b/c", "../up", "/a/b", "hf://road", "a/é", "x" * 5000])
def test_a_repository_has_an_owner_and_a_name(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected a repository of the Hub: owner/name"):
        push(saved, name)
    with pytest.raises(ConfigError, match="cp -r copies it"):
        pull(name, tmp_path / "out")


def test_a_folder_is_not_taken_for_a_repository(
    saved: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("you/road").mkdir(parents=True)
    with pytest.raises(ConfigError, match="hf://owner/name if there is a folder"):
        push(saved, "you/road")
    push(saved, "hf://you/road")
    assert set(hub.repos) == {"you/road"}


def test_a_name_that_is_too_long_is_one_clear_error(saved: Path, tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(BundleError, match="File name too long"):
        push("x" * 5000, "you/road")
    with pytest.raises(RunError, match="File name too long"):
        pull("you/road", tmp_path / ("x" * 5000))


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def _untrusted(fields: dict[str, Any]) -> None:
    fields["networks"]["teacher"]["extractor"]["name"] = "own.package.Network"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: _flip(folder / "student.safetensors"), r"student\.safetensors is not the"),
        (lambda folder: _flip(folder / "student.json"), r"student\.json is not"),
        (lambda folder: (folder / "student.json").unlink(), r"student\.json"),
        (lambda folder: rewrite(folder, _untrusted), r"own\.package\.Network.*trust=True"),
    ],
)
def test_a_bad_bundle_goes_nowhere(
    saved: Path, tmp_path: Path, hub: Hub, spoil: Callable[[Path], object], said: str
) -> None:
    bad = shutil.copytree(saved, tmp_path / "bad")
    spoil(bad)
    with pytest.raises(BundleError, match=f"bad.*{said}"):
        push(bad, "you/road")
    assert hub.repos == {}
    hub.repos["you/road"] = {path.name: path.read_bytes() for path in bad.iterdir()}
    with pytest.raises(BundleError, match=f"you/road.*{said}"):
        pull("you/road", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_public_repository_is_not_taken_for_a_private_one(saved: Path, hub: Hub) -> None:
    hub.repos["you/open"] = {}
    with pytest.raises(RunError, match="is public"):
        push(saved, "you/open", private=True)
    assert hub.repos["you/open"] == {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, "GatedRepo"), "its owner must grant you access"),
        ((401, ""), r"no (permission|such repository).*HF_TOKEN"),
        ((403, ""), "no permission: log in"),
        ((404, "RepoNotFound"), "no such repository.*HF_TOKEN"),
        ((418, ""), "418"),
        ("offline", "HF_HUB_OFFLINE forbids the network"),
        ("nobody", "Check the network, and HF_ENDPOINT"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(
    answer: Any, said: str, saved: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif answer == "nobody":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.answer = answer
    with pytest.raises(RunError, match=f"cannot push you/road: .*{said}"):
        push(saved, "you/road")
    with pytest.raises(RunError, match=f"cannot pull you/road: .*{said}"):
        pull("you/road", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_revision_must_exist(saved: Path, tmp_path: Path, hub: Hub) -> None:
    push(saved, "you/road")
    before = dict(hub.repos["you/road"])
    with pytest.raises(RunError, match="at v9: there is no such revision"):
        pull("you/road", tmp_path / "out", revision="v9")
    with pytest.raises(RunError, match="at v9: there is no such revision"):
        push(saved, "you/road", revision="v9")
    assert hub.repos["you/road"] == before


def test_the_commands(
    saved: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, words)])
        return caught.value.code, *capsys.readouterr()

    assert call("push", saved, "you/road", "--private")[:2] == (
        0,
        f"{hub.address}/you/road/commit/{COMMIT}\n",
    )
    out = tmp_path / "out"
    assert call("pull", "you/road", out, "--revision", "main")[:2] == (0, f"{out}\n")
    code, _, error = call("pull", "you/road", out)
    assert (code, "--force" in error) == (2, True)
    for function in (push, pull):  # every argument is an option of the command
        shown = call(function.__name__, "--help")[1]
        for name, parameter in inspect.signature(function).parameters.items():
            assert parameter.kind != parameter.KEYWORD_ONLY or f"--{name}" in shown


def _trained() -> dict[str, Any]:
    experiment = load_experiment("logits", {"target.root": "/data/my_roads"}, complete=False)
    ran = {name: {"steps": 7} for name in experiment.stages}
    return {"experiment": dataclasses.asdict(experiment), "stages": ran}


def test_a_card_has_metadata_and_tables() -> None:
    info = dataclasses.replace(INFO, training=_trained(), classes=("back|ground", "road"))
    card = model_card(info, "you/road")
    data: Any = card.data
    assert data.library_name == "spiritseg"
    assert "license" not in data.to_dict()
    found = [(r.metric_type, r.dataset_split, r.metric_value) for r in data.eval_results]
    assert found == [("mIOU", "test", 0.5), ("IoU road", "test", 0.25)]  # NaN is not a result
    assert data.eval_results[0].dataset_name == "my_roads"
    text = str(card)
    assert "spiritseg pull you/road student\n" in text
    assert "| 0 | back\\|ground | rgb(70, 70, 70) |" in text
    assert "| IoU road | test | 0.25 |" in text
    assert "| pixelwise | 7 |" in text
    assert r"Target images: my\_roads" in text


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"experiment": []},
        {"experiment": {"stages": {"a": 3}}},
        {"experiment": {"stages": {"a": {"losses": 3, "co_teachers": 4}}}},
        {**_trained(), "stages": 3},
        {**_trained(), "stages": dict.fromkeys(_trained()["stages"], 3)},
    ],
)
def test_a_card_of_a_garbled_training_leaves_it_out(training: dict[str, Any]) -> None:
    metrics = {"test": 3, "val": {"mIOU": 10**400, "IoU": [1], "x": True, "y": {"z": {"w": 1}}}}
    info = dataclasses.replace(INFO, training=training, metrics=metrics)
    text = str(model_card(info, "you/road"))
    assert ("## Training" in text) == ("seed" in (training.get("experiment") or {}))


@pytest.mark.parametrize(
    ("extractor", "foreign"),
    [
        (Extractor("my_nets.Tiny"), r"my\_nets.Tiny"),
        (Extractor("timm:resnet10t", args={"checkpoint_path": "x"}), r"checkpoint\_path"),
        (Extractor("torchvision.models.resnet18"), ""),
        (Extractor("separable"), ""),
    ],
)
def test_a_card_says_whether_loading_runs_code(extractor: Extractor, foreign: str) -> None:
    networks = {"student": Network(extractor, Head("student", channels=16))}
    text = str(model_card(dataclasses.replace(INFO, networks=networks), "you/road"))
    assert foreign in text
    assert ("loading them runs no code" in text) == (not foreign)
    lines = [line for line in text.splitlines() if line.startswith(("spiritseg ", "student ="))]
    assert len(lines) == 3
    assert all(("trust" in line) == bool(foreign) for line in lines)
