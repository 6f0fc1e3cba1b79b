"""Bundles to and from the Hugging Face Hub, or any folder."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spiritseg.errors import BundleError, ConfigError, MissingExtraError, RunError
from spiritseg.files import write_atomically
from spiritseg.predict.inputs import check_path

__all__ = ["hub_name", "pull", "push"]

_BUNDLE = ("student.json", "student.safetensors")
_README = "README.md"
_HUB = "hf://"
_OWNED = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def push(
    bundle_or_run: str | Path,
    target: str | Path,
    *,
    private: bool = False,
    revision: str | None = None,
    force: bool = False,
    trust: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Copy a student, and a model card beside it, to the Hub or to a folder.

    The bundle's checksums are verified before, and those of what arrived after. A card that is
    there already is kept.

    Args:
        bundle_or_run: where the student is.
        target: ``owner/name`` or ``hf://owner/name`` on the Hub; otherwise a folder (one that is
            called ``a/b`` is written ``./a/b``).
        private: whether a repository that is made for it is private.
        revision: branch of the repository; it must be there.
        force: replace another bundle in the folder. A repository keeps its history, and takes
            the new one as a further commit.
        trust: import the bundle's own classes while it is verified.
        endpoint: of another Hub; by default HF_ENDPOINT.
        token: by default the one of ``hf auth login`` or HF_TOKEN.

    Returns:
        Where it is now: a URL or a path.

    Raises:
        BundleError: the student is incomplete or altered, is a symbolic link, or did not arrive
            whole.
        ConfigError: an option that a folder does not have.
        MissingExtraError: huggingface_hub is not installed.
        RunError: there is another bundle, no permission, or no network.
    """
    source, name = _bundle_folder(bundle_or_run), hub_name(target)
    if name is None and (revision or private):
        raise ConfigError(f"{target} is a folder: --revision and --private are of the Hub.")
    if name is None:
        return str(_place(source, Path(target), force, trust, with_card=True))
    from spiritseg.deploy.model_card import model_card

    with tempfile.TemporaryDirectory(prefix="spiritseg-push-") as made:
        staged = Path(made)
        _copy(source, staged)
        _verify(staged, source, trust)
        card = model_card(staged, name, on_hub=True).encode()
        return _Hub(name, revision, endpoint, token, _maybe_folder(target)).upload(
            staged, card, private
        )


