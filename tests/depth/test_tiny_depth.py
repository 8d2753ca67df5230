import math

import pytest
import torch

from more4d_backend.depth import DepthProvider, TinyDepth, provider_class
from more4d_backend.tiny.depth_network import DepthNetwork, DepthNetworkSize, network_size
from more4d_backend.tiny.writing import write_embedded
from more4d_backend.weights.files import WeightsError


@pytest.fixture
def network():
    torch.manual_seed(0)
    return DepthNetwork(DepthNetworkSize(widths=(8, 8, 8, 8, 16), num_blocks=(1, 1, 1, 1)))


@pytest.mark.parametrize("size_hw", [(128, 176), (48, 100), (101, 37), (300, 400)])
def test_depth_and_camera_fit_pictures_of_any_size(network, size_hw):
    provider = TinyDepth(network)
    assert isinstance(provider, DepthProvider)
    prediction = provider.predict(torch.rand(*size_hw, 3))
    assert prediction.depth.shape == size_hw
    assert prediction.valid.all()
    height, width = size_hw
    focal_px = prediction.intrinsics[0, 0]
    # A new network guesses 55 degrees across the longer side.
    fov_deg = math.degrees(2 * math.atan(max(size_hw) / 2 / float(focal_px)))
    assert fov_deg == pytest.approx(55, abs=8)
    assert prediction.intrinsics[:2, 2].tolist() == [width / 2, height / 2]
    assert not prediction.is_metric


def test_the_networks_input_keeps_area_and_proportions():
    assert network_size(128, 176) == (128, 176)
    for height, width in ((1080, 1920), (1920, 1080), (64, 64), (10, 4000)):
        rows, columns = network_size(height, width)
        assert rows % 16 == columns % 16 == 0
        assert rows * columns == pytest.approx(128 * 176, rel=0.25) or min(rows, columns) == 32


def test_the_file_holds_the_whole_network(network, tmp_path):
    path = write_embedded("depth", network, folder=tmp_path)
    loaded = TinyDepth.load(path).model.state_dict()
    assert loaded.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value.bfloat16().float()), name


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    from more4d_backend.tiny.text_encoder import ByteTextModel

    path = write_embedded("text_encoder", ByteTextModel(), folder=tmp_path)
    with pytest.raises(WeightsError, match="the embedded text encoder"):
        TinyDepth.load(path)


def test_it_is_known_by_name():
    assert provider_class("tiny") is TinyDepth


def test_gradients_reach_every_parameter_of_a_new_network(network):
    log_depth, log_focal = network(torch.rand(2, 3, 32, 48))
    (log_depth.square().mean() + log_focal.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_every_place_of_the_picture_reaches_every_depth(network):
    torch.manual_seed(1)
    image = torch.rand(1, 3, 64, 96, requires_grad=True)
    network(image)[0][0, -1, -1].backward()
    assert (image.grad[0, :, :8, :8] != 0).any()
