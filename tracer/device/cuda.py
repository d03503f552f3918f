"""CUDA, by torch's public interface; ROCm's torch has the same one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from firetrace.tracer.blame import raised_by_signal_handler
from firetrace.tracer.device.memory import Memory

UNRECORDED = -1


class Cuda:
    """One GPU.

    Args:
        torch: the module.
        index: which GPU.
    """

    kind = "cuda"

    def __init__(self, torch: Any, index: int) -> None:
        self._cuda, self._index = torch.cuda, index
        self.label = f"cuda:{index}"
        # To ask for a number is a tenth of the cost of making a ``Stream`` each time.
        self._which = getattr(torch._C, "_cuda_getCurrentStream", None)
        self._current: tuple[Any, Any] = (None, None)
        event = torch.cuda.Event
        self._record, self._query = in_c(event, "record"), in_c(event, "query")
        #: What lay between two events, in ms, as a 32-bit float: of a second, to 60 ns.
        self.elapsed_ms: Callable[[Any, Any], float] = in_c(event, "elapsed_time")
        self._aside: Any = None
        self._tells = True  # what is allocated: not every allocator does

    @classmethod
    def find(cls, torch: Any, index: int | None) -> tuple[Cuda | None, str]:
        """A GPU that the program uses (``index`` None: the current one), or why there is none."""
        if not torch.cuda.is_initialized():
            return None, "the program has not begun to use its GPU"
        return cls(torch, torch.cuda.current_device() if index is None else index), ""

    def hardware(self) -> dict[str, Any]:
        """OpenTelemetry resource attributes, ``hw.*``."""
        found = self._cuda.get_device_properties(self._index)
        identity = getattr(found, "uuid", None)
        rocm = getattr(found, "gcnArchName", "").startswith("gfx")
        return {
            "hw.type": "gpu",
            "hw.id": f"GPU-{identity}" if identity is not None else self.label,
            "hw.name": self.label,
            "hw.model": found.name,
            "hw.vendor": "AMD" if rocm else "NVIDIA",
            "hw.memory.size": found.total_memory,
        }

    def event(self) -> Any:
        """A new event that takes the time."""
        return self._cuda.Event(enable_timing=True)

    def record(self, event: Any) -> int:
        """Queue an event in the current stream, unless that is being captured into a graph."""
        key = self._which(self._index) if self._which is not None else None
        known, stream = self._current
        if key is None or key != known:
            stream = self._cuda.current_stream(self._index)
            self._current = key, stream
        number = int(stream.stream_id)
        # What is captured is never the default stream, which is number 0.
        if number and self._cuda.is_current_stream_capturing():
            return UNRECORDED
        self._record(event, stream)
        return number

    def record_aside(self, event: Any) -> bool:
        """Queue an event in a stream of its own, unless a graph is being captured."""
        if self._cuda.is_current_stream_capturing():
            return False
        if self._aside is None:
            # Of a higher priority: else it may share a queue of the GPU's with the program's.
            self._aside = self._cuda.Stream(self._index, priority=-1)
        self._record(event, self._aside)
        return True

    def done(self, event: Any) -> bool:
        """Whether the GPU has reached an event; to ask would break the capture of a graph."""
        return not self._cuda.is_current_stream_capturing() and bool(self._query(event))

    def memory(self) -> Memory | None:
        """What torch has allocated on it."""
        try:
            found = self._cuda.memory_stats_as_nested_dict(self._index) if self._tells else None
        except RuntimeError as error:  # a pluggable allocator's answer
            if raised_by_signal_handler(error):
                raise
            found, self._tells = None, False
        if not found:
            return None
        allocated, reserved = found["allocated_bytes"]["all"], found["reserved_bytes"]["all"]
        return Memory(
            allocated["current"], reserved["current"], allocated["peak"], found.get("num_ooms", 0)
        )


def in_c(event: type, name: str) -> Callable[..., Any]:
    """A method of torch's events. Around that in C is one in Python that only hands on: 0.2 us."""
    found: Callable[..., Any] = getattr(event.__base__, name, None) or getattr(event, name)
    return found
