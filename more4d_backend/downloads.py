"""Which weights exist, where they are, under which licence, and what each is needed for.

Nothing is fetched unless `download` is called. Where the table has no SHA-256, what the Hub lists
for the file is checked instead, and what arrived is logged.
"""

import fnmatch
import logging
import re
from collections.abc import Callable, Iterable
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
from .weight_files import file_sha256, first_five

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWeights:
    """One entry of the table of downloads."""

    name: str
    """What the user types."""

    repository: str | None = None
    """On the Hugging Face Hub; None for a plain address."""

    file: str
    """Path in the repository, where `*` stands for anything, or an https address."""

    size_bytes: int | None = None
    """None where it is not known."""

    sha256: str | None = None
    """None where it is not known."""

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
    """The file; of a file in parts, its index."""

    sha256: str
    """Of the file at `path`, computed from what is on the disk."""


_RELEASED = "Yanran21/MoGe4D"
_CONTROL = "alibaba-pai/Wan2.1-Fun-V1.1-14B-Control"
_INP = "alibaba-pai/Wan2.1-Fun-V1.1-14B-InP"
_WAN = "Wan-AI/Wan2.1-T2V-1.3B"
_NOT_STATED = "not stated by the authors (their code: MIT)"
_APACHE = "Apache-2.0"

DOWNLOADS: tuple[RemoteWeights, ...] = (
    RemoteWeights(
        name="strag",
        repository=_RELEASED,
        file="4D-STraG/diffusion_pytorch_model.safetensors",
        licence=_NOT_STATED,
        needed_for="image to 4D: the motion model",
    ),
    RemoteWeights(
        name="motion-vae",
        repository=_RELEASED,
        file="VAE/*vae/pytorch_model.bin",
        licence=_NOT_STATED,
        needed_for="image to 4D: the motion VAE (join the three parts: weights convert)",
    ),
    RemoteWeights(
        name="motion-vae-encoder",
        repository=_RELEASED,
        file="VAE/*encoder_prompt/pytorch_model.bin",
        licence=_NOT_STATED,
        needed_for="image to 4D: the motion VAE's encoder adapter",
    ),
    RemoteWeights(
        name="motion-vae-decoder",
        repository=_RELEASED,
        file="VAE/*decoder_prompt/pytorch_model.bin",
        licence=_NOT_STATED,
        needed_for="image to 4D: the motion VAE's decoder adapter",
    ),
    RemoteWeights(
        name="vism-lora",
        repository=_RELEASED,
        file="4D-ViSM/lora_diffusion_pytorch_model.safetensors",
        licence=_NOT_STATED,
        needed_for="new views: the LoRA for fun-inp",
    ),
    RemoteWeights(
        name="fun-inp",
        repository=_INP,
        file="diffusion_pytorch_model.safetensors",
        licence=_APACHE,
        needed_for="new views: the base transformer; training of 4D-ViSM",
    ),
    RemoteWeights(
        name="fun-control",
        repository=_CONTROL,
        file="diffusion_pytorch_model.safetensors",
        licence=_APACHE,
        needed_for="training of 4D-STraG only",
    ),
    RemoteWeights(
        name="umt5",
        repository=_WAN,
        file="models_t5_umt5-xxl-enc-bf16.pth",
        size_bytes=11_361_920_418,
        sha256="7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
        licence=_APACHE,
        needed_for="prompts: the text encoder",
    ),
    RemoteWeights(
        name="umt5-tokenizer",
        repository=_WAN,
        file="google/umt5-xxl/tokenizer.json",
        size_bytes=16_837_417,
        sha256="6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
        licence=_APACHE,
        needed_for="prompts: the tokenizer",
    ),
    RemoteWeights(
        name="umt5-tokenizer-config",
        repository=_WAN,
        file="google/umt5-xxl/tokenizer_config.json",
        size_bytes=61_728,
        sha256="ed9a3a8b0faa71a70a32847e0435fe036e6e112d4df4edb7bb48a921e344dc05",
        licence=_APACHE,
        needed_for="prompts: the tokenizer's settings",
    ),
    RemoteWeights(
        name="umt5-tokenizer-special",
        repository=_WAN,
        file="google/umt5-xxl/special_tokens_map.json",
        size_bytes=6_623,
        sha256="7b8a9f5040adb67b5805abdfd42c1f8d0f3d0e711f10726580eb3789cd0ad61d",
        licence=_APACHE,
        needed_for="prompts: the tokenizer's special tokens",
    ),
    RemoteWeights(
        name="wan-vae",
        repository=_WAN,
        file="Wan2.1_VAE.pth",
        size_bytes=507_609_880,
        sha256="38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
        licence=_APACHE,
        needed_for="images and videos: the VAE",
    ),
    RemoteWeights(
        name="clip",
        repository="alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP",
        file="models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        size_bytes=4_772_359_047,
        sha256="628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
        licence=f"{_APACHE} (the repository's; CLIP itself: MIT)",
        needed_for="image tokens: the CLIP image encoder",
    ),
    RemoteWeights(
        name="omnimae",
        file="https://dl.fbaipublicfiles.com/omnivore/omnimae_ckpts/vitb_pretrain.torch",
        licence="CC-BY-NC-4.0: no commercial use",
        needed_for="training of 4D-STraG only (the released STraG file contains it)",
    ),
)