def pull(
    source: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    force: bool = False,
    trust: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Copy a student from the Hub or from a folder.

    It appears in its folder whole and verified, or not at all.

    Args:
        source: ``owner/name`` or ``hf://owner/name``, or a folder with a bundle or a run (one
            that is called ``a/b`` is written ``./a/b``).
        folder: where the bundle goes.
        revision: branch, tag or commit of the repository.
        force: replace another bundle.
        trust: import the bundle's own classes while it is verified.
        endpoint: of another Hub; by default HF_ENDPOINT.
        token: by default the one of ``hf auth login`` or HF_TOKEN.

    Returns:
        The folder: ``spiritseg.load(folder)``.

    Raises:
        BundleError: what came is no bundle, is altered, or is a symbolic link.
        ConfigError: a revision of a folder.
        MissingExtraError: huggingface_hub is not installed.
        RunError: the folder holds something else, or the repository cannot be reached.
    """
    target, name = Path(folder), hub_name(source)
    _refuse_other(target, force)
    if name is None:
        if revision:
            raise ConfigError(f"{source} is a folder, which has no --revision.")
        return _place(_bundle_folder(source), target, force, trust)
    with tempfile.TemporaryDirectory(prefix="spiritseg-pull-") as made:
        staged = Path(made) / "bundle"
        _Hub(name, revision, endpoint, token, _maybe_folder(source)).download(staged)
        return _place(staged, target, force, trust, shown=f"{_HUB}{name}")


def hub_name(given: str | Path) -> str | None:
    """Return the repository ``owner/name`` that words stand for, or None for a folder.

    ``owner/name`` is a folder where there is one.

    Raises:
        ConfigError: hf:// is followed by something else.
    """
    text = str(given)
    if text.startswith(_HUB):
        name = text.removeprefix(_HUB).strip("/")
        if not _OWNED.fullmatch(name):
            raise ConfigError(f"{text}: expected hf://owner/name.")
        return name
    if isinstance(given, Path) or not _OWNED.fullmatch(text) or Path(text).exists():
        return None
    return text


def _maybe_folder(given: str | Path) -> str:
    """Say how a folder is written, where nothing says that a repository was meant."""
    return "" if str(given).startswith(_HUB) else f"; a folder is written ./{given}"


class _Hub:
    """A repository of models."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        endpoint: str | None,
        token: str | None,
        hint: str,
    ) -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise MissingExtraError(
                "the Hub needs huggingface_hub, which is not installed: "
                "pip install 'spiritseg[hub]'."
            ) from None
        self.name, self.revision, self.hint = name, revision, hint
        self._api = HfApi(endpoint=endpoint, token=token, library_name="spiritseg")

    def upload(self, folder: Path, card: bytes, private: bool) -> str:
        """Commit a bundle, and the card where the repository has none; return its URL."""
        from huggingface_hub import CommitOperationAdd

        with _explained(self.name, self.revision, "push", self.hint):
            url = str(self._api.create_repo(self.name, private=private or None, exist_ok=True))
            if private and not self._api.repo_info(self.name).private:
                raise RunError(
                    f"{self.name} is there already and is public, so nothing was pushed to it; "
                    "make it private on the Hub, or leave --private away."
                )
            files: dict[str, Any] = {name: folder / name for name in _BUNDLE}
            if not self._api.file_exists(self.name, _README, revision=self.revision):
                files[_README] = card
            commit = self._api.create_commit(
                self.name,
                [CommitOperationAdd(path, content) for path, content in files.items()],
                commit_message="Add a student of spiritseg",
                revision=self.revision,
            )
        with tempfile.TemporaryDirectory(prefix="spiritseg-check-") as made:
            _Hub.download(self, Path(made), commit.oid)
            for name in _BUNDLE:
                if _digest(Path(made) / name) != _digest(folder / name):
                    raise BundleError(f"{self.name}: {name} did not arrive whole; push it again.")
        return url

    def download(self, folder: Path, revision: str | None = None) -> None:
        """Fetch a bundle, and its card where it has one."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        revision = revision or self.revision
        folder.mkdir(exist_ok=True)
        with _explained(self.name, revision, "pull", self.hint):
            # All files of one commit; and it fails at once where there is no network.
            commit = self._api.repo_info(self.name, revision=revision).sha
            for name in (*_BUNDLE, _README):
                try:
                    self._api.hf_hub_download(self.name, name, revision=commit, local_dir=folder)
                except LocalEntryNotFoundError:  # there is no network
                    raise
                except EntryNotFoundError:
                    if name != _README:
                        raise BundleError(
                            f"{self.name} has no {name}: it is not a student of spiritseg."
                        ) from None


@contextmanager
def _explained(name: str, revision: str | None, doing: str, hint: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear message.

    The hint is for where there is no such repository, or none that may be used.
    """
    from huggingface_hub import errors

    at = f" at {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        reason = "its owner must grant you access first: ask for it on its page"
    except errors.RevisionNotFoundError:
        reason = "there is no such revision; a branch must be there before it is pushed to"
    except errors.RepositoryNotFoundError:
        reason = (
            "there is no such repository, or it is private and your token may not see it. Check "
            f"the name, or log in (hf auth login, or HF_TOKEN){hint}"
        )
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            reason = (
                "the Hub gives no permission: log in with a token that may write there "
                f"(hf auth login, or HF_TOKEN){hint}"
            )
        else:
            reason = f"the Hub answered {code or error}; try again later"
    except errors.OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE forbids the network"
    except (errors.HFValidationError, errors.LocalTokenNotFoundError) as error:
        reason = " ".join(str(error).split())
    except (OSError, errors.LocalEntryNotFoundError) as error:
        reason = f"the Hub cannot be reached, or the disk not written ({error})"
    except RuntimeError as error:  # an upload that broke off
        reason = f"{str(error).rstrip('.')} ({error.__cause__ or 'no reason given'})"
    except Exception as error:  # the HTTP client's own, which its versions name differently
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
            raise
        reason = f"the Hub cannot be reached ({error}). Check the network, and HF_ENDPOINT"
    else:
        return
    raise RunError(f"cannot {doing} {name}{at}: {reason}.") from None


