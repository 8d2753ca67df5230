"""Named-axis shape checks for values that come from outside: files, nodes, other models."""

from torch import Tensor


class ShapeError(ValueError):
    """A tensor whose shape disagrees with its declared axes or with the other tensors."""


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
