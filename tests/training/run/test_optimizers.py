"""How parameters are updated, where they are."""

from types import SimpleNamespace

import pytest

from training.run.optimizers import fuse


@pytest.mark.usefixtures("as_users_run_it")
def test_what_is_on_a_gpu_is_updated_by_one_kernel_and_nothing_else_is():
    here, there = SimpleNamespace(is_cuda=False), SimpleNamespace(is_cuda=True)
    groups = [{"params": [there, there]}, {"params": [here]}, {"params": [there, here]}]
    fuse(SimpleNamespace(param_groups=groups))  # type: ignore[arg-type]
    assert [group.get("fused") for group in groups] == [True, None, None]
