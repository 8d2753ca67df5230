"""Transports: the Hub's library with its calls replaced, and a server that lives in this file."""

import http.client
import io
import os
import re
import subprocess
import sys
import urllib.error

import pytest

from more4d_backend.weights.download_sources import (
    DownloadError,
    HuggingFaceHub,
    RemoteFile,
    fetch_address,
    require_space,
)

ADDRESS = "https://example.org/files/vitb.torch"


def test_space_is_looked_up_where_the_folder_will_be(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DownloadError, match=re.escape(str(tmp_path))):
        require_space(tmp_path / "not" / "yet", 10**18)


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


def test_the_cache_is_asked_also_in_a_process_that_has_imported_nothing_else(tmp_path):
    pytest.importorskip("huggingface_hub")
    code = (
        "from more4d_backend.weights.downloads import find_downloaded\n"
        "from more4d_backend.weights.download_sources import HuggingFaceHub, RemoteFile\n"
        "assert find_downloaded('strag') is None\n"
        "file = RemoteFile(path='a', size_bytes=7, sha256=None)\n"
        "assert HuggingFaceHub().missing_bytes('some/model', file, None) == 7\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


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


def test_bytes_that_the_server_does_not_have_are_not_kept(tmp_path, online):
    def refuse(request):
        raise urllib.error.HTTPError(ADDRESS, 416, "Range Not Satisfiable", {}, None)

    (tmp_path / "f.part").write_bytes(b"of an older, longer file")
    with pytest.raises(DownloadError, match=r"has not the 24 bytes .* were removed"):
        fetch_address(ADDRESS, tmp_path / "f", open_url=refuse)
    fetch_address(ADDRESS, tmp_path / "f", open_url=Server(b"new"))
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_chunked_answer_that_breaks_off_can_be_resumed(tmp_path, online):
    class Broken(io.BytesIO):
        status, headers = 200, {}

        def read(self, size=-1):
            raise http.client.IncompleteRead(b"")

    with pytest.raises(DownloadError, match="Run it again to resume"):
        fetch_address(ADDRESS, tmp_path / "f", open_url=lambda _: Broken())