_TOKENIZER = ("umt5-tokenizer", "umt5-tokenizer-config", "umt5-tokenizer-special")
_STRAG = ("strag", "motion-vae", "motion-vae-encoder", "motion-vae-decoder")
_SHARED = ("umt5", *_TOKENIZER, "wan-vae", "clip")

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

    `folder` None means the Hub's shared cache (HF_HOME). Files keep their paths inside the
    repository. `hub` and `fetch` are the transports.

    Raises:
        DownloadError: unknown name, no connection, no space, or not the file that was expected.
    """
    entries = select(names)
    hub = hub or HuggingFaceHub()
    results = []
    for entry in entries:
        _log.info("%s: %s. Licence: %s.", entry.name, entry.needed_for, entry.licence)
        if entry.repository is None:
            results.append(_from_address(entry, folder or _cache_folder(), fetch))
        else:
            results.append(_from_hub(entry, entry.repository, folder, hub))
    return results


def find_downloaded(
    name: str, folder: Path | None = None, *, hub: Hub | None = None
) -> Path | None:
    """Return where an entry lies that was fetched earlier, or None. Opens no connection.

    Raises:
        DownloadError: unknown name, or several files that fit.
    """
    (entry,) = select([name])
    if entry.repository is None:
        place, pattern = folder or _cache_folder(), entry.file.rsplit("/", 1)[1]
    else:
        place = folder or (hub or HuggingFaceHub()).local_folder(entry.repository)
        pattern = entry.file
    if place is None or not place.is_dir():
        return None
    found = sorted(place.glob(pattern)) or sorted(place.glob(f"{pattern}.index.json"))
    if len(found) > 1:
        raise DownloadError(f"{place} has {len(found)} files like {pattern}. Name one yourself.")
    return found[0] if found else None


def _from_address(
    entry: RemoteWeights, folder: Path, fetch: Callable[[str, Path], Path]
) -> Downloaded:
    target = folder / entry.file.rsplit("/", 1)[1]
    if not target.exists():
        if entry.size_bytes is not None:
            require_space(folder, entry.size_bytes)
        fetch(entry.file, target)
    return _verified(entry, target, entry.sha256)


def _from_hub(entry: RemoteWeights, repository: str, folder: Path | None, hub: Hub) -> Downloaded:
    if is_offline() and "*" not in entry.file:
        # Only the cache can answer, and it cannot list.
        return _verified(entry, hub.fetch(repository, entry.file, folder), entry.sha256)
    parts = _matching(entry, repository, hub.files(repository))
    require_space(
        folder or _cache_folder(), sum(hub.missing_bytes(repository, p, folder) for p in parts)
    )
    paths = {part.path: hub.fetch(repository, part.path, folder) for part in parts}
    verified = [_verified(entry, paths[p.path], entry.sha256 or p.sha256) for p in parts]
    return next((v for v in verified if v.path.name.endswith(".index.json")), verified[0])


def _matching(
    entry: RemoteWeights, repository: str, listed: list[RemoteFile]
) -> tuple[RemoteFile, ...]:
    found = tuple(f for f in listed if fnmatch.fnmatchcase(f.path, entry.file))
    if not found and entry.file.endswith(".safetensors"):
        # Large files are sometimes published in parts: name-00001-of-00007, with an index.
        stem = re.escape(entry.file.removesuffix(".safetensors"))
        pattern = rf"{stem}(-\d{{5}}-of-\d{{5}}\.safetensors|\.safetensors\.index\.json)"
        found = tuple(f for f in listed if re.fullmatch(pattern, f.path))
        if found:
            return found
    if len(found) != 1:
        which = first_five(f.path for f in found or listed)
        raise DownloadError(
            f"{repository} has {len(found)} files like {entry.file}; expected one. "
            f"{'Candidates' if found else 'It has'}: {which}. Fetch the right one by hand: "
            f"hf download {repository} FILE"
        )
    return found


def _verified(entry: RemoteWeights, path: Path, expected: str | None) -> Downloaded:
    arrived = file_sha256(path)
    if expected is None:
        _log.info("%s: no SHA-256 is known for it; %s has %s.", entry.name, path, arrived)
    elif arrived != expected:
        raise DownloadError(
            f"{path} is not the expected file for {entry.name}: its SHA-256 is {arrived}; "
            f"expected {expected}. Delete it and download it again."
        )
    else:
        _log.info("%s: SHA-256 as expected.", entry.name)
    return Downloaded(name=entry.name, path=path, sha256=arrived)


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "more4d"
