"""Many images at once, with stand-ins for the networks: each is loaded once, results stay."""

import gc
import json
import logging
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from more4d_backend.depth import DepthFile, DepthPrediction, lift_depth
from more4d_backend.files import OutputError
from more4d_backend.files.depth_maps import save_depth_png16
from more4d_backend.files.images import load_image, save_image
from more4d_backend.generation import (
    DepthSource,
    GenerationSettings,
    Item,
    image_to_4d_video,
    images_to_4d_videos,
    job,
)
from more4d_backend.generation.run_record import only_run_in
from more4d_backend.strag.pipeline import StragPipeline, StragSettings
from more4d_backend.vism.pipeline import VismPipeline, VismSettings

pytestmark = pytest.mark.usefixtures("exact_videos")

WIDE, TALL = (32, 48), (48, 32)


class StandInDepth:
    def predict(self, image):
        if "depth" in fate_of(image):
            raise RuntimeError("no depth today")
        focal_px = torch.tensor([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])
        return DepthPrediction(
            depth=1 + image.mean(-1), intrinsics=focal_px, provider="stand-in", is_metric=True
        )


class StandInStrag(StragPipeline):
    def __init__(self):
        self.placement = None

    def generate(self, image, depth, camera, prompt, *, settings, generator, progress):
        fail_if("motion", image)
        height, width = settings.size_hw
        picture = image[:height, :width]
        scene = lift_depth(
            picture, depth[:height, :width], camera.intrinsics[0], fps=settings.fps
        ).frames([0] * settings.num_frames)
        noise = torch.rand(scene.points.positions.shape, generator=generator)
        noise[0] = 0
        return replace(
            scene, points=replace(scene.points, positions=scene.points.positions + noise / 100)
        )


class StandInVism(VismPipeline):
    def __init__(self):
        self.placement = None

    def complete(self, rendered, hole_mask, prompt, *, image, settings, generator, progress):
        fail_if("completion", image)
        noise = torch.rand(rendered.shape, generator=generator)
        return torch.where(hole_mask[..., None], noise, rendered)


FATES = ("fine", "picture", "depth", "motion", "completion")


def fate_of(image):
    """Read what is to happen to an image from its first pixel."""
    return FATES[round(float(image[0, 0, 0]) * 255)]


def fail_if(fate, image):
    if fate_of(image) == fate:
        raise RuntimeError(f"no {fate} today")


class StandInModels:
    """Notes what is loaded, and that nothing else is in memory at that time."""

    def __init__(self):
        self.loads = []
        self.alive = []

    def depth(self):
        self.loads.append("depth")
        provider = StandInDepth()
        self.alive.append(weakref.ref(provider))
        return provider

    @contextmanager
    def strag(self, num_frames, size_hw):
        with self._only(("strag", num_frames, size_hw), StandInStrag()) as pipeline:
            yield pipeline

    @contextmanager
    def vism(self, num_frames, size_hw):
        with self._only(("vism", num_frames, size_hw), StandInVism()) as pipeline:
            yield pipeline

    @contextmanager
    def _only(self, load, pipeline):
        gc.collect()
        assert not any(reference() for reference in self.alive), "two networks at one time"
        self.loads.append(load)
        self.alive.append(weakref.ref(pipeline))
        yield pipeline

    def strag_sha256(self):
        return {"strag": "0"}

    def vism_sha256(self):
        return {"vism": "0"}

    def strag_settings(self):
        return {}

    def vism_settings(self):
        return {}


@dataclass
class Folder:
    """Where pictures lie, and where a batch writes."""

    path: object
    models: StandInModels

    def items(self, fates, out="out", sizes=None):
        items = []
        for index, fate in enumerate(fates):
            size_hw = sizes[index] if sizes else WIDE
            path = self.path / f"{index}.png"
            generator = torch.Generator().manual_seed(index)
            picture = torch.rand(48, 48, 3, generator=generator)
            picture[0, 0] = FATES.index(fate) / 255
            save_image(path, picture)
            if fate == "picture":
                path.write_bytes(b"no picture")
            items.append(
                Item(
                    load_image=partial(load_image, path),
                    depth=DepthSource(load=self.models.depth, name="stand-in"),
                    settings=GenerationSettings(
                        prompt="it moves",
                        cameras=("orbit-left", "truck-left"),
                        seed=index,
                        strag=StragSettings(num_frames=5, size_hw=size_hw),
                        vism=VismSettings(),
                    ),
                    folder=self.path / out / str(index),
                    name=f"{index}.png",
                )
            )
        return items

    def single(self, item):
        """Make an item alone, as far as it comes; return where."""
        folder, models = self.path / "alone" / item.folder.name, StandInModels()
        depth = replace(item.depth, load=models.depth)
        with suppress(RuntimeError):
            image_to_4d_video(item.load_image(), depth, models, item.settings, folder)
        return folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path, StandInModels())


