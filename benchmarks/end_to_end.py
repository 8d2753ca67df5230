"""Seconds per stage of image -> 4D scene -> video, and whether anything but denoising matters.

    python -m benchmarks.end_to_end                          full size, about 60 GiB; one H200
    python -m benchmarks.end_to_end --compile-blocks
    python -m benchmarks.end_to_end --size tiny --device cpu --num-frames 5 --height 64 --width 64

Runs what `generate` runs, files included, with random weights of every network: Depth Anything
(ViT-L), UMT5-XXL, CLIP ViT-H, Wan VAE, motion VAE, 4D-STraG, 4D-ViSM; one photo, one camera path.
Few steps are run. The denoising loops are extrapolated to 50 steps: the first as measured, the
others as long as the median; all else is as measured. Reading weight files is left out:
here networks are filled on the device.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from torch import Tensor

from benchmarks.memory import empty_networks, fill
from more4d_backend.depth import DepthPrediction, DepthProvider
from more4d_backend.files import replacing
from more4d_backend.generation import DepthSource, GenerationSettings, image_to_4d_video
from more4d_backend.rendering import RenderSettings
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.strag.sizes import VISM_SIZES
from more4d_backend.vism.pipeline import VismPipeline, VismSettings
from more4d_backend.wan.image_tokens import ClipImageEncoder
from more4d_backend.wan.sampling import SamplingSettings
from more4d_backend.wan.step_speed import compile_blocks
from more4d_backend.wan.text import UMT5TextEncoder

FULL_STEPS = 50
LARGEST_SHARE = 0.05
"""Nothing outside the denoising loops may take more of the whole."""

PHOTO_HW = (720, 960)
PROMPT_TOKENS = 60
LOOPS = {"motion": "scene", "complete dolly-zoom": "dolly-zoom: complete"}
"""Progress label of each denoising loop -> stage that it is in."""

PARTS = ("encode_text", "encode_image_tokens", "_encode_condition", "_guidance")


@dataclass(slots=True)
class Clock:
    """What was timed while the job ran."""

    device: str
    """Is waited for at every mark."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Part of a stage -> seconds."""

    steps: dict[str, list[float]] = field(default_factory=dict)
    """Denoising loop -> time at the end of each step."""

    begun: dict[str, float] = field(default_factory=dict)
    """Stage -> time at which its transformer was called first."""

    building: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Stage -> seconds of making random networks, which no user waits for."""

    def now(self) -> float:
        """Wait for the device, and return the time."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work`, timed under a name."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = work(*args, **kwargs)
            self.seconds[name] += self.now() - start
            return result

        return run

    def report(self, label: str) -> Callable[[int, int], None] | None:
        """Note when each step of a denoising loop ends; rendering has no steps to note."""
        if label not in LOOPS:
            return None
        marks = self.steps.setdefault(label, [])
        return lambda done, total: marks.append(self.now())


class RandomTokenizer:
    """Stands for UMT5's tokenizer, which needs a file: every prompt has the same tokens."""

    def __call__(self, prompts: str | list[str], **_: Any) -> Any:
        """Return `PROMPT_TOKENS` tokens per prompt."""
        from transformers import BatchEncoding

        ids = torch.arange(PROMPT_TOKENS).repeat(1 if isinstance(prompts, str) else len(prompts), 1)
        if isinstance(prompts, str):
            return BatchEncoding({"input_ids": ids[0].tolist()})
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """A depth provider that is shown the photo where its network is, as the command does."""

    provider: DepthProvider
    """The network."""

    device: str
    """Where it is."""

    def predict(self, image: Float[Tensor, "height width 3"]) -> DepthPrediction:
        """See `DepthProvider`."""
        return self.provider.predict(image.to(self.device))


