"""Device time as text: the same lines in the report, printed or as a page."""

from __future__ import annotations

from collections.abc import Iterator

from firetrace.tui.console import MOST_ROWS, Page, text
from firetrace.tui.format import bytes_of, duration, share, sparkline
from firetrace.tui.model.device import DeviceReport

#: Of what happened again and again so many lines.
MOST_LINES = 5
SPARK = 32


def device_lines(device: DeviceReport) -> Iterator[str]:
    """What there is to say in lines: the step, memory, what is not known. Raw text of the trace."""
    yield _step(device)
    if device.copied_bytes is not None:
        yield f"{bytes_of(round(device.copied_bytes))} are copied to it in a step"
    if device.allocated is not None:
        known = (("reserved", device.reserved), ("at most", device.peak))
        more = "".join(f", {name} {bytes_of(size)}" for name, size in known if size is not None)
        line = f"memory: {bytes_of(device.allocated)} allocated{more}"
        yield f"{line}  {sparkline(device.memory, SPARK, zero=True)}".rstrip()
    yield from _failures(device)
    for reason, count in list(device.untimed.items())[:MOST_LINES]:
        yield f"{count:,} {_phases(count)} no device time: {reason}"
    if device.unresolved:
        yield f"{device.unresolved:,} {_phases(device.unresolved)} no times: never reached"
    if device.unknown >= 0.005:
        yield f"{share(device.unknown)} of a step lies in phases without device time"
    if device.error_ns is not None:
        yield f"its clock is placed on the host's to within {duration(device.error_ns)}"


def print_device(console: Page, device: DeviceReport) -> None:
    """Print where a device may be idle, and the lines."""
    if device.idle_in:
        console.print()
        rows = [(place, share(part)) for place, part in list(device.idle_in.items())[:MOST_ROWS]]
        console.table(("idle at most", "of a step"), rows)
        console.more(len(device.idle_in) - MOST_ROWS)
    console.print()
    for line in device_lines(device):
        console.print(text(line), style="dim")


def _step(device: DeviceReport) -> str:
    name = " ".join(filter(None, (device.label, device.model))) or device.kind
    if device.step_ns is None or device.busy_ns is None:
        return f"{name}: no step has times yet"
    return (
        f"{name}: {device.steps:,} steps of {duration(round(device.step_ns))}, busy for "
        f"{duration(round(device.busy_ns))} of that or more, idle {share(device.idle)} or less"
    )


def _failures(device: DeviceReport) -> Iterator[str]:
    for each in device.ooms[-MOST_LINES:]:
        line = f"out of memory in iteration {each.iteration:,}"
        if each.allocated is not None:
            line += f" with {bytes_of(each.allocated)} allocated"
        yield f"{line}: {each.message}" if each.message else line
    if len(device.ooms) > MOST_LINES:
        yield f"and {len(device.ooms) - MOST_LINES:,} times before that"


def _phases(count: int) -> str:
    return "phase has" if count == 1 else "phases have"
