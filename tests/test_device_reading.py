"""Device journals are read in pieces, as they grow, after a kill, and whatever is wrong in them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ignite.engine import Events

from firetrace.tracer import stream
from firetrace.tracer.journal import FIRST_ROW, HEADER_BYTES, ROW_DTYPE, Flag, Rows
from firetrace.tracer.pages import Pages
from firetrace.tracer.reader import JournalReader
from firetrace.tracer.run import device_journal
from firetrace.tracer.table import read_table
from firetrace.tui.feed import Feed, Snapshot
from firetrace.tui.model import device as device_module
from firetrace.tui.model import host_rows
from firetrace.tui.model.device import DeviceMark, DeviceReport, DeviceSource, device_report
from firetrace.tui.model.device_lanes import MOST_MARKS, PAGE
from firetrace.tui.model.report import read_report
from firetrace.tui.text import print_report
from tests.support.device_runs import LITTLE, DeviceRun, out_of_memory
from tests.support.launching import MS, since
from tests.support.made import THEN, write_rows
from tests.test_damage import KINDS, Damage

#: Windows of 256 rows.
SMALL = {"max_bytes": 2**19, "min_free_bytes": 0}


def varied(folder: Path, patch: pytest.MonkeyPatch) -> DeviceRun:
    """A run that is idle wherever it can be, with validations in between."""
    run = DeviceRun(folder, patch, LITTLE, steps=15, epochs=4, more=SMALL)
    run.slow_in("forward", 3 * MS).slow_data(lambda: run.wait(MS), lambda: run.wait(9 * MS))
    run.on_iteration(lambda: run.wait(2 * MS))
    return run.validate(Events.ITERATION_COMPLETED(every=4)).validate()


def same(one: DeviceReport | None, other: DeviceReport | None) -> None:
    """The same report, but for the order in which it was added up."""
    assert one is not None
    assert other is not None
    left, right = asdict(one), asdict(other)
    for key in ("busy_ns", "step_ns", "idle", "idle_in", "unknown"):
        assert left.pop(key) == pytest.approx(right.pop(key), rel=1e-9)
    assert left == right


@pytest.mark.parametrize(("rows", "page"), [(1, 64), (7, 256), (100, 8192)])
def test_in_pieces_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, page: int
) -> None:
    """A step may be cut anywhere, between phases, or its phases from its wait for data."""
    run = varied(tmp_path / "run", monkeypatch).run()
    at_once = run.report().device
    assert at_once is not None
    assert set(at_once.idle_in) >= {"forward", "get_batch", "handlers"}
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)
    monkeypatch.setattr(device_module, "AT_ONCE", rows)
    monkeypatch.setattr(host_rows, "AT_ONCE", page)
    same(run.report().device, at_once)


class Reading:
    """Reads a run's device journal as the app does."""

    def __init__(self, journal: Path) -> None:
        self.rank = JournalReader(journal)
        self.source = DeviceSource(journal, self.rank)

    def look(self) -> DeviceReport | None:
        """Read what is new."""
        self.rank.poll()
        self.source.read(math.inf)
        return device_report(self.source, 0)

    def marks(self) -> list[DeviceMark]:
        """All that there is."""
        return [mark for lane in self.source.lanes() for mark in lane.between(0, 2**62)]


