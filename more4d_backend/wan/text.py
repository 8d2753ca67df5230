"""Texts to the tokens that the Wan networks read: UMT5, 512 tokens, zeros after the text's end."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

_log = logging.getLogger(__name__)

TEXT_TOKENS = 512
"""The networks tell image tokens from text tokens by counting 512 from the end."""


class PromptError(ValueError):
    """A text that cannot be a prompt."""


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that makes text tokens."""

    @property
    def model(self) -> nn.Module:
        """The network inside, for whoever decides on which device it is."""
        ...

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompt 512 text_dim"]:
        """Encode texts, the empty one too; tokens after a text's end are zero."""
        ...


def check_prompt(prompt: str) -> str:
    """Return the prompt without spare white space.

    Raises:
        PromptError: there is no text in it.
    """
    cleaned = " ".join(prompt.split())
    if not cleaned:
        raise PromptError(
            "The prompt is empty. Describe the scene and what moves in it, in which direction: "
            "the model has nothing else to know the motion by."
        )
    return cleaned


class UMT5TextEncoder:
    """UMT5 through transformers, as Wan uses it."""

    def __init__(self, model: "UMT5EncoderModel", tokenizer: Any) -> None:
        """Wrap a loaded model and its tokenizer (any `PreTrainedTokenizer`)."""
        self.model = model.eval()
        self.tokenizer = tokenizer

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompt 512 text_dim"]:
        """Encode texts; each keeps its own length, and what follows its end is zero.

        A text of more than 512 tokens is cut, and a warning says what was cut off.
        """
        cleaned = [" ".join(prompt.split()) for prompt in prompts]
        for prompt in cleaned:
            self._warn_if_cut(prompt)
        tokens = self.tokenizer(
            cleaned,
            padding="longest",
            truncation=True,
            max_length=TEXT_TOKENS,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        hidden = self.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        after_end = tokens.attention_mask[..., None] == 0
        trimmed = hidden.masked_fill(after_end, 0)
        return torch.nn.functional.pad(trimmed, (0, 0, 0, TEXT_TOKENS - hidden.shape[1]))

    def _warn_if_cut(self, prompt: str) -> None:
        ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) <= TEXT_TOKENS:
            return
        num_kept = TEXT_TOKENS - self.tokenizer.num_special_tokens_to_add()
        cut = self.tokenizer.decode(ids[num_kept:], skip_special_tokens=True)
        _log.warning(
            "The prompt has %d tokens and the text encoder reads %d. Cut off: %r",
            len(ids),
            TEXT_TOKENS,
            cut,
        )


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Load a tokenizer from its folder, or from the tokenizer.json in it. Nothing is downloaded."""
    from transformers import AutoTokenizer

    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
