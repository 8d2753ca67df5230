import math

import pytest

from more4d_backend.files import FileFormatError
from more4d_backend.files.strict_json import (
    as_choice,
    as_list,
    as_number,
    as_numbers,
    as_object,
    parse_json,
    read_text,
    shown,
)


def test_what_is_right_comes_through_unchanged():
    assert parse_json('{"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}
    assert as_object({"a": 1}, "x") == {"a": 1}
    assert as_list([1], "x", max_items=1) == [1]
    assert as_number(3, "x") == 3.0
    assert isinstance(as_number(3, "x"), float)
    assert as_numbers([1, 2.5], 2, "x") == [1.0, 2.5]
    assert as_choice("in", {"in": 1, "out": 2}, "x") == "in"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_number(True, "a.b"), r"a\.b is true; expected a number\."),
        (lambda: as_number(None, "a.b"), r"a\.b is missing or null; expected a number\."),
        (lambda: as_number(math.nan, "a.b"), r"a\.b is NaN; expected a number from"),
        (lambda: as_number(math.inf, "a.b"), r"a\.b is Infinity; expected a number from"),
        (lambda: as_number(10**5000, "a.b"), "an integer of more than 20 digits"),
        (lambda: as_number(2, "a.b", low=0, high=1), "a.b is 2; expected a number from 0 to 1"),
        (lambda: as_numbers([1], 2, "a"), "a is an array of 1; expected an array of 2 numbers"),
        (lambda: as_numbers([1, "2"], 2, "a"), r'a\[1\] is "2"; expected a number'),
        (lambda: as_list([1, 2], "a", max_items=1), "a has 2 items; expected at most 1"),
        (lambda: as_list({}, "a", max_items=1), "a is an object; expected an array"),
        (lambda: as_object([], "a"), "a is an array of 0; expected an object"),
        (lambda: as_choice("x", ["b", "a"], "a"), 'a is "x"; expected one of a, b'),
        (lambda: as_choice([], ["b"], "a"), "a is an array of 0; expected one of b"),
        (lambda: parse_json("[1,", "file.json"), r"file\.json is not JSON: .* line 1, column"),
    ],
)
def test_what_is_wrong_is_refused_by_name(call, message):
    with pytest.raises(FileFormatError, match=message):
        call()


def test_long_values_are_shortened_in_errors():
    assert len(shown("x" * 1000)) < 80


def test_text_is_bounded_and_utf_8(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(file, 10, "a camera file") == "{}"
    with pytest.raises(FileFormatError, match="expected a camera file of at most 4"):
        read_text(file, 4, "a camera file")
    with pytest.raises(FileFormatError, match="is not a file; expected a camera file"):
        read_text(tmp_path, 10, "a camera file")
    file.write_bytes(b"\xff\xff")
    with pytest.raises(FileFormatError, match=r"not text in UTF-8 \(byte 0"):
        read_text(file, 10, "a camera file")
