"""Which step used the batch that a worker made.

A worker's pass over its data set is told by the seed of the loader's iterator, which both processes
know, and by time: it belongs to the last engine that had begun to iterate over such a loader.
"""

from __future__ import annotations

from firetrace.tracer.meta import Loading, Meta


def consumers(rank: Meta, data: Meta, shift_ns: int = 0) -> dict[int, Loading]:
    """Who used the batches of each pass: batch ``n``, from 1, is for iteration ``iteration + n``.

    Args:
        rank: of the rank's journal.
        data: of one of its data journals.
        shift_ns: what to add to times of ``data`` to have those of ``rank``.

    Returns:
        By the passes' ids. A pass of which nobody is known to have used anything is not in it.
    """
    seeds = {each.seed for each in rank.loadings}
    found: dict[int, Loading] = {}
    for each in data.passes.values():
        known = each.seed is not None and each.seed in seeds
        for loading in reversed(rank.loadings):
            # A loader whose iterator makes another one has no seed of its own, as a ThreadBuffer.
            if loading.time_ns > each.time_ns + shift_ns:
                continue
            if (loading.seed == each.seed) if known else (loading.seed is None or not each.workers):
                found[each.id] = loading
                break
    return found
