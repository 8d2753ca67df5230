"""Linear systems of a video: unknowns of distant frames do not touch, but for the focal length.

Frames, and windows by their first frame, are sorted into blocks as long as the longest window. A
window then touches its own block and the next, so that the matrix is block tridiagonal and the
time to solve it grows with the length of the video, not with its cube.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .samples import Cover

CAMERA_SIZE, WINDOW_SIZE = 6, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where unknowns lie in the system."""

    camera: Int[Tensor, "frame 6"]
    """Rotation and translation of each camera."""

    window: Int[Tensor, "window 9"]
    """Log scale, rotation, translation, disparity scale and shift of each window."""

    num_blocks: int
    """Number of blocks."""

    block_size: int
    """Unknowns in a block, padding included."""


def layout_of(cover: Cover) -> Layout:
    """Sort the unknowns into blocks."""
    # Smoothness couples three frames in a row.
    length = max(*cover.length, 2)
    num_blocks = -(-cover.num_frames // length)
    used = [0] * num_blocks

    def place(first_frames: list[int], size: int) -> Tensor:
        rows = []
        for frame in first_frames:
            block = frame // length
            rows.append([block, used[block]])
            used[block] += size
        return torch.tensor(rows)

    camera = place(list(range(cover.num_frames)), CAMERA_SIZE)
    window = place(list(cover.first_frame), WINDOW_SIZE)
    block_size = max(used)

    def index(place: Tensor, size: int) -> Tensor:
        return (place[:, 0] * block_size + place[:, 1])[:, None] + torch.arange(size)

    return Layout(
        camera=index(camera, CAMERA_SIZE),
        window=index(window, WINDOW_SIZE),
        num_blocks=num_blocks,
        block_size=block_size,
    )


class System:
    """Normal equations, added up piece by piece. float64, on the CPU."""

    def __init__(self, layout: Layout) -> None:
        """Start at zero."""
        self.layout = layout
        blocks, size = layout.num_blocks, layout.block_size
        count = blocks * size * size
        # The last entry takes what lies above the diagonal blocks: the matrix is symmetric.
        self._entries = torch.zeros(2 * count + 1, dtype=torch.float64)
        self.diagonal, self.below = self._entries[:count], self._entries[count:-1]
        self.gradient = torch.zeros(blocks * size, dtype=torch.float64)
        self.border = torch.zeros(blocks * size, dtype=torch.float64)
        self.corner = torch.zeros((), dtype=torch.float64)
        self.corner_gradient = torch.zeros((), dtype=torch.float64)

    def add(
        self, index: Int[Tensor, "*batch row"], matrix: Tensor, gradient: Tensor | None = None
    ) -> None:
        """Add square matrices, and gradients, at the unknowns in `index`; repeats add up."""
        size, count = self.layout.block_size, len(self.diagonal)
        block, within = index // size, index % size
        place = (block * size + within)[..., :, None] * size + within[..., None, :]
        apart = block[..., :, None] - block[..., None, :]
        place = torch.where(apart == 0, place, torch.where(apart == 1, place + count, 2 * count))
        self._entries.index_add_(0, place.flatten(), matrix.flatten())
        if gradient is not None:
            self.gradient.index_add_(0, index.flatten(), gradient.flatten())

    def add_border(self, index: Int[Tensor, "*batch row"], column: Tensor) -> None:
        """Add what couples unknowns to the focal length."""
        self.border.index_add_(0, index.flatten(), column.flatten())

    @property
    def is_finite(self) -> bool:
        """Whether a step can be solved for."""
        parts = (self.diagonal, self.below, self.border, self.gradient)
        return all(bool(part.isfinite().all()) for part in parts)

    def fix(self, index: Int[Tensor, "row"]) -> None:
        """Keep unknowns as they are."""
        size = self.layout.block_size
        place = index // size * size * size + index % size * size + index % size
        self.diagonal[place] += 1e6 * self.diagonal.abs().amax().clamp_min(1)

    def solve(self, damping: float) -> tuple[Float[Tensor, "unknown"], Float[Tensor, ""]]:
        """Return the step of all unknowns and of the logarithm of the focal length.

        `damping` is relative to the diagonal (Levenberg-Marquardt); unknowns that nothing is
        known of do not move.
        """
        blocks, size = self.layout.num_blocks, self.layout.block_size
        diagonal = self.diagonal.view(blocks, size, size).clone()
        strength = diagonal.diagonal(dim1=1, dim2=2)
        floor = 1e-10 * strength.median().clamp_min(1e-12)
        extra = damping * strength + floor + (strength <= floor)
        diagonal += torch.diag_embed(extra)
        right = torch.stack([-self.gradient, self.border], dim=-1).view(blocks, size, 2)
        solved = _solve_tridiagonal(diagonal, self.below.view(blocks, size, size), right)
        step, by_focal = solved.flatten(0, 1).unbind(-1)
        pivot = self.corner * (1 + damping) - self.border @ by_focal
        known = bool(self.corner > 0) and bool(pivot > 1e-9 * self.corner)
        focal = (-self.corner_gradient - self.border @ step) / pivot if known else pivot * 0
        return step - focal * by_focal, focal


def _solve_tridiagonal(diagonal: Tensor, below: Tensor, right: Tensor) -> Tensor:
    """Block Cholesky. `below[b]` couples rows of block b to columns of block b - 1."""
    factors, reduced = [], []
    for b in range(len(diagonal)):
        block, side = diagonal[b], right[b]
        if b:
            carried = torch.cholesky_solve(below[b].T, factors[-1])
            block = block - below[b] @ carried
            side = side - carried.T @ reduced[-1]
        factors.append(torch.linalg.cholesky(block))
        reduced.append(side)
    solution = [torch.cholesky_solve(reduced[-1], factors[-1])]
    for b in range(len(diagonal) - 2, -1, -1):
        side = reduced[b] - below[b + 1].T @ solution[0]
        solution.insert(0, torch.cholesky_solve(side, factors[b]))
    return torch.stack(solution)
