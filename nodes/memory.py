"""Networks of ours under the host's memory management, and its progress bar.

Nothing here decides what lies on which device: the host does, for all models of a workflow.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class HostNetwork(Generic[Network]):
    """A network that the host loads, offloads and evicts like any model of its own."""

    def __init__(
        self,
        network: Network,
        *,
        load_device: torch.device | None = None,
        offload_device: torch.device | None = None,
    ) -> None:
        """Hand a network over. Devices default to those of the host's diffusion models."""
        management = comfy.model_management
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network.eval().requires_grad_(False),
            load_device=load_device or management.get_torch_device(),
            offload_device=offload_device or management.unet_offload_device(),
        )

    @property
    def device(self) -> torch.device:
        """Where the network computes; bring its inputs there."""
        return self.patcher.load_device

    def load(self, work_bytes: int = 0) -> Network:
        """Have the network on its device, with `work_bytes` of memory free for its activations."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=work_bytes)
        return self.patcher.model


def report_progress() -> Callable[[int, int], None]:
    """Return a progress callback of the backend that fills the node's bar and obeys Cancel.

    Raises (when called): what the host raises to interrupt a prompt.
    """
    bars: list[comfy.utils.ProgressBar] = []

    def report(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if not bars:
            bars.append(comfy.utils.ProgressBar(total))
        bars[0].update_absolute(done, total)

    return report
