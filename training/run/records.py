"""What a run tells: its settings, and its metrics in a file and in a tracker."""

import importlib
import importlib.util
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from more4d_backend.files import replacing
from more4d_backend.files.images import to_bytes

from .settings import SettingsError, Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that accelerate would silently leave out.

    Raises:
        SettingsError: its package is not installed.
    """
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise SettingsError(
            f"run.tracker is {tracker!r}, which is not installed: pip install {tracker}, or set "
            "run.tracker to none."
        )


class RunRecords:
    """`config.json` and `metrics.jsonl` of a run, written by rank 0, and its tracker.

    `seconds_before` is how long the recorded steps of a run took that is gone on with; on rank 0.
    """

    def __init__(
        self, accelerator: "Accelerator", output: Path, config: Mapping[str, Any], step: int
    ) -> None:
        """Begin, or go on at `step`: what was recorded after it will be done again."""
        self._accelerator = accelerator
        self._metrics = output / "metrics.jsonl"
        self.seconds_before = 0.0
        # Plain values only: the trackers' tables take nothing else.
        about = {"recipe": json.dumps(config), "ranks": accelerator.num_processes}
        accelerator.init_trackers("metrics", config=about)
        if accelerator.is_main_process:
            output.mkdir(parents=True, exist_ok=True)
            with replacing(output / "config.json") as temporary:
                temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")
            if self._metrics.exists():
                self._keep_until(step)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of a step."""
        if self._accelerator.is_main_process:
            line = json.dumps({"step": step, **metrics})
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._accelerator.log(dict(metrics), step=step)

    def show_picture(self, step: int, name: str, picture: "Image") -> None:
        """Hand a picture to the tracker."""
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                _add_image(tracker.tracker, step, name, picture.size, _encoded([picture], "PNG"))
            elif tracker.name == "wandb":
                image = importlib.import_module("wandb").Image(picture)
                tracker.tracker.log({name: image}, step=step)

    def show_video(
        self, step: int, name: str, frames: Float[Tensor, "frame height width 3"], fps: float
    ) -> None:
        """Hand a video (sRGB in [0, 1], on the CPU) to the tracker, as an animated picture."""
        if not self._accelerator.trackers:
            return
        from PIL import Image

        pictures = [Image.fromarray(frame.numpy()) for frame in to_bytes(frames)]
        gif = _encoded(pictures, "GIF", fps)
        for tracker in self._accelerator.trackers:
            if tracker.name == "tensorboard":
                _add_image(tracker.tracker, step, name, pictures[0].size, gif)
            elif tracker.name == "wandb":
                video = importlib.import_module("wandb").Video(io.BytesIO(gif), format="gif")
                tracker.tracker.log({name: video}, step=step)

    def _keep_until(self, step: int) -> None:
        # A killed run may have left half a line at the end.
        whole = (line for line in self._metrics.read_text(encoding="utf-8").split("\n")[:-1])
        kept = [line + "\n" for line in whole if json.loads(line)["step"] <= step]
        self.seconds_before = sum(json.loads(line).get("step_s", 0.0) for line in kept)
        with replacing(self._metrics) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _encoded(pictures: "list[Image]", format: Literal["PNG", "GIF"], fps: float = 1.0) -> bytes:
    stream = io.BytesIO()
    animation = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    animation |= {"duration": round(1000 / fps)}
    pictures[0].save(stream, format=format, **(animation if format == "GIF" else {}))
    return stream.getvalue()


def _add_image(writer: Any, step: int, name: str, size_wh: tuple[int, int], data: bytes) -> None:
    # torch's own `add_video` writes the same record, but needs moviepy to make the GIF.
    Summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    image = Summary.Image(
        width=size_wh[0], height=size_wh[1], colorspace=3, encoded_image_string=data
    )
    summary = Summary(value=[Summary.Value(tag=name, image=image)])
    writer.file_writer.add_summary(summary, step)