def changes(values):
    """Count the runs of equal values."""
    return sum(1 for i, value in enumerate(values) if i == 0 or value != values[i - 1])


@given(
    wanted=st.lists(
        st.tuples(st.sampled_from(FATES), st.sampled_from([WIDE, TALL])), min_size=1, max_size=3
    )
)
@settings(max_examples=8)
def test_a_batch_makes_of_each_image_what_it_would_be_alone(tmp_path_factory, results, wanted):
    fates, sizes = zip(*wanted, strict=True)
    folder = Folder(tmp_path_factory.mktemp("batch"), StandInModels())
    items = folder.items(fates, sizes=sizes)
    with pytest.MonkeyPatch.context() as patch:
        # pytest keeps what was logged, and with it what the failures' tracebacks hold.
        patch.setattr(job._log, "disabled", True)
        outcomes = images_to_4d_videos(items, folder.models)
    for fate, item, outcome in zip(fates, items, outcomes, strict=True):
        if fate == "fine":
            assert outcome.error is None
            assert all(o.completed.is_file() for o in outcome.outputs)
        else:
            assert fate in outcome.error
            assert outcome.outputs == []
        if fate != "picture":
            assert results(item.folder) == results(folder.single(item))
    # Without failures of its own, a network is loaded once per change of size.
    for network, fails_at in (("strag", "motion"), ("vism", "completion")):
        reached = [s for f, s in wanted if FATES.index(f) >= FATES.index(fails_at) or f == "fine"]
        loaded = [load for load in folder.models.loads if load[0] == network]
        if fails_at not in fates:
            assert len(loaded) == changes(reached)
        assert len(loaded) <= len(reached)
    assert folder.models.loads.count("depth") <= 1


def test_three_images_load_each_network_once_and_a_second_run_loads_none(folder):
    items = folder.items(["fine"] * 3)
    images_to_4d_videos(items, folder.models)
    assert folder.models.loads == ["depth", ("strag", 5, WIDE), ("vism", 5, WIDE)]
    folder.models.loads.clear()
    assert all(outcome.error is None for outcome in images_to_4d_videos(items, folder.models))
    assert folder.models.loads == []


def test_one_changed_image_of_a_batch_loads_what_it_needs_only(folder, results):
    items = folder.items(["fine"] * 3)
    images_to_4d_videos(items, folder.models)
    folder.models.loads.clear()
    before = [results(item.folder) for item in items]
    (items[1].folder / "truck-left.mp4").unlink()
    images_to_4d_videos(items, folder.models)
    assert folder.models.loads == [("vism", 5, WIDE)]
    assert [results(item.folder) for item in items] == before


def test_another_size_is_planned_anew_and_told(folder, caplog):
    caplog.set_level(logging.INFO)
    images_to_4d_videos(folder.items(["fine"] * 2, sizes=[WIDE, TALL]), folder.models)
    assert [load[0] for load in folder.models.loads[1:]] == ["strag", "strag", "vism", "vism"]
    told = "4D-ViSM was planned for 5 frames of 32 x 48; loading it anew for 5 frames of 48 x 32."
    assert told in caplog.messages


def test_after_a_failure_in_a_network_the_next_image_gets_a_new_one(folder, monkeypatch):
    monkeypatch.setattr(job._log, "disabled", True)
    outcomes = images_to_4d_videos(folder.items(["motion", "fine", "fine"]), folder.models)
    assert [outcome.error for outcome in outcomes] == ["no motion today", None, None]
    assert [load[0] for load in folder.models.loads[1:]] == ["strag", "strag", "vism"]


def test_a_network_that_cannot_be_loaded_is_tried_once(folder, monkeypatch):
    tries = []

    def too_large(num_frames, size_hw):
        tries.append(size_hw)
        raise MemoryError("4D-ViSM does not fit.")

    monkeypatch.setattr(job._log, "disabled", True)
    monkeypatch.setattr(folder.models, "vism", too_large)
    outcomes = images_to_4d_videos(folder.items(["fine"] * 3), folder.models)
    assert tries == [WIDE]
    assert all("4D-ViSM does not fit." in outcome.error for outcome in outcomes)


