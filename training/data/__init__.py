"""Training data: samples, shards, loaders, encoded samples, and what is made of them."""
