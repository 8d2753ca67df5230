"""One denoising step of 4D-STraG against diffusers' plain Wan of the same size and token count.

    python -m benchmarks.strag_step                      full size, about 40 GiB of device memory
    python -m benchmarks.strag_step --layers 4           a shorter stack, for tuning
    python -m benchmarks.strag_step --layers 2 --profile what the time goes into
    python -m benchmarks.strag_step --variants "guided compiled" "guided compiled joined"
    python -m benchmarks.strag_step --size tiny --device cpu --latent 4 8 10

Weights are random; the two halves of classifier-free guidance run as one batch. All variants share
their weights and take turns, so that a clock that slows down slows all of them.

A variant is a model and any of these words behind it:

    compiled   its blocks are compiled, as users can have it; the words below are trials
    tuned      compiled, and inductor searches for the launch parameters of its kernels (minutes)
    searched   tuned, and inductor's own matrix products compete with cuBLAS (more minutes)
    joined     query, key and value come from one matrix product; weights are held twice
    epilogue   GELU inside the matrix product before it
    lt         matrix products chosen by cuBLASLt's heuristics, not cuBLAS's
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

from more4d_backend.files import replacing
from more4d_backend.strag.motion_perception import Guidance
from more4d_backend.strag.sizes import IMAGE_TOKENS, STRAG_SIZES, StragSize
from more4d_backend.strag.transformer import StragTransformer

Step = Callable[[], Tensor]
Wan = WanTransformer3DModel
Model = TypeVar("Model", bound=nn.Module)

TEXT_TOKENS = 512
BATCH = 2
WARM_UP = 2

TARGETS = {
    "guided / plain": 0.97,
    "guided compiled / plain": 0.80,
    "guided / unguided": 1.02,
}
"""Ratios that must not be exceeded at full size, all without guidance or compilation below."""

MODELS = ("plain", "unguided", "guided")
STANDARD = (*MODELS, "plain compiled", "guided compiled")
COMPILER_OPTIONS = {
    "compiled": {},
    "tuned": {"coordinate_descent_tuning": True},
    "searched": {"coordinate_descent_tuning": True, "max_autotune": True},
}
TRIALS = ("joined", "epilogue", "lt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run a step."""

    name: str
    """For the table."""

    step: Step
    """Runs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One step's inputs, made once."""

    video: Tensor
    """Noisy and conditioning latents, without the reference frame."""

    reference: Tensor
    """The reference latent."""

    common: dict[str, Tensor | None]
    """What both models take by the same names."""


def main() -> None:
    """Time all variants and print seconds and ratios."""
    arguments = parse_arguments()
    size = chosen_size(arguments)
    source = random_weights(size, arguments.device)
    inputs = make_inputs(size, arguments)
    # Compiled functions are found by their code, which all variants share.
    torch._dynamo.config.recompile_limit = 64  # pyright: ignore[reportAttributeAccessIssue]
    maker = VariantMaker(source, size, inputs, arguments)
    names = dict.fromkeys(("plain", *arguments.variants))
    variants = [Variant(name=name, step=maker.step(name)) for name in names]
    with torch.no_grad():
        outputs = warm_up(variants)
        if arguments.profile:
            for variant in variants:
                profile(variant)
        seconds = measure(variants, arguments.repeats, arguments.device)
    report(seconds, outputs, size, inputs, arguments)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=sorted(STRAG_SIZES), default="14b")
    parser.add_argument("--layers", type=int, help="blocks; the size's own by default")
    parser.add_argument(
        "--latent", type=int, nargs=3, default=(13, 46, 64), metavar=("F", "H", "W")
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variants", nargs="+", default=STANDARD, help="see above", type=variant)
    parser.add_argument("--attention", help="diffusers attention backend of our variants")
    parser.add_argument("--profile", action="store_true", help="print each variant's kernels")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    return parser.parse_args()


def variant(name: str) -> str:
    """Return the name of a variant, if there is one."""
    model, *words = name.split()
    if model not in MODELS or not {*COMPILER_OPTIONS, *TRIALS}.issuperset(words):
        raise argparse.ArgumentTypeError(
            f"{name!r} is none of {', '.join(MODELS)} with words of "
            f"{', '.join((*COMPILER_OPTIONS, *TRIALS))} behind it."
        )
    return name


def chosen_size(arguments: argparse.Namespace) -> StragSize:
    """Return the size, with the number of blocks that was asked for."""
    size = STRAG_SIZES[arguments.size]
    layers = arguments.layers or size.wan.num_layers
    return replace(size, wan=replace(size.wan, num_layers=layers))


def random_weights(size: StragSize, device: str) -> StragTransformer:
    """Make a model with random weights in bf16, where the device is and as a file is loaded."""
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = StragTransformer(**size.config())
    finally:
        torch.set_default_dtype(default)
    kept = set(StragTransformer._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter, std=0.02)
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()
    return model.eval().requires_grad_(False)


def sharing(make: Callable[[], Model], source: nn.Module, device: str) -> Model:
    """Make another model on the weights of `source`."""
    with init_empty_weights(include_buffers=False):
        model = make()
    state = source.state_dict()
    model.load_state_dict({n: state[n] for n in model.state_dict()}, strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False)


def make_inputs(size: StragSize, arguments: argparse.Namespace) -> Inputs:
    """Make one step's inputs."""
    frames, height, width = arguments.latent

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=arguments.device, dtype=torch.bfloat16)

    image_dim = size.wan.image_dim
    return Inputs(
        video=normal(BATCH, size.wan.in_channels, frames, height, width),
        reference=normal(BATCH, 16, height, width),
        common={
            "timestep": torch.full((BATCH,), 500.0, device=arguments.device),
            "encoder_hidden_states": normal(BATCH, TEXT_TOKENS, size.wan.text_dim),
            "encoder_hidden_states_image": (
                None if image_dim is None else normal(BATCH, IMAGE_TOKENS, image_dim)
            ),
        },
    )


