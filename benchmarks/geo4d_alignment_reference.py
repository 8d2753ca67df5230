"""Alignment as the released Geo4D does it, written anew from its description: for comparison only.

One Adam run over log depths, poses, one focal length and window similarities; each window's
disparity is fitted by Adam first; losses are summed up window by window in Python. It starts from
the same cameras, similarities and depths as ours, which is not timed: its own start (hundreds of
RANSAC calls) is left out in its favour.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from more4d_backend.geo4d.alignment.initial import ray_trajectories
from more4d_backend.geo4d.alignment.samples import Samples
from more4d_backend.geo4d.alignment.unknowns import Unknowns
from more4d_backend.geo4d.predictions import WindowPrediction
from more4d_backend.geometry import invert_rigid, pixel_centers, quaternion_wxyz_from_matrix

ITERATIONS, SWITCH = 500, 150
"""All iterations, and that from which disparity and cameras count."""
_FIRST_RATE, _LAST_RATE = 0.03, 1e-3
_FIT_ITERATIONS, _FIT_RATE = 5000, 1e-2
_LOG_FOCAL_UNIT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceResult:
    """What came out, and how long it took."""

    depth: Tensor
    """[frame, height, width]."""

    world_to_camera: Tensor
    """[frame, 4, 4]."""

    seconds: float
    """For all iterations; scaled up if fewer were run."""

    iterations_run: int
    """Of `ITERATIONS`."""

    fit_iterations: int
    """Of all disparity fits together."""


def align_like_the_reference(
    windows: Sequence[WindowPrediction],
    samples: Samples,
    start: Unknowns,
    depth: Tensor,
    iterations: int,
) -> ReferenceResult:
    """Run `iterations` of its schedule: a share of both kinds if they are fewer than all."""
    device = samples.points.device
    model = _Model(windows, samples, start, depth.to(device))
    share = iterations / ITERATIONS
    plain = max(1, round(SWITCH * share))
    optimizer = torch.optim.Adam(model.parameters, lr=_FIRST_RATE, betas=(0.9, 0.9))
    begin = _now(device)
    for number in range(plain):
        _step(model, optimizer, number / iterations, full=False)
    plain_s = _now(device) - begin
    begin = _now(device)
    fit_iterations = model.fit_disparities()
    model.lay_trajectories(samples, start)
    fit_s = _now(device) - begin
    begin = _now(device)
    for number in range(plain, iterations):
        _step(model, optimizer, number / iterations, full=True)
    full_s = _now(device) - begin
    seconds = (
        plain_s * SWITCH / plain + fit_s + full_s * (ITERATIONS - SWITCH) / (iterations - plain)
    )
    return ReferenceResult(
        depth=model.log_depth.detach().exp().unflatten(1, depth.shape[1:]).cpu(),
        world_to_camera=invert_rigid(_poses(model.pose.detach())).cpu(),
        seconds=seconds,
        iterations_run=iterations,
        fit_iterations=fit_iterations,
    )


def _step(model: "_Model", optimizer: torch.optim.Optimizer, done: float, full: bool) -> None:
    for group in optimizer.param_groups:
        group["lr"] = _FIRST_RATE + (_LAST_RATE - _FIRST_RATE) * done
    optimizer.zero_grad()
    loss = model.loss(full)
    loss.backward()
    optimizer.step()
    loss.item()  # it prints the loss: one wait for the device per iteration


class _Model:
    """Its parameters and its loss."""

    def __init__(
        self, windows: Sequence[WindowPrediction], samples: Samples, start: Unknowns, depth: Tensor
    ) -> None:
        device = samples.points.device
        self.windows = [
            (
                w.first_frame,
                w.points.flatten(1, 2).to(device, torch.float32),
                _weights(w).flatten(1).to(device),
                _need(w.disparity).flatten(1).to(device, torch.float32),
            )
            for w in windows
        ]
        pixels = pixel_centers(samples.height, samples.width, device=device).reshape(-1, 2)
        self.offsets = pixels - pixels.new_tensor([samples.width / 2, samples.height / 2])
        to_world = invert_rigid(start.world_to_camera)
        scale = start.window_scale
        rows = torch.cat(
            [
                _quaternion(start.window_rotation),
                _signed_log1p(start.window_translation / scale[:, None]),
                scale.log()[:, None],
            ],
            dim=1,
        )
        pose = torch.cat([_quaternion(to_world[:, :3, :3]), _signed_log1p(to_world[:, :3, 3])], 1)

        def parameter(values: Tensor) -> Tensor:
            return values.detach().to(device, torch.float32).clone().requires_grad_()

        self.log_depth = parameter(depth.flatten(1).clamp_min(1e-3).log())
        self.pose, self.similarity = parameter(pose), parameter(rows)
        self.focal = parameter(_LOG_FOCAL_UNIT * start.log_focal)
        self.mean_log_scale = float(scale.log().mean())
        self.lines = [parameter(torch.tensor([1.0, 0.0])) for _ in windows]
        self.parameters = [self.log_depth, self.pose, self.similarity, self.focal, *self.lines]
        self.trajectories: list[tuple[Tensor, Tensor]] = []

    def loss(self, full: bool) -> Tensor:
        to_world = _poses(self.pose)
        focal = (self.focal / _LOG_FOCAL_UNIT).exp()
        depth = self.log_depth.exp()
        rays = torch.cat([self.offsets / focal, torch.ones_like(self.offsets[:, :1])], dim=1)
        points = torch.einsum("fij,fpj->fpi", to_world[:, :3, :3], depth[..., None] * rays)
        points = points + to_world[:, None, :3, 3]
        count = sum(weights.numel() for _, _, weights, _ in self.windows)
        log_scale = self.similarity[:, 7] - self.similarity[:, 7].mean() + self.mean_log_scale
        total = points.new_zeros(())
        for number, (first, predicted, weights, disparity) in enumerate(self.windows):
            frames = slice(first, first + len(predicted))
            rotation = _rotation(self.similarity[number, :4])
            move = _unlog1p(self.similarity[number, 4:7])
            moved = log_scale[number].exp() * (predicted @ rotation.T + move)
            total = total + (weights * (points[frames] - moved).norm(dim=-1)).sum() / count
            if full:
                scale, shift = self.lines[number]
                error = (1 / (depth[frames] + 1e-6) - scale * disparity - shift).abs()
                total = total + 2 * (error * (disparity > 0.05)).sum() / count
                total = total + 0.005 * _pose_difference(
                    to_world[frames], *self.trajectories[number]
                )
        following = to_world[1:]
        return total + 0.015 * _pose_difference(
            to_world[:-1], following[:, :3, :3], following[:, :3, 3]
        )

    def fit_disparities(self) -> int:
        """Least absolute deviations by Adam, window by window, over all pixels (masks unused)."""
        done = 0
        for number, (first, _, _, disparity) in enumerate(self.windows):
            known = (-self.log_depth[first : first + len(disparity)]).exp().detach()
            scale = (known.median() / disparity.median().clamp_min(1e-6)).reshape(1)
            line = torch.cat([scale, torch.zeros_like(scale)]).requires_grad_()
            optimizer = torch.optim.Adam([line], lr=_FIT_RATE)
            last = float("inf")
            for _ in range(_FIT_ITERATIONS):
                optimizer.zero_grad()
                loss = (line[0] * disparity + line[1] - known).abs().sum()
                loss.backward()
                optimizer.step()
                done += 1
                if abs(last - loss.item()) < 1e-6:
                    break
                last = loss.item()
            self.lines[number].data.copy_(line.detach())
        return done

    def lay_trajectories(self, samples: Samples, start: Unknowns) -> None:
        """Put the ray cameras where the cameras are (its alignment, which is learned on, stays)."""
        rotation, center = ray_trajectories(samples, start)
        length = [len(points) for _, points, _, _ in self.windows]
        self.trajectories = [
            (rotation[n, : length[n]].to(self.pose), center[n, : length[n]].to(self.pose))
            for n in range(len(self.windows))
        ]


def _pose_difference(to_world: Tensor, rotation: Tensor, center: Tensor) -> Tensor:
    relative = rotation.transpose(1, 2) @ to_world[:, :3, :3]
    turned = (relative - torch.eye(3).to(relative)).flatten(1)
    # Zero differences have no derivative.
    away = to_world[:, :3, 3] - center
    return ((turned.square().sum(1) + 1e-12).sqrt() + (away.square().sum(1) + 1e-12).sqrt()).sum()


def _poses(parameters: Tensor) -> Tensor:
    rotation, center = _rotation(parameters[:, :4]), _unlog1p(parameters[:, 4:])
    top = torch.cat([rotation, center[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(top), 1, 4)
    return torch.cat([top, bottom], dim=1)


def _rotation(quaternion: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _quaternion(rotation: Tensor) -> Tensor:
    return quaternion_wxyz_from_matrix(rotation)


def _signed_log1p(values: Tensor) -> Tensor:
    return values.sign() * values.abs().log1p()


def _unlog1p(values: Tensor) -> Tensor:
    return values.sign() * values.abs().expm1()


def _weights(window: WindowPrediction) -> Tensor:
    weights = 1 / _need(window.sigma).float()
    return weights.clamp_max(10.0).masked_fill(~window.valid, 0)


def _need(values: Tensor | None) -> Tensor:
    if values is None:
        raise SystemExit("The transcription needs sigma and disparity.")
    return values


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
