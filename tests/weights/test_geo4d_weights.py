"""Our one file of Geo4D's networks."""

import pytest
import torch
from safetensors.torch import save_file

from more4d_backend.geo4d.model import Geo4DNetworks
from more4d_backend.geo4d.sampling import sample_latents
from more4d_backend.geo4d.sizes import GEO4D_SIZES
from more4d_backend.weights.commands import check_file, convert_file
from more4d_backend.weights.conversion import open_model
from more4d_backend.weights.files import WeightsError
from more4d_backend.weights.geo4d import load_geo4d, save_geo4d
from more4d_backend.weights.kinds import WeightKind
from more4d_backend.weights.model_loading import load_strag


@pytest.mark.parametrize("name", ["tiny", "toy"])
def test_networks_come_back_from_their_file(tmp_path, name):
    torch.manual_seed(0)
    networks = Geo4DNetworks(GEO4D_SIZES[name]).eval()
    save_geo4d(networks, tmp_path / "g.safetensors", dtype=torch.float32, metadata={"note": "x"})
    assert open_model(tmp_path / "g.safetensors").metadata["note"] == "x"
    loaded = load_geo4d(tmp_path / "g.safetensors")
    assert loaded.size == networks.size
    assert not loaded.training
    frames = networks.size.num_frames
    video, noise = torch.randn(1, 4, frames, 8, 8), torch.randn(1, 16, frames, 8, 8)
    with torch.no_grad():
        expected = sample_latents(networks, video, noise)
        # Not to the bit: kernels depend on how weights lie in memory. 2e-6 measured.
        torch.testing.assert_close(
            sample_latents(loaded, video, noise), expected, atol=5e-5, rtol=0
        )
    report = check_file(tmp_path / "g.safetensors")
    assert report.found.kind is WeightKind.GEO4D
    assert report.is_usable


def toy_tensors():
    """Return random values under our names, to be written with a header of the test's own."""
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    return {n: t.detach().contiguous() for n, t in networks.state_dict().items()}


def test_the_embedded_size_is_at_most_6_mb():
    assert 2 * Geo4DNetworks(GEO4D_SIZES["tiny"]).num_parameters <= 6e6


@pytest.mark.parametrize("num_steps", [1, 5, 1000])
def test_the_file_says_in_how_many_steps_it_denoises(tmp_path, num_steps):
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    networks.num_steps = num_steps
    save_geo4d(networks, tmp_path / "g.safetensors")
    assert load_geo4d(tmp_path / "g.safetensors").num_steps == num_steps
    convert_file(tmp_path / "g.safetensors", tmp_path / "h.safetensors", dtype=torch.float32)
    assert load_geo4d(tmp_path / "h.safetensors").num_steps == num_steps


def test_a_file_that_does_not_say_it_is_used_as_the_released_one_and_the_log_says_so(
    tmp_path, caplog
):
    save_file(toy_tensors(), tmp_path / "g.safetensors")
    with caplog.at_level("INFO"):
        assert load_geo4d(tmp_path / "g.safetensors").num_steps == 5
    assert "does not say in how many steps it denoises: 5, as released." in caplog.text


@pytest.mark.parametrize("text", ["0", "x", "10000", "1001", "-1", "1.5", "", "05", "9" * 9999])
def test_a_damaged_number_of_steps_is_refused(tmp_path, text):
    path = tmp_path / "g.safetensors"
    save_file(toy_tensors(), path, metadata={"more4d_num_steps": text})
    with pytest.raises(WeightsError, match=r"denoises in '.{0,20}' steps; expected 1 to 1000\. It"):
        load_geo4d(path)


def test_the_file_says_how_much_ray_cameras_count(tmp_path):
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    networks.camera_weight = 0.5
    save_geo4d(networks, tmp_path / "g.safetensors")
    assert load_geo4d(tmp_path / "g.safetensors").camera_weight == 0.5
    convert_file(tmp_path / "g.safetensors", tmp_path / "h.safetensors", dtype=torch.float32)
    assert load_geo4d(tmp_path / "h.safetensors").camera_weight == 0.5


def test_ray_cameras_count_as_in_the_paper_where_the_file_does_not_say_it(tmp_path):
    save_file(toy_tensors(), tmp_path / "g.safetensors")
    assert load_geo4d(tmp_path / "g.safetensors").camera_weight == 0.005


@pytest.mark.parametrize("mirrored", [True, False])
def test_the_file_says_whether_windows_are_seen_mirrored_too(tmp_path, mirrored):
    networks = Geo4DNetworks(GEO4D_SIZES["toy"])
    networks.mirrored_windows = mirrored
    save_geo4d(networks, tmp_path / "g.safetensors")
    assert load_geo4d(tmp_path / "g.safetensors").mirrored_windows is mirrored
    convert_file(tmp_path / "g.safetensors", tmp_path / "h.safetensors", dtype=torch.float32)
    assert load_geo4d(tmp_path / "h.safetensors").mirrored_windows is mirrored


def test_a_file_that_does_not_say_it_sees_no_mirrored_windows_and_a_damaged_one_is_refused(
    tmp_path,
):
    path = tmp_path / "g.safetensors"
    save_file(toy_tensors(), path)
    assert load_geo4d(path).mirrored_windows is False
    for text in ("True", "", "9" * 9999):
        save_file(toy_tensors(), path, metadata={"more4d_mirrored_windows": text})
        with pytest.raises(WeightsError, match=r"says '.{0,20}' .*expected yes or no\. It"):
            load_geo4d(path)


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1001", "", "9" * 9999])
def test_a_damaged_weight_of_ray_cameras_is_refused(tmp_path, text):
    path = tmp_path / "g.safetensors"
    save_file(toy_tensors(), path, metadata={"more4d_camera_weight": text})
    with pytest.raises(WeightsError, match=r"ray cameras weigh '.{0,20}'; expected 0 to 1000\. It"):
        load_geo4d(path)


def test_a_damaged_header_and_a_missing_tensor_are_told(tmp_path):
    path = tmp_path / "g.safetensors"
    save_file(toy_tensors(), path, metadata={"geo4d_size": '{"unet": {"widths": 3}}'})
    with pytest.raises(WeightsError, match="sizes in its header that cannot be read"):
        load_geo4d(path)
    tensors = toy_tensors()
    del tensors["context"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="lacks the tensor 'context'"):
        load_geo4d(path)


def test_a_wrong_file_is_named_together_with_what_is_needed(toy, tmp_path):
    path = tmp_path / "w.safetensors"
    toy.on_disk(path, toy.originals(WeightKind.WAN_VAE, toy.wan_vae()))
    with pytest.raises(WeightsError, match=r"is a Wan2\.1 VAE .*Needed here: the Geo4D networks"):
        load_geo4d(path)
    save_geo4d(Geo4DNetworks(GEO4D_SIZES["toy"]), path)
    with pytest.raises(WeightsError, match=r"is the Geo4D networks .*Needed here: the 4D-STraG"):
        load_strag(path)
