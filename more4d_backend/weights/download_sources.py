"""Where weight files come from: the Hugging Face Hub, and plain addresses.

The Hub client is huggingface_hub, which resumes and honours HF_HOME, HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE. Tests give another object of the same form, so none of them opens a connection.
"""

import http.client
import logging
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 20
_HTTP_RANGE_NOT_SATISFIABLE = 416


class DownloadError(OSError):
    """A file that could not be fetched, or that is not what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as a repository lists it."""

    path: str
    """Inside the repository, with forward slashes."""

    size_bytes: int | None
    """As listed."""

    sha256: str | None
    """As listed; the Hub knows it for large files only."""


@runtime_checkable
class Hub(Protocol):
    """What a download needs from a model hub."""

    def files(self, repository: str) -> list[RemoteFile]:
        """List a repository."""
        ...

    def local_folder(self, repository: str) -> Path | None:
        """Where the hub's own cache keeps what was fetched of a repository; None if nothing."""
        ...

    def missing_bytes(self, repository: str, file: RemoteFile, folder: Path | None) -> int:
        """How much of a file is still to be transferred; 0 where its size is not known."""
        ...

    def fetch(self, repository: str, path: str, folder: Path | None) -> Path:
        """Bring one file here, into `folder` or the hub's own cache, and return where it is."""
        ...


class HuggingFaceHub:
    """The Hub through huggingface_hub.

    Raises:
        DownloadError: huggingface_hub is not installed.
    """

    def __init__(self) -> None:
        try:
            # The last three are not attributes of the package until someone imports them.
            import huggingface_hub
            from huggingface_hub import constants, errors, hf_api
        except ImportError as e:
            raise DownloadError(
                "Downloading needs huggingface_hub. Install it: pip install huggingface_hub"
            ) from e
        self._library, self._hf_api = huggingface_hub, hf_api
        self._constants, self._errors = constants, errors

    def files(self, repository: str) -> list[RemoteFile]:
        """List a repository. See `Hub`."""
        try:
            entries = list(self._library.HfApi().list_repo_tree(repository, recursive=True))
        except Exception as e:  # the library raises its own, requests' and httpx' types
            raise DownloadError(_hub_message(repository, e)) from e
        return [
            RemoteFile(path=e.path, size_bytes=e.size, sha256=e.lfs.sha256 if e.lfs else None)
            for e in entries
            if isinstance(e, self._hf_api.RepoFile)
        ]

    def local_folder(self, repository: str) -> Path | None:
        """Return the newest snapshot in the cache, without a connection. See `Hub`."""
        try:
            return Path(self._library.snapshot_download(repository, local_files_only=True))
        except self._errors.LocalEntryNotFoundError:
            return None

    def missing_bytes(self, repository: str, file: RemoteFile, folder: Path | None) -> int:
        """Return what is neither here nor half here. See `Hub`."""
        if folder is not None:
            present = (folder / file.path).exists()
            partial = folder / ".cache" / "huggingface" / "download"
        else:
            present = isinstance(self._library.try_to_load_from_cache(repository, file.path), str)
            cache = Path(self._constants.HF_HUB_CACHE)
            partial = cache / f"models--{repository.replace('/', '--')}" / "blobs"
        if present:
            return 0
        begun = sum(p.stat().st_size for p in partial.rglob("*.incomplete"))
        return max((file.size_bytes or 0) - begun, 0)

    def fetch(self, repository: str, path: str, folder: Path | None) -> Path:
        """Bring one file here; an interrupted download is resumed. See `Hub`."""
        try:
            return Path(self._library.hf_hub_download(repository, path, local_dir=folder))
        except Exception as e:
            raise DownloadError(_hub_message(f"{repository}/{path}", e)) from e


def is_offline() -> bool:
    """Whether the user has forbidden connections (HF_HUB_OFFLINE, as huggingface_hub reads it)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch_address(
    url: str,
    target: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    open_url: Callable[[urllib.request.Request], Any] = urllib.request.urlopen,
) -> Path:
    """Fetch an https address to `target`, and go on where an earlier attempt stopped.

    What has arrived lies in `target` + `.part` until it is complete. `progress` gets (bytes done,
    bytes in all).

    Raises:
        DownloadError: offline, not https, refused by the server, or broken off.
    """
    if not url.startswith("https://"):
        raise DownloadError(f"{url} is not an https address.")
    if is_offline():
        raise DownloadError(
            f"HF_HUB_OFFLINE is set: {url} is not fetched. Unset it, or put the file at {target}."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with open_url(request) as response:
            if start and response.status != 206:
                _log.info("%s cannot be resumed; starting again.", url)
                start = 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with part.open("ab" if start else "wb") as stream:
                _copy(response, stream, total, progress)
    except urllib.error.HTTPError as e:
        if e.code != _HTTP_RANGE_NOT_SATISFIABLE:
            raise DownloadError(f"{url} could not be fetched: {e}.") from e
        part.unlink()
        raise DownloadError(
            f"{url} has not the {start} bytes that had arrived earlier; they were removed. Run it "
            "again to start anew."
        ) from e
    except (OSError, http.client.HTTPException) as e:
        raise DownloadError(f"{url} could not be fetched: {e}. Run it again to resume.") from e
    if total is not None and part.stat().st_size != total:
        raise DownloadError(
            f"{url} broke off after {part.stat().st_size} of {total} bytes. Run it again to resume."
        )
    return part.replace(target)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse before the transfer what would not fit on the disk.

    Raises:
        DownloadError: less than `needed_bytes` are free where `folder` is.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise DownloadError(
            f"{folder} has {free / 1e9:.1f} GB free; this needs {needed_bytes / 1e9:.1f} GB. "
            "Make room, or choose another place (--folder, or HF_HOME for the shared cache)."
        )


def _copy(
    response: Any, stream: Any, total: int | None, progress: Callable[[int, int], None] | None
) -> None:
    while block := response.read(_BLOCK_BYTES):
        stream.write(block)
        if progress is not None and total is not None:
            progress(stream.tell(), total)


def _hub_message(what: str, error: Exception) -> str:
    hints = {
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it to download.",
        "LocalEntryNotFoundError": "It is not in the cache, and the Hub cannot be reached.",
        "GatedRepoError": "Accept its terms on the Hub, then log in: hf auth login",
        "RepositoryNotFoundError": "It does not exist under this name, or it is private.",
        "EntryNotFoundError": "The repository has no such file.",
        "RemoteEntryNotFoundError": "The repository has no such file.",
    }
    kind = type(error).__name__
    hint = hints.get(kind, "Check the connection (HF_ENDPOINT chooses a mirror) and run it again.")
    first_line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{what} could not be fetched ({kind}): {first_line}. {hint}"