def test_while_a_training_goes_on_what_was_open_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phase counts once the device has passed it; until then its lane has it without end."""
    run = DeviceRun(tmp_path / "run", monkeypatch, steps=15, epochs=4, more=SMALL)
    run.validate(Events.ITERATION_COMPLETED(every=4)).validate()
    reading: list[Reading] = []
    seen: list[tuple[int, int]] = []

    def look() -> None:
        if not reading:
            monkeypatch.setattr(device_module, "LOOK_S", 0.0)
            reading.append(Reading(run.path))
        found, marks = reading[0].look(), reading[0].marks()
        assert [mark.host_row for mark in marks] == sorted({mark.host_row for mark in marks})
        ahead = [mark for mark in marks if not mark.end_ns]
        assert ahead == marks[len(marks) - len(ahead) :]
        assert found is None or found.unresolved == 0
        seen.append((len(ahead), found.steps if found is not None else 0))

    run.on_iteration(look).run()
    assert max(ahead for ahead, _ in seen) > 6
    assert [steps for _, steps in seen] == sorted(steps for _, steps in seen)
    assert seen[-1][1] < 60
    same(reading[0].look(), run.report().device)
    assert not [mark for mark in reading[0].marks() if not mark.end_ns]
    assert not reading[0].source.read(math.inf)  # nothing is new
    reading[0].source.close()


def test_a_journal_is_read_for_as_long_as_one_has_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is behind, and goes on with the next look."""
    run = varied(tmp_path / "run", monkeypatch).run()
    monkeypatch.setattr(stream, "BLOCK_WINDOWS", 1)
    with JournalReader(run.path) as rank:
        rank.poll()
        source = DeviceSource(run.path, rank)
        steps = []
        while source.read(-math.inf):
            found = device_report(source, 0)
            assert found is not None
            steps.append(found.steps)
            if not source.behind:
                break
        assert 0 < steps[0] < steps[-1] == 60
        same(device_report(source, 0), run.report().device)
        source.close()


def test_after_a_kill_what_was_open_is_unresolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no lane has it: a dead process reaches nothing."""
    run = DeviceRun(tmp_path / "run", monkeypatch)
    killed = tmp_path / "killed"
    event = Events.ITERATION_COMPLETED(once=12)
    run.trainer.add_event_handler(event, lambda engine: shutil.copytree(run.folder, killed))
    run.run()
    journal = killed / run.path.name
    table = read_table(device_journal(journal))
    left = int(np.count_nonzero(table.rows["end"] == 0))
    found = read_report(journal).device
    assert found is not None
    assert found.unresolved == left > 0
    assert len(Reading(journal).marks()) == 0  # nothing was looked for
    reading = Reading(journal)
    reading.look()
    assert len(reading.marks()) == len(table) - left
    assert all(mark.end_ns for mark in reading.marks())


def test_a_lane_has_what_the_device_did_in_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the time of the rank's journal: each phase that lies in it, in part or whole."""
    run = varied(tmp_path / "run", monkeypatch).run()
    assert run.recorded is not None
    offset = since(run.recorded.main.header)
    spans = [
        DeviceMark(each.kind, each.name, each.device[0] + offset, each.device[1] + offset, each.row)
        for each in run.recorded.spans()
    ]
    reading = Reading(run.path)
    reading.look()
    (lane,) = reading.source.lanes()
    assert lane.label == "cuda:0"
    assert lane.between(0, 2**62) == spans
    begin, end = spans[40].start_ns + 1, spans[70].start_ns + 1
    inside = [each for each in spans if each.start_ns < end and each.end_ns > begin]
    assert len(inside) < len(spans) / 2
    assert lane.between(begin, end) == inside
    reading.source.close()
    assert lane.between(begin, end) == inside  # as long as somebody has it


def made(folder: Path, rows: Rows) -> Path:
    """A rank's journal of nothing, and a device journal that holds these rows of one name."""
    journal = write_rows(folder / "rank0.1.rows", np.empty(0, ROW_DTYPE))
    lines: list[dict[str, Any]] = [
        {"type": "name", "id": 0, "kind": "device", "name": "forward"},
        {"type": "lane", "id": 0, "engine": "cuda:0", "thread": "worker [b]7"},
    ]
    write_rows(device_journal(journal), rows, lines)
    return journal


