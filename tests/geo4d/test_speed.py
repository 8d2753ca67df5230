"""Compiled networks."""

import pytest

from more4d_backend.geo4d.speed import CompilationError, compilation_told


def test_where_the_networks_cannot_be_compiled_one_sentence_says_so():
    from torch._dynamo.exc import TorchDynamoException

    def fail():
        raise TorchDynamoException("\nC++ compile error\nand a thousand lines")

    with (
        pytest.raises(CompilationError, match=r"here \(C\+\+ compile error\)\. Go on without"),
        compilation_told(),
    ):
        fail()
