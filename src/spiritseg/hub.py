"""Students to and from the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spiritseg.errors import BundleError, ConfigError, MissingExtraError, RunError
from spiritseg.files import json_bytes, make_folder, write_atomically
from spiritseg.model_card import model_card
from spiritseg.models.bundle import BUNDLE_FILES, BundleInfo, load_bundle
from spiritseg.predict.inputs import check_path
from spiritseg.student import bundle_folder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["pull", "push"]

_CARD = "README.md"
_ORIGIN = "hub.json"  # which commit of which repository a pulled bundle is
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)

_REASONS = {  # by the error of the Hub's client
    "GatedRepoError": "its owner must grant you access first: ask for it on its page",
    "RevisionNotFoundError": "there is no such revision; a branch must exist before a push to it",
    "RepositoryNotFoundError": (
        "there is no such repository, or it is private and your token has no access. Check the "
        "name, or log in (hf auth login, or HF_TOKEN)"
    ),
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids the network",
}


def push(
    student: str | Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    trust: bool = False,
) -> str:
    """Upload a student to the Hugging Face Hub.

    The bundle is verified first. A model card (README.md) is added if the repository has none.
    The token is that of ``hf auth login`` or HF_TOKEN; HF_ENDPOINT names another Hub.

    Args:
        student: A bundle, or the folder of a run.
        repository: ``owner/name``, or ``hf://owner/name``; created if it does not exist.
        private: Create the repository as private; refuse an existing public one.
        revision: Existing branch of the repository.
        trust: Import the bundle's own classes to verify it.

    Returns:
        URL of the commit.

    Raises:
        BundleError: The student is incomplete or altered, or contains a symbolic link.
        ConfigError: The name of the repository is not valid.
        MissingExtraError: huggingface_hub is not installed.
        RunError: No permission, no such revision, or no network.
    """
    name, api = _repository(repository), _api()
    with tempfile.TemporaryDirectory(prefix="spiritseg-push-") as temporary:
        staged = Path(temporary)  # a copy, so that what is verified is what is uploaded
        info = _verify(staged, _copy_bundle(student, staged), trust)
        model_card(info, name).save(staged / _CARD)
        with _explained(f"push {name}", revision):
            api.create_repo(name, private=private or None, exist_ok=True)
            if private and not api.model_info(name).private:
                raise RunError(
                    f"{name} exists and is public, so nothing was pushed to it; make it private on "
                    "the Hub, or leave out --private."
                )
            has_card = api.file_exists(name, _CARD, revision=revision)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=staged,
                allow_patterns=[*BUNDLE_FILES] if has_card else [*BUNDLE_FILES, _CARD],
                revision=revision,
                commit_message="Add a spiritseg student",
            )
    return str(commit.commit_url)


def pull(
    repository: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    force: bool = False,
    trust: bool = False,
) -> Path:
    """Download a student from the Hugging Face Hub.

    The bundle is verified before it appears in its folder. ``hub.json`` records its repository
    and commit.

    Args:
        repository: ``owner/name``, or ``hf://owner/name``.
        folder: Where the bundle goes.
        revision: Branch, tag or commit; by default the main branch.
        force: Replace another bundle in the folder.
        trust: Import the bundle's own classes to verify it.

    Returns:
        The folder: ``spiritseg.load(folder)``.

    Raises:
        BundleError: The repository has no bundle, or an altered one, or one that needs trust.
        ConfigError: The name of the repository is not valid.
        MissingExtraError: huggingface_hub is not installed.
        RunError: The folder holds something else, or the repository cannot be reached.
    """
    name, target = _repository(repository), Path(folder).expanduser().resolve()
    _check_target(target, force)
    api = _api()
    make_folder(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".spiritseg-", dir=target.parent) as temporary:
            staged = Path(temporary)
            commit = _download(api, name, revision, staged)
            _verify(staged, name, trust)
            origin = {"repository": name, "revision": revision or "main", "commit": commit}
            write_atomically(staged / _ORIGIN, json_bytes(origin))
            _place(staged, target)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}.") from None
    return Path(folder)


def _repository(given: str) -> str:
    name = str(given).removeprefix("hf://")
    if not _NAME.fullmatch(name) or (name == given and Path(name).exists()):
        raise ConfigError(
            "expected a repository of the Hub: owner/name, or hf://owner/name if there is a folder "
            f"owner/name; got {str(given)[:120]!r}. A bundle is a plain folder: cp -r copies it."
        )
    return name


def _copy_bundle(given: str | Path, folder: Path) -> Path:
    """Copy a bundle, and return where it was.

    The given folder may be a symbolic link, but nothing inside it: that could publish a private
    file.
    """
    check_path(given, BundleError)
    source = bundle_folder(given)
    files = [source / file for file in BUNDLE_FILES]
    for path in files if source == Path(given).expanduser() else [source, *files]:
        if path.is_symlink():
            raise BundleError(
                f"{path} is a symbolic link to {path.readlink()}, which may be private. Replace "
                "it by a copy if that may be published."
            )
    try:
        for path in files:
            shutil.copy(path, folder)
    except OSError as error:
        raise BundleError(
            f"cannot read {path}: {error.strerror}. Expected a bundle, or a finished run."
        ) from None
    return source


def _verify(copy: Path, source: object, trust: bool) -> BundleInfo:
    """Check the digests of a temporary copy, and that the student loads."""
    try:
        return load_bundle(copy, trust=trust)[1]
    except BundleError as error:
        raise BundleError(str(error).replace(str(copy), str(source))) from None


def _check_target(target: Path, force: bool) -> None:
    check_path(target, RunError)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / BUNDLE_FILES[0]).is_file():
        raise RunError(f"{target} exists and is not a bundle; choose another folder.")
    if not force:
        raise RunError(f"{target} holds a bundle already; choose another folder, or --force.")


def _place(staged: Path, target: Path) -> None:
    """Move a bundle to its folder; without its JSON file, which comes last, it is no bundle."""
    target.mkdir(exist_ok=True)
    files = (*BUNDLE_FILES, _CARD, _ORIGIN)
    for file in files:
        (target / file).unlink(missing_ok=True)
    for file in reversed(files):
        if (staged / file).exists():
            (staged / file).replace(target / file)


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise MissingExtraError(
            "the Hub needs huggingface_hub, which is not installed: pip install 'spiritseg[hub]'."
        ) from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="spiritseg")


def _download(api: HfApi, name: str, revision: str | None, folder: Path) -> str:
    """Fetch a bundle, and its card if there is one, of one commit; return the commit."""
    with _explained(f"pull {name}", revision):
        commit = str(api.model_info(name, revision=revision).sha)
        files = [*BUNDLE_FILES, _CARD]
        api.snapshot_download(name, revision=commit, local_dir=folder, allow_patterns=files)
    for file in BUNDLE_FILES:
        if not (folder / file).is_file():
            raise BundleError(f"{name} has no {file}: it is not a spiritseg student.")
    return commit


@contextmanager
def _explained(doing: str, revision: str | None) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear error."""
    from huggingface_hub import errors

    network = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, by its version
    try:
        yield
    except (OSError, RuntimeError, errors.HFValidationError, network) as error:
        at = f" at {revision}" if revision else ""
        raise RunError(f"cannot {doing}{at}: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    for kind in type(error).__mro__:
        if kind.__name__ in _REASONS:
            return _REASONS[kind.__name__]
    if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        return "no permission: log in with a token that may write there (hf auth login, HF_TOKEN)"
    cause = f" ({error.__cause__})" if error.__cause__ else ""
    return " ".join(f"{str(error).rstrip('.')}{cause}. Check the network, and HF_ENDPOINT".split())
