"""Networks that stay in memory while image after image needs the same."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from ..depth import DepthProvider
from .settings import DepthSource

_log = logging.getLogger(__name__)

PipelineT = TypeVar("PipelineT")


class KeptPipeline(Generic[PipelineT]):
    """A pipeline that is loaded when it is needed first, and freed at the end of the `with`."""

    def __init__(
        self,
        name: str,
        load: Callable[[int, tuple[int, int]], AbstractContextManager[PipelineT]],
    ) -> None:
        """Load nothing yet; `load(num_frames, size_hw)` will, see `Models`."""
        self._name = name
        self._load = load
        self._loaded = ExitStack()
        self._kept: tuple[PipelineT, tuple[int, int, int]] | None = None
        self._not_loaded: dict[tuple[int, int, int], str] = {}

    def __enter__(self) -> "KeptPipeline[PipelineT]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kept = None
        self._loaded.__exit__(kind, error, traceback)

    @contextmanager
    def using(self, num_frames: int, size_hw: tuple[int, int]) -> Iterator[PipelineT]:
        """Give the pipeline that is loaded if it was planned for this size, else a new one."""
        try:
            yield self._planned_for((num_frames, *size_hw))
        except BaseException as e:
            # Who loaded it explains a lack of memory; and a network that was interrupted may be
            # half on its way between devices, so that the next image needs it anew.
            self.__exit__(type(e), e, e.__traceback__)
            raise

    def _planned_for(self, size: tuple[int, int, int]) -> PipelineT:
        if self._kept is not None:
            if self._kept[1] == size:
                return self._kept[0]
            planned, wanted = ("{} frames of {} x {}".format(*s) for s in (self._kept[1], size))
            _log.info("%s was planned for %s; loading it anew for %s.", self._name, planned, wanted)
            self.__exit__(None, None, None)
        if size in self._not_loaded:  # it would fail again, for every image
            raise RuntimeError(f"{self._name} cannot be loaded: {self._not_loaded[size]}")
        num_frames, *size_hw = size
        try:
            pipeline = self._loaded.enter_context(self._load(num_frames, (size_hw[0], size_hw[1])))
        except Exception as e:
            self._not_loaded[size] = str(e) or type(e).__name__
            raise
        self._kept = pipeline, size
        return pipeline


class KeptDepth:
    """Depth providers, each loaded when it is needed first, and freed at the end of the `with`."""

    def __init__(self) -> None:
        """Load nothing yet."""
        self._providers: dict[tuple[str, tuple[Path, ...]], DepthProvider] = {}

    def __enter__(self) -> "KeptDepth":
        return self

    def __exit__(self, *_: object) -> None:
        self._providers.clear()
        gc.collect()  # what a failed prediction left behind may hold the network, too

    def provider(self, source: DepthSource) -> DepthProvider:
        """Return what the source loads; equal sources share it."""
        key = source.name, source.files
        if key not in self._providers:
            self._providers[key] = source.load()
        return self._providers[key]
