"""Camera, render and scene nodes beside the backend's own functions and the host's own nodes."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest
import torch

from more4d_backend.scene_files.ply_reader import load_ply

pytestmark = pytest.mark.host


def same(found, wanted, tolerance=0.0):
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("inputs", [{}, {"amplitude": -0.5}, {"angle_deg": 90.0}])
def test_a_preset_is_the_backends_path_with_the_scenes_frames(native_host, inputs):
    found = native_host.call("scene_nodes.preset", frames=5, inputs=inputs)
    same(found["found"], found["wanted"])
    assert len(found["found"]["intrinsics"]) == 5


@pytest.mark.parametrize("name", ["static", "surrounding", "orbit-left"])
def test_no_path_warns_of_what_nobody_set(native_host, name):
    assert native_host.call("scene_nodes.preset_warnings", name=name, inputs={})["texts"] == []


def test_an_ease_that_has_no_effect_is_warned_of(native_host):
    inputs = {"ease": "in-out"}
    (text,) = native_host.call("scene_nodes.preset_warnings", name="static", inputs=inputs)["texts"]
    assert "ease has no effect" in text


def test_a_path_for_a_scene_of_one_frame_has_49(native_host):
    found = native_host.call("scene_nodes.preset", frames=1, inputs={})
    assert len(found["found"]["intrinsics"]) == 49
    found = native_host.call("scene_nodes.preset", frames=1, inputs={"num_frames": 7})
    assert len(found["found"]["intrinsics"]) == 7


def test_the_example_keyframes_are_in_units_of_the_scene(native_host):
    found = native_host.call("scene_nodes.keyframes")
    assert found["said"] is True
    assert found["frames"] == 7
    torch.testing.assert_close(found["end"], torch.tensor([0.2, 0.0, 0.1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "JSON"),
        ('{"format": "other"}', '"format": "more4d-camera-keyframes"'),
        (
            json.dumps({
                "format": "more4d-camera-keyframes", "version": 1,
                "keyframes": [{"time": 2, "position": [0, 0, 0], "quaternion_wxyz": [1, 0, 0, 0]}],
            }),
            "time is 2",
        ),
    ],
)  # fmt: skip
def test_broken_keyframes_are_refused_before_anything_runs(native_host, text, sentence):
    assert sentence in native_host.call("scene_nodes.keyframes", text=text)["said"]


def test_paths_are_joined_reversed_and_retimed_in_this_order(native_host):
    found = native_host.call("scene_nodes.combine", inputs={})
    same(found["found"], found["wanted"])
    assert len(found["found"]["intrinsics"]) == 9
    found = native_host.call(
        "scene_nodes.combine", inputs={"reverse": True, "there_and_back": True, "num_frames": 31}
    )
    poses, joined = found["found"]["world_to_camera"], found["wanted"]["world_to_camera"]
    assert len(poses) == 31  # of 16 frames: every second is one of them
    torch.testing.assert_close(poses[0], joined[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(poses[16], joined[0], atol=1e-6, rtol=0)


def test_one_path_alone_is_only_eased(native_host):
    found = native_host.call("scene_nodes.combine", inputs={"joined": False})
    same(found["found"], found["wanted"])
    found = native_host.call("scene_nodes.combine", inputs={"joined": False, "ease": "in"})
    assert not torch.equal(
        found["found"]["world_to_camera"][2], found["wanted"]["world_to_camera"][2]
    )
    assert torch.equal(found["found"]["world_to_camera"][4], found["wanted"]["world_to_camera"][4])


def test_load3d_cameras_are_gone_to_from_the_input_view(native_host):
    found = native_host.call("scene_nodes.load3d", start_at_input_view=True, ends=2)
    poses, targets = found["found"]["world_to_camera"], found["targets"]["world_to_camera"]
    assert torch.equal(poses[0], found["start"]["world_to_camera"][0])
    torch.testing.assert_close(poses[4], targets[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(poses[8], targets[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found["found"]["intrinsics"][8], found["targets"]["intrinsics"][1], atol=1e-3, rtol=0
    )


def test_a_load3d_camera_without_a_field_of_view_has_the_pictures(native_host):
    found = native_host.call("scene_nodes.load3d", start_at_input_view=True, ends=1, fov=False)
    same_lens = found["start"]["intrinsics"].expand(9, 3, 3)
    torch.testing.assert_close(found["found"]["intrinsics"], same_lens, atol=1e-5, rtol=0)


def test_one_load3d_camera_alone_stands_still(native_host):
    found = native_host.call("scene_nodes.load3d", start_at_input_view=False, ends=1)
    poses = found["found"]["world_to_camera"]
    wanted = found["targets"]["world_to_camera"][:1].expand(9, 4, 4)
    torch.testing.assert_close(poses, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pose", ["Pan Right", "Zoom In", "ClockWise (CW)"])
def test_the_wan_embedding_is_the_hosts_own_for_the_hosts_own_movements(native_host, pose):
    found = native_host.call("scene_nodes.wan_embedding", pose=pose)
    assert found["found"].shape == (1, 24, 3, 48, 64)
    assert found["our_sizes"] == found["sizes"] == [64, 48, 9]
    torch.testing.assert_close(found["found"], found["wanted"], atol=1e-5, rtol=0)


def test_the_preview_is_a_picture_on_the_node(native_host):
    found = native_host.call("scene_nodes.preview")
    assert found["image"].shape[-2:] == (640, 3)
    assert found["image"].std() > 0.02
    assert found["shown"] == 1


@pytest.mark.parametrize(
    ("format", "tolerance"),
    [
        ("npz", 0.0),
        ("transforms", 1e-5),
        ("keyframes", 0.05),
        ("colmap", 1e-5),
        ("load3d", 1e-3),
        ("realestate10k", 1e-4),
        ("tum", 1e-4),
    ],
)
def test_a_saved_path_is_listed_and_loaded_again(native_host, format, tolerance):
    found = native_host.call("scene_nodes.save_and_load_path", format=format)
    wanted = {"world_to_camera": found["wanted"]["world_to_camera"]}
    same(found["found"], wanted, max(tolerance, 1e-6))
    assert found["name"].endswith(" [output]")


def test_a_loaded_path_is_moved_to_the_input_view_unless_its_world_is_the_scenes(native_host):
    found = native_host.call("scene_nodes.path_in_scene_world", in_scene_world=True)
    same(found["found"], found["wanted"], 1e-6)
    found = native_host.call("scene_nodes.path_in_scene_world", in_scene_world=False)
    torch.testing.assert_close(found["found"]["world_to_camera"][0], torch.eye(4))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"mode": "splat", "grow_px": 2, "feather_px": 3},
        {"width": 96, "height": 80, "depth_as": "picture"},
        {"draw_unseen": True},
    ],
)
def test_the_render_node_gives_what_the_backend_renders(native_host, inputs):
    found = native_host.call("scene_nodes.rendered", inputs=inputs)
    assert torch.equal(found["image"], found["wanted_image"])
    assert torch.equal(found["view_rgb"], found["wanted_image"])
    assert torch.equal(found["holes"], found["wanted_holes"])
    assert torch.equal(found["depth"][..., 0], found["wanted_depth"])
    assert found["depth"].shape == found["image"].shape
    assert 0 < found["holes"].mean() < 1
    assert found["fps"] == found["wanted_fps"]


def test_small_holes_are_closed_with_colour_and_kept_out_of_the_mask(native_host):
    open_ = native_host.call("scene_nodes.rendered", inputs={})
    closed = native_host.call("scene_nodes.rendered", inputs={"min_area_px": 12})
    newly = (open_["holes"] > 0) & (closed["holes"] == 0)
    assert newly.any()
    assert (closed["image"][newly].sum(-1) > 0).all()


def test_a_path_of_another_length_is_refused_with_both(native_host):
    with pytest.raises(Exception, match="5 frames and the camera path has 7"):
        native_host.call("scene_nodes.render_refused", path_frames=7)


def test_rendering_stops_between_frames_and_runs_again(native_host):
    found = native_host.call("scene_nodes.render_interrupted")
    assert found["interrupted"]
    assert len(found["reported"]) < 9
    assert found["frames"] == 9


def test_scenes_are_saved_under_new_numbers_and_loaded(native_host):
    found = native_host.call("scene_nodes.save_and_load_scene")
    first, second = found["names"]
    assert first != second
    assert first.startswith("more4d/try_")
    assert torch.equal(found["found"], found["direct"])
    torch.testing.assert_close(found["found"], found["wanted"], atol=1e-2, rtol=0)


OUTSIDE = ["../elsewhere", "/etc/passwd", "a/../../b", "more4d/../../x", "bad\0name"]


@pytest.mark.parametrize("node", ["load", "save", "export", "load path", "save path"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_places_outside_of_the_hosts_folders_are_refused_before_anything_runs(
    native_host, node, name
):
    said = native_host.call("scene_nodes.place", node=node, name=name)["said"]
    assert "leads out of the folder" in said
    assert "ComfyUI's own folders" in said


def test_places_outside_are_refused_also_when_they_come_through_a_wire(native_host):
    with pytest.raises(Exception, match="leads out of the folder"):
        native_host.call("scene_nodes.run_save", prefix="../../elsewhere")
    with pytest.raises(Exception, match="leads out of the folder"):
        native_host.call("scene_nodes.run_load", name="../../elsewhere.ply")
    with pytest.raises(Exception, match="leads out of the folder"):
        native_host.call("scene_nodes.run_load", name="../x.ply [output]")
    for node in ("load", "save"):  # not known before it runs
        assert native_host.call("scene_nodes.place", node=node, name=None)["said"] is True


def test_a_link_that_leads_outside_is_refused(native_host, tmp_path):
    (tmp_path / "scene.ply").write_bytes(b"ply")
    link = native_host.scratch / "input" / "away"
    link.symlink_to(tmp_path)
    try:
        said = native_host.call("scene_nodes.place", node="load", name="away/scene.ply")["said"]
        assert "leads out of the folder" in said
    finally:
        link.unlink()


def test_a_missing_file_and_an_empty_name_say_what_to_do(native_host):
    said = native_host.call("scene_nodes.place", node="load", name="gone.ply")["said"]
    assert "no file 'gone.ply'" in said
    for name in ("more4d/", ".", "more4d/.."):
        said = native_host.call("scene_nodes.place", node="save", name=name)["said"]
        assert "names no file" in said


def test_folders_of_names_with_dots_are_numbered_too(native_host):
    names = []
    for _ in range(2):
        found = native_host.call(
            "scene_nodes.export", format="ply", frame=-1, prefix="more4d/take_1.5"
        )
        assert len(list(Path(found["path"]).iterdir())) == 5
        names.append(found["name"])
    assert names == ["more4d/take_1_5_00001 [output]", "more4d/take_1_5_00002 [output]"]


def test_the_date_is_put_into_names_as_the_page_does_for_the_hosts_own_nodes(native_host):
    prefix = "%date:yyyy-MM-dd%/at %date:hh-mm-ss% of %year%"
    name = native_host.call("scene_nodes.saved_name", prefix=prefix)["name"]
    now = datetime.now().astimezone()
    found = re.fullmatch(r"(\S+)/at (\S+) of (\d+)_00001.safetensors \[output\]", name)
    assert found is not None
    said = datetime.strptime(f"{found[1]} {found[2]}", "%Y-%m-%d %H-%M-%S").astimezone()
    assert abs((now - said).total_seconds()) < 60
    assert found[3] == found[1][:4]


def test_names_that_windows_cannot_have_are_refused_there(native_host):
    found = native_host.call("scene_nodes.place_where_windows_rules", name="more4d/take: 1?")
    assert "has : ? in it" in found["said"]
    found = native_host.call("scene_nodes.place_where_windows_rules", name="more4d/%date:yyyy%")
    assert found["said"] is True


def test_a_viewer_whose_files_were_removed_runs_again(native_host):
    found = native_host.call("scene_nodes.viewer_runs")
    assert found["before"] == found["after"] != found["lost"] == found["again"]
    assert found["names"][0] != found["names"][1]


@pytest.mark.parametrize("which", ["preset", "keyframes"])
def test_a_scene_that_the_view_does_not_see_is_refused_in_the_nodes_own_words(native_host, which):
    with pytest.raises(Exception, match=r"no visible point.*Look at the scene.*pivot_distance in"):
        native_host.call("scene_nodes.nothing_seen", which=which)


def test_paths_of_two_sizes_are_not_joined(native_host):
    with pytest.raises(Exception, match=r"48x64 and then for 96x128.*Connect the same scene"):
        native_host.call("scene_nodes.combine_of_two_sizes")


def test_truncated_and_hostile_scene_files_are_refused_by_name(native_host):
    name = native_host.call("scene_nodes.save_and_load_scene")["names"][0].removesuffix(" [output]")
    whole = (native_host.scratch / "output" / name).read_bytes()
    folder = native_host.scratch / "input"
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "bomb.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "odd.npz").write_bytes(b"PK\x03\x04 not a zip")
    for file in ("cut.safetensors", "bomb.safetensors", "odd.npz"):
        with pytest.raises(Exception, match=f"FileFormatError.*{file}"):
            native_host.call("scene_nodes.run_load", name=file)


@pytest.mark.parametrize("node", ["save", "export", "save path"])
def test_a_full_disk_is_said_and_leaves_no_part_of_a_file(native_host, node):
    with pytest.raises(Exception, match="no space is left"):
        native_host.call("scene_nodes.run_save_where_nothing_fits", node=node)
    folder = native_host.scratch / "output" / "full"
    assert [path.name for path in folder.iterdir()] == []


def test_every_format_is_exported(native_host):
    for format in ("ply", "gaussians"):
        found = native_host.call("scene_nodes.export", format=format, frame=-1)
        files = sorted(Path(found["path"]).iterdir())
        assert [file.name for file in files] == [f"frame_{i:04d}.ply" for i in range(5)]
        found = native_host.call("scene_nodes.export", format=format, frame=3)
        assert found["name"].endswith(".ply [output]")
        assert len(load_ply(found["path"]).colors) > 1000
    found = native_host.call("scene_nodes.export", format="tapvid3d", frame=-1)
    assert found["name"].endswith(".npz [output]")
    assert Path(found["path"]).stat().st_size > 1000


def test_usd_without_its_package_is_refused_with_the_pip_line(native_host):
    with pytest.raises(Exception, match="usd-core"):
        native_host.call("scene_nodes.export", format="usd", frame=-1)


def test_splats_look_in_the_hosts_renderer_as_the_scene_does(native_host):
    found = native_host.call("scene_nodes.splat")
    same(found["read"], found["value"], 1e-6)
    assert found["value"]["positions"].shape[1] > 2000
    # Gaussians blur, so means; a picture upside down or mirrored is 0.2 off.
    image, wanted = found["image"], found["wanted"]
    assert (image - wanted).abs().mean() < 0.05
    assert (image.flip(1) - wanted).abs().mean() > 0.1
    assert (image.flip(2) - wanted).abs().mean() > 0.1


def test_points_are_a_ply_of_the_host(native_host):
    found = native_host.call("scene_nodes.points_file")
    assert found["format"] == "ply"
    assert bytes(found["start"]) == b"ply"


def test_a_frame_beyond_the_scene_is_refused(native_host):
    with pytest.raises(Exception, match="frame is 5 and the scene has 5; expected 0 to 4"):
        native_host.call("scene_nodes.frame_outside")


def test_the_hosts_own_module_nodes_is_not_hidden(native_host):
    found = native_host.call("scene_nodes.own_nodes_module")
    assert Path(found["file"]).parent.name == native_host.name
    assert found["pack"] == "more4d_pack.nodes.scene"
