"""4D-ViSM: fills the holes of a scene that was rendered from a new camera path."""
