"""4D-STraG: one image, its depth and a text to a moving scene."""