def test_of_a_long_time_a_lane_gives_some_thousands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a short one all, and little is read; a thread that is not the main one is named."""
    rows = np.zeros(100_000, ROW_DTYPE)
    rows["start"] = THEN + np.arange(len(rows)) * 100
    rows["end"] = rows["start"] + 50 + np.arange(len(rows)) % 7
    reading = Reading(made(tmp_path, rows))
    reading.look()
    (lane,) = reading.source.lanes()
    assert lane.label == "cuda:0 worker [b]7"
    found = lane.between(THEN, THEN + 10**9)
    assert len(found) == MOST_MARKS
    assert found == sorted(found, key=lambda mark: mark.start_ns)
    assert {mark.end_ns - mark.start_ns for mark in found} == {56}  # the longest
    begin, read = THEN + 50_000 * 100, Pages.rows
    asked: list[int] = []

    def counted(pages: Pages, first: int, count: int) -> Rows:
        asked.append(count)
        return read(pages, first, count)

    monkeypatch.setattr(Pages, "rows", counted)
    some = lane.between(begin, begin + 1000 * 100)
    assert [mark.start_ns for mark in some] == list(range(begin, begin + 1000 * 100, 100))
    assert 0 < sum(asked) <= 2 * PAGE


def test_rows_of_phases_that_are_not_there_count_for_nothing(tmp_path: Path) -> None:
    """No row, one of the header, one beyond the file; the lane has them all the same."""
    rows = np.zeros(6, ROW_DTYPE)
    rows["start"], rows["end"] = THEN + np.arange(6), THEN + 10
    rows["epoch"] = 0, 1, 127, FIRST_ROW, 5_000_000, 2**32 - 1
    reading = Reading(made(tmp_path, rows))
    found = reading.look()
    assert found is not None
    assert (found.steps, found.phases, found.idle_in) == (0, {}, {})
    assert (found.step_ns, found.busy_ns, found.label) == (None, None, "cuda:0")
    assert len(reading.marks()) == 6


@pytest.mark.parametrize("wrong", [
    {"flags": int(Flag.VOID)}, {"flags": int(Flag.SCALAR)}, {"end": 0}, {"end": 5}, {"start": 0},
    {"parent": 2**31}, {"start": -5},
])  # fmt: skip
def test_a_phase_that_makes_no_sense_on_the_host_counts_for_nothing(
    tmp_path: Path, finished: Path, wrong: dict[str, int]
) -> None:
    """Only what is known of both sides can be compared."""
    before, changed = _with_one_changed(finished, tmp_path / "run", False, wrong)
    assert before.phases["forward"].count == 60
    assert changed.phases["forward"].count == 59


@pytest.mark.parametrize("flag", [Flag.CUT, Flag.SKIPPED])
def test_a_phase_that_did_not_come_to_its_end_has_no_usual_time(
    tmp_path: Path, finished: Path, flag: Flag
) -> None:
    """As on the host; but the device took it."""
    before, changed = _with_one_changed(finished, tmp_path / "run", False, {"flags": int(flag)})
    assert changed.phases["forward"].count == before.phases["forward"].count - 1
    assert changed.step_ns == before.step_ns


@pytest.mark.parametrize(
    "wrong", [{"end": 2**63 - 2}, {"start": 1, "end": 1}, {"end": 2**62 + 10**15}]
)
def test_a_time_that_cannot_be_is_left_out(
    tmp_path: Path, finished: Path, wrong: dict[str, int]
) -> None:
    """It would be all that there is."""
    before, changed = _with_one_changed(finished, tmp_path / "run", True, wrong)
    assert changed.step_ns == pytest.approx(before.step_ns, rel=0.05)
    assert changed.idle == pytest.approx(before.idle, abs=0.05)


def _with_one_changed(
    finished: Path, folder: Path, device: bool, wrong: dict[str, int]
) -> tuple[DeviceReport, DeviceReport]:
    """The reports before and after columns of the trainer's 30th ``forward`` were changed."""
    shutil.copytree(finished, folder)
    journal = folder / "rank0.1.rows"
    before = read_report(journal).device
    table = read_table(journal)
    forward = [
        int(table.numbers[at]) for at in table.of_kind("phase").tolist()
        if table.name(at).text == "forward" and table.lane(at).engine == "SupervisedTrainer"
    ][30]  # fmt: skip
    path = device_journal(journal) if device else journal
    data = bytearray(path.read_bytes())
    rows = np.frombuffer(data, ROW_DTYPE, offset=HEADER_BYTES)
    at = forward - FIRST_ROW
    if device:
        (at,) = np.flatnonzero((rows["epoch"] == forward) & (rows["start"] != 0)).tolist()
    for column, value in wrong.items():
        rows[column][at] = value
    del rows
    path.write_bytes(data)
    changed = read_report(journal).device
    assert before is not None
    assert changed is not None
    return before, changed


