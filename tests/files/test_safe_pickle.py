import builtins
import collections
import io
import os
import pickle
import random

import numpy as np
import pytest
import torch

from more4d_backend.files import FileFormatError
from more4d_backend.files.safe_pickle import UnsafePickleError, load_pickle, loads_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """Pickles into an instruction to call `function(*arguments)` on loading."""

    def __init__(self, function, *arguments):
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


def a_prediction() -> dict:
    positions = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0))
    return {
        "coords": positions.half()[None],
        "colors": positions[0].abs(),
        "vis": positions[..., 0] > 0,
        "transposed": positions.transpose(0, 1),
        "doubles": positions.double(),
        "bfloat": positions.bfloat16(),
        "none of it": torch.empty(0, 3),
        "row major": np.arange(6).reshape(2, 3),
        "column major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "foreign bytes": np.arange(3, dtype=">f4"),
        "truth": np.array([True, False]),
        "no rows": np.zeros((0, 3)),
        "words": np.array(["ab", "c"]),
        "scalar": np.float32(3),
        "plain": [1, -5, 2**70, 2.5, None, True, (1, 2, 3, 4), (1,), "text", b"bytes"],
        "ordered": collections.OrderedDict(a=1),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_arrays_and_plain_values_come_back_as_they_were(protocol, tmp_path):
    value = a_prediction()
    path = tmp_path / "x_dt3d_pred.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    loaded = load_pickle(path)
    assert list(loaded) == list(value)
    for key, expected in value.items():
        got = loaded[key]
        if isinstance(expected, torch.Tensor):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)
        elif isinstance(expected, np.ndarray):
            assert got.dtype == expected.dtype.newbyteorder("=") or got.dtype == expected.dtype
            assert np.array_equal(got, expected)
        else:
            assert got == expected


def test_a_value_that_occurs_twice_is_one_object():
    array = np.arange(3)
    first, second = loads_pickle(pickle.dumps([array, array]), "it")
    assert first is second


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "echo ran > {mark}", "system"),
        (builtins.eval, "open({mark!r}, 'w')", "eval"),
        (builtins.exec, "open({mark!r}, 'w')", "exec"),
        (builtins.open, "{mark}", "open"),
        (os.makedirs, "{mark}", "makedirs"),
    ],
)
def test_a_call_is_refused_by_name_and_never_made(protocol, function, argument, name, tmp_path):
    mark = tmp_path / "mark"
    arguments = [argument.format(mark=str(mark))] + (["w"] if function is builtins.open else [])
    hostile = {"coords": torch.zeros(2), "vis": Calls(function, *arguments)}
    data = pickle.dumps(hostile, protocol=protocol)
    with pytest.raises(UnsafePickleError, match=rf"x\.pkl is refused: It names \w+\.{name}\."):
        loads_pickle(data, "x.pkl")
    assert not mark.exists()
    if os.name == "posix":  # The pickle is live: the ordinary reader does run it.
        pickle.loads(data)
        assert mark.exists()


def test_code_inside_the_bytes_of_a_torch_storage_is_refused(tmp_path):
    mark = tmp_path / "mark"
    inner = pickle.dumps(Calls(os.makedirs, str(mark)))
    for payload in (inner, _legacy_torch_file_with(Calls(os.makedirs, str(mark)))):
        data = pickle.dumps(Calls(torch.storage._load_from_bytes, payload))
        with pytest.raises(FileFormatError):
            loads_pickle(data, "it")
        assert not mark.exists()


def _legacy_torch_file_with(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_a_call_nested_in_the_arguments_of_an_allowed_call_is_refused(tmp_path):
    mark = tmp_path / "mark"
    data = pickle.dumps(Calls(np.dtype, Calls(os.makedirs, str(mark))))
    with pytest.raises(UnsafePickleError, match="makedirs"):
        loads_pickle(data, "it")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (pickle.dumps(np.array([object()])), "names builtins.object|names copyreg"),
        (pickle.dumps(np.array([[1], [1, 2]], dtype=object)), "array of objects|dtype 'O8'"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "dtype"),
        (pickle.dumps(np.ndarray), "holds numpy.ndarray itself"),
        (pickle.dumps([np.dtype("f4")]), "holds a numpy dtype itself"),
        (pickle.dumps({1, 2}), "instruction EMPTY_SET"),
        (pickle.dumps(os.system), "names posix.system|names nt.system"),
        (pickle.dumps(np.random.default_rng(0)), r"names numpy\.random"),
        (pickle.dumps(torch.nn.Linear(1, 1)), r"names torch\.nn"),
        (b"(S'echo'\nios\nsystem\n.", "instruction STRING"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"Pname\n.", "instruction PERSID"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"K\x01K\x02b.", "sets the state of a int"),
        (b"(K\x01tK\x02R.", "it calls|It calls|not a readable"),
    ],
)
def test_everything_but_tensors_arrays_and_plain_values_is_named(data, said):
    with pytest.raises(FileFormatError, match=said):
        loads_pickle(data, "it")


def test_a_tensor_that_reaches_beyond_its_storage_is_refused():
    storage = torch.arange(4.0).storage()
    for offset, size, stride in ((0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1))):
        recipe = torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {}
        with pytest.raises(FileFormatError, match="needs more than 4 elements"):
            loads_pickle(pickle.dumps(Calls(*recipe)), "it")
    recipe = torch._utils._rebuild_tensor_v2, storage, -1, (1,), (1,), False, {}
    with pytest.raises(FileFormatError, match="offset -1"):
        loads_pickle(pickle.dumps(Calls(*recipe)), "it")


def test_a_huge_memo_index_costs_no_memory():
    # The interpreter's own reader allocates a table of this length.
    data = b"\x80\x04K\x01r\xff\xff\xff\xff."
    assert loads_pickle(data, "it") == 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x04", "not a readable pickle"),
        (b"hello", "not a readable pickle"),
        (pickle.dumps(torch.zeros(100))[:-50], "not a readable pickle"),
    ],
)
def test_a_file_that_is_no_pickle_is_refused(data, said):
    with pytest.raises(FileFormatError, match=said):
        loads_pickle(data, "it")


@pytest.mark.filterwarnings("ignore")
def test_mutated_pickles_give_a_value_or_the_documented_error():
    draw = random.Random(0)
    refused = 0
    for protocol in (0, 2, 5):
        original = pickle.dumps(a_prediction(), protocol=protocol)
        for _ in range(700):
            data = bytearray(original)
            for _ in range(draw.randint(1, 8)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            try:
                loads_pickle(
                    bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]), "it"
                )
            except FileFormatError:
                refused += 1
    assert refused > 1000
