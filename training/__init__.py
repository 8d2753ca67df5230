"""Training of the MoRe4D networks: data, losses, checkpoints, and one story per network."""