class VariantMaker:
    """Makes steps of models that share their weights."""

    def __init__(
        self,
        source: StragTransformer,
        size: StragSize,
        inputs: Inputs,
        arguments: argparse.Namespace,
    ) -> None:
        """Take the weights, and make the guidance."""
        self.source, self.size, self.inputs, self.arguments = source, size, inputs, arguments
        height, width = inputs.video.shape[-2:]
        image = torch.rand(1, 3, 8 * height, 8 * width, device=arguments.device)
        with torch.no_grad():
            features = source.encode_image(image, (height, width))
        self.guidance = Guidance(features=features, unguided_frame=-1)
        # The baseline gets as many tokens: its first frame stands for the reference.
        self.longer = torch.cat([inputs.video[:, :, :1], inputs.video], dim=2)
        self.models: dict[str, Wan] = {}

    def step(self, name: str) -> Step:
        """Return what runs a step of the named variant."""
        base, *words = name.split()
        kind = " ".join(["plain" if base == "plain" else "ours", *words])
        if kind not in self.models:
            self.models[kind] = self.model(base == "plain", words)
        step = self.call(self.models[kind], base)
        return with_cublas_lt(step) if "lt" in words else step

    def call(self, model: Wan, base: str) -> Step:
        """Return what calls a model."""
        inputs = self.inputs
        if base == "plain":
            return lambda: model(self.longer, **inputs.common, return_dict=False)[0]
        guidance = self.guidance if base == "guided" else None
        step = partial(model, **inputs.common, guidance=guidance, return_dict=False)
        return lambda: step(inputs.video, reference_latent=inputs.reference)[0]

    def model(self, plain: bool, words: list[str]) -> Wan:
        """Make a model, changed and compiled as the words say."""
        wan, device = self.size.wan.config(), self.arguments.device
        if plain:
            model = sharing(lambda: Wan(**wan), self.source, device)
        else:
            model = sharing(lambda: StragTransformer(**self.size.config()), self.source, device)
            if self.arguments.attention:
                model.set_attention_backend(self.arguments.attention)
        if "joined" in words:
            model.fuse_qkv_projections()
        if "epilogue" in words:
            blocks: Any = model.blocks
            for block in blocks:
                block.ffn.net[0].forward = MethodType(gelu_in_product, block.ffn.net[0])
        options = [COMPILER_OPTIONS[word] for word in words if word in COMPILER_OPTIONS]
        if options:
            model.compile_repeated_blocks(fullgraph=True, options=options[0] or None)
        return model


