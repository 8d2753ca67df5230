"""The viewer: all frames, all points, the filter, and a recording that holds them."""

import json
import logging
import threading
import urllib.request

import numpy as np
import pytest

from more4d_backend.files import OutputError
from more4d_backend.viewing import (
    SceneOnServer,
    ScenePoints,
    ViewError,
    ViewSettings,
    record_scene,
    view_scene,
)

viser = pytest.importorskip("viser", reason="the viewer needs the extra [view]")


@pytest.fixture
def server():
    server = viser.ViserServer(host="127.0.0.1", port=8090, verbose=False)
    yield server
    server.stop()


def recorded(path) -> tuple[dict, list[bytes]]:
    """Message list and binary buffers of a recording, by the layout that viser documents."""
    msgspec, zstandard = pytest.importorskip("msgspec"), pytest.importorskip("zstandard")
    data = path.read_bytes()
    inner = zstandard.ZstdDecompressor().decompress(
        data[8:], max_output_size=int.from_bytes(data[:8], "little")
    )
    length = int.from_bytes(inner[:8], "little")
    document = msgspec.msgpack.decode(inner[8 : 8 + length])
    return document, [inner[8 + length :]]


def test_every_frame_and_every_point_is_there_and_the_last_frame_can_be_shown(
    server, point_maps_scene
):
    scene = point_maps_scene(frames=7)
    shown = SceneOnServer(server, scene, ViewSettings())
    assert len(shown.clouds) == len(shown.cameras) == 7
    for number, cloud in enumerate(shown.clouds):
        valid = scene.points.valid[number]
        np.testing.assert_array_equal(cloud.points, scene.points.positions[number][valid].numpy())
    shown.show(6)
    assert [cloud.visible for cloud in shown.clouds] == [False] * 6 + [True]
    assert [camera.visible for camera in shown.cameras] == [False] * 6 + [True]


def test_all_cameras_stay_while_frames_change(server, point_maps_scene):
    shown = SceneOnServer(server, point_maps_scene(frames=4), ViewSettings())
    shown.show_all_cameras(True)
    shown.show(2)
    shown.show(3)
    assert all(camera.visible for camera in shown.cameras)
    assert [cloud.visible for cloud in shown.clouds] == [False] * 3 + [True]
    shown.show_all_cameras(False)
    assert [camera.visible for camera in shown.cameras] == [False] * 3 + [True]


def test_the_first_look_is_from_behind_the_first_camera_at_the_scene(server, point_maps_scene):
    scene = point_maps_scene(frames=2)
    shown = SceneOnServer(server, scene, ViewSettings())
    pose = scene.cameras.world_to_camera[0].double().numpy()
    look = server.initial_camera
    start, target = (pose[:3, :3] @ place + pose[:3, 3] for place in (look.position, look.look_at))
    np.testing.assert_allclose(start, shown.size * np.array([0, -0.3, -0.6]), atol=1e-6)
    np.testing.assert_allclose(target, [0, 0, shown.size], atol=1e-6)


def test_cameras_stand_where_the_scene_says(server, point_maps_scene):
    scene = point_maps_scene(frames=3)
    shown = SceneOnServer(server, scene, ViewSettings())
    places = scene.cameras.camera_to_world[:, :3, 3].numpy()
    for camera, place in zip(shown.cameras, places, strict=True):
        np.testing.assert_allclose(camera.position, place, atol=1e-6)
    fov = 2 * np.arctan(scene.cameras.height / 2 / float(scene.cameras.intrinsics[0, 1, 1]))
    assert shown.cameras[0].fov == pytest.approx(fov, abs=1e-6)


def test_the_filter_hides_the_share_that_it_says_the_least_certain_first(point_maps_scene):
    scene = point_maps_scene(frames=5)
    points = ScenePoints(scene, 10_000)
    assert points.has_confidence
    count = sum(len(points.frame(n).positions) for n in range(5))
    assert count == int(scene.points.valid.sum())
    threshold = points.threshold(30)
    kept = sum(len(points.frame(n, threshold).positions) for n in range(5))
    assert kept / count == pytest.approx(0.7, abs=2 / count)
    confidence = scene.points.confidence[scene.points.valid]
    assert (confidence >= threshold).sum() == kept
    assert points.threshold(0) == float(confidence.min())