class RandomModels:
    """Both pipelines with random weights, each in memory while its stage lasts."""

    def __init__(self, arguments: argparse.Namespace, clock: Clock) -> None:
        self.arguments, self.clock = arguments, clock
        self.dtype = torch.bfloat16 if arguments.device.startswith("cuda") else torch.float32

    @contextmanager
    def strag(self, num_frames: int, size_hw: tuple[int, int]) -> Iterator[StragPipeline]:
        """See `Models`."""
        start = self.clock.now()
        transformer, vae, motion_vae = empty_networks(self.arguments)
        for network in (transformer, vae, motion_vae):
            self._fill(network)
        text, image = self._encoders(transformer.config["image_dim"])
        pipeline = StragPipeline(transformer, vae, motion_vae, text, image)
        decode = self.clock.timed("scene: decode", motion_vae.decode)
        object.__setattr__(motion_vae, "decode", decode)
        self._finish("scene", pipeline, start)
        yield pipeline
        self._free(pipeline)

    @contextmanager
    def vism(self, num_frames: int, size_hw: tuple[int, int]) -> Iterator[VismPipeline]:
        """See `Models`."""
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        start = self.clock.now()
        with init_empty_weights():
            transformer = WanTransformer3DModel(**VISM_SIZES[self.arguments.size].config()).eval()
        vae = empty_networks(self.arguments)[1]
        for network in (transformer, vae):
            self._fill(network)
        text, image = self._encoders(transformer.config["image_dim"])
        pipeline = VismPipeline(transformer, vae, text, image)
        stage = "dolly-zoom: complete"
        decode = self.clock.timed(f"{stage}: decode", pipeline._decode)
        object.__setattr__(pipeline, "_decode", decode)
        self._finish(stage, pipeline, start)
        yield pipeline
        self._free(pipeline)

    def depth(self) -> DepthProvider:
        """Return Depth Anything: ViT-L at full size."""
        from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

        from more4d_backend.depth.depth_anything import DepthAnything

        width, heads, depth = (1024, 16, 24) if self.arguments.size == "14b" else (32, 2, 4)
        indices: Any = {"out_indices": [depth // 4, depth // 2, 3 * depth // 4, depth]}
        backbone = Dinov2Config(
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=depth,
            image_size=518,
            patch_size=14,
            apply_layernorm=True,
            reshape_hidden_states=False,
            **indices,
        )
        config = DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=width,
            neck_hidden_sizes=[width // 4, width // 2, width, width],
            fusion_hidden_size=max(width // 4, 8),
            depth_estimation_type="metric",
            max_depth=20,
        )
        model = DepthAnythingForDepthEstimation(config).eval()
        torch.nn.Module.to(model, self.arguments.device)
        return OnDevice(provider=DepthAnything(model), device=self.arguments.device)

    def strag_sha256(self) -> dict[str, str]:
        """See `Models`; there are no files."""
        return {}

    def vism_sha256(self) -> dict[str, str]:
        """See `Models`; there are no files."""
        return {}

    def strag_settings(self) -> dict[str, Any]:
        """See `Models`."""
        return {"weights": "random"}

    def vism_settings(self) -> dict[str, Any]:
        """See `Models`."""
        return {"weights": "random"}

    def _encoders(self, image_dim: int | None) -> tuple[UMT5TextEncoder, ClipImageEncoder | None]:
        from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

        full = self.arguments.size == "14b"
        umt5 = UMT5Config(
            vocab_size=256384 if full else 100,
            d_model=4096,
            d_kv=64 if full else 8,
            d_ff=10240 if full else 32,
            num_layers=24 if full else 1,
            num_heads=64 if full else 4,
            feed_forward_proj="gated-gelu",
        )
        text = UMT5TextEncoder(self._made(partial(UMT5EncoderModel, umt5)), RandomTokenizer())
        if image_dim is None:
            return text, None
        clip = CLIPVisionConfig(
            hidden_size=image_dim,
            intermediate_size=4 * image_dim,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
            hidden_act="gelu",
        )
        return text, ClipImageEncoder(self._made(partial(CLIPVisionModel, clip)))

    def _made(self, make: Callable[[], Any]) -> Any:
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.arguments.device):
                return make().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)

    def _fill(self, network: torch.nn.Module) -> None:
        fill(network, torch.device(self.arguments.device), self.dtype)

    def _finish(self, stage: str, pipeline: Any, start: float) -> None:
        if self.arguments.compile_blocks:
            compile_blocks(pipeline.transformer)
        for name in PARTS:
            if hasattr(pipeline, name):
                part = f"{stage}: {name.strip('_').replace('_', ' ')}"
                object.__setattr__(pipeline, name, self.clock.timed(part, getattr(pipeline, name)))
        pipeline.transformer.register_forward_pre_hook(partial(self._begin, stage))
        self.clock.building[stage] += self.clock.now() - start

    def _begin(self, stage: str, *_: object) -> None:
        if stage not in self.clock.begun:
            self.clock.begun[stage] = self.clock.now()

    def _free(self, pipeline: Any) -> None:
        for part in vars(pipeline).values():
            network = getattr(part, "model", part)
            if isinstance(network, torch.nn.Module):
                network.to("meta")
        if self.arguments.device.startswith("cuda"):
            torch.cuda.empty_cache()


def main() -> None:
    """Run the job once, and print where its time goes."""
    arguments = parse_arguments()
    clock = Clock(arguments.device)
    models = RandomModels(arguments, clock)
    provider = models.depth()
    sampling = SamplingSettings(num_steps=arguments.steps)
    size_hw = (arguments.height, arguments.width)
    settings = GenerationSettings(
        prompt="a benchmark",
        cameras=("dolly-zoom",),
        strag=StragSettings(num_frames=arguments.num_frames, size_hw=size_hw, sampling=sampling),
        vism=VismSettings(sampling=sampling),
        render=RenderSettings(device=arguments.device),
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        start = clock.now()
        image_to_4d_video(
            torch.rand(*PHOTO_HW, 3),
            DepthSource(load=lambda: provider, name="random weights", fov_rad=1.0),
            models,
            settings,
            Path(folder),
            report=clock.report,
        )
        total = clock.now() - start
        stages = json.loads((Path(folder) / "run.json").read_text())["stages"]
    report(breakdown(stages, clock, total), arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=("14b", "tiny"), default="14b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=368)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument(
        "--steps", type=int, default=4, help="at least 2: the first is unlike the others"
    )
    parser.add_argument("--compile-blocks", action="store_true")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps: the first step is unlike the others, so there must be another.")
    return arguments


def breakdown(stages: list[dict[str, Any]], clock: Clock, total: float) -> dict[str, float]:
    """Return seconds of every part; those of denoising loops for 50 steps."""
    parts: dict[str, float] = {}
    for stage in stages:
        name = stage["name"]
        rest = stage["seconds"] - clock.building.get(name, 0.0)
        for part, seconds in clock.seconds.items():
            if part.startswith(f"{name}: "):
                parts[part] = seconds
                rest -= seconds
        for label, where in LOOPS.items():
            if where == name:
                marks = clock.steps[label]
                step = statistics.median(later - earlier for earlier, later in pairwise(marks))
                rest -= marks[-1] - clock.begun[name]
                first = marks[0] - clock.begun[name]
                parts[f"{name}: denoising"] = first + (FULL_STEPS - 1) * step
        parts[f"{name}: rest" if name in LOOPS.values() else name] = rest
    parts["hashing, contact sheet, run.json"] = total - sum(s["seconds"] for s in stages)
    return parts


def report(parts: dict[str, float], arguments: argparse.Namespace) -> None:
    """Print a table, and what is too large in it."""
    on_cuda = arguments.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_cuda else arguments.device
    print(
        f"{arguments.size}, {arguments.num_frames}x{arguments.height}x{arguments.width}, ", end=""
    )
    print(f"torch {torch.__version__}, {device}; denoising extrapolated to {FULL_STEPS} steps")
    total = sum(parts.values())
    for name, seconds in parts.items():
        share = seconds / total
        too_much = share > LARGEST_SHARE and not name.endswith(": denoising")
        print(f"{name:44s} {seconds:8.2f} s {100 * share:6.1f} %{'  TOO MUCH' * too_much}")
    print(f"{'all':44s} {total:8.2f} s")
    if arguments.output:
        figures = {"device": device, "torch": torch.__version__, "seconds": parts}
        with replacing(arguments.output) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
