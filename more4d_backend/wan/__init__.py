"""What all Wan networks share: latents, sampling, text, image tokens, windows."""
