import pytest
import torch

from more4d_backend.depth.depth_pictures import depth_from_picture, depth_picture
from more4d_backend.depth.lifting import DepthError

DEPTH = torch.tensor([[1.0, 2.0, 4.0, 10.0]])


def test_grey_values_are_read_by_their_encoding():
    z = depth_from_picture(torch.tensor([0.0, 0.5, 1.0]), "depth 0-1", near=2.0, far=6.0)
    assert z.tolist() == [2.0, 4.0, 6.0]
    z = depth_from_picture(torch.tensor([1.0, 0.5, 0.0]), "disparity 0-1", near=2.0, far=6.0)
    torch.testing.assert_close(z, torch.tensor([2.0, 3.0, 6.0]))  # 1/z = 1/2, 1/3, 1/6
    assert depth_from_picture(DEPTH, "depth") is DEPTH


def test_a_picture_of_depth_is_white_where_it_is_near_and_black_where_nothing_is():
    depth = torch.tensor([[1.0, 2.0, 4.0, 0.0, torch.inf, torch.nan, -3.0]])
    picture = depth_picture(depth)
    # Disparity 1, 1/2 and 1/4; the outermost 0.1 % of so few values moves the ends a little.
    torch.testing.assert_close(picture[0, :3], torch.tensor([1.0, 1 / 3, 0.0]), atol=2e-3, rtol=0)
    assert picture[0, 3:].tolist() == [0.0] * 4


def test_all_frames_of_a_video_share_one_scale():
    video = torch.stack([DEPTH, 2 * DEPTH])
    picture = depth_picture(video)
    assert picture[0, 0, 1] == picture[1, 0, 0]


def test_a_flat_or_empty_depth_map_gives_a_picture_all_the_same():
    assert depth_picture(torch.full((1, 2, 2), 3.0)).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    assert depth_picture(torch.zeros(1, 2, 2)).sum() == 0


@pytest.mark.parametrize(
    ("values", "encoding", "near", "far", "sentence"),
    [
        ([0.5], "disparity", 1.0, 2.0, "encoding is 'disparity'; expected one of"),
        ([0.5], "depth 0-1", 2.0, 1.0, r"near is 2.0 and far is 1.0"),
        ([0.5], "disparity 0-1", 0.0, 1.0, r"expected 0 < near < far"),
        ([0.5, 3.0], "depth 0-1", 1.0, 2.0, "choose the encoding 'depth'"),
        ([float("nan")], "depth 0-1", 1.0, 2.0, "values from nan"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    values, encoding, near, far, sentence, as_users_run_it
):
    with pytest.raises(DepthError, match=sentence):
        depth_from_picture(torch.tensor(values), encoding, near=near, far=far)


def test_what_is_drawn_is_read_back_between_the_same_ends():
    picture = depth_picture(DEPTH[None])[0]
    torch.testing.assert_close(
        depth_from_picture(picture, "disparity 0-1", near=1.0, far=10.0), DEPTH, rtol=2e-2, atol=0
    )
