"""Students to and from a folder, and a local stand-in of the Hugging Face Hub."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import spiritseg
from spiritseg.cli import main
from spiritseg.config import Extractor, Head, Network
from spiritseg.deploy.hub import hub_name, pull, push
from spiritseg.deploy.model_card import _training, model_card
from spiritseg.errors import BundleError, ConfigError, RunError
from spiritseg.models.bundle import load_bundle, save_bundle

# The Hub's client calls its own HTTP client in a way that is being given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

_COMMIT = "0" * 40
_REVISIONS = ("main", _COMMIT)
NAMES = {"student.json", "student.safetensors", "README.md"}


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a Hub, for models, in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.tokens: list[str] = []
        self.refuse = 0  # answer everything that writes with this status
        self.full = False  # take no files
        self.spoil = False  # alter what is stored
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Asked(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def _give(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self, code: str) -> None:
        self._give(404, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self) -> None:
        hub, path, body = self.server, urlsplit(self.path).path, self._body()
        hub.tokens.append(self.headers.get("Authorization", ""))
        if hub.refuse:
            return self._give(hub.refuse, {"error": "no"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            name = asked["name"] if "/" in asked["name"] else name
            if name in hub.repos:
                return self._give(409, {"error": "exists", "url": f"{hub.address}/{name}"})
            hub.repos[name] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(name)
            return self._give(200, {"url": f"{hub.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._give(200, {"errors": [], "warnings": []})
        name = _repo(path)
        if name not in hub.repos:
            return self._missing("RepoNotFound")
        if "/preupload/" in path:
            if not path.endswith("/main"):
                return self._missing("RevisionNotFound")
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self._give(200, {"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **one,
                    "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}},
                }
                for one in json.loads(body)["objects"]
            ]
            return self._give(200, {"transfer": "basic", "objects": objects})
        assert "/commit/" in path, path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.repos[name][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                hub.repos[name][value["path"]] = hub.blobs[value["oid"]]
        url = f"{hub.address}/{name}/commit/{_COMMIT}"
        return self._give(200, {"commitUrl": url, "commitOid": _COMMIT, "commitId": _COMMIT})

    def do_PUT(self) -> None:
        data = self._body()
        if self.server.full:
            return self._give(403, {"error": "full"})
        assert hashlib.sha256(data).hexdigest() == self.path.removeprefix("/lfs/")
        stored = data[:-1] + bytes([data[-1] ^ 1]) if self.server.spoil else data
        self.server.blobs[self.path.removeprefix("/lfs/")] = stored
        return self._give(200, {})

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            name = _repo(path)
            if name not in hub.repos:
                return self._missing("RepoNotFound")
            if "/revision/" in path and path.split("/revision/")[1] not in _REVISIONS:
                return self._missing("RevisionNotFound")
            said = {"id": name, "sha": _COMMIT, "private": name in hub.private, "siblings": []}
            return self._give(200, said)
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in hub.repos:
            return self._missing("RepoNotFound")
        if revision not in _REVISIONS:
            return self._missing("RevisionNotFound")
        if file not in hub.repos[name]:
            return self._missing("EntryNotFound")
        data = hub.repos[name][file]
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self._give(200, data, X_Repo_Commit=_COMMIT, ETag=tag)

    def do_HEAD(self) -> None:
        self.do_GET()


def _repo(path: str) -> str:
    words = path.removeprefix("/api/models").strip("/").split("/")
    return "/".join(words[:2]).removesuffix(".git")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
    # Xet's own protocol would go to other servers; plain HTTP is the other way up.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _same(one: Path, other: Path) -> bool:
    names = ("student.json", "student.safetensors")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_which_words_are_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/esd").mkdir(parents=True)
    assert hub_name("you/road") == "you/road"
    assert hub_name("hf://you/road") == "you/road"
    folders = ("runs/esd", "./you/road", "/a/b", "road", "a/b/c", "../up", Path("you/road"))
    assert [hub_name(name) for name in folders] == [None] * 7
    with pytest.raises(ConfigError, match="expected hf://owner/name"):
        hub_name("hf://road")


def test_to_a_folder_and_back(student_folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "models/road"
    assert push(student_folder.parent, there) == str(there)  # a run leads to its student
    assert {path.name for path in there.iterdir()} == NAMES
    assert _same(there, student_folder)
    card = (there / "README.md").read_text()
    assert "| 2 | kerb | rgb(220, 20, 60) |" in card
    assert "# road\n" in card
    (there / "README.md").write_text("my own words")
    back = pull(there, tmp_path / "back")
    assert _same(back, student_folder)
    assert (back / "README.md").read_text() == "my own words"
    assert {path.name for path in tmp_path.iterdir()} == {"models", "back"}


def test_another_bundle_stays_unless_forced(student_folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push(student_folder, there)
    (there / "student.safetensors").write_bytes(b"other")
    for act in (push, pull):
        with pytest.raises(RunError, match="--force"):
            act(student_folder, there)
    assert (there / "student.safetensors").read_bytes() == b"other"
    pull(student_folder, there, force=True)
    assert _same(there, student_folder)
    (there / "mine.txt").write_text("x")
    with pytest.raises(RunError, match=r"mine\.txt"):
        pull(student_folder, there, force=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("x")
    with pytest.raises(RunError, match="not a bundle"):
        pull(student_folder, tmp_path / "notes", force=True)
    with pytest.raises(ConfigError, match="--revision"):
        pull(student_folder, tmp_path / "new", revision="main")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "notes"}


def test_into_the_folder_where_one_stands(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pull(student_folder, Path()) == Path()
    assert _same(student_folder, Path())  # the folder itself, not another of its name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


def test_a_link_stays_a_link(student_folder: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    pull(student_folder, real)
    (real / "student.json").write_bytes(b"{}")
    link.symlink_to(real)
    pull(student_folder, link, force=True)
    assert link.is_symlink()
    assert _same(student_folder, real)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_what_a_link_leads_to_is_not_published(
    student_folder: Path, tmp_path: Path, hub: Hub, name: str
) -> None:
    run, there = tmp_path / "run", tmp_path / "there"
    pull(student_folder, run / "student")
    (run / "student/README.md").write_text("my own words")
    private = tmp_path / "private"
    (run / "student" / name).rename(private)
    (run / "student" / name).symlink_to(private)
    for source in (run, run / "student"):
        with pytest.raises(BundleError, match=f"{name} is a symbolic link to .*private"):
            pull(source, there)
        for target in (there, "hf://you/road"):
            with pytest.raises(BundleError, match=f"{name} is a symbolic link to .*private"):
                push(source, target, endpoint=hub.address, token="t")
    assert hub.repos == {}
    assert not there.exists()


def test_the_folder_that_is_given_may_be_a_link(student_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(student_folder)
    push(tmp_path / "link", tmp_path / "there")
    assert _same(tmp_path / "there", student_folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/student").symlink_to(student_folder)
    with pytest.raises(BundleError, match="student is a symbolic link"):
        push(tmp_path / "run", tmp_path / "other")


def test_names_that_are_too_long_are_one_clear_error(student_folder: Path, tmp_path: Path) -> None:
    for act in (push, pull):
        with pytest.raises(BundleError, match="File name too long"):
            act("x" * 5000, tmp_path / "there")
        with pytest.raises(RunError, match="File name too long"):
            act(student_folder, tmp_path / ("x" * 5000))


def test_a_card_names_all_teachers() -> None:
    stage = {
        "trains": "all",
        "teacher": "big",
        "co_teachers": ["other"],
        "losses": {"pixelwise": {}},
    }
    training = {"experiment": {"stages": {"distil": stage, "last": {"trains": "head"}}}}
    card = "\n".join(_training(training))
    assert "| distil | all | big, other |" in card
    assert "| last | head | labels |" in card


@pytest.mark.parametrize(
    ("extractor", "foreign"),
    [("my_nets.Tiny", True), ("torchvision.models.resnet18", False), ("separable", False)],
)
@pytest.mark.parametrize("on_hub", [True, False])
def test_a_card_says_whether_loading_runs_code(
    student_folder: Path, tmp_path: Path, extractor: str, foreign: bool, on_hub: bool
) -> None:
    network, info = load_bundle(student_folder)
    own = {"student": Network(Extractor(extractor), Head("student", channels=16))}
    save_bundle(tmp_path, network, dataclasses.replace(info, networks=own))
    card = model_card(tmp_path, "you/road", on_hub)
    assert ("Loading them runs no code" in card) != foreign
    assert ("runs their code" in card) == foreign
    assert (r"my\_nets.Tiny" in card) == foreign
    lines = [line for line in card.splitlines() if line.startswith(("spiritseg ", "student ="))]
    assert len(lines) == 2 + on_hub
    for line in lines:
        wanted = "trust=True" if line.startswith("student") else " --trust"
        assert (wanted in line) == foreign


def _altered(student_folder: Path, folder: Path) -> Path:
    shutil.copytree(student_folder, folder)
    weights = folder / "student.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return folder


def test_an_altered_bundle_goes_nowhere(student_folder: Path, tmp_path: Path, hub: Hub) -> None:
    bad = _altered(student_folder, tmp_path / "bad")
    with pytest.raises(BundleError, match=r"bad/student\.safetensors is not the file"):
        push(bad, tmp_path / "out")
    with pytest.raises(BundleError, match="is not the file"):
        push(bad, "hf://you/road", endpoint=hub.address, token="t")
    assert hub.repos == {}
    with pytest.raises(BundleError, match="is not the file"):
        pull(bad, tmp_path / "out")
    with pytest.raises(BundleError, match=r"has no student\.json"):
        push(tmp_path / "nowhere", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"bad"}


def test_to_the_hub_and_back(student_folder: Path, tmp_path: Path, hub: Hub) -> None:
    url = push(student_folder, "you/road", private=True, endpoint=hub.address, token="hf_x")
    assert url.endswith("you/road")
    assert set(hub.repos["you/road"]) == NAMES
    assert hub.private == {"you/road"}
    assert set(hub.tokens) == {"Bearer hf_x"}
    card = hub.repos["you/road"]["README.md"].decode()
    assert "spiritseg pull you/road student" in card
    back = pull("hf://you/road", tmp_path / "back", endpoint=hub.address)
    assert {path.name for path in back.iterdir()} == NAMES
    assert _same(back, student_folder)
    assert spiritseg.load(back).classes == ("background", "road", "kerb")
    # A second push keeps the card, where the licence was filled in.
    hub.repos["you/road"]["README.md"] = b"license: mine"
    push(student_folder, "you/road", endpoint=hub.address, token="hf_x")
    assert hub.repos["you/road"]["README.md"] == b"license: mine"


def test_a_public_repository_is_not_taken_for_a_private_one(student_folder: Path, hub: Hub) -> None:
    hub.repos["you/open"] = {}
    with pytest.raises(RunError, match="is public"):
        push(student_folder, "you/open", private=True, endpoint=hub.address, token="t")
    assert hub.repos["you/open"] == {}


def test_what_arrives_altered_is_refused(student_folder: Path, tmp_path: Path, hub: Hub) -> None:
    hub.spoil = True
    with pytest.raises(BundleError, match="did not arrive whole"):
        push(student_folder, "you/road", endpoint=hub.address, token="t")
    with pytest.raises(BundleError, match=r"you/road.*is not the file"):
        pull("you/road", tmp_path / "back", endpoint=hub.address)
    del hub.repos["you/road"]["student.json"]
    with pytest.raises(BundleError, match=r"has no student\.json"):
        pull("you/road", tmp_path / "back", endpoint=hub.address)
    assert list(tmp_path.iterdir()) == []


def test_what_the_hub_refuses_is_one_clear_message(
    student_folder: Path, tmp_path: Path, hub: Hub
) -> None:
    at: dict[str, Any] = {"endpoint": hub.address, "token": "t"}
    with pytest.raises(RunError, match=r"no such repository.*written \./you/nothing\.$"):
        pull("you/nothing", tmp_path / "out", **at)
    with pytest.raises(RunError, match=r"no such repository.*HF_TOKEN\)\.$"):  # no folder there
        pull("hf://you/nothing", tmp_path / "out", **at)
    push(student_folder, "you/road", **at)
    with pytest.raises(RunError, match="at v9: there is no such revision"):
        pull("you/road", tmp_path / "out", revision="v9", **at)
    with pytest.raises(RunError, match="at v9: there is no such revision"):
        push(student_folder, "you/road", revision="v9", **at)
    hub.full = True
    with pytest.raises(RunError, match="cannot push you/third: Error while uploading"):
        push(student_folder, "you/third", **at)
    for status in (401, 403):
        hub.refuse = status
        refused = r"(no permission|no such repository).*a folder is written \./you/other\.$"
        with pytest.raises(RunError, match=refused):
            push(student_folder, "you/other", **at)
        with pytest.raises(RunError, match=r"(no permission|no such repository).*HF_TOKEN\)\.$"):
            push(student_folder, "hf://you/other", **at)
    assert list(tmp_path.iterdir()) == []


def test_no_network(student_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RunError, match="cannot be reached"):
        push(student_folder, "you/road", endpoint=nobody, token="t")
    with pytest.raises(RunError, match="cannot be reached"):
        pull("you/road", tmp_path / "out", endpoint=nobody, token="t")
    assert list(tmp_path.iterdir()) == []


def test_the_commands(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(words)
        shown = capsys.readouterr()
        return caught.value.code, shown.out.strip(), shown.err

    there = str(tmp_path / "there")
    assert call("push", str(student_folder), there)[:2] == (0, there)
    assert call("pull", there, str(tmp_path / "back"))[0] == 0
    code, _, said = call("pull", there, str(tmp_path / "back"))
    assert code == 2
    assert "--force" in said
    for command in ("push", "pull"):
        assert "./a/b" in call(command, "--help")[1]
