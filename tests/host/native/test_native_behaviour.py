"""What the nodes do besides computing: batches, previews, interruption, refusals that help."""

import pytest
import torch
from safetensors.torch import save_file

from more4d_backend.strag.profile import RELEASED
from more4d_backend.weights.kinds import WeightKind

pytestmark = pytest.mark.host

HEIGHT, WIDTH = 32, 48
KINDS = {
    "strag": WeightKind.STRAG,
    "wan-vae": WeightKind.WAN_VAE,
    "motion-vae": WeightKind.MOTION_VAE,
    "fun-inp": WeightKind.FUN_INP,
}


@pytest.fixture(scope="module")
def networks(toy_networks):
    return toy_networks(True)


@pytest.fixture(scope="module")
def files(networks, write_original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return {
        name: write_original(folder / f"{name}.safetensors", kind, networks[name])
        for name, kind in KINDS.items()
    }


@pytest.fixture(scope="module")
def photo():
    g = torch.Generator().manual_seed(1)
    prompt = torch.zeros(1, 512, 4096)
    prompt[:, :9] = torch.randn(9, 4096, generator=g)
    return {
        "image": torch.rand(HEIGHT, WIDTH, 3, generator=g),
        "depth": 1 + torch.rand(HEIGHT, WIDTH, generator=g),
        "intrinsics": torch.tensor([[50.0, 0, WIDTH / 2], [0, 50, HEIGHT / 2], [0, 0, 1]]),
        "prompt": prompt,
    }


def test_every_condition_of_a_batch_has_its_own_guidance(native_host, files, photo):
    other = photo["image"].flip(0)
    found = native_host.call("behaviour.batches", files=files, other_image=other, **photo)
    assert found["calls"] == [2, 1, 1]
    torch.testing.assert_close(found["together"], found["apart"], atol=1e-5, rtol=0)
    assert (found["apart"][0] - found["apart"][1]).abs().max() > 1e-2


def test_the_image_is_encoded_before_the_steps_not_in_them(native_host, files, photo):
    counts = [
        native_host.call("behaviour.encodings_of_the_image", files=files, steps=steps, **photo)
        for steps in (2, 5)
    ]
    assert [c["network"] for c in counts] == [2, 5]
    assert [c["image"] for c in counts] == [2, 2]  # one for each branch of guidance


def test_custom_sampling_gives_what_ksampler_gives(native_host, files, photo):
    found = native_host.call("behaviour.both_samplers", files=files, **photo)
    assert torch.equal(found["custom"], found["ksampler"])
    assert found["custom"].std() > 0.1


def test_the_host_shows_the_image_with_trails_while_it_samples(native_host, files, photo):
    found = native_host.call("behaviour.previews", files=files, steps=3, **photo)
    assert found["sizes"] == [(512, 341)] * 3
    image = photo["image"].permute(2, 0, 1)[None]
    larger = torch.nn.functional.interpolate(image, scale_factor=512 / WIDTH, mode="bilinear")
    dimmed = (larger[0].permute(1, 2, 0) * 0.45 * 255).byte().int()
    for picture in found["pictures"]:
        shown = picture.reshape(dimmed.shape).int()
        same = ((shown - dimmed).abs() <= 2).all(-1).float().mean()
        assert 0.3 < same < 1  # the image is seen, and something is drawn on it


@pytest.mark.parametrize("asks", [True, False])
def test_other_packs_animated_previews_do_not_end_the_sampling(native_host, files, photo, asks):
    found = native_host.call("behaviour.animated_previews", files=files, asks=asks, **photo)
    _, _, frames, height, width = found["latent"]
    assert found["shown"] == [[frames, height, width, 3]]


def test_cancel_stops_every_stage_and_the_next_run_works(native_host, files, photo):
    found = native_host.call("behaviour.interrupted", files=files, **photo)
    assert found.pop("afterwards") == 5
    assert found == dict.fromkeys(found, True)
    assert set(found) == {"conditioning", "sampling", "decoding", "progress"}


def test_the_hosts_motion_vae_is_the_headless_one(native_host, networks, files):
    motion = torch.randn(5, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(2))
    found = native_host.call("behaviour.motion_round_trip", files=files, motion=motion)
    vae = networks["motion-vae"]
    vae.settings = RELEASED.latents
    with torch.no_grad():
        latent = vae.encode(motion.permute(3, 0, 1, 2)[None])
        decoded = vae.decode(latent)[0].permute(1, 2, 3, 0)
    torch.testing.assert_close(found["latent"], latent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["motion"], decoded, atol=1e-5, rtol=1e-5)


def test_strag_without_its_conditioning_is_refused(native_host, files, photo):
    with pytest.raises(Exception, match="More4D STraG Conditioning"):
        native_host.call("behaviour.without_conditioning", files=files, prompt=photo["prompt"])


def test_a_latent_of_another_length_is_refused(native_host, files, photo):
    with pytest.raises(
        Exception, match=r"\(3, 4, 6\) and the conditioning was made for \(2, 4, 6\)"
    ):
        native_host.call("behaviour.with_other_latent", files=files, **photo)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("model", "WAN21_I2V with 36 input channels, not 4D-STraG.*Load Diffusion Model"),
        ("VAE", "another family.*wan_2.1_vae.safetensors"),
        ("CLIP", "width 1024.*clip_vision_h"),
        ("frames", "num_frames is 6.*Use 5 or 9"),
        ("height", "height is 40.*Use 32 or 48"),
        ("pictures", "image input has 3 pictures; expected one"),
        ("pixels", "NaN or infinite; expected red, green and blue"),
        ("picture of another size", "lifted from a picture of 32x48 and the image is 30x48"),
        ("frames of the scene", "2 frames.*one frame with a point per pixel"),
    ],
)
def test_a_wrong_input_of_strag_conditioning_is_named(native_host, files, photo, wrong, said):
    with pytest.raises(Exception, match=said):
        native_host.call("behaviour.conditioning_with", files=files, wrong=wrong, **photo)


