"""Named-axis shape checks for values that come from outside: files, nodes, other models."""

from typing import Literal

import torch
from torch import Tensor


class ShapeError(ValueError):
    """A tensor whose shape disagrees with its declared axes or with the other tensors."""


class TensorKindError(ValueError):
    """A value that is no tensor, or a tensor of another data type than declared."""


def check_shapes(**tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Bind axis names across tensors and return their sizes.

    `check_shapes(positions=(p, "frame point 3"), colors=(c, "point 3"))` refuses a colour count
    that differs from the point count. An axis written as a number must have that size.

    Raises:
        ShapeError: names the tensor, the shape that came and the shape that was expected.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, spec) in tensors.items():
        axes = spec.split()
        wanted = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
        agrees = tensor.ndim == len(axes) and all(
            want in (None, size) for want, size in zip(wanted, tensor.shape, strict=True)
        )
        if not agrees:
            shown = ", ".join(
                axis if want is None or axis.isdigit() else f"{axis}={want}"
                for axis, want in zip(axes, wanted, strict=True)
            )
            raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; expected ({shown}).")
        sizes |= {a: s for a, s in zip(axes, tensor.shape, strict=True) if not a.isdigit()}
    return sizes


def check_kinds(**tensors: tuple[Tensor, Literal["float", "bool"]]) -> None:
    """Refuse what is no tensor of the kind: `check_kinds(valid=(v, "bool"))`.

    Raises:
        TensorKindError: names the value, what came and what was expected.
    """
    for name, (tensor, kind) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TensorKindError(f"{name} is a {type(tensor).__name__}; expected a torch.Tensor.")
        agrees = tensor.dtype == torch.bool if kind == "bool" else tensor.is_floating_point()
        if not agrees:
            wanted = "torch.bool" if kind == "bool" else "floating point, such as torch.float32"
            raise TensorKindError(f"{name} has dtype {tensor.dtype}; expected {wanted}.")
