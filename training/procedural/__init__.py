"""Procedural training samples: scenes, actors and captions from a seed."""