def _place(
    source: Path,
    target: Path,
    force: bool,
    trust: bool,
    with_card: bool = False,
    shown: str | None = None,
) -> Path:
    """Copy a bundle beside its target, verify the copy, and only then give it its name."""
    given, target = target, target.resolve()  # "." has no name, and a link stays a link
    _refuse_other(target, force)
    staged = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir()
        _copy(source, staged)
        _verify(staged, shown or source, trust)
        if with_card and not (staged / _README).exists():
            from spiritseg.deploy.model_card import model_card

            card = model_card(staged, target.name, on_hub=False)
            write_atomically(staged / _README, card.encode())
        _swap(staged, target)
    except OSError as error:
        raise RunError(f"cannot write {given}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return given


def _swap(staged: Path, target: Path) -> None:
    if not target.exists():
        staged.rename(target)
        return
    if not any(target.iterdir()):  # filled, not replaced: somebody may stand in it
        for one in sorted(staged.iterdir(), key=lambda one: one.name == _BUNDLE[0]):
            one.replace(target / one.name)  # what makes it a bundle comes last
        return
    old = staged.with_suffix(".old")
    target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _verify(copy: Path, source: str | Path, trust: bool) -> None:
    """Check the checksums of a copy, and that the student loads."""
    import spiritseg

    try:
        spiritseg.load(copy, trust=trust)
    except BundleError as error:  # its name is gone when this is read
        raise BundleError(str(error).replace(str(copy), str(source))) from None


def _bundle_folder(given: str | Path) -> Path:
    """Return where the bundle lies; the folder itself may be a symbolic link, what is in it not."""
    from spiritseg.student import bundle_folder

    check_path(given, BundleError)
    folder = bundle_folder(given)
    if folder != Path(given).expanduser():
        _refuse_link(folder)
    return folder


def _copy(source: Path, folder: Path) -> None:
    names = (*_BUNDLE, _README) if (source / _README).is_file() else _BUNDLE
    for name in names:
        _refuse_link(source / name)
        try:
            shutil.copyfile(source / name, folder / name)
        except FileNotFoundError:
            raise BundleError(
                f"{source} has no {name}: expected a bundle, or a run that has finished."
            ) from None


def _refuse_link(path: Path) -> None:
    """Refuse a symbolic link: somebody else's folder must not publish a private file."""
    if path.is_symlink():
        raise BundleError(
            f"{path} is a symbolic link to {path.readlink()}, and what it leads to may be private. "
            "Put a copy of that file or folder in its place, if it may be published."
        )


def _refuse_other(target: Path, force: bool) -> None:
    """Refuse to replace what is not an unwanted bundle."""
    check_path(target, RunError)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / _BUNDLE[0]).is_file():
        raise RunError(f"{target} is there and is not a bundle; choose another folder.")
    if not force:
        raise RunError(f"{target} holds a bundle already; choose another folder, or --force.")
    foreign = sorted({one.name for one in target.iterdir()} - {*_BUNDLE, _README})
    if foreign:
        raise RunError(
            f"{target} holds more than a bundle ({', '.join(foreign[:5])}), which --force would "
            "delete; choose another folder."
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
