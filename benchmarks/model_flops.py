"""Floating-point operations of a Wan transformer's forward pass, by counting.

Only matrix products count (two operations for each multiplication and addition): projections,
feed-forward parts, attention, guidance, time and patch embeddings. A training step counts three
times a forward pass, whatever is computed twice to save memory; where most weights are frozen
and get no gradient, twice.
"""

from more4d_backend.strag.sizes import IMAGE_TOKENS, PerceptionSize, WanSize
from more4d_backend.wan.text import TEXT_TOKENS

PATCH_HW = 2
"""Latent pixels of a token's edge; a token is one latent frame deep."""

MODULATIONS = 6
"""Vectors that every block gets from the noise level."""


def forward_flops(
    wan: WanSize, latent_fhw: tuple[int, int, int], perception: PerceptionSize | None = None
) -> float:
    """Return the operations for one sample of a latent size.

    With `perception` it is 4D-STraG: one latent frame more, the reference, and guided blocks. Its
    image encoder, a thousandth of the rest, is left out.
    """
    frames, height, width = latent_fhw
    tokens_per_frame = (height // PATCH_HW) * (width // PATCH_HW)
    tokens = (frames + (perception is not None)) * tokens_per_frame
    context = TEXT_TOKENS + (IMAGE_TOKENS if wan.image_dim is not None else 0)
    dim = wan.dim
    products = (
        # Self-attention's four projections, the two of cross-attention, the feed-forward part.
        tokens * (4 * dim**2 + 2 * dim**2 + 2 * dim * wan.ffn_dim)
        + context * 2 * dim**2
        # Scores and their use.
        + 2 * tokens * (tokens + context) * dim
    )
    if perception is not None:
        products += 2 * tokens_per_frame * perception.feature_dim * 2 * dim
    products *= wan.num_layers
    patch = PATCH_HW**2 * (wan.in_channels + wan.out_channels)
    products += tokens * patch * dim + MODULATIONS * dim**2
    products += TEXT_TOKENS * (wan.text_dim * dim + dim**2)
    if wan.image_dim is not None:
        products += IMAGE_TOKENS * (wan.image_dim**2 + wan.image_dim * dim)
    return 2.0 * products
