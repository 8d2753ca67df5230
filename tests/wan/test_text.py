import pytest
import torch

from more4d_backend.wan.text import TEXT_TOKENS, PromptError, UMT5TextEncoder, check_prompt

WORDS = ["a", "red", "ball", "rolls", "left", "slowly"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {w: i + 3 for i, w in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def encoder(tokenizer):
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return UMT5TextEncoder(UMT5EncoderModel(config), tokenizer)


def test_tokens_after_the_end_of_each_text_are_zero_and_those_before_are_not(encoder):
    tokens = encoder.encode(["a red ball", "left"])
    assert tokens.shape == (2, TEXT_TOKENS, 16)
    for row, length in ((0, 4), (1, 2)):
        assert tokens[row, length:].abs().max() == 0
        assert (tokens[row, :length].abs().amax(-1) > 0).all()


def test_a_text_does_not_depend_on_the_texts_beside_it(encoder):
    together = encoder.encode(["a red ball rolls left slowly", "left"])
    torch.testing.assert_close(together[1:], encoder.encode(["left"]), atol=1e-5, rtol=1e-5)


def test_the_empty_text_has_the_token_of_its_end(encoder):
    tokens = encoder.encode([""])
    assert tokens[0, 0].abs().max() > 0
    assert tokens[0, 1:].abs().max() == 0


def test_white_space_makes_no_difference(encoder):
    assert torch.equal(encoder.encode(["a  red\nball "]), encoder.encode(["a red ball"]))


def test_a_long_text_is_cut_with_a_warning_that_says_what_was_cut(encoder, caplog):
    long = " ".join(["a"] * 511 + ["rolls", "slowly"])
    tokens = encoder.encode([long])
    assert tokens.shape == (1, TEXT_TOKENS, 16)
    assert "514 tokens" in caplog.text
    assert "'rolls slowly'" in caplog.text
    caplog.clear()
    encoder.encode([" ".join(["a"] * 511)])
    assert caplog.text == ""


def test_an_empty_prompt_is_refused_and_a_prompt_loses_its_spare_white_space():
    assert check_prompt(" a red\n ball ") == "a red ball"
    for empty in ("", " \n\t"):
        with pytest.raises(PromptError, match="The prompt is empty"):
            check_prompt(empty)
