"""What the time of a piece of GPU work goes into: kernels, gaps between them, calls of the host."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.profiler import ProfilerActivity

KERNELS_SHOWN, CALLS_SHOWN = 14, 6


@contextmanager
def profiled(name: str) -> Iterator[None]:
    """Print what was done inside. Without a GPU the calls of the CPU are all there is."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as run:
        begin = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall_ms = 1000 * (time.perf_counter() - begin)
    on_device = torch.autograd.DeviceType.CUDA
    events = run.key_averages()
    kernels = [event for event in events if event.device_type == on_device]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    calls = [event for event in events if event.device_type != on_device]
    calls.sort(key=lambda event: -event.self_cpu_time_total)
    busy_ms = sum(event.self_device_time_total for event in kernels) / 1000
    count = sum(event.count for event in kernels)
    print(f"\n--- {name}: {wall_ms:.1f} ms while watched, {busy_ms:.1f} ms in {count} kernels")
    for event in kernels[:KERNELS_SHOWN]:
        print(f"{event.self_device_time_total / 1000:9.3f} ms {event.count:6d}x  {event.key[:100]}")
    print("    of the host:")
    for event in calls[:CALLS_SHOWN]:
        print(f"{event.self_cpu_time_total / 1000:9.3f} ms {event.count:6d}x  {event.key[:100]}")


class ProfiledStages:
    """Prints what each stage of a reconstruction goes into."""

    def __init__(self) -> None:
        self._now = ExitStack()

    def begin(self, name: str) -> Callable[[int, int], None]:
        """End the stage before, and begin one."""
        self.end()
        self._now.enter_context(profiled(name))
        return lambda _done, _total: None

    def end(self) -> None:
        """End the last stage."""
        self._now.close()
