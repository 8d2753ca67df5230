"""Parameters that are split over ranks: by FSDP2, or by DeepSpeed's ZeRO.

Each engine keeps them in its own way. Here they all look alike: of every trained parameter a rank
holds a flat float32 fragment, and the fragments of all ranks, one after the other, are the
parameter (and then padding, for ZeRO-3).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .optimizers import trained_parameters
from .sharding import Engine

WEIGHTS = "weights.json"
"""Beside the fragments: how many ranks, and the shape of every tensor."""


@runtime_checkable
class Fragments(Protocol):
    """The fragments of the trained parameters that this rank holds."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and float32 fragment, one after the other, in the same order every time."""
        ...

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Put other values in their place, also where the network computes. All ranks together."""
        ...


@dataclass(frozen=True, slots=True)
class WholeParameters:
    """Of one rank alone, or of ranks that all hold everything."""

    parameters: Mapping[str, Tensor]
    """By name."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters themselves."""
        for name, parameter in self.parameters.items():
            yield name, parameter.detach()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


@dataclass(frozen=True, slots=True)
class FsdpFragments:
    """Of FSDP2: rows of each parameter."""

    module: nn.Module
    """Prepared by accelerate."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield views of this rank's rows."""
        split_again(self.module)
        for name, parameter in trained_parameters(self.module).items():
            yield name, _rows(parameter).flatten()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into this rank's rows."""
        split_again(self.module)
        for name, parameter in trained_parameters(self.module).items():
            rows = _rows(parameter)
            rows.copy_(values[name].view_as(rows))


def split_again(module: nn.Module) -> None:
    """Let go of parameters that FSDP2 has gathered.

    It keeps those outside of blocks after a forward pass without a backward one. They would be
    computed with once more, whatever has become of their rows.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@dataclass(frozen=True, slots=True)
class ZeroTwoFragments:
    """Of ZeRO-1 and -2: whole parameters for computing, and float32 fragments in the optimiser."""

    parameters: Mapping[str, nn.Parameter]
    """By name."""

    optimizer: Any
    """DeepSpeed's."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield views; empty where other ranks hold the whole of a parameter."""
        for name, parameter in self.parameters.items():
            mapping = cast(Any, parameter)._hp_mapping  # None: nothing of it is here
            yield name, torch.empty(0) if mapping is None else mapping.hp_fragment.detach()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the fragments, and gather from them what the network computes with."""
        for name, fragment in self.items():
            fragment.copy_(values[name])
        self.optimizer.update_lp_params()


@dataclass(frozen=True, slots=True)
class ZeroThreeFragments:
    """Of ZeRO-3: fragments of the network's parameters, and float32 ones in the optimiser."""

    parameters: Mapping[str, nn.Parameter]
    """By name; empty outside of a forward pass."""

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield fragments; copies on the GPU where the optimiser is offloaded."""
        from deepspeed.utils import safe_get_local_fp32_param  # pyright: ignore[reportMissingImports]

        for name, parameter in self.parameters.items():
            yield name, safe_get_local_fp32_param(parameter).detach()

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into both kinds of fragments."""
        from deepspeed.utils import safe_set_local_fp32_param  # pyright: ignore[reportMissingImports]

        for name, parameter in self.parameters.items():
            safe_set_local_fp32_param(parameter, values[name].to(parameter.device))
            cast(Any, parameter).ds_tensor.data.copy_(values[name])


def fragments_of(engine: Engine | None, module: nn.Module, optimizer: Any) -> Fragments:
    """Return this rank's part of the trained parameters of a prepared module."""
    trained = trained_parameters(module)
    if engine == "fsdp":
        return FsdpFragments(module)
    if engine == "zero2":
        return ZeroTwoFragments(trained, optimizer.optimizer)
    if engine == "zero3":
        return ZeroThreeFragments(trained)
    return WholeParameters(trained)


def allocate(
    module: nn.Module, optimizer: Any, names: list[list[str]], device: torch.device
) -> None:
    """Give memory to what FSDP2 split on the meta device, and the optimiser what it is to train.

    `names` are those of each group of the optimiser.
    """
    module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
    # accelerate tells parameters by their addresses, of which there were none.
    trained = trained_parameters(module)
    for group, its_names in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [trained[name] for name in its_names]


def save_fragments(
    folder: Path, fragments: Fragments, module: nn.Module, *, rank: int, frozen: bool
) -> None:
    """Write this rank's part of the weights: `weights-<rank>.safetensors`.

    With `frozen` also of what is not trained.
    """
    tensors = {name: _stored(fragment) for name, fragment in fragments.items()}
    if frozen:
        tensors |= {name: _stored(part) for name, part in _frozen(module, rank)}
    save_file(tensors, folder / f"weights-{rank}.safetensors")


def shapes_of(module: nn.Module, *, frozen: bool) -> dict[str, list[int]]:
    """Return the whole shape of every tensor that `save_fragments` writes parts of."""
    named = {n: p for n, p in module.named_parameters() if frozen or p.requires_grad}
    shapes = {n: list(getattr(p, "ds_shape", p.shape)) for n, p in named.items()}
    return shapes | ({n: list(b.shape) for n, b in _buffers(module)} if frozen else {})


def _frozen(module: nn.Module, rank: int) -> Iterator[tuple[str, Tensor]]:
    from torch.distributed.tensor import DTensor

    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_tensor"):
            yield name, cast(Any, parameter).ds_tensor
        elif isinstance(parameter, DTensor):
            yield name, _rows(parameter)
        elif rank == 0:
            yield name, parameter
    if rank == 0:
        yield from _buffers(module)


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in kept:
            yield name, buffer


def _rows(parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    return cast(Any, parameter.detach()).to_local()


def _stored(fragment: Tensor) -> Tensor:
    return fragment.detach().flatten().cpu().contiguous()
