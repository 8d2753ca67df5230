"""Which weights exist, where they are, under which licence, and what each is needed for.

Nothing is fetched unless `download` is called. Where the table has no SHA-256, what the Hub lists
for the file is checked instead, and what arrived is logged.
"""

import fnmatch
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .download_sources import (
    DownloadError,
    Hub,
    HuggingFaceHub,
    RemoteFile,
    fetch_address,
    is_offline,
    require_space,
)
from .files import file_sha256, first_five

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One file of an entry."""

    file: str
    """Path in the repository, where `*` stands for anything, or an https address."""

    size_bytes: int | None = None
    """None where it is not known."""

    sha256: str | None = None
    """None where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWeights:
    """One entry of the table of downloads."""

    name: str
    """What the user types."""

    repository: str | None = None
    """On the Hugging Face Hub; None for a plain address."""

    pieces: tuple[Piece, ...]
    """What has to be there for the entry to be usable."""

    licence: str
    """Of the weights, as their authors state it."""

    needed_for: str
    """A phrase for the table that the user sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """What arrived for one entry."""

    name: str
    """Of the entry."""

    path: Path
    """The file; of several, the folder that they share; of a file in parts, its index."""

    sha256: Mapping[str, str]
    """Path below `path` (its folder, for one file) -> hash of what is on the disk."""


_RELEASED = "Yanran21/MoGe4D"
_WAN = "Wan-AI/Wan2.1-T2V-1.3B"
_NOT_STATED = "not stated by the authors (their code: MIT)"
_APACHE = "Apache-2.0"
_TOKENIZER = "google/umt5-xxl"

DOWNLOADS: tuple[RemoteWeights, ...] = (
    RemoteWeights(
        name="strag",
        repository=_RELEASED,
        pieces=(Piece(file="4D-STraG/diffusion_pytorch_model.safetensors"),),
        licence=_NOT_STATED,
        needed_for="image to 4D: the motion model",
    ),
    RemoteWeights(
        name="motion-vae",
        repository=_RELEASED,
        # The release says `VAE/` and no more; below it, the names that its code writes.
        pieces=tuple(
            Piece(file=f"VAE/*{part}/pytorch_model.bin")
            for part in ("vae", "encoder_prompt", "decoder_prompt")
        ),
        licence=_NOT_STATED,
        needed_for="image to 4D: the motion VAE and its two adapters",
    ),
    RemoteWeights(
        name="vism-lora",
        repository=_RELEASED,
        pieces=(Piece(file="4D-ViSM/lora_diffusion_pytorch_model.safetensors"),),
        licence=_NOT_STATED,
        needed_for="new views: the LoRA for fun-inp",
    ),
    RemoteWeights(
        name="fun-inp",
        repository="alibaba-pai/Wan2.1-Fun-V1.1-14B-InP",
        pieces=(Piece(file="diffusion_pytorch_model.safetensors"),),
        licence=_APACHE,
        needed_for="new views: the base transformer; training of 4D-ViSM",
    ),
    RemoteWeights(
        name="fun-control",
        repository="alibaba-pai/Wan2.1-Fun-V1.1-14B-Control",
        pieces=(Piece(file="diffusion_pytorch_model.safetensors"),),
        licence=_APACHE,
        needed_for="training of 4D-STraG only",
    ),
    RemoteWeights(
        name="umt5",
        repository=_WAN,
        pieces=(
            Piece(
                file="models_t5_umt5-xxl-enc-bf16.pth",
                size_bytes=11_361_920_418,
                sha256="7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
            ),
        ),
        licence=_APACHE,
        needed_for="prompts: the text encoder",
    ),
    RemoteWeights(
        name="umt5-tokenizer",
        repository=_WAN,
        pieces=(
            Piece(
                file=f"{_TOKENIZER}/tokenizer.json",
                size_bytes=16_837_417,
                sha256="6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
            ),
            Piece(
                file=f"{_TOKENIZER}/tokenizer_config.json",
                size_bytes=61_728,
                sha256="ed9a3a8b0faa71a70a32847e0435fe036e6e112d4df4edb7bb48a921e344dc05",
            ),
            Piece(
                file=f"{_TOKENIZER}/special_tokens_map.json",
                size_bytes=6_623,
                sha256="7b8a9f5040adb67b5805abdfd42c1f8d0f3d0e711f10726580eb3789cd0ad61d",
            ),
        ),
        licence=_APACHE,
        needed_for="prompts: the tokenizer",
    ),
    RemoteWeights(
        name="wan-vae",
        repository=_WAN,
        pieces=(
            Piece(
                file="Wan2.1_VAE.pth",
                size_bytes=507_609_880,
                sha256="38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
            ),
        ),
        licence=_APACHE,
        needed_for="images and videos: the VAE",
    ),
    RemoteWeights(
        name="clip",
        repository="alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP",
        pieces=(
            Piece(
                file="models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
                size_bytes=4_772_359_047,
                sha256="628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
            ),
        ),
        licence=_APACHE,
        needed_for="image tokens: the CLIP image encoder",
    ),
    RemoteWeights(
        name="omnimae",
        pieces=(
            Piece(file="https://dl.fbaipublicfiles.com/omnivore/omnimae_ckpts/vitb_pretrain.torch"),
        ),
        licence="CC-BY-NC-4.0: no commercial use",
        needed_for="training of 4D-STraG only (the released STraG file contains it)",
    ),
)

_STRAG = ("strag", "motion-vae")
_SHARED = ("umt5", "umt5-tokenizer", "wan-vae", "clip")

GROUPS: dict[str, tuple[str, ...]] = {
    "image-to-4d": (*_STRAG, *_SHARED),
    "new-views": ("fun-inp", "vism-lora", *_SHARED),
    "all": (*_STRAG, "fun-inp", "vism-lora", *_SHARED),
    "training": ("fun-control", "fun-inp", "omnimae", *_SHARED),
}
"""Names for several entries at once. UniDepth is not among them: it is CC-BY-NC and not needed."""


def select(names: Iterable[str]) -> tuple[RemoteWeights, ...]:
    """Return the entries for names of entries and of groups, each once, in the table's order.

    Raises:
        DownloadError: a name that is neither.
    """
    table = {entry.name: entry for entry in DOWNLOADS}
    wanted: set[str] = set()
    for name in names:
        if name not in table and name not in GROUPS:
            raise DownloadError(
                f"{name!r} cannot be downloaded. Entries: {', '.join(table)}. "
                f"Groups: {', '.join(GROUPS)}."
            )
        wanted.update(GROUPS.get(name, (name,)))
    return tuple(entry for entry in DOWNLOADS if entry.name in wanted)


def download(
    names: Iterable[str],
    folder: Path | None = None,
    *,
    hub: Hub | None = None,
    fetch: Callable[[str, Path], Path] = fetch_address,
) -> list[Downloaded]:
    """Fetch entries, or go on with an interrupted fetch, and check what arrived.

    `folder` None means the Hub's shared cache (HF_HOME); else each repository gets a folder of its
    name in it. Files keep their paths inside the repository. `hub` and `fetch` are the transports.

    Raises:
        DownloadError: unknown name, no connection, no space, or not the file that was expected.
    """
    entries = select(names)
    hub = hub or HuggingFaceHub()
    results = []
    for entry in entries:
        _log.info("%s: %s. Licence: %s.", entry.name, entry.needed_for, entry.licence)
        if entry.repository is None:
            arrived = [
                _from_address(entry.name, piece, folder or _cache_folder(), fetch)
                for piece in entry.pieces
            ]
        else:
            arrived = _from_hub(entry, entry.repository, _own(folder, entry.repository), hub)
        results.append(_result(entry.name, arrived))
    return results


def find_downloaded(
    name: str, folder: Path | None = None, *, hub: Hub | None = None
) -> Path | None:
    """Return where an entry lies that was fetched earlier, or None unless all of it is there.

    Opens no connection. Of several files, the folder that they share.

    Raises:
        DownloadError: unknown name, or several files that fit.
    """
    (entry,) = select([name])
    if entry.repository is None:
        places = [folder or _cache_folder()]
    elif folder is None:
        places = [(hub or HuggingFaceHub()).local_folder(entry.repository)]
    else:
        # Names with a folder in them are telling enough to lie in `folder` itself.
        telling = all("/" in piece.file for piece in entry.pieces)
        places = [_own(folder, entry.repository), folder if telling else None]
    found = (_in_place(entry, place) for place in places if place is not None and place.is_dir())
    return next((path for path in found if path is not None), None)


def _in_place(entry: RemoteWeights, place: Path) -> Path | None:
    paths = []
    for piece in entry.pieces:
        pattern = piece.file if entry.repository else piece.file.rsplit("/", 1)[1]
        found = _files_like(place, pattern) or _files_like(place, f"{pattern}.index.json")
        if len(found) > 1:
            raise DownloadError(f"{place} has {len(found)} files like {pattern}. Name one.")
        paths += found
    return _shared(paths) if len(paths) == len(entry.pieces) else None


def _from_address(
    name: str, piece: Piece, folder: Path, fetch: Callable[[str, Path], Path]
) -> dict[Path, str]:
    target = folder / piece.file.rsplit("/", 1)[1]
    if not target.exists():
        require_space(folder, piece.size_bytes or 0)
        fetch(piece.file, target)
    return {target: _verified(name, target, piece.sha256)}


def _from_hub(
    entry: RemoteWeights, repository: str, folder: Path | None, hub: Hub
) -> list[dict[Path, str]]:
    """Fetch an entry; return path -> hash of the files of each piece."""
    if is_offline() and not any("*" in piece.file for piece in entry.pieces):
        # Only the cache can answer, and it cannot list.
        offline = [RemoteFile(path=p.file, size_bytes=None, sha256=None) for p in entry.pieces]
        files = [(file,) for file in offline]
    else:
        listed = hub.files(repository)
        files = [_matching(piece, repository, listed) for piece in entry.pieces]
    needed = sum(hub.missing_bytes(repository, file, folder) for group in files for file in group)
    require_space(folder or _cache_folder(), needed)
    arrived = []
    for piece, group in zip(entry.pieces, files, strict=True):
        paths = {file: hub.fetch(repository, file.path, folder) for file in group}
        arrived.append(
            {
                path: _verified(entry.name, path, piece.sha256 or file.sha256)
                for file, path in paths.items()
            }
        )
    return arrived


def _matching(piece: Piece, repository: str, listed: list[RemoteFile]) -> tuple[RemoteFile, ...]:
    found = tuple(f for f in listed if fnmatch.fnmatchcase(f.path, piece.file))
    if not found and piece.file.endswith(".safetensors"):
        # Large files are sometimes published in parts: name-00001-of-00007, with an index.
        stem = re.escape(piece.file.removesuffix(".safetensors"))
        pattern = rf"{stem}(-\d{{5}}-of-\d{{5}}\.safetensors|\.safetensors\.index\.json)"
        found = tuple(f for f in listed if re.fullmatch(pattern, f.path))
        if found:
            return found
    if len(found) != 1:
        which = first_five(f.path for f in found or listed)
        raise DownloadError(
            f"{repository} has {len(found)} files like {piece.file}; expected one. "
            f"{'Candidates' if found else 'It has'}: {which}. Fetch the right one by hand: "
            f"hf download {repository} FILE"
        )
    return found


def _verified(name: str, path: Path, expected: str | None) -> str:
    arrived = file_sha256(path)
    if expected is None:
        _log.info("%s: no SHA-256 is known for it; %s has %s.", name, path, arrived)
    elif arrived != expected:
        raise DownloadError(
            f"{path} is not the expected file for {name}: its SHA-256 is {arrived}; "
            f"expected {expected}. Delete it and download it again."
        )
    else:
        _log.info("%s: SHA-256 of %s as expected.", name, path.name)
    return arrived


def _own(folder: Path | None, repository: str) -> Path | None:
    # Two repositories have a file of the same name.
    return None if folder is None else folder / repository.split("/")[1]


def _result(name: str, arrived: list[dict[Path, str]]) -> Downloaded:
    path = _shared([_whole(files) for files in arrived])
    base = path if path.is_dir() else path.parent
    hashes = {
        file.relative_to(base).as_posix(): digest
        for files in arrived
        for file, digest in files.items()
    }
    return Downloaded(name=name, path=path, sha256=hashes)


def _files_like(place: Path, pattern: str) -> list[Path]:
    """Files below `place` whose path matches as `_matching` does: `*` also stands for slashes."""
    if "*" not in pattern:
        return [place / pattern] if (place / pattern).is_file() else []
    return sorted(
        path
        for path in place.rglob("*")
        if path.is_file() and fnmatch.fnmatchcase(path.relative_to(place).as_posix(), pattern)
    )


def _whole(paths: Iterable[Path]) -> Path:
    """The file itself, or the index of its parts."""
    paths = list(paths)
    return next((p for p in paths if p.name.endswith(".index.json")), paths[0])


def _shared(paths: list[Path]) -> Path:
    return paths[0] if len(paths) == 1 else Path(os.path.commonpath(paths))


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "more4d"
