"""The report as an HTML page: whole, alone, with the report's figures, and true to the rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from ignite.engine import Engine, Events

from firetrace import TraceHandler
from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from firetrace.tracer.writer import JournalWriter
from firetrace.tui.cli import main
from firetrace.tui.colours import DARK, LIGHT
from firetrace.tui.format import duration, share
from firetrace.tui.html import timeline
from firetrace.tui.html.marks import ink, luminance
from firetrace.tui.html.places import Note, Place, places
from firetrace.tui.html.plots import scalar
from firetrace.tui.model.report import Scalar, read_report
from tests.support.random_journal import RandomJournal
from tests.support.recordings import engines, finish, record, record_failing, record_killed

VOID = {"meta"}
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    '<script>alert("x")</script>', "[b]bold[/b]", "a'b\"c&amp;d", "two\nlines\x1b[31m\x00",
    "\ud800", "\u202eright to left\u2066", "\u05d0\u05d1\u05d2", "x" * 10_000,
    "--></svg></style><img src=x>", "]]>",
)  # fmt: skip


class Strict(HTMLParser):
    """Every element is closed in the order of opening, and every attribute is quoted text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.rows: list[list[str]] = []  #: of all tables
        self.words = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def page_of(where: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> str:
    """The page of a run, checked for what holds for every one."""
    assert main(["report", "--html", "-", str(where)]) == 0
    page = capsysbinary.readouterr().out.decode()
    check(page)
    return page


def check(page: str) -> Strict:
    """Whole, well formed, and nothing in it runs or comes from elsewhere."""
    parsed = Strict(page)
    assert set(parsed.seen).isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "a", "base", "image", "use"}
    )
    assert not [
        name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "href")
    ]
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, nothing is fetched
    assert "http:" not in bare
    assert "https:" not in bare
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#hatch"}
    assert not re.search(
        r"nan|inf(?!o|er|trac)", " ".join(re.findall(r' (?:d|x|y|width)="([^"]*)"', page))
    )
    for svg in svgs(page):
        assert svg.get("aria-label")
    controls = [c for c in page if (c < " " and c != "\n") or c in "\u202e\u2066\x7f"]
    assert not controls
    return parsed


