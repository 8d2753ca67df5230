"""Downloads, through a hub and a server that live in this file: no connection is opened."""

import hashlib
import io
import logging
import re
from pathlib import Path

import pytest

from more4d_backend import download_sources, downloads
from more4d_backend.download_sources import (
    DownloadError,
    HuggingFaceHub,
    RemoteFile,
    fetch_address,
    require_space,
)
from more4d_backend.downloads import (
    DOWNLOADS,
    GROUPS,
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


def entry(**changes) -> RemoteWeights:
    settings = {
        "name": "model",
        "repository": "some/model",
        "file": "model.safetensors",
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
        assert (e.repository is None) == e.file.startswith("https://")
        if e.repository is not None:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", e.repository)
        if e.sha256 is not None:
            assert re.fullmatch(r"[0-9a-f]{64}", e.sha256)
            assert e.size_bytes is not None


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
    assert arrived.sha256 == sha256(b"weights")
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
    assert arrived.path == tmp_path / "here" / "model.safetensors"


def test_a_pattern_finds_the_one_file_that_fits(tmp_path, table):
    table(entry(file="VAE/*encoder_prompt/pytorch_model.bin"))
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
    table(entry(file="VAE/*vae/m.bin"))
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


def test_too_little_space_is_said_before_anything_is_fetched(tmp_path, table, monkeypatch):
    table(entry())
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr(download_sources.shutil, "disk_usage", lambda _: usage)
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"weights"}})
    with pytest.raises(DownloadError, match=r"GB free; this needs"):
        download(["model"], tmp_path / "here", hub=hub)
    assert not hub.fetched
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.safetensors").write_bytes(b"weights")  # nothing is missing now
    assert download(["model"], tmp_path / "here", hub=hub)


def test_space_is_looked_up_where_the_folder_will_be(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DownloadError, match=re.escape(str(tmp_path))):
        require_space(tmp_path / "not" / "yet", 10**18)


def test_offline_only_the_cache_is_asked(tmp_path, table, monkeypatch):
    table(entry())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = FakeHub(tmp_path, {"some/model": {"model.safetensors": b"weights"}})
    assert download(["model"], hub=hub)
    assert hub.listings == 0


@pytest.mark.parametrize("where", ["cache", "folder"])
@pytest.mark.parametrize("pattern", ["a/model.safetensors", "*/model.safetensors"])
def test_what_was_fetched_is_found_again_without_a_connection(tmp_path, table, where, pattern):
    table(entry(file=pattern))
    hub = FakeHub(tmp_path / "cache", {"some/model": {"a/model.safetensors": b"weights"}})
    folder = tmp_path / "here" if where == "folder" else None
    assert find_downloaded("model", folder, hub=hub) is None
    (arrived,) = download(["model"], folder, hub=hub)
    assert find_downloaded("model", folder, hub=hub) == arrived.path
    assert hub.listings == 1


def test_the_real_cache_is_asked_without_a_connection(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    real = huggingface_hub.snapshot_download

    def in_this_cache(*arguments, **settings):
        assert settings == {"local_files_only": True}
        return real(*arguments, cache_dir=tmp_path, **settings)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", in_this_cache)
    assert HuggingFaceHub().local_folder("some/model") is None
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
    assert HuggingFaceHub().local_folder("some/model") == snapshot


def library_error(name: str) -> Exception:
    return type(name, (Exception,), {})("first line\nsecond line")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set"),
        ("GatedRepoError", "hf auth login"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("ConnectTimeout", "HF_ENDPOINT chooses a mirror"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(monkeypatch, error, said):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(*_, **__):
        raise library_error(error)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", fail)
    with pytest.raises(DownloadError, match=rf"some/model/x.*\({error}\): first line.*{said}"):
        HuggingFaceHub().fetch("some/model", "x", None)
    with pytest.raises(DownloadError, match=said):
        HuggingFaceHub().files("some/model")


def test_the_real_hub_lists_sizes_and_hashes(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    listed = [
        huggingface_hub.hf_api.RepoFile(
            path="m.bin", size=7, oid="a", lfs={"size": 7, "oid": "f" * 64, "pointerSize": 1}
        ),
        huggingface_hub.hf_api.RepoFile(path="README.md", size=1, oid="b"),
        huggingface_hub.hf_api.RepoFolder(path="VAE", oid="c"),
    ]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", lambda *_, **__: iter(listed))
    hub = HuggingFaceHub()
    first, second = hub.files("some/model")
    assert first == RemoteFile(path="m.bin", size_bytes=7, sha256="f" * 64)
    assert second.sha256 is None
    assert hub.missing_bytes("some/model", first, tmp_path) == 7
    partial = tmp_path / ".cache" / "huggingface" / "download"
    partial.mkdir(parents=True)
    (partial / "x.incomplete").write_bytes(b"123")
    assert hub.missing_bytes("some/model", first, tmp_path) == 4
    (tmp_path / "m.bin").write_bytes(b"1234567")
    assert hub.missing_bytes("some/model", first, tmp_path) == 0


# Plain addresses


class Server:
    """Answers like an https server with or without support for ranges."""

    def __init__(self, data: bytes, *, ranges: bool = True, breaks_after: int | None = None):
        self.data, self.ranges, self.breaks_after = data, ranges, breaks_after
        self.asked: list[str | None] = []

    def __call__(self, request):
        asked = request.get_header("Range")
        self.asked.append(asked)
        start = int(asked[6:-1]) if asked and self.ranges else 0
        response = io.BytesIO(self.data[start:][: self.breaks_after])
        response.status = 206 if start else 200
        response.headers = {"Content-Length": str(len(self.data) - start)}
        return response


@pytest.fixture
def online(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def test_an_address_is_fetched_whole(tmp_path, online):
    seen = []
    data = bytes(3_000_000)
    target = fetch_address(
        ADDRESS,
        tmp_path / "new" / "f",
        progress=lambda *done: seen.append(done),
        open_url=Server(data),
    )
    assert target.read_bytes() == data
    assert seen[-1] == (3_000_000, 3_000_000)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_fetch_goes_on_where_it_stopped(tmp_path, online, ranges):
    data = bytes(range(256)) * 10_000
    target = tmp_path / "f"
    broken = Server(data, breaks_after=1_500_000)
    with pytest.raises(DownloadError, match="broke off after 1500000 of 2560000 bytes"):
        fetch_address(ADDRESS, target, open_url=broken)
    assert not target.exists()
    server = Server(data, ranges=ranges)
    fetch_address(ADDRESS, target, open_url=server)
    assert server.asked == ["bytes=1500000-"]
    assert target.read_bytes() == data


def test_an_address_is_refused_offline_and_without_encryption(tmp_path, monkeypatch):
    server = Server(b"")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch_address(ADDRESS, tmp_path / "f", open_url=server)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(DownloadError, match="is not an https address"):
        fetch_address("http://example.org/f", tmp_path / "f", open_url=server)
    assert not server.asked


def test_an_error_of_the_server_says_how_to_go_on(tmp_path, online):
    def refuse(_):
        raise OSError("HTTP Error 503: busy")

    with pytest.raises(DownloadError, match=r"503: busy.*Run it again to resume"):
        fetch_address(ADDRESS, tmp_path / "f", open_url=refuse)


def test_an_entry_with_an_address_is_fetched_once_and_checked_again(tmp_path, table):
    table(entry(repository=None, file=ADDRESS, sha256=sha256(b"weights")))
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