def test_conditioning_is_the_hosts_own_with_image_tokens_even_where_none_are_given(
    native_host, files, photo
):
    found = native_host.call("behaviour.conditioning_with", files=files, wrong="nothing", **photo)
    entries = {"concat_latent_image", "reference_latents", "clip_vision_output", "more4d_picture"}
    assert set(found["entries"]) == entries


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("strag", "is the 4D-STraG transformer. Needed here: the motion VAE"),
        ("wan-vae", "is a Wan2.1 VAE.*Needed here: the motion VAE"),
    ],
)
def test_a_file_that_is_no_motion_vae_is_named(native_host, files, name, said):
    with pytest.raises(Exception, match=said):
        native_host.call("behaviour.load_motion_vae", path=files[name])


def test_a_motion_vae_says_how_it_was_trained(
    native_host, networks, write_original, files, tmp_path
):
    def profile(**metadata):
        path = write_original(
            tmp_path / "m.safetensors", WeightKind.MOTION_VAE, networks["motion-vae"], metadata
        )
        return native_host.call("behaviour.load_motion_vae", path=path)["profile"]

    assert profile() == "released"
    assert profile(more4d_profile="own") == "own"
    with pytest.raises(Exception, match="profile 'later'; known are released, own"):
        profile(more4d_profile="later")


def test_a_damaged_motion_vae_is_refused(native_host, networks, tmp_path, write_original):
    from safetensors.torch import load_file

    path = write_original(tmp_path / "m.safetensors", WeightKind.MOTION_VAE, networks["motion-vae"])
    tensors = load_file(path)
    lost = tensors.pop("vae.decoder.middle.0.residual.2.weight")
    save_file(tensors, path)
    with pytest.raises(Exception, match=r"1 missing: decoder.middle.0.residual.2.weight"):
        native_host.call("behaviour.load_motion_vae", path=path)
    assert lost.ndim == 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("model", "STraG with 64 input channels.*Wan2.1-Fun-InP"),
        ("frames", "rendered frames is 4.*Use 1 or 5"),
        ("mask", "holes are .*31.* and the video .*Render 4D Scene"),
    ],
)
def test_a_wrong_input_of_vism_conditioning_is_named(native_host, files, photo, wrong, said):
    rendered = torch.rand(5, HEIGHT, WIDTH, 3)
    holes = (torch.rand(5, HEIGHT, WIDTH) > 0.5).float()
    with pytest.raises(Exception, match=said):
        native_host.call(
            "behaviour.vism_conditioning_with", files=files, rendered=rendered, holes=holes,
            prompt=photo["prompt"], wrong=wrong,
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 4, 32, 48), (2, 16, 2, 4, 6)])
def test_a_latent_that_is_no_motion_is_refused(native_host, files, photo, shape):
    inputs = {k: v for k, v in photo.items() if k != "prompt"}
    with pytest.raises(Exception, match="motion is decoded from one latent"):
        native_host.call("behaviour.decode_with", files=files, latent=torch.zeros(shape), **inputs)