def test_filtering_on_the_server_and_back_loses_nothing(server, point_maps_scene):
    scene = point_maps_scene(frames=2)
    shown = SceneOnServer(server, scene, ViewSettings(hide_percent=50))
    few = sum(len(cloud.points) for cloud in shown.clouds)
    shown.hide_uncertain(0)
    assert sum(len(cloud.points) for cloud in shown.clouds) == int(scene.points.valid.sum())
    assert few < 0.6 * int(scene.points.valid.sum())


def test_tracks_are_shown_where_they_are_visible(server, tracks_scene):
    scene = tracks_scene(frames=3)
    shown = SceneOnServer(server, scene, ViewSettings())
    counts = [len(cloud.points) for cloud in shown.clouds]
    assert counts == scene.points.visibility.sum(1).tolist()
    assert not shown.points.has_confidence


def test_thinning_is_even_and_announced(caplog, tracks_scene):
    scene = tracks_scene(frames=1, grid_hw=(10, 10))
    with caplog.at_level(logging.INFO):
        points = ScenePoints(scene, 30)
    assert "1 in 4 is shown" in caplog.text
    seen = scene.points.visibility[0, ::4]
    assert len(points.frame(0).positions) == int(seen.sum()) <= 25


def test_a_recording_holds_all_frames_for_their_whole_time(tmp_path, point_maps_scene):
    scene = point_maps_scene(frames=6)
    record_scene(tmp_path / "scene.viser", scene, ViewSettings(port=8091))
    document, _ = recorded(tmp_path / "scene.viser")
    assert document["durationSeconds"] == pytest.approx(6 / scene.fps)
    text = json.dumps(document["messages"], default=repr)
    for number in range(6):
        assert f"/frames/{number:05d}/points" in text
    # The last change, one frame's time before the end, shows the last frame.
    last = max(time for time, _ in document["messages"])
    assert last == pytest.approx(5 / scene.fps)
    final = json.dumps([m for time, m in document["messages"] if time == last], default=repr)
    assert "/frames/00005/points" in final


def test_a_scene_is_served_until_told_to_stop(point_maps_scene):
    stop, addresses = threading.Event(), []
    said = threading.Event()

    def ready(url: str) -> None:
        addresses.append(url)
        said.set()

    thread = threading.Thread(
        target=view_scene,
        args=(point_maps_scene(frames=2), ViewSettings(port=8092)),
        kwargs={"stop": stop, "ready": ready},
    )
    thread.start()
    try:
        assert said.wait(60)
        with urllib.request.urlopen(addresses[0], timeout=10) as answer:
            assert answer.status == 200
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def test_a_scene_without_a_single_point_can_be_viewed(server, point_maps_scene):
    scene = point_maps_scene(frames=2)
    scene.points.valid[:] = False
    shown = SceneOnServer(server, scene, ViewSettings(hide_percent=50))
    assert all(len(cloud.points) == 0 for cloud in shown.clouds)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"hide_percent": 100}, "hide_percent is 100"),
        ({"max_points": 0}, "max_points is 0"),
        ({"point_size": 0.0}, "point_size is 0"),
        ({"point_size": float("nan")}, "point_size is nan"),
        ({"port": 99999}, "port is 99999; expected 1 to 65535"),
    ],
)
def test_settings_that_cannot_work_are_refused(bad, message):
    with pytest.raises(ViewError, match=message):
        ViewSettings(**bad)


def test_a_recording_of_another_ending_is_refused_before_any_work(tmp_path, point_maps_scene):
    with pytest.raises(OutputError, match=r"does not end in \.viser"):
        record_scene(tmp_path / "a.mp4", point_maps_scene())
