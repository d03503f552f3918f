"""Chrome trace JSON of any program that speaks OpenTelemetry, for Perfetto.

``OTEL_TRACES_EXPORTER=firetrace_chrome opentelemetry-instrument python program.py`` writes it, or::

    provider.add_span_processor(BatchSpanProcessor(ChromeTraceExporter("trace.json")))

A process is a resource, a thread is a lane (``lanes.py``) of the thread that ``thread.id`` and
``thread.name`` of the spans name, or of the process. A slice lies in a slice of its own ancestor
or in none; where that is not its parent, ``parent_span_id`` says who is. With a
``BatchSpanProcessor`` more trees stay together than with a ``SimpleSpanProcessor``, because spans
of a batch are placed parents first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext
from opentelemetry.trace.status import StatusCode

from firetrace.exporters.chrome.values import dumps, safe, shown
from firetrace.exporters.sdk.lanes import NOBODY, Interval, Lane, Layout
from firetrace.exporters.sdk.span_file import FileSpanExporter

DAY = 86_400 * 10**9  # ns
#: Where the file's time begins: this long before the first span, but no longer before its end.
#: Perfetto goes through a double, so that ns are exact for 2^53 of them, 104 days.
BEFORE, AT_MOST = DAY, 30 * DAY
#: tids of lanes begin here: a thread whose tid is its process's pid would be its main thread.
FIRST_TID = 1001
#: Spans that the arrow of a link can begin at.
LINKABLE = 8192
_INSTANCE = ("service.instance.id", "host.name", "process.pid")
_MICROSECONDS = "%d.%03d"


class _Place(NamedTuple):
    pid: int
    tid: int
    start: int  # ns since the file's base
    end: int


class ChromeTraceExporter(FileSpanExporter):
    """Writes spans as slices and their events as instants into a JSON array, as they end.

    Without ``path`` the file is that of ``FIRETRACE_CHROME_FILE``, else
    ``trace-<service or script>-<pid>.json``; see ``FileSpanExporter``. Perfetto reads it while it
    grows, too, and when the program was killed.

    Times are rebased to a day before the first span that ends. A span that began earlier still is
    cut there: ``began_before_ns`` among its arguments says by how much. The file's metadata event
    ``clock`` has the Unix time of its zero.

    A link is an arrow where the linked span is in the file already and began earlier.
    """

    VARIABLE, SUFFIX = "FIRETRACE_CHROME_FILE", ".json"
    HEAD, BETWEEN, TAIL = b"[\n", b",\n", b"\n]\n"

    def _start(self) -> None:
        super()._start()
        self._base: int | None = None
        self._layout = Layout()
        self._pids: dict[Hashable, int] = {}
        self._metadata: list[bytes] = []  # all that was ever said
        self._said = 0  # how many of them the file has
        self._lanes = 0
        self._places: dict[int, _Place] = {}
        self._arrows = 0

    def _lost(self) -> None:
        self._said = 0

    def _lines(self, spans: Sequence[ReadableSpan]) -> list[bytes]:
        known = [(span, span.context) for span in spans if span.context is not None]
        if not known:
            return []
        times = [_times(span) for span, _ in known]
        if self._base is None:
            first, last = min(start for start, _ in times), max(end for _, end in times)
            self._base = max(first - BEFORE, last - AT_MOST)
            self._say("clock", 0, 0, unix_ns_at_0=self._base)
        base = self._base
        pids: dict[int, int] = {}
        intervals, places = [], []
        for (span, context), (start, end) in zip(known, times, strict=True):
            pid = pids.get(id(span.resource))
            if pid is None:
                pid = pids[id(span.resource)] = self._pid(span.resource)
            since, until = max(0, start - base), max(0, end - base)
            places.append(_Place(pid, 0, since, until))
            # In half ns: to Perfetto a slice without duration takes its moment, but less than 1 ns.
            taken = 2 * since, max(2 * until, 2 * since + 1)
            intervals.append(Interval(_group(pid, span), *taken, _key(context), _parent(span)))
        order = self._layout.place(intervals)
        lines: list[str] = []
        for at, lane in order:
            if lane.id >= self._lanes:
                self._say_lane(lane, places[at].pid, known[at][0])
            places[at] = place = places[at]._replace(tid=FIRST_TID + lane.id)
            self._places[intervals[at].key] = place
            lines += self._span(*known[at], place, base)
        for at, _ in order:
            for link in known[at][0].links:
                lines += self._arrow(_key(link.context), places[at])
        for key in list(islice(self._places, max(0, len(self._places) - LINKABLE))):
            del self._places[key]
        said, self._said = self._metadata[self._said :], len(self._metadata)
        return [*said, *(line.encode("utf-8", "replace") for line in lines)]

    def _say(self, what: str, pid: int, tid: int, **args: Any) -> None:
        event = {"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args}
        self._metadata.append(dumps(event).encode("utf-8", "replace"))

    def _pid(self, resource: Resource) -> int:
        of = resource.attributes
        identity = tuple(str(of.get(key)) for key in ("service.namespace", "service.name"))
        identity += tuple(str(of.get(key)) for key in _INSTANCE)
        pid = self._pids.get(identity)
        if pid is None:
            pid = self._pids[identity] = len(self._pids) + 1  # Perfetto's process 0 is the idle one
            self._say("process_name", pid, 0, name=safe(_process_name(of)))
            self._say("process_sort_index", pid, 0, sort_index=pid)
        return pid

    def _say_lane(self, lane: Lane, pid: int, span: ReadableSpan) -> None:
        self._lanes = lane.id + 1
        of = span.attributes or {}
        name = str(of.get("thread.name") or f"thread {of.get('thread.id', '')}").strip()
        if "thread.name" not in of and "thread.id" not in of:
            name = "spans"
        if lane.number:
            name += f" ({lane.number + 1})"
        self._say("thread_name", pid, FIRST_TID + lane.id, name=safe(name))
        self._say("thread_sort_index", pid, FIRST_TID + lane.id, sort_index=lane.id)

    def _span(
        self, span: ReadableSpan, context: SpanContext, place: _Place, base: int
    ) -> Iterator[str]:
        ours: dict[str, Any] = {
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }
        if span.parent is not None:
            ours["parent_span_id"] = f"{span.parent.span_id:016x}"
        ours["kind"] = span.kind.name
        ours["status"] = span.status.status_code.name
        if span.status.status_code is StatusCode.ERROR and span.status.description:
            ours["status_description"] = shown(span.status.description)
        if span.links:
            ours["links"] = [
                f"{link.context.trace_id:032x}:{link.context.span_id:016x}" for link in span.links
            ]
        start, _ = _times(span)
        if start < base:
            ours["began_before_ns"] = base - start
        if span.end_time is None:
            ours["incomplete"] = True
        head = f'"pid":{place.pid},"tid":{place.tid}'
        scope = safe(span.instrumentation_scope.name) if span.instrumentation_scope else ""
        duration = place.end - place.start
        yield (
            f'{{"ph":"X","ts":{_us(place.start)},"dur":{_us(duration)},{head},'
            f'"cat":{dumps(scope or "span")},"name":{dumps(safe(span.name))},'
            f'"args":{dumps({**_args(span.attributes, ours), **ours})}}}'
        )
        for event in span.events:
            at = max(0, event.timestamp - base)
            # At its end a slice is over, and another's may begin: that would take the event.
            inside = place.start <= at < place.end or place.start == at == place.end
            yield (
                f'{{"ph":"i","s":"{"t" if inside else "p"}","ts":{_us(at)},{head},'
                f'"cat":"event","name":{dumps(_event_name(event))},'
                f'"args":{dumps({**_args(event.attributes, ours), "span_id": ours["span_id"]})}}}'
            )

    def _arrow(self, key: int, to: _Place) -> Iterator[str]:
        """From the start of a span that is in the file to that of a later one."""
        source = self._places.get(key)
        if source is None or not source.start < to.start or source.start == source.end:
            return
        self._arrows += 1
        for ph, place in (('"s"', source), ('"f","bp":"e"', to)):
            yield (
                f'{{"ph":{ph},"id":{self._arrows},"ts":{_us(place.start)},"pid":{place.pid},'
                f'"tid":{place.tid},"cat":"link","name":"link"}}'
            )


def _process_name(of: Mapping[str, Any]) -> str:
    service = str(of.get("service.name") or "unknown_service")
    if "process.pid" in of:
        return f"{service} {of['process.pid']}"
    # The SDK makes a UUID up, of which a few letters will do.
    instance = str(of.get("service.instance.id", ""))
    return f"{service} {instance[:8] if len(instance) == 36 else instance}".strip()


def _times(span: ReadableSpan) -> tuple[int, int]:
    """Start and end in ns since 1970; one that has no end, or an earlier one, takes no time."""
    start = span.start_time if span.start_time is not None else span.end_time or 0
    return start, max(start, span.end_time or 0)


def _us(ns: int) -> str:
    return _MICROSECONDS % divmod(ns, 1000)


def _key(context: SpanContext) -> int:
    return (context.trace_id << 64 | context.span_id) or 1


def _parent(span: ReadableSpan) -> int:
    """The key of its parent in this process."""
    parent = span.parent
    return NOBODY if parent is None or parent.is_remote else _key(parent)


def _group(pid: int, span: ReadableSpan) -> Hashable:
    of = span.attributes or {}
    return pid, (str(of.get("thread.id")), str(of.get("thread.name")))


def _event_name(event: Event) -> str:
    """An exception is called by its type."""
    name = (event.attributes or {}).get("exception.type") if event.name == "exception" else None
    return safe(str(name or event.name))


def _args(attributes: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as arguments; one that is called as an argument of ours is told apart."""
    return {
        safe(f"attribute.{key}" if key in ours or key == "span_id" else key): shown(value)
        for key, value in (attributes or {}).items()
    }
