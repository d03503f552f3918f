"""Samples of what tracers add to an iteration, taken in rounds: one of every tracer.

A sample is taken in a freshly forked child of a process that has everything imported: the loop
bare, then a new, equal engine with the tracer. The samples of a round are paired, their order
rotates, and after a few rounds a new warm process takes over.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.process import forked, fresh
from bench.settings import Progress, Settings

ROUNDS_A_PARENT = 3
Samples = dict[str, list[float]]


class Tried(NamedTuple):
    """A tracer, and the loop that it is tried on."""

    peer: str  #: its class in ``bench.peers``
    build: Callable[[], Any]  #: of a module; makes the loop's engine
    part: float = 1.0  #: of the full number of epochs, where it is slow enough
    fewest: int = 1  #: epochs


def timed_run(peer_name: str, build: Callable[[], Any], epochs: int, directory: Path) -> float:
    """CPU seconds of ``epochs`` epochs under a peer, after one that is not timed."""
    from bench import peers
    from bench.training import EPOCH_LENGTH, Batches

    start = 0.0

    def begin() -> None:
        nonlocal start
        gc.collect()
        start = time.process_time()

    engine = build()
    peer: peers.Peer = getattr(peers, peer_name)(directory)
    peer.attach(engine)
    engine.run(Batches(begin), max_epochs=epochs + 1)
    used = time.process_time() - start
    peer.finish((epochs + 1) * EPOCH_LENGTH)
    return used


def sample(tried: Tried, epochs: int, directory: str) -> float:
    """Microseconds of CPU time that a peer adds to an iteration. For a forked child."""
    from bench.training import EPOCH_LENGTH

    bare = timed_run("Peer", tried.build, epochs, Path(directory))
    traced = timed_run(tried.peer, tried.build, epochs, Path(directory))
    return (traced - bare) / (epochs * EPOCH_LENGTH) * 1e6


def samples(what: str, peers: dict[str, Tried], settings: Settings, progress: Progress) -> Samples:
    """Take all samples, in microseconds of CPU time an iteration, by the names of ``peers``."""
    found: Samples = {name: [] for name in peers}
    for first in range(0, settings.pairs, ROUNDS_A_PARENT):
        last = min(first + ROUNDS_A_PARENT, settings.pairs)
        progress(f"{what}: rounds {first + 1} to {last} of {settings.pairs}")
        for taken in fresh(rounds, peers, settings, first, last):
            for name, value in taken.items():
                found[name].append(value)
    return found


def rounds(
    peers: dict[str, Tried], settings: Settings, first: int, last: int
) -> list[dict[str, float]]:
    """Take some rounds. For a new interpreter, which forks."""
    from bench.peers import warm_up

    warm_up()
    order, taken = list(peers), list[dict[str, float]]()
    for index in range(first, last):
        turn = index * 3 % len(order)  # by 3: neighbours in a round are not always the same
        values = {}
        for name in order[turn:] + order[:turn]:
            tried = peers[name]
            epochs = max(tried.fewest, round(settings.epochs * tried.part))
            with tempfile.TemporaryDirectory(dir=settings.workspace) as directory:
                values[name] = forked(sample, tried, epochs, directory)
        taken.append(values)
    return taken