def absurd_places(data: bytearray, seed: int) -> None:
    """Phases of any row."""
    _column(data, "epoch", seed, (0, 1, 127, 128, 129, 150, 999, 10**6, 2**31, 2**32 - 1))


def absurd_scalars(data: bytearray, seed: int) -> None:
    """Bytes that are no number, or none of bytes."""
    values = np.array([math.nan, math.inf, -math.inf, -1.0, 1e300, 5e-324]).view(np.int64)
    rows = np.frombuffer(data, ROW_DTYPE, offset=HEADER_BYTES)
    scalars = np.flatnonzero(rows["flags"] & 4)
    rows["end"][scalars] = np.random.default_rng(seed).choice(values, len(scalars))


def absurd_times(data: bytearray, seed: int) -> None:
    """Days before and after, and the end of time."""
    _column(data, "start", seed, (1, THEN, 2**62, 2**63 - 2))
    _column(data, "end", seed, (1, THEN, 2**62, 2**63 - 1))


def _column(data: bytearray, name: str, seed: int, values: tuple[int, ...]) -> None:
    rows, random = np.frombuffer(data, ROW_DTYPE, offset=HEADER_BYTES), np.random.default_rng(seed)
    there = np.flatnonzero(rows["start"])
    mine = random.choice(there, len(there) // 2)
    rows[name][mine] = random.choice(np.array(values, rows[name].dtype), len(mine))


def damage_of(kind: str) -> Callable[[bytearray, int], Any]:
    """What does this to a file."""
    return lambda data, seed: getattr(Damage(seed), kind)(data)


DAMAGES = [
    *(pytest.param(damage_of(kind), id=kind) for kind in KINDS),
    absurd_places, absurd_scalars, absurd_times,
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("which", ["device", "rank", "both"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_no_error(
    tmp_path: Path, finished: Path, which: str, damage: Callable[[bytearray, int], Any]
) -> None:
    """Whatever is wrong in either journal, there is a report, as text and JSON, and lanes."""
    shutil.copytree(finished, tmp_path / "run")
    journal = tmp_path / "run" / "rank0.1.rows"
    for path in {"device": [device_journal(journal)], "rank": [journal]}.get(
        which, [journal, device_journal(journal)]
    ):
        data = bytearray(path.read_bytes())
        damage(data, len(which))
        path.write_bytes(data)
    found = read_report(journal)
    assert found.device is not None
    assert 0 <= found.device.idle <= 1
    assert (found.device.step_ns or 0) >= (found.device.busy_ns or 0) >= 0
    assert all(0 <= part <= 1 for part in found.device.idle_in.values())
    print_report(found)
    json.dumps(found.as_json(), allow_nan=False)
    feed = Feed(str(journal))
    shown = feed.poll()
    assert isinstance(shown, Snapshot)
    for lane in shown.devices:
        for mark in lane.between(0, 2**63 - 1):
            lane.copied_bytes(mark)
    feed.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an out of memory, and one with validations, in the same journals' directory."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("device") / "run"
        return varied(folder, patch).run().folder


@pytest.mark.parametrize("line", [
    {"type": "anchor"}, {"type": "anchor", "time": 1, "lane": 300, "error": 1},
    {"type": "untimed", "lane": 0, "reason": "x"}, {"type": "lane", "id": 0},
    {"type": "process", "resource": {"hw.type": ["gpu"], "hw.model": None}},
    {"type": "attributes", "row": 0, "attributes": {"ignite.device.memory.allocated": "much"}},
])  # fmt: skip
def test_lines_that_make_no_sense_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: dict[str, Any]
) -> None:
    """Of the hardware, of the clock, of memory: what can be read is said."""
    run = out_of_memory(tmp_path / "run", monkeypatch)
    table = read_table(device_journal(run.path))
    (full,) = table.numbers[table.of_kind("event")].tolist()
    with device_journal(run.path).with_suffix(".meta.jsonl").open("a") as file:
        file.write(json.dumps({**line, "row": full} if "row" in line else line) + "\n")
    found = run.report().device
    assert found is not None
    assert found.ooms[0].allocated in (70 * 2**30, None)
    print_report(run.report())
