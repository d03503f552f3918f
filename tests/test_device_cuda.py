"""What is asked of torch's CUDA, and which GPU is found.

Torch's own interface is stood in for by an object that notes each call: here is no GPU. That torch
has what is asked of it, by these names, is looked at in the real module.
"""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from firetrace.tracer.device.accelerator import Accelerator, Found, find
from firetrace.tracer.device.cuda import Cuda
from firetrace.tracer.device.memory import Memory

GIB = 2**30


# Torch


class Event:
    """As in torch, where the one of ``torch.cuda`` is derived from one in C."""

    calls: list[Any]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Any) -> None:
        self.calls.append(("record", stream.stream_id))

    def query(self) -> bool:
        self.calls.append("query")
        return True

    def elapsed_time(self, last: Event) -> float:
        return 1.5


class Torch:
    """What ``torch`` is asked for, as it answers; each call is noted."""

    device = torch.device

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.cuda = self
        self.current, self.capturing, self.initialized = 0, False, True
        self._C = SimpleNamespace(_cuda_getCurrentStream=lambda index: (self.current, index, 1))
        self.stats: dict[str, Any] | None = {
            "allocated_bytes": {"all": {"current": 3 * GIB, "peak": 5 * GIB}},
            "reserved_bytes": {"all": {"current": 6 * GIB, "peak": 7 * GIB}},
            "num_ooms": 2,
        }

    def is_initialized(self) -> bool:
        return self.initialized

    def current_device(self) -> int:
        return 1

    def current_stream(self, index: int) -> Any:
        self.calls.append(("current_stream", index))
        return SimpleNamespace(stream_id=self.current)

    def is_current_stream_capturing(self) -> bool:
        self.calls.append("capturing?")
        return self.capturing

    def Stream(self, index: int, priority: int) -> Any:
        assert priority < 0
        self.calls.append(("Stream", index))
        return SimpleNamespace(stream_id=99)

    @property
    def Event(self) -> type[Event]:
        return type("Event", (Event,), {"calls": self.calls})

    def memory_stats_as_nested_dict(self, index: int) -> Any:
        self.calls.append(("stats", index))
        if self.stats is None:
            raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats")
        return self.stats

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="H100", uuid="1-2-3", total_memory=80 * GIB, gcnArchName="")

    def said(self) -> list[Any]:
        """The calls since the last time."""
        calls = self.calls[:]
        self.calls.clear()
        return calls


@pytest.fixture
def stood_in() -> Torch:
    return Torch()


def test_torch_has_what_is_asked_of_it() -> None:
    """The stand-in has no method that the real module has not; ``Cuda`` is an ``Accelerator``."""
    asked = [name for name in vars(Torch) if not name.startswith("_")]
    asked = [name for name in asked if name not in ("said", "device")]
    assert len(asked) == 8
    assert all(hasattr(torch.cuda, name) for name in asked)
    event = torch.cuda.Event
    assert all(hasattr(event, name) for name in ("record", "query", "elapsed_time"))
    with_methods_in_c = vars(event.__base__).keys() & {"record", "query", "elapsed_time"}
    assert len(with_methods_in_c) == (3 if torch.version.cuda or torch.version.hip else 0)
    assert isinstance(Cuda(Torch(), 0), Accelerator)
    assert not isinstance(True, Accelerator)


def test_the_default_stream(stood_in: Torch) -> None:
    """One call to queue a mark there, no question whether a graph is captured."""
    cuda = Cuda(stood_in, 1)
    event = cuda.event()
    assert [cuda.record(event) for _ in range(3)] == [0, 0, 0]
    assert stood_in.said() == [("current_stream", 1), *[("record", 0)] * 3]


def test_side_streams(stood_in: Torch) -> None:
    """A stream is made when the current one changes; whether it is captured is asked each time."""
    cuda = Cuda(stood_in, 1)
    event = cuda.event()
    stood_in.current = 7
    assert [cuda.record(event) for _ in range(2)] == [7, 7]
    assert stood_in.said() == [("current_stream", 1), *["capturing?", ("record", 7)] * 2]
    stood_in.capturing = True
    assert cuda.record(event) < 0
    assert stood_in.said() == ["capturing?"]
    stood_in.current, stood_in.capturing = 0, False
    assert cuda.record(event) == 0
    assert stood_in.said() == [("current_stream", 1), ("record", 0)]


