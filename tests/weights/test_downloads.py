"""Downloads, through a hub and a server that live in this file: no connection is opened."""

import hashlib
import logging
import re
from pathlib import Path

import pytest

from more4d_backend.weights import download_sources, downloads
from more4d_backend.weights.download_sources import (
    DownloadError,
    RemoteFile,
)
from more4d_backend.weights.downloads import (
    DOWNLOADS,
    GROUPS,
    Piece,
    RemoteWeights,
    download,
    find_downloaded,
    select,
)

ADDRESS = "https://example.org/files/vitb.torch"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeHub:
    """Repositories in memory; what it fetches lands in a folder."""

    def __init__(self, cache: Path, repositories: dict[str, dict[str, bytes]], listed_as=None):
        self.cache = cache
        self.repositories = repositories
        self.listed_as = listed_as or {}
        self.fetched: list[str] = []
        self.listings = 0

    def files(self, repository):
        self.listings += 1
        return [
            RemoteFile(path=path, size_bytes=len(data), sha256=self.listed_as.get(path))
            for path, data in self.repositories[repository].items()
        ]

    def local_folder(self, repository):
        return self.cache if self.fetched else None

    def missing_bytes(self, repository, file, folder):
        return 0 if ((folder or self.cache) / file.path).exists() else file.size_bytes or 0

    def fetch(self, repository, path, folder):
        self.fetched.append(path)
        target = (folder or self.cache) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.repositories[repository][path])
        return target


@pytest.fixture
def table(monkeypatch):
    """Put entries in place of the real table."""

    def put(*entries: RemoteWeights) -> None:
        monkeypatch.setattr(downloads, "DOWNLOADS", entries)
        monkeypatch.setattr(downloads, "GROUPS", {"all": tuple(e.name for e in entries)})

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return put


def entry(*files: str, sha256: str | None = None, **changes) -> RemoteWeights:
    pieces = [Piece(file=file, sha256=sha256) for file in files or ("model.safetensors",)]
    settings = {
        "name": "model",
        "repository": "some/model",
        "pieces": tuple(pieces),
        "licence": "Apache-2.0",
        "needed_for": "tests",
    }
    return RemoteWeights(**settings | changes)


# The table


def test_names_are_unique_and_groups_only_name_entries():
    names = [e.name for e in DOWNLOADS]
    assert len(set(names)) == len(names)
    assert set().union(*GROUPS.values()) == set(names)
    assert not set(GROUPS) & set(names)


def test_every_entry_can_be_fetched_and_says_its_licence():
    for e in DOWNLOADS:
        assert e.licence
        assert e.needed_for
        if e.repository is not None:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", e.repository)
        for piece in e.pieces:
            assert (e.repository is None) == piece.file.startswith("https://")
            if piece.sha256 is not None:
                assert re.fullmatch(r"[0-9a-f]{64}", piece.sha256)
                assert piece.size_bytes is not None


def test_names_and_groups_are_selected_once_in_the_tables_order():
    chosen = [e.name for e in select(["clip", "image-to-4d", "strag"])]
    assert chosen == [e.name for e in DOWNLOADS if e.name in GROUPS["image-to-4d"]]


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(DownloadError, match=r"'stragg' cannot be.*strag, motion-vae.*image-to-4d"):
        select(["stragg"])


# The Hub


def test_a_file_with_the_expected_hash_arrives(tmp_path, table):
    table(entry(sha256=sha256(b"weights")))
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"weights", "README.md": b"x"}})
    (arrived,) = download(["model"], hub=hub)
    assert arrived.path == tmp_path / "model.safetensors"
    assert arrived.sha256 == {"model.safetensors": sha256(b"weights")}
    assert hub.fetched == ["model.safetensors"]


def test_a_file_of_another_hash_is_refused(tmp_path, table):
    table(entry(sha256=sha256(b"weights")))
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"wrights"}})
    with pytest.raises(DownloadError, match=f"its SHA-256 is {sha256(b'wrights')}; expected"):
        download(["model"], hub=hub)


def test_without_a_hash_in_the_table_the_listed_one_holds(tmp_path, table):
    table(entry())
    listed = {"model.safetensors": sha256(b"weights")}
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"wrights"}}, listed)
    with pytest.raises(DownloadError, match="is not the expected file"):
        download(["model"], hub=hub)


def test_without_any_hash_what_arrived_is_logged(tmp_path, table, caplog):
    table(entry())
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"weights"}})
    with caplog.at_level(logging.INFO):
        download(["model"], hub=hub)
    assert f"no SHA-256 is known for it; {tmp_path / 'model.safetensors'} has" in caplog.text
    assert sha256(b"weights") in caplog.text
    assert "Licence: Apache-2.0" in caplog.text


def test_a_folder_is_honoured(tmp_path, table):
    table(entry())
    hub = FakeHub(tmp_path / "cache", {"some/model": {"model.safetensors": b"weights"}})
    (arrived,) = download(["all"], tmp_path / "here", hub=hub)
    assert arrived.path == tmp_path / "here" / "model" / "model.safetensors"


