"""Words of messages."""

import pytest

from more4d_backend.wording import counted


@pytest.mark.parametrize(("number", "told"), [(0, "0 frames"), (1, "1 frame"), (21, "21 frames")])
def test_one_thing_is_told_as_one(number, told):
    assert counted(number, "frame") == told
