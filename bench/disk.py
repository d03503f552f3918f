"""Disk: what a span takes on the disk.

All files of a closed run together, names, resource and lock included, as blocks that the file
system has given them (``st_blocks``), not as their length. The peer is the same run as a Chrome
trace, uncompressed, by ``firetrace export``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.result import Bar, Row, times
from bench.settings import Progress, Settings


def record(directory: str, iterations: int) -> list[str]:
    """Record a run of at least so many iterations. For a new interpreter.

    Returns:
        The paths of the journal's rows and of its Chrome trace, which lies beside the directory.
    """
    from bench.peers import Firetrace
    from bench.training import EPOCH_LENGTH, Batches, build
    from firetrace.exporters.chrome.export import export_chrome
    from firetrace.tracer.run import open_run
    from firetrace.tracer.table import read_table

    epochs = -(-iterations // EPOCH_LENGTH)
    engine, tracer = build(handlers=False), Firetrace(Path(directory))
    tracer.attach(engine)
    engine.run(Batches(), max_epochs=epochs)
    tracer.finish(epochs * EPOCH_LENGTH)
    journal, trace = open_run(Path(directory)).newest, Path(directory + ".json")
    export_chrome(read_table(journal), trace)
    return [str(journal), str(trace)]


def measure(settings: Settings, progress: Progress) -> list[Row]:
    """Record a run and look at its files."""
    from bench.process import fresh
    from firetrace.tracer.run import open_run
    from firetrace.tracer.table import read_table

    progress(f"disk: {settings.disk_iterations:,} iterations")
    with tempfile.TemporaryDirectory(dir=settings.workspace) as folder:
        directory = Path(folder) / "run"
        journal, trace = fresh(record, str(directory), settings.disk_iterations)
        spans = len(read_table(Path(journal)))
        ours = open_run(directory).size_bytes() / spans
        peer = Path(trace).stat().st_blocks * 512 / spans
    return [
        Row(
            "disk: bytes a span", f"{spans:,} spans, everything included", f"{ours:.2f} B",
            f"Chrome trace: {peer:.0f} B", times(ours / peer), Bar(40, " B"), ours,
            {"firetrace": [ours], "Chrome trace": [peer]},
        )
    ]  # fmt: skip
