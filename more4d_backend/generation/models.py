"""Which weight files a generation uses, and the loading of each pipeline when its stage comes."""

import gc
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..devices import (
    DevicePlanError,
    DeviceRequest,
    DeviceState,
    check_memory_mode,
    detect_device,
    explaining_out_of_memory,
    plan_devices,
)
from ..devices.attention_speed import fastest_attention
from ..files import replacing
from ..strag.profile import RELEASED, StragWeightsProfile
from ..vism.lora import RELEASED_WEIGHT
from ..wan.latents import latent_size
from ..wan.step_speed import (
    cache_steps,
    check_compilation,
    check_step_cache,
    compile_blocks,
)
from ..weights.conversion import open_model
from ..weights.files import WeightsError, file_sha256
from ..weights.kinds import WeightKind, expect

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from ..devices.memory_modes import Placement
    from ..strag.pipeline import StragPipeline
    from ..vism.pipeline import VismPipeline
    from ..wan.image_tokens import ClipImageEncoder
    from ..wan.text import TextEncoder

_log = logging.getLogger(__name__)

STRAG_WEIGHTS = ("strag", "motion-vae", "wan-vae", "umt5", "umt5-tokenizer", "clip")
"""Names, as `download` knows them, of the files that image to 4D needs."""

VISM_WEIGHTS = ("fun-inp", "vism-lora", "wan-vae", "umt5", "umt5-tokenizer", "clip")
"""Names of the files that filling holes needs."""

_ENCODERS = ("umt5", "umt5-tokenizer", "clip")
"""In place of these, a small model has one file, `text-encoder`."""

_KINDS = {
    "strag": (WeightKind.STRAG,),
    "motion-vae": (WeightKind.MOTION_VAE, WeightKind.MOTION_DECODER),
    "wan-vae": (WeightKind.WAN_VAE,),
    "umt5": (WeightKind.UMT5,),
    "clip": (WeightKind.CLIP_VISION,),
    "text-encoder": (WeightKind.BYTE_TEXT,),
    "fun-inp": (WeightKind.FUN_INP,),
    "vism-lora": (WeightKind.VISM_LORA,),
}