def test_a_torch_that_does_not_tell_its_stream(stood_in: Torch) -> None:
    """Without that function the stream is asked for each time."""
    del stood_in._C._cuda_getCurrentStream
    cuda = Cuda(stood_in, 0)
    for stream in (0, 3, 0):
        stood_in.current = stream
        assert cuda.record(cuda.event()) == stream
    assert [each for each in stood_in.said() if each[0] == "record"] == [
        ("record", 0), ("record", 3), ("record", 0),
    ]  # fmt: skip


def test_events_that_are_not_in_c(stood_in: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own methods are called then."""
    monkeypatch.setattr(Torch, "Event", type("Event", (), {**vars(Event), "calls": stood_in.calls}))
    cuda = Cuda(stood_in, 0)
    event = cuda.event()
    assert cuda.record(event) == 0
    assert cuda.done(event)
    assert cuda.elapsed_ms(event, event) == 1.5
    assert stood_in.said() == [("current_stream", 0), ("record", 0), "capturing?", "query"]


def test_comparisons_have_a_stream_of_their_own(stood_in: Torch) -> None:
    cuda = Cuda(stood_in, 0)
    event = cuda.event()
    assert cuda.record_aside(event)
    assert cuda.record_aside(event)
    made = ["capturing?", ("Stream", 0), ("record", 99), "capturing?", ("record", 99)]
    assert stood_in.said() == made
    stood_in.capturing = True
    assert not cuda.record_aside(event)
    assert stood_in.said() == ["capturing?"]


def test_nothing_is_asked_while_a_graph_is_captured(stood_in: Torch) -> None:
    """A query would break the capture."""
    cuda = Cuda(stood_in, 0)
    assert cuda.done(cuda.event())
    assert cuda.elapsed_ms(cuda.event(), cuda.event()) == 1.5
    stood_in.said()
    stood_in.capturing = True
    assert not cuda.done(cuda.event())
    assert "query" not in stood_in.said()


def test_what_is_allocated(stood_in: Torch) -> None:
    cuda = Cuda(stood_in, 1)
    assert cuda.memory() == Memory(3 * GIB, 6 * GIB, 5 * GIB, 2)
    stood_in.stats = {}
    assert cuda.memory() is None
    stood_in.stats = None
    stood_in.said()
    assert [cuda.memory(), cuda.memory()] == [None, None]
    assert stood_in.said() == [("stats", 1)]  # an allocator that cannot tell is asked once


def test_a_signal_while_it_is_asked(stood_in: Torch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its handler raises is the program's, not the allocator's answer."""

    def handle(*_: Any) -> None:
        raise RuntimeError("DataLoader worker is killed")

    def asked(index: int) -> Any:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(stood_in, "memory_stats_as_nested_dict", asked)
    cuda, before = Cuda(stood_in, 1), signal.signal(signal.SIGUSR1, handle)
    try:
        with pytest.raises(RuntimeError, match="worker is killed"):
            cuda.memory()
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.undo()
    assert cuda.memory() is not None


def test_the_hardware(stood_in: Torch) -> None:
    assert Cuda(stood_in, 1).hardware() == {
        "hw.type": "gpu", "hw.id": "GPU-1-2-3", "hw.name": "cuda:1", "hw.model": "H100",
        "hw.vendor": "NVIDIA", "hw.memory.size": 80 * GIB,
    }  # fmt: skip


def engine_on(device: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(device=device))


@pytest.mark.parametrize(
    ("asked", "stated", "label"),
    [(None, torch.device("cuda", 3), "cuda:3"), (None, torch.device("cuda"), "cuda:1"),
     (True, None, "cuda:1"), (None, None, "cuda:1"), ("cuda:2", torch.device("cpu"), "cuda:2"),
     (torch.device("cuda", 0), None, "cuda:0"), (None, "a text of the program's", "cuda:1"),
     (None, torch.device("cpu"), None), (True, torch.device("mps"), None)],
)  # fmt: skip
def test_which_gpu(
    asked: Any, stated: Any, label: str | None, stood_in: Torch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked for, else the engine's, else the current one; without an index that too."""
    monkeypatch.setitem(__import__("sys").modules, "torch", stood_in)
    found, reason = find(asked, engine_on(stated), {})
    assert getattr(found, "label", None) == label
    assert bool(reason) == (label is None)
    stood_in.initialized = False
    assert find(asked, engine_on(stated), {}).accelerator is None
    monkeypatch.delitem(__import__("sys").modules, "torch")
    assert find(asked, engine_on(stated), {}) == Found(None, "the program does not use torch")