def test_repositories_with_files_of_one_name_do_not_meet_in_a_folder(tmp_path, table):
    table(entry(), entry(name="other", repository="some/other"))
    held = {"some/model": {"model.safetensors": b"1"}, "some/other": {"model.safetensors": b"2"}}
    hub = FakeHub(tmp_path, held)
    download(["all"], tmp_path / "here", hub=hub)
    for name, content in (("model", b"1"), ("other", b"2")):
        assert find_downloaded(name, tmp_path / "here", hub=hub).read_bytes() == content


def test_files_fetched_by_hand_are_found_where_their_names_are_telling(tmp_path, table):
    table(entry("A/model.bin"), entry(name="other"))
    for name in ("A/model.bin", "model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_downloaded("model", tmp_path) == tmp_path / "A" / "model.bin"
    assert find_downloaded("other", tmp_path) is None


def test_a_pattern_finds_the_one_file_that_fits(tmp_path, table):
    table(entry("VAE/*encoder_prompt/pytorch_model.bin"))
    held = {"VAE/step-9/encoder_prompt/pytorch_model.bin": b"e", "VAE/step-9/vae/x.bin": b"v"}
    (arrived,) = download(["model"], hub=FakeHub(tmp_path, {"some/model": held}))
    assert arrived.path.read_bytes() == b"e"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (["VAE/1/vae/m.bin", "VAE/2/vae/m.bin"], "has 2 files like .* Candidates: VAE/1/vae/m.bin"),
        (["README.md"], "has 0 files like .* It has: README.md"),
    ],
)
def test_no_file_or_several_are_listed(tmp_path, table, held, said):
    table(entry("VAE/*vae/m.bin"))
    with pytest.raises(DownloadError, match=said):
        download(["model"], hub=FakeHub(tmp_path, {"some/model": dict.fromkeys(held, b"")}))


def test_a_file_published_in_parts_gives_its_index(tmp_path, table):
    table(entry())
    held = {
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
        "model.safetensors.index.json": b"{}",
        "other-00001-of-00001.safetensors": b"x",
    }
    hub = FakeHub(tmp_path, {"some/model": held})
    (arrived,) = download(["model"], hub=hub)
    assert arrived.path.name == "model.safetensors.index.json"
    assert len(hub.fetched) == 3


def test_an_entry_of_several_files_is_the_folder_that_they_share(tmp_path, table):
    parts = ("vae", "encoder_prompt", "decoder_prompt")
    table(entry(*(f"VAE/*{part}/m.bin" for part in parts)))
    held = {f"VAE/step-9/{part}/m.bin": part.encode() for part in parts}
    hub = FakeHub(tmp_path, {"some/model": held | {"VAE/step-9/optimizer.bin": b"x"}})
    (arrived,) = download(["model"], hub=hub)
    assert arrived.path == tmp_path / "VAE" / "step-9"
    assert sorted(hub.fetched) == sorted(held)
    assert arrived.sha256 == {f"{part}/m.bin": sha256(part.encode()) for part in parts}
    assert find_downloaded("model", hub=hub) == arrived.path
    (arrived.path / "vae" / "m.bin").unlink()
    assert find_downloaded("model", hub=hub) is None


def test_too_little_space_is_said_before_anything_is_fetched(tmp_path, table, monkeypatch):
    table(entry())
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr(download_sources.shutil, "disk_usage", lambda _: usage)
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"weights"}})
    with pytest.raises(DownloadError, match=r"GB free; this needs"):
        download(["model"], tmp_path / "here", hub=hub)
    assert not hub.fetched
    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "here" / "model" / "model.safetensors").write_bytes(b"weights")  # complete now
    assert download(["model"], tmp_path / "here", hub=hub)


def test_offline_only_the_cache_is_asked(tmp_path, table, monkeypatch):
    table(entry())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"weights"}})
    assert download(["model"], hub=hub)
    assert hub.listings == 0


@pytest.mark.parametrize("where", ["cache", "folder"])
@pytest.mark.parametrize("pattern", ["a/model.safetensors", "*/model.safetensors"])
def test_what_was_fetched_is_found_again_without_a_connection(tmp_path, table, where, pattern):
    table(entry(pattern))
    hub = FakeHub(tmp_path / "cache", {"some/model": {"a/model.safetensors": b"weights"}})
    folder = tmp_path / "here" if where == "folder" else None
    assert find_downloaded("model", folder, hub=hub) is None
    (arrived,) = download(["model"], folder, hub=hub)
    assert find_downloaded("model", folder, hub=hub) == arrived.path
    assert hub.listings == 1


def test_an_entry_with_an_address_is_fetched_once_and_checked_again(tmp_path, table):
    table(entry(ADDRESS, repository=None, sha256=sha256(b"weights")))
    fetched = []

    def fetch(url, target):
        fetched.append(url)
        target.write_bytes(b"weights")
        return target

    hub = FakeHub(tmp_path, {})
    for _ in range(2):
        (arrived,) = download(["model"], tmp_path, hub=hub, fetch=fetch)
        assert arrived.path == tmp_path / "vitb.torch"
    assert fetched == [ADDRESS]
    arrived.path.write_bytes(b"changed")
    with pytest.raises(DownloadError, match="Delete it and download it again"):
        download(["model"], tmp_path, hub=hub, fetch=fetch)