@runtime_checkable
class Models(Protocol):
    """Both pipelines, each in memory only while its stage lasts."""

    def strag(
        self, num_frames: int, size_hw: tuple[int, int]
    ) -> AbstractContextManager["StragPipeline"]:
        """Load 4D-STraG for videos of a size."""
        ...

    def vism(
        self, num_frames: int, size_hw: tuple[int, int]
    ) -> AbstractContextManager["VismPipeline"]:
        """Load 4D-ViSM for windows of a size."""
        ...

    def strag_sha256(self) -> dict[str, str]:
        """Hash every file that `strag` loads."""
        ...

    def vism_sha256(self) -> dict[str, str]:
        """Hash every file that `vism` loads."""
        ...

    def strag_settings(self) -> dict[str, Any]:
        """Return what else about `strag` decides its result, as JSON or dataclasses."""
        ...

    def vism_settings(self) -> dict[str, Any]:
        """Return what else about `vism` decides its result, as JSON or dataclasses."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileModels:
    """Models from weight files. See `Models`."""

    files: dict[str, Path]
    """Name, as in `STRAG_WEIGHTS` and `VISM_WEIGHTS` -> file. With `text-encoder` (which reads
    bytes) none of UMT5, its tokenizer and CLIP is needed."""

    origin: str = "The weights are those named."
    """Where they come from and what they can do, for run.json."""

    profile: StragWeightsProfile = RELEASED
    """How the STraG weights were trained."""

    lora_weight: float = RELEASED_WEIGHT
    """How strongly the ViSM LoRA acts."""

    compile_blocks: bool = False
    """Compile the transformer's blocks: slower to start, faster per step."""

    step_cache: float | None = None
    """Threshold of step caching (`step_speed.cache_steps`); None computes every step in full."""

    measure_attention: bool = False
    """Time torch's attention kernels at the run's size and take the fastest."""

    request: DeviceRequest = DeviceRequest()  # noqa: RUF009 (frozen)
    """Device, dtype and memory mode; None in it is chosen from free memory."""

    def __post_init__(self) -> None:
        if self.compile_blocks and self.request.memory_mode == "fp8":
            raise DevicePlanError(
                "Compiled blocks cannot hold their weights in 8 bits. Leave out one of them: "
                "compile_blocks, or the memory mode fp8."
            )
        if self.compile_blocks:
            check_compilation()
        if self.request.memory_mode is not None:  # now, not after minutes of loading
            check_memory_mode(self.request.memory_mode, detect_device(self.request.device).device)
        if self.step_cache is not None:
            check_step_cache(self.step_cache)

    def strag_sha256(self) -> dict[str, str]:
        """Hash every file that `strag` loads. See `Models`."""
        return {name: cached_sha256(self._file(name)) for name in self._names(STRAG_WEIGHTS)}

    def vism_sha256(self) -> dict[str, str]:
        """Hash every file that `vism` loads. See `Models`."""
        return {name: cached_sha256(self._file(name)) for name in self._names(VISM_WEIGHTS)}

    def strag_settings(self) -> dict[str, Any]:
        """Return the profile, and what rounds. See `Models`."""
        return {"profile": self.profile} | self._rounding()

    def vism_settings(self) -> dict[str, Any]:
        """Return the LoRA's weight, and what rounds. See `Models`."""
        return {"lora_weight": self.lora_weight} | self._rounding()

    def _rounding(self) -> dict[str, Any]:
        # Device, offloading and compilation move numbers by less than another GPU would.
        return {
            "step_cache": self.step_cache,
            "fp8": self.request.memory_mode == "fp8",
            "vae_tiling": self.request.vae_tiling,
            "dtype": self.request.dtype,
        }

    @contextmanager
    def strag(self, num_frames: int, size_hw: tuple[int, int]) -> Iterator["StragPipeline"]:
        """Load 4D-STraG. See `Models`."""
        from ..strag.pipeline import StragPipeline
        from ..weights.model_loading import load_motion_vae, load_strag, load_wan_vae

        dtype, vae_dtype = self._dtypes()
        transformer = load_strag(self._file("strag"), dtype=dtype)
        vae = load_wan_vae(self._file("wan-vae"), dtype=vae_dtype)
        motion_vae = load_motion_vae(
            self._file("motion-vae"),
            self.profile.latents,
            encoder=self._file("wan-vae"),
            dtype=dtype,
        )
        nn.Module.to(motion_vae.vae, vae_dtype)  # the adapters around it are small and precise
        text, image = self._encoders(dtype)
        # One latent frame more: the reference.
        frames, height, width = latent_size(num_frames, *size_hw)
        num_tokens = (frames + 1) * (height // 2) * (width // 2)
        encoders = [text.model] + ([image.model] if image else [])
        with self._placed(transformer, [vae, motion_vae], encoders, num_tokens, size_hw) as place:
            yield StragPipeline(
                transformer, vae, motion_vae, text, image, profile=self.profile, placement=place
            )

    @contextmanager
    def vism(self, num_frames: int, size_hw: tuple[int, int]) -> Iterator["VismPipeline"]:
        """Load 4D-ViSM. See `Models`."""
        from ..vism.lora import load_lora, merge_lora
        from ..vism.pipeline import VismPipeline
        from ..weights.model_loading import load_wan_transformer, load_wan_vae

        dtype, vae_dtype = self._dtypes()
        transformer = load_wan_transformer(self._file("fun-inp"), dtype=dtype)
        load_lora(transformer, self._file("vism-lora"), lora_weight=self.lora_weight)
        merge_lora(transformer)
        vae = load_wan_vae(self._file("wan-vae"), dtype=vae_dtype)
        text, image = self._encoders(dtype)
        frames, height, width = latent_size(num_frames, *size_hw)
        num_tokens = frames * (height // 2) * (width // 2)
        encoders = [text.model] + ([image.model] if image else [])
        with self._placed(transformer, [vae], encoders, num_tokens, size_hw) as place:
            yield VismPipeline(transformer, vae, text, image, placement=place)

    def _dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Choose the dtype of the networks, and that of the VAEs among them."""
        from ..devices.convolution_speed import convolution_dtype

        state = detect_device(self.request.device, self.request.dtype)
        if self.request.dtype is not None:
            return state.dtype, state.dtype
        vae_dtype, reason = convolution_dtype(state.device, state.dtype)
        _log.info("%s", reason)
        return state.dtype, vae_dtype

    def _names(self, names: Sequence[str]) -> list[str]:
        if "text-encoder" not in self.files:
            return list(names)
        return [*(name for name in names if name not in _ENCODERS), "text-encoder"]

    def _encoders(self, dtype: torch.dtype) -> tuple["TextEncoder", "ClipImageEncoder | None"]:
        from ..tiny.text_encoder import ByteTextEncoder
        from ..wan.image_tokens import ClipImageEncoder
        from ..wan.text import UMT5TextEncoder, load_tokenizer
        from ..weights.model_loading import load_byte_text, load_clip_vision, load_umt5

        if "text-encoder" in self.files:
            path = self._file("text-encoder")
            return ByteTextEncoder(load_byte_text(path, dtype=dtype)), None
        tokenizer = load_tokenizer(self._file("umt5-tokenizer"))
        text = UMT5TextEncoder(load_umt5(self._file("umt5"), dtype=dtype), tokenizer)
        return text, ClipImageEncoder(load_clip_vision(self._file("clip"), dtype=dtype))

    @contextmanager
    def _placed(
        self,
        transformer: "WanTransformer3DModel",
        vaes: Sequence[nn.Module],
        encoders: Sequence[nn.Module],
        num_tokens: int,
        size_hw: tuple[int, int],
    ) -> Iterator["Placement"]:
        """Place networks by a plan made for them now; free their memory afterwards."""
        from ..devices.memory_modes import apply_plan, run_sizes

        state = detect_device(self.request.device, self.request.dtype)
        sizes = run_sizes(
            denoiser=transformer,
            vae=nn.ModuleList(vaes),
            encoders=encoders,
            num_tokens=num_tokens,
            size_hw=size_hw,
            dtype=state.dtype,
        )
        plan = plan_devices(state, sizes, self._measured(transformer, num_tokens, state))
        try:
            with explaining_out_of_memory(plan, sizes):
                if self.compile_blocks and plan.memory_mode != "fp8":
                    compile_blocks(transformer)  # before hooks of offloading and caching go around
                elif self.compile_blocks:
                    _log.warning("Blocks are not compiled: their weights had to be held in 8 bits.")
                placement = apply_plan(plan, denoisers=[transformer], vaes=vaes, encoders=encoders)
                if self.step_cache is not None:
                    cache_steps(transformer, self.step_cache)
                yield placement
        finally:
            # Whoever holds the pipeline must not hold its memory.
            for module in (transformer, *vaes, *encoders):
                nn.Module.to(module, "meta")
            gc.collect()
            if plan.device.type == "cuda":
                torch.cuda.empty_cache()

    def _measured(
        self, transformer: "WanTransformer3DModel", num_tokens: int, state: DeviceState
    ) -> DeviceRequest:
        """Return the request, with the attention kernel that was the fastest if that is wanted."""
        if not self.measure_attention:
            return self.request
        fastest = fastest_attention(
            device=state.device,
            dtype=state.dtype,
            num_tokens=num_tokens,
            num_heads=transformer.config["num_attention_heads"],
            head_dim=transformer.config["attention_head_dim"],
        )
        return replace(self.request, attention=fastest)

    def check(self) -> None:
        """Refuse a wrong or damaged file now: its stage may come after an hour of others.

        Reads names and shapes only.

        Raises:
            WeightsError: names what the file is, and what its slot needs.
        """
        for name, kinds in _KINDS.items():
            if name in self.files:
                expect(open_model(self.files[name]), *kinds)

    def _file(self, name: str) -> Path:
        if name not in self.files:
            raise WeightsError(f"No file is named for {name}; see find_files.")
        return self.files[name]


def find_files(
    given: dict[str, Path], folder: Path | None = None, needed: Sequence[str] = ()
) -> dict[str, Path]:
    """Complete what a user named by what was downloaded earlier; opens no connection.

    Raises:
        WeightsError: names everything that is missing, and how to get it.
    """
    from ..weights.downloads import find_downloaded

    files = dict(given)
    for name in needed or dict.fromkeys(STRAG_WEIGHTS + VISM_WEIGHTS):
        found = files.get(name) or find_downloaded(name, folder)
        if found is not None:
            files[name] = found
    wanted = needed or dict.fromkeys(STRAG_WEIGHTS + VISM_WEIGHTS)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise WeightsError(
            f"These weights are neither named nor downloaded: {', '.join(missing)}. Get them: "
            f"python -m more4d_backend download {' '.join(missing)}"
        )
    absent = [str(path) for path in files.values() if not path.exists()]
    if absent:
        raise WeightsError(f"These weight files are not there: {', '.join(absent)}.")
    return files


def cached_sha256(path: Path) -> str:
    """SHA-256 of a weight file, remembered in the user's cache by its path, size and time."""
    path = path.resolve()
    if path.is_dir():  # the released motion VAE: three parts, each in a folder of its own
        parts = sorted(p for p in path.rglob("*") if p.is_file())
        return hashlib.sha256("".join(map(cached_sha256, parts)).encode()).hexdigest()
    stat = path.stat()
    key = [stat.st_size, stat.st_mtime_ns]
    store = _cache_folder() / "sha256.json"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        known = {}  # no cache yet, or a damaged one: it is made again
    entry = known.get(str(path))
    if isinstance(entry, list) and entry[:2] == key:
        return str(entry[2])
    _log.info("Hashing %s (once).", path)
    digest = file_sha256(path)
    try:
        with replacing(store) as temporary:
            temporary.write_text(json.dumps(known | {str(path): [*key, digest]}), encoding="utf-8")
    except OSError as e:  # a home that cannot be written, or on Windows another run's open file
        _log.warning("The hash is not remembered, and made again next time: %s", e)
    return digest


def _cache_folder() -> Path:
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "more4d"
