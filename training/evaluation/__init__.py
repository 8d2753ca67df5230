"""Trained networks on held-out samples."""