def gelu_in_product(gelu: Any, hidden_states: Tensor) -> Tensor:
    """Return what diffusers' GELU returns, from one kernel."""
    weight, bias = gelu.proj.weight, gelu.proj.bias
    tokens = hidden_states.flatten(0, 1)
    activated = torch._addmm_activation(bias, tokens, weight.t(), use_gelu=True)
    return activated.unflatten(0, hidden_states.shape[:2])


def with_cublas_lt(step: Step) -> Step:
    """Return a step that prefers cuBLASLt while it is launched."""

    def run() -> Tensor:
        before = torch.backends.cuda.preferred_blas_library()
        torch.backends.cuda.preferred_blas_library("cublaslt")
        try:
            return step()
        finally:
            torch.backends.cuda.preferred_blas_library(before)

    return run


def warm_up(variants: list[Variant]) -> dict[str, Tensor]:
    """Run every variant a few times, and return what each one computes."""
    outputs = {}
    for variant in variants:
        start = time.perf_counter()
        for _ in range(WARM_UP):
            outputs[variant.name] = variant.step()
        total = outputs[variant.name].float().abs().sum().item()  # waits for the device
        print(f"warm-up {variant.name:32s} {time.perf_counter() - start:7.1f} s  sum {total:.4g}")
    return outputs


def measure(variants: list[Variant], repeats: int, device: str) -> dict[str, list[float]]:
    """Return seconds per step of every variant, which take turns."""
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            seconds[variant.name].append(timed(variant.step, device))
    return seconds


def timed(step: Step, device: str) -> float:
    """Return the seconds of one step."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def profile(variant: Variant) -> None:
    """Print the kernels that one step spends its time in."""
    on_cuda = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        variant.step()
        if on_cuda:
            torch.cuda.synchronize()
    times = [
        (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
        if not on_cuda or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    times.sort(key=lambda pair: pair[0], reverse=True)
    print(f"\n--- {variant.name}: {sum(time for time, _ in times) / 1000:.2f} ms in all")
    for microseconds, event in times[:25]:
        print(f"{microseconds / 1000:9.3f} ms {event.count:5d}x  {event.key[:110]}")


def report(
    seconds: dict[str, list[float]],
    outputs: dict[str, Tensor],
    size: StragSize,
    inputs: Inputs,
    arguments: argparse.Namespace,
) -> None:
    """Print the table, the ratios with their targets, and how far compiled results are off."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    frames, height, width = inputs.video.shape[2:]
    tokens = (frames + 1) * (height // 2) * (width // 2)
    print(f"\n{arguments.size}, {size.wan.num_layers} blocks, {tokens} tokens, batch {BATCH}")
    print(f"torch {torch.__version__}, {device_name(arguments.device)}")
    for name, values in seconds.items():
        print(
            f"{name:32s} {1000 * median[name]:9.1f} ms  (min {1000 * min(values):.1f}, "
            f"max {1000 * max(values):.1f})  {median[name] / median['plain']:.4f} of plain"
        )
    ratios = {}
    for what, target in TARGETS.items():
        above, below = what.split(" / ")
        if above in median and below in median:
            ratios[what] = median[above] / median[below]
            told = "met" if ratios[what] <= target else "MISSED"
            print(f"{what:26s} {ratios[what]:.4f}  target {target:.2f}: {told}")
    for name, output in outputs.items():
        eager = outputs.get(name.split()[0])
        if eager is not None and eager is not output:
            off = (output.float() - eager.float()).norm() / eager.float().norm()
            print(f"{name} is off by {off:.2e}")
    if arguments.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / (1 << 30)
        print(f"peak memory {peak:.1f} GiB")
    if arguments.output:
        write(arguments.output, seconds, ratios, size, arguments)


def device_name(device: str) -> str:
    """Return the name of the device."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def write(
    path: Path,
    seconds: dict[str, list[float]],
    ratios: dict[str, float],
    size: StragSize,
    arguments: argparse.Namespace,
) -> None:
    """Write the figures, and what they were taken with."""
    figures = {
        "device": device_name(arguments.device),
        "torch": torch.__version__,
        "size": asdict(size),
        "latent_frame_height_width": list(arguments.latent),
        "attention": arguments.attention or "default",
        "seconds": seconds,
        "ratios_of_medians": ratios,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