def test_results_and_failures_are_told_part_by_part(folder, monkeypatch):
    monkeypatch.setattr(job, "_RUNS_AT_ONCE", 2)
    monkeypatch.setattr(job._log, "disabled", True)
    items, told = folder.items(["fine", "motion", "fine"]), []

    def done(item, outcome):
        told.append((items.index(item), outcome.error, len(folder.models.loads)))

    images_to_4d_videos(items, folder.models, done=done)
    assert [entry[:2] for entry in told] == [(0, None), (1, "no motion today"), (2, None)]
    assert told[0][2] == told[1][2] < told[2][2]  # before the third one's networks were loaded


def test_stages_of_an_earlier_run_are_marked_until_this_one_comes_to_them(folder, monkeypatch):
    (item,) = folder.items(["fine"])
    images_to_4d_videos([item], folder.models)
    another = replace(item, settings=replace(item.settings, prompt="it moves otherwise"))

    def fail(*_, **__):
        raise RuntimeError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(job._log, "disabled", True)
        patch.setattr(StandInVism, "complete", fail)
        images_to_4d_videos([another], folder.models)
    stages = json.loads((item.folder / "run.json").read_text())["stages"]
    earlier = {stage["name"] for stage in stages if stage["earlier"]}
    assert "orbit-left: complete" in earlier
    assert not earlier & {"depth", "scene", "orbit-left: render"}
    images_to_4d_videos([another], folder.models)
    stages = json.loads((item.folder / "run.json").read_text())["stages"]
    assert not any(stage["earlier"] for stage in stages)


def test_what_is_done_when_a_batch_is_interrupted_is_reused(folder, results, monkeypatch):
    items, completed = folder.items(["fine"] * 3), []
    complete = StandInVism.complete

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def noted(*args, **kwargs):
        if len(completed) == 3:  # the second image's second camera
            interrupt()
        completed.append(None)
        return complete(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StandInVism, "complete", noted)
        with pytest.raises(KeyboardInterrupt):
            images_to_4d_videos(items, folder.models)
    # Once more, before it comes to the stages that are done.
    (items[2].folder / "depth.exr").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(StandInDepth, "predict", interrupt)
        with pytest.raises(KeyboardInterrupt):
            images_to_4d_videos(items, folder.models)
    folder.models.loads.clear()
    done = [items[0].folder / "truck-left.mp4", items[1].folder / "orbit-left.mp4"]
    written = [path.stat().st_mtime_ns for path in done]
    images_to_4d_videos(items, folder.models)
    assert folder.models.loads == ["depth", ("vism", 5, WIDE)]
    assert [path.stat().st_mtime_ns for path in done] == written
    for item in items:
        assert results(item.folder) == results(folder.single(item))


def test_stages_that_are_no_longer_asked_for_leave_the_record(folder):
    (item,) = folder.items(["fine"])
    fewer = replace(item, settings=replace(item.settings, cameras=("orbit-left",)))
    images_to_4d_videos([item], folder.models)
    images_to_4d_videos([fewer], folder.models)
    stages = json.loads((item.folder / "run.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == [
        "depth", "scene", "orbit-left: render", "orbit-left: complete",
    ]  # fmt: skip


def test_a_folder_in_which_another_run_is_at_work_is_left_to_it(folder):
    items, refused = folder.items(["fine"] * 2), []

    def try_to_work_there(_):
        with pytest.raises(OutputError, match="Another run"), only_run_in(items[1].folder):
            pass
        refused.append(None)

    with only_run_in(items[0].folder):
        first, second = images_to_4d_videos(items, folder.models, report=try_to_work_there)
    assert "Another run is writing" in first.error
    assert second.error is None
    assert refused
    with only_run_in(items[1].folder):
        pass  # the batch has let go of it


def test_a_batch_of_more_images_than_it_may_lock_is_done_in_parts(folder, monkeypatch):
    monkeypatch.setattr(job, "_RUNS_AT_ONCE", 2)
    outcomes = images_to_4d_videos(folder.items(["fine"] * 3), folder.models)
    assert all(outcome.error is None for outcome in outcomes)
    assert folder.models.loads == 2 * ["depth", ("strag", 5, WIDE), ("vism", 5, WIDE)]


def test_images_with_a_depth_of_their_own_do_not_send_the_network_away(folder):
    items = folder.items(["fine"] * 3)
    save_depth_png16(folder.path / "depth.png", 1 + torch.rand(48, 48))
    path = folder.path / "depth.png"
    own = DepthSource(load=lambda: DepthFile(path=path), name="own", files=(path,), fov_rad=1.0)
    images_to_4d_videos([items[0], replace(items[1], depth=own), items[2]], folder.models)
    assert folder.models.loads.count("depth") == 1
