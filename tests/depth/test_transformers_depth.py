"""The real transformers classes at toy size, with random weights and without a network."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from more4d_backend.depth import DepthAnything, DepthPro, DepthProviderError, lift_prediction
from more4d_backend.depth.depth_anything import network_size

transformers = pytest.importorskip("transformers")

IMAGE = torch.rand(30, 50, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def depth_pro():
    """Depth Pro that sees 64x64 and always predicts 60 degrees."""
    vit = {
        "model_type": "dinov2", "image_size": 16, "patch_size": 4, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2,
    }  # fmt: skip
    config = transformers.DepthProConfig(
        patch_size=16,
        fusion_hidden_size=8,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_feature_dims=[16, 16, 8],
        merge_padding_value=1,
        use_fov_model=True,
        image_model_config=dict(vit),
        patch_model_config=dict(vit),
        fov_model_config=dict(vit),
    )
    torch.manual_seed(0)
    model = transformers.DepthProForDepthEstimation(config).eval()
    last = model.fov_model.head.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 60.0)
    return model


@pytest.fixture
def depth_anything():
    return toy_depth_anything("metric")


def toy_depth_anything(kind: str):
    backbone = transformers.Dinov2Config(
        image_size=56,
        patch_size=14,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
        depth_estimation_type=kind,
        max_depth=20,
    )
    torch.manual_seed(0)
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    for weight in model.head.parameters():  # as they are, the depth is 10.0000 everywhere
        torch.nn.init.normal_(weight)
    return model


def seen_by(model, monkeypatch) -> list[torch.Tensor]:
    """Record what the network is given."""
    seen = []
    forward = model.forward

    def recording(pixel_values):
        seen.append(pixel_values)
        return forward(pixel_values)

    monkeypatch.setattr(model, "forward", recording)
    return seen


def test_depth_pro_gives_depth_for_the_focal_length_that_it_predicts(depth_pro, monkeypatch):
    seen = seen_by(depth_pro, monkeypatch)
    found = DepthPro(depth_pro).predict(IMAGE)
    focal_px = 25 / math.tan(math.radians(30))
    expected = [[focal_px, 0, 25], [0, focal_px, 15], [0, 0, 1]]
    torch.testing.assert_close(found.intrinsics, torch.tensor(expected))
    assert found.depth.shape == (30, 50)
    assert found.is_metric
    # Inverse depth as the paper's eq. 2: canonical inverse depth times width over focal length.
    canonical = depth_pro(seen[0]).predicted_depth[None]
    canonical = torch.nn.functional.interpolate(canonical, (30, 50), mode="bilinear")[0, 0]
    torch.testing.assert_close(1 / found.depth, canonical * 50 / focal_px)
    assert lift_prediction(IMAGE, found).cameras.intrinsics[0, 0, 0].item() == pytest.approx(
        focal_px
    )


def test_depth_pro_sees_the_whole_image_as_a_square_from_minus_1_to_1(depth_pro, monkeypatch):
    seen = seen_by(depth_pro, monkeypatch)
    halves = torch.zeros(30, 50, 3)
    halves[:, 25:] = torch.tensor([1.0, 0.5, 0.0])
    DepthPro(depth_pro).predict(halves)
    assert seen[0].shape == (1, 3, 64, 64)
    assert seen[0][0, :, 30, 10].tolist() == [-1.0, -1.0, -1.0]
    assert seen[0][0, :, 30, 50].tolist() == [1.0, 0.0, -1.0]


def test_depth_pro_leaves_the_sky_without_depth(depth_pro):
    last = [m for m in depth_pro.head.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    found = DepthPro(depth_pro).predict(IMAGE)
    assert not found.valid.any()


@pytest.mark.parametrize("fov_deg", [-3.0, 181.0, math.nan])
def test_an_impossible_field_of_view_is_refused(depth_pro, fov_deg):
    torch.nn.init.constant_(depth_pro.fov_model.head.layers[-1].bias, fov_deg)
    with pytest.raises(DepthProviderError, match="predicts a field of view of"):
        DepthPro(depth_pro).predict(IMAGE)


def test_depth_pro_without_a_field_of_view_is_refused(depth_pro):
    depth_pro.use_fov_model = False
    with pytest.raises(DepthProviderError, match="no field-of-view head"):
        DepthPro(depth_pro)


def test_depth_anything_gives_depth_of_the_images_size(depth_anything, monkeypatch):
    seen = seen_by(depth_anything, monkeypatch)
    found = DepthAnything(depth_anything).predict(IMAGE)
    assert seen[0].shape == (1, 3, 28, 56)
    assert found.depth.shape == (30, 50)
    assert found.intrinsics is None
    assert found.valid.all()
    raw = depth_anything(seen[0]).predicted_depth
    assert raw.max() - raw.min() > 1
    assert raw.min() <= found.depth.min() <= found.depth.max() <= raw.max()


def test_depth_anything_sees_colors_as_its_own_processor_makes_them(depth_anything, monkeypatch):
    processor = pil_processor()(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14,
        resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    seen = seen_by(depth_anything, monkeypatch)
    image = (IMAGE * 100 + 80).round()  # without the extremes, where PIL clips between its passes
    DepthAnything(depth_anything).predict(image / 255)
    expected = processor(image.to(torch.uint8).numpy(), return_tensors="pt")["pixel_values"]
    # PIL rounds to whole colour steps after each of two passes; measured: 1.03 of 255.
    torch.testing.assert_close(seen[0], expected, atol=1.5 / 255 / 0.224, rtol=0)


def pil_processor():
    """The processor that needs no torchvision, by its name in transformers 5 and 4."""
    try:
        from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
    except ImportError:
        from transformers.models.dpt.image_processing_dpt import DPTImageProcessor

        return DPTImageProcessor
    return DPTImageProcessorPil


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [((480, 640), (518, 686)), ((1080, 1920), (518, 924)), ((640, 480), (686, 518)),
     ((518, 518), (518, 518)), ((100, 900), (56, 518))],
)  # fmt: skip
def test_the_networks_size_keeps_the_aspect_in_multiples_of_the_patch(size_hw, expected):
    assert network_size(*size_hw, 518, 14) == expected


def test_relative_depth_is_refused():
    with pytest.raises(DepthProviderError, match="give relative depth, without scale"):
        DepthAnything(toy_depth_anything("relative"))


def test_weights_are_loaded_from_a_folder(depth_pro, depth_anything, tmp_path):
    depth_pro.save_pretrained(tmp_path / "pro")
    depth_anything.save_pretrained(tmp_path / "anything")
    for kind, model, name in (
        (DepthPro, depth_pro, "pro"),
        (DepthAnything, depth_anything, "anything"),
    ):
        loaded = kind.load(tmp_path / name)
        assert torch.equal(loaded.predict(IMAGE).depth, kind(model).predict(IMAGE).depth)


def test_missing_weights_say_how_to_get_them_and_nothing_is_fetched(connections, tmp_path):
    with pytest.raises(DepthProviderError, match=r"hf download apple/DepthPro-hf"):
        DepthPro.load()
    with pytest.raises(DepthProviderError, match=r"nowhere/at/all is no folder"):
        DepthAnything.load("nowhere/at/all")
    with pytest.raises(DepthProviderError, match="does not hold a DepthAnythingForDepth"):
        DepthAnything.load(tmp_path)
    assert connections == []


def test_a_download_is_tried_only_when_allowed(connections):
    with pytest.raises(DepthProviderError, match="allow the download"):
        DepthPro.load(download=True)
    assert connections


def test_incomplete_and_foreign_weights_are_refused(depth_anything, tmp_path):
    depth_anything.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.conv3.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DepthProviderError, match=r"1 parameters .*head\.conv3\.bias"):
        DepthAnything.load(tmp_path)
    weights |= {"head.conv3.bias": torch.zeros(1), "foreign.weight": torch.zeros(1)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DepthProviderError, match=r"1 parameters .*foreign\.weight"):
        DepthAnything.load(tmp_path)
