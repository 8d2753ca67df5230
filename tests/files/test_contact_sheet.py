import numpy as np
import pytest
import torch

from more4d_backend.files.contact_sheet import contact_sheet
from more4d_backend.shapes import ShapeError


def test_first_and_last_frames_are_shown_in_their_colours():
    ramp = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 20, 30, 3)
    pixels = np.asarray(contact_sheet({"ramp": ramp}, num_columns=3))
    row = pixels[35, :, 0]
    assert row[10] == 0
    assert row[10 + 36] == 128
    assert row[10 + 72] == 255


def test_videos_of_other_sizes_and_masks_share_a_sheet():
    sheet = contact_sheet(
        {"wide": torch.zeros(2, 90, 640, 3), "mask": torch.ones(9, 16, 16, 1)}, num_columns=4
    )
    assert sheet.width == 2 * (320 + 6) + 6


def test_a_video_without_a_frame_axis_is_refused_by_its_label():
    with pytest.raises((ShapeError, TypeError), match="photo"):
        contact_sheet({"photo": torch.zeros(20, 30, 3)})
