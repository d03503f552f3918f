"""Memory: how much a training process grows while it is recorded.

Anonymous, file-backed and shared resident memory together (``/proc/self/status``), so the mapped
part of the journal counts. The growth is the largest value at the end of any epoch, less the value
when an epoch had been run without the tracer and it was not even imported: what firetrace loads
and builds counts as well. The engine has a user handler on each of its eight events, so that
HandlersTimeProfiler, the peer, has something to keep and firetrace takes its longer way. Each in a
new interpreter. Linux only.
"""

from __future__ import annotations

import gc
import re
import tempfile
from pathlib import Path

from bench.result import Bar, Row, number, times
from bench.settings import Progress, Settings


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    status = Path("/proc/self/status").read_text()
    kinds = re.findall(r"^Rss(?:Anon|File|Shmem):\s+(\d+) kB", status, re.MULTILINE)
    return sum(map(int, kinds)) * 1024 / 1e6


def private_mb(pid: int) -> float:
    """Memory that a process shares with no other, in MB (10^6 bytes).

    Raises:
        OSError: it has ended.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kinds = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", rollup, re.MULTILINE)
    return sum(map(int, kinds)) * 1024 / 1e6


def grow(peer_name: str, epochs: int, directory: str) -> list[float]:
    """Memory in MB before and at the end of each epoch. For a new interpreter."""
    from ignite.engine import Engine, Events

    from bench import peers
    from bench.training import EPOCH_LENGTH, Batches, build

    memory: list[float] = []

    def look(engine: Engine) -> None:
        memory.append(resident_mb())

    build(handlers=True).run(Batches(), max_epochs=1)
    engine = build(handlers=True)
    engine.add_event_handler(Events.EPOCH_COMPLETED, look)
    gc.collect()
    memory.append(resident_mb())
    peer: peers.Peer = getattr(peers, peer_name)(Path(directory))
    peer.attach(engine)
    engine.run(Batches(), max_epochs=epochs)
    peer.finish(epochs * EPOCH_LENGTH)
    return memory


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Run the same training under firetrace, under the peer, and bare."""
    from bench.process import fresh
    from bench.training import EPOCH_LENGTH, SPANS_WITH_HANDLERS

    epochs = -(-settings.memory_spans // (SPANS_WITH_HANDLERS * EPOCH_LENGTH))
    spans = epochs * EPOCH_LENGTH * SPANS_WITH_HANDLERS
    growth, samples = {}, {}
    for name in ("Firetrace", "HandlersTimeProfiler", "Peer"):
        progress(f"memory: {spans:,} spans, {name if name != 'Peer' else 'nothing attached'}")
        with tempfile.TemporaryDirectory(dir=settings.workspace) as directory:
            samples[name] = fresh(grow, name, epochs, directory)
        growth[name] = max(samples[name]) - samples[name][0]
    subject = "memory: growth of the training process"
    ours, peer, bare = growth.values()
    return [
        Row(
            subject, f"{spans:,} spans", f"{number(ours)} MB",
            f"HandlersTimeProfiler: {number(peer)} MB", times(ours / peer), Bar(40, " MB"), ours,
            samples,
        ),
        Row(subject, "for scale", "", f"nothing: {number(bare)} MB"),
    ]  # fmt: skip
