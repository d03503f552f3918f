"""Which of several ranks this process is, and how they come to record into one run.

The ranks of a job have a key-value store already, by which they found one another. The first that
records puts the name of the run's directory there. Nothing collective happens: nobody waits for
anybody, and a rank that is late or was restarted finds the name as well. The training's own
connection to the store is left alone, which another thread of it may be waiting on.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from itertools import count
from typing import Any, NamedTuple

from firetrace.tracer.fuse import Fuse

log = logging.getLogger("firetrace")

#: How long the store may take, all in all. It is asked once, when the first event fires.
PATIENCE_S = 5.0
_recordings = count()


class World(NamedTuple):
    """Where this process stands among those that train together."""

    rank: int = 0
    size: int = 1
    one_host: bool = True  #: whether all of them are known to be on this host


def world() -> World:
    """What ``torch.distributed`` says, or the variables that its launchers set."""
    dist = _initialised()
    if dist is not None:
        rank, size = int(dist.get_rank()), int(dist.get_world_size())
    else:
        rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    return World(rank, max(size, 1), size <= 1 or _number("LOCAL_WORLD_SIZE", 0) == size)


def _initialised() -> Any:
    """``torch.distributed`` if the program has initialised it; it is not imported for that."""
    dist = sys.modules.get("torch.distributed")
    try:
        return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
    except AttributeError:  # a torch that was built without it, or is being imported
        return None


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else otherwise


class Meeting:
    """A connection of our own to the store that the ranks of a job share, until ``close``."""

    def __init__(self, store: Any, host: str, fuse: Fuse) -> None:
        self._store, self._fuse = store, fuse
        self.host = host  #: on which the store is, and rank 0
        self.number = next(_recordings)  #: of the recording, as every rank counts

    def agree(self, key: str, proposal: str) -> str:
        """What all ranks have under this key: what the first of them proposed.

        Raises:
            RuntimeError: the store does not answer.
        """
        found = self._store.compare_set(f"firetrace/{key}", "", proposal)
        return bytes(found).decode()

    def look(self, key: str) -> str | None:
        """What a rank has put there; None: nobody has yet."""
        if not self._store.check([f"firetrace/{key}"]):
            return None
        return bytes(self._store.get(f"firetrace/{key}")).decode()

    def put(self, key: str, value: str) -> None:
        """Put something there for the others."""
        self._store.set(f"firetrace/{key}", value)
        self._store.check([f"firetrace/{key}"])  # that one is answered: then it is there

    def close(self) -> None:
        """Ask no more; who waits for an answer, in another thread, gets an error."""
        self._fuse.blow()


def meet() -> Meeting | None:
    """The store of this job; None where there is none, or none that can be shared."""
    try:
        return _meet()
    except Exception as error:
        log.warning(
            "firetrace: the store of this job does not answer (%s); "
            "this rank may record into a run of its own", str(error).partition("\n")[0],
        )  # fmt: skip
        return None


def _meet() -> Meeting | None:
    dist = _initialised()
    host, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", 0)
    if dist is not None:
        store = dist.distributed_c10d._get_default_store()
        while (below := getattr(store, "underlying_store", None)) is not None:
            store = below
        if not hasattr(store, "port"):  # a file, say: it can only be asked as the training does,
            return None  # and nobody can tell how long that takes
        host, port = str(store.host), int(store.port)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None  # nobody listens there before the program initialises it
    make: Any = getattr(sys.modules.get("torch.distributed"), "TCPStore", None)
    if not host or not port or make is None:
        return None
    fuse = Fuse(host, port, PATIENCE_S)
    patience = timedelta(seconds=PATIENCE_S / 3)  # then it is not tried again
    try:
        store = make("127.0.0.1", fuse.port, None, False, patience, wait_for_workers=False)
    except BaseException:
        fuse.blow()
        raise
    return Meeting(store, host, fuse)


def agreed(meeting: Meeting | None, proposal: str) -> str:
    """The name of the run that all ranks record into; without a store each its own proposal."""
    if meeting is None:
        return proposal
    try:
        return meeting.agree(f"run/{meeting.number}", proposal)
    except Exception as error:
        log.warning("firetrace: the ranks could not agree on a run (%s); this is its own", error)
        return proposal
