import pytest
import torch

from more4d_backend.tiny.text_encoder import ByteTextEncoder, ByteTextModel, ByteTextSize
from more4d_backend.tiny.writing import write_embedded
from more4d_backend.wan.text import TextEncoder
from more4d_backend.weights.model_loading import load_byte_text

LONG = "A red striped ball moves left; a blue box spins clockwise."


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ByteTextModel(ByteTextSize(width=16, num_heads=2, text_dim=32)).eval()


def test_tokens_stop_at_the_end_of_each_text(model):
    encoder = ByteTextEncoder(model)
    assert isinstance(encoder, TextEncoder)
    tokens = encoder.encode([LONG, "hi", ""])
    assert tokens.shape == (3, 512, 32)
    used = (tokens != 0).any(-1)
    assert used.sum(1).tolist() == [len(LONG) + 1, 3, 1]
    assert used[0, : len(LONG) + 1].all()


def test_a_text_does_not_depend_on_the_texts_beside_it(model):
    together, alone = model(["go left", LONG]), model(["go left"])
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-5)


def test_words_far_apart_change_each_others_tokens(model):
    left, right = model([LONG]), model([LONG.replace("red", "tan")])
    # The last bytes are 50 bytes behind: convolutions alone do not reach them.
    assert (left - right)[0, len(LONG) - 3].abs().max() > 1e-6


def test_capitals_and_spare_white_space_say_nothing(model):
    assert torch.equal(model(["A  Ball\n moves "]), model(["a ball moves"]))


def test_a_text_that_is_too_long_is_cut_with_a_warning(model, caplog):
    text = "x" * 505 + " the end"
    tokens = ByteTextEncoder(model).encode([text])
    assert (tokens != 0).any(-1).all()
    assert "Cut off: 'nd'" in caplog.text


def test_gradients_reach_every_parameter(model):
    model.train()(["A red ball moves left.", "no"]).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_file_holds_the_whole_network(tmp_path):
    network = ByteTextModel()
    path = write_embedded("text_encoder", network, folder=tmp_path)
    loaded = load_byte_text(path, dtype=torch.float32)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    torch.testing.assert_close(loaded([LONG]), network([LONG]), atol=0.05, rtol=0.05)


def test_tokens_tell_the_place_of_their_byte(model):
    # Far from both ends, equal bytes have equal neighbours: only their places differ.
    tokens = model(["a" * 400])[0, 150:250]
    size = tokens.norm(dim=-1).mean()
    apart = torch.cdist(tokens, tokens) + torch.eye(100) * size
    assert apart.min() > 0.02 * size
