"""Geo4D: a video to point maps, depth and cameras (arXiv 2504.07961)."""