def test_motion_is_decoded_for_the_conditionings_scene_only(native_host, files, photo):
    inputs = {k: v for k, v in photo.items() if k != "prompt"}
    latent = torch.zeros(1, 16, 2, 6, 8)  # of 48x64 pixels
    with pytest.raises(Exception, match=r"scene is 32x48 .* of 48x64 .*STraG Conditioning, not"):
        native_host.call("behaviour.decode_with", files=files, latent=latent, **inputs)


@pytest.mark.parametrize(
    ("part", "said"),
    [("inverted", "looks inverted"), ("all", "nearly everything"), ("none", "next to nothing")],
)
def test_a_mask_that_is_likely_a_mistake_is_said_on_the_node(native_host, files, photo, part, said):
    rendered = torch.rand(5, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    holes = torch.zeros(5, HEIGHT, WIDTH)
    if part == "inverted":
        rendered[..., :9, :] = 0
        holes[..., 9:] = 1
    if part == "all":
        holes[:] = 1
    found = native_host.call(
        "behaviour.sentences_on_the_vism_node", files=files, rendered=rendered, holes=holes,
        prompt=photo["prompt"],
    )  # fmt: skip
    ((sentence, node),) = found["said"]
    assert said in sentence
    assert node == "7"


def test_a_usual_mask_says_nothing(native_host, files, photo):
    rendered = torch.rand(5, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    holes = torch.zeros(5, HEIGHT, WIDTH)
    holes[..., 30:] = 1
    found = native_host.call(
        "behaviour.sentences_on_the_vism_node", files=files, rendered=rendered, holes=holes,
        prompt=photo["prompt"],
    )  # fmt: skip
    assert found["said"] == []


def test_only_what_the_conditioning_added_is_cut_off_before_pasting(native_host):
    known, holes = torch.zeros(5, 40, 56, 3), torch.ones(5, 40, 56)
    filled = torch.rand(5, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    found = native_host.call("behaviour.pasted", known=known, filled=filled, holes=holes)
    torch.testing.assert_close(found["video"], filled[:, :40, :56], atol=0, rtol=0)
    enlarged = torch.zeros(5, 96, 128, 3)  # not its upper left quarter
    with pytest.raises(Exception, match=r"96x128.*known one 5 frames of 40x56"):
        native_host.call("behaviour.pasted", known=known, filled=enlarged, holes=holes)


@pytest.mark.parametrize(
    ("tiny_text", "tiny_model", "said"),
    [(True, False, "Load CLIP"), (False, True, "Tiny Text Encode")],
)
def test_text_for_models_of_another_size_is_refused(
    native_host, files, photo, tiny_text, tiny_model, said
):
    with pytest.raises(Exception, match=said):
        native_host.call(
            "behaviour.text_of_the_wrong_size", files=files, tiny_text=tiny_text,
            tiny_model=tiny_model, **photo,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("which", "loader"), [("vae", "Load VAE"), ("motion_vae", "Load Motion VAE")]
)
@pytest.mark.parametrize(
    ("tiny_model", "said"), [(True, "begins with more4d_tiny"), (False, "only the tiny models")]
)
def test_vaes_for_models_of_another_size_are_refused(
    native_host, files, photo, tiny_model, said, which, loader
):
    with pytest.raises(Exception, match=said) as raised:
        native_host.call(
            "behaviour.vae_of_another_size", files=files, tiny_model=tiny_model, which=which,
            **photo,
        )  # fmt: skip
    assert f"the VAE of {loader} is" in str(raised.value).replace("The", "the")


def test_the_host_knows_our_model_and_folders_once_however_often_we_register(native_host):
    found = native_host.call("behaviour.registered_again")
    assert (found["first"], found["count"]) == ("STraG", 1)
    for is_ours in found["folders"].values():
        assert sum(is_ours) == 1
        assert is_ours[-1]  # after the user's own