def svgs(page: str) -> list[ElementTree.Element]:
    """All drawings, each of which must be XML."""
    return [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def journal(where: Path) -> Path:
    """The journal of a run's directory."""
    return open_run(where).newest


def test_the_page_has_the_figures_of_the_report(
    sample_run: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Verdict, state, totals, and every figure of every table are those of the report's JSON."""
    page = page_of(sample_run, capsysbinary)
    assert main(["report", "--json", str(sample_run)]) == 0
    said: dict[str, Any] = json.loads(capsysbinary.readouterr().out)
    parsed = Strict(page)
    for words in (said["run"], said["verdict"], "has finished", f"{said['steps']:,} steps",
                  f"{said['spans']:,} spans", duration(said["duration_ns"])):  # fmt: skip
        assert words in parsed.words
    for kind in ("phases", "handlers"):
        for name, each in said[kind].items():
            times = [each[f"{key}_ns"] for key in ("total", "p50", "p95", "p99", "max")]
            row = [name, f"{each['count']:,}", *map(duration, times), share(each["share"])]
            assert row in parsed.rows
    for step in said["slowest_steps"]:
        why = ", ".join(f"{name} +{duration(ns)}" for name, ns in step["because"])
        row = [f"{step['iteration']:,}", str(step["epoch"]), duration(step["duration_ns"]), why]
        assert row in parsed.rows
    for epoch in said["epoch_times"]:
        took = duration(epoch["end_ns"] - epoch["start_ns"])
        assert [str(epoch["epoch"]), took] in [row[:2] for row in parsed.rows]
    for each in said["scalars"]:
        assert f"{each['name']} {each['last']:.4g} n {each['count']}" in parsed.words


def test_the_page_is_the_same_each_time(
    sample_run: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Nothing of when or where it was written is in it."""
    first = page_of(sample_run, capsysbinary)
    assert page_of(sample_run, capsysbinary) == first
    assert str(sample_run.parent) not in first


@pytest.mark.parametrize("which", ["sample", "two engines", "failing", "killed"])
def test_the_picture_is_true_to_the_rows(
    which: str, request: pytest.FixtureRequest, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Bars begin, end and nest as their spans do; ticks stand where the events were fired."""
    if which == "sample":
        path = request.getfixturevalue("sample_run")
    else:
        made: dict[str, Callable[[], Path]] = {
            "two engines": record,
            "failing": record_failing,
            "killed": record_killed,
        }
        path = journal(made[which]())
    table = read_table(path)
    (picture,) = (s for s in svgs(page_of(path, capsysbinary)) if s.get("class") == "timeline")
    positions = {number: i for i, number in enumerate(table.numbers.tolist())}
    scenes = picture.findall(f"{SVG}g")
    assert len(scenes) == 3
    for scene in scenes:
        frame = positions[int(scene.attrib["data-scene"])]
        begin, whole = int(table.rows[frame]["start"]), int(table.durations(np.array([frame]))[0])
        marks = {
            positions[int(mark.attrib["data-row"])]: mark.attrib
            for mark in scene.iter(f"{SVG}rect")
            if "data-row" in mark.attrib
        }
        for i, mark in marks.items():
            row, event = table.rows[i], table.name(i).kind == "event"
            assert (mark["class"] == "tick") == event
            x, width = float(mark["x"]), float(mark["width"])
            room = timeline.WIDTH - 2 * timeline.MARGIN
            start = timeline.MARGIN + (int(row["start"]) - begin) / whole * room
            assert x + (width / 2 if event else 0) == pytest.approx(start, abs=0.02)
            took = int(table.durations(np.array([i]))[0]) / whole * room
            if not event:
                assert width == pytest.approx(max(timeline.NARROWEST, took), abs=0.02)
        parents = table.parents()
        for i, mark in marks.items():
            above = int(parents[i])
            while above >= 0 and table.name(above).kind == "event":
                above = int(parents[above])  # what ran on an event stands beside its neighbours
            if above in marks and table.name(i).kind != "event":
                outer = marks[above]
                assert float(mark["y"]) > float(outer["y"])
                assert float(mark["x"]) >= float(outer["x"]) - 0.02
                right = float(outer["x"]) + float(outer["width"])
                ends = float(mark["x"]) + float(mark["width"])
                assert ends <= right + timeline.NARROWEST + 0.02
    step = positions[int(scenes[-1].attrib["data-scene"])]
    assert table.name(step).kind == "step"
    said = "".join(scenes[-1].itertext())
    inside = [i for i in range(step + 1, len(table)) if inside_of(i, step, table.parents())]
    assert inside
    for i in inside:
        assert table.name(i).text in said
        if table.name(i).kind != "event":
            assert i in marks


def inside_of(i: int, outer: int, parents: Any) -> bool:
    """Whether a span is inside of another; both by their positions."""
    while i > outer:
        i = int(parents[i])
    return i == outer


def test_handlers_hang_on_their_events(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Below its event stands each handler with what it took, and the engine that ran in it."""
    path = journal(record())
    table = read_table(path)
    page = page_of(path, capsysbinary)
    shown = [unescape(each) for each in re.findall(r'class="handler"[^>]*>([^<]*)<', page)]
    durations = {
        table.name(i).text: [] for i in range(len(table)) if table.name(i).kind == "handler"
    }  # type: dict[str, list[str]]
    for i in range(len(table)):
        if table.name(i).kind == "handler":
            durations[table.name(i).text].append(duration(int(table.durations(np.array([i]))[0])))
    (validation,) = (name for name in durations if "validate" in name)
    hung = [line.rsplit(" ", 1) for line in shown]
    assert any(validation.endswith(name) and took in durations[validation] for name, took in hung)
    assert any(line.startswith("└ run Evaluator ") for line in shown)


def test_names_are_text(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Markup, quotes, controls, surrogates and right-to-left names stay names."""
    engine = Engine(lambda engine, batch: batch)
    handler = TraceHandler(name='<b>"&amp;\u05d0')
    for name in HOSTILE:

        def act(engine: Engine, name: str = name) -> None:
            with handler.span(name):
                engine.state.metrics[name] = 1.0

        act.__qualname__ = name
        engine.add_event_handler(Events.ITERATION_COMPLETED, act)

    @engine.on(Events.ITERATION_COMPLETED(once=5))
    def fail(engine: Engine) -> None:
        raise ValueError("".join(HOSTILE[:5]) + HOSTILE[8])

    handler.attach(engine)
    with pytest.raises(ValueError, match="script"):
        engine.run([1, 2, 3], max_epochs=2)
    handler.close()
    assert handler.directory is not None
    page = page_of(journal(handler.directory), capsysbinary)
    parsed = check(page)
    for whole in ('<script>alert("x")</script>', "[b]bold[/b]", "a'b\"c&amp;d", "two␊lines␛[31m␀",
                  "]]>"):  # fmt: skip
        assert whole in parsed.words
    assert "x" * 400 not in page
    assert "<bdi>\u05d0\u05d1\u05d2</bdi>" in page


def test_an_empty_run_has_a_page(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What has recorded nothing says so, and draws nothing."""
    JournalWriter(tmp_path / "rank0.1", {"ignite.run.id": "nothing"}, min_free_bytes=0).close()
    page = page_of(tmp_path, capsysbinary)
    assert "no step has been completed yet" in page
    assert not svgs(page)


def test_a_killed_run_says_what_was_open(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """The state is DIED, and the open spans are listed with how long they were open."""
    where = record_killed()
    parsed = Strict(page_of(where, capsysbinary))
    found = read_report(journal(where))
    assert "DIED" in parsed.words
    assert found.incomplete
    for span in found.incomplete:
        name = f"{span.engine}: {span.name}{'?' if span.guessed else ''}"
        row = [name, str(span.epoch), f"{span.iteration:,}", duration(span.open_ns)]
        assert row in parsed.rows


def test_exceptions_are_on_the_page(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Type and message of each, before the figures."""
    parsed = Strict(page_of(record_failing(), capsysbinary))
    assert parsed.words.count("ValueError: no [b]luck") >= 2
    assert parsed.words.index("ValueError") < parsed.words.index("Events and handlers")


def test_a_step_that_has_not_ended_is_drawn(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Of a run killed in its first step there is a picture, with the open spans hatched."""
    trainer = engines(before=lambda engine: seen.append(page_of(where(), capsysbinary)))
    seen: list[str] = []

    def where() -> Path:
        assert trainer.recorder.directory is not None
        return journal(trainer.recorder.directory)

    trainer.run([1], max_epochs=1)
    finish(trainer)
    (page,) = seen
    (picture,) = (svg for svg in svgs(page) if svg.get("class") == "timeline")
    assert len(picture.findall(f"{SVG}g")) == 3
    assert [each for each in picture.iter(f"{SVG}rect") if each.get("class") == "open"]


@pytest.mark.parametrize("seed", range(6))
def test_any_journal_has_a_page(
    seed: int, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Spans that nest wildly, in two threads, open or not, break nothing."""
    made = RandomJournal(tmp_path, seed)
    made.write(4_000)
    made.close()
    page_of(made.path, capsysbinary)


def test_a_long_epoch_stays_small(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Of thousands of steps and many firings of an event the page shows what can be seen."""
    trainer = engines(handlers=tuple(partial(nothing, i) for i in range(30)))
    trainer.run(range(5_000), max_epochs=2)
    page = page_of(finish(trainer), capsysbinary)
    assert len(page) < 300_000
    assert "and 22 more" in page


def nothing(number: int, engine: Engine) -> None:
    """A handler."""


def points(*values: float) -> list[str]:
    """The parts of a scalar's line: how each begins."""
    svg = ElementTree.fromstring(scalar(Scalar("loss", len(values), values[-1], values)))
    lines = [each.attrib["d"] for each in svg.iter(f"{SVG}path") if each.get("class") == "line"]
    return [part for line in lines for part in re.findall(r"M[^M]*", line)]


def test_a_scalar_that_is_not_finite_leaves_a_gap() -> None:
    """NaN and infinity part a line; a value between two gaps is a dot; huge ones fit."""
    nan, inf = math.nan, math.inf
    assert [part.count("L") for part in points(1.0, 2.0, nan, 3.0, inf, 4.0, 5.0)] == [1, 0, 1]
    assert points(nan, nan) == []
    assert [part.count("L") for part in points(-1.7e308, 1.7e308, 0.0)] == [2]
    assert "nan" not in "".join(points(7.0, 7.0))


def test_notes_do_not_cover_one_another() -> None:
    """Boxes are apart, and no line runs through another note on its side."""
    random = np.random.default_rng(3)
    for _ in range(200):
        xs = np.sort(random.choice([0.0, 3.0, 500.0, 1000.0], 12) + random.integers(0, 99, 12))
        notes = [
            Note(float(x), float(random.integers(40, 240)), int(random.integers(1, 4))) for x in xs
        ]
        placed = places(notes, 1100)
        boxes = [box(*each) for each in zip(notes, placed, strict=True)]
        for i, (left, right, top, bottom) in enumerate(boxes):
            for j, other in enumerate(boxes):
                if i == j:
                    continue
                apart = (
                    right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
                )
                assert apart
                crossed = left < notes[j].x < right and top < other[2]
                assert not crossed or placed[i].to_left != placed[j].to_left


def box(note: Note, place: Place) -> tuple[float, float, int, int]:
    """Left, right, first line, line after the last."""
    left = note.x - note.width if place.to_left else note.x
    return left, left + note.width, place.level, place.level + note.lines


def test_words_can_be_read() -> None:
    """Text and its ground differ by 4.5 to 1 or more, as WCAG 2 asks, in light and dark."""
    for own in (LIGHT, DARK):
        for colour in (own.ground["foreground"], own.dim):
            assert contrast(colour, own.ground["background"]) >= 4.5
        for ground in (*own.phases.values(), *own.others, *own.heat, own.handler, own.structure):
            assert contrast("#000000" if ink(ground) == "#000" else "#ffffff", ground) >= 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_says_where_it_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, and stdout stays empty; the file is whole."""
    where, file = record(), tmp_path / "report.html"
    assert main(["report", "--html", str(file), str(where)]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"firetrace: wrote {file} (")
    check(file.read_text())


@pytest.mark.parametrize("file", ["missing/report.html", ".", "/proc/no/report.html"])
def test_a_file_that_cannot_be_written_is_one_line(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the file and the reason, the exit code is 1, and nothing is left behind."""
    target, run = tmp_path / file, record(epochs=1)
    before = set(tmp_path.rglob("*"))
    assert main(["report", "--html", str(target), str(run)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(target.resolve()) in said
    assert set(tmp_path.rglob("*")) == before


def test_json_and_html_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    """Both at once is wrong usage."""
    with pytest.raises(SystemExit) as end:
        main(["report", "--json", "--html", "x.html"])
    assert end.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
