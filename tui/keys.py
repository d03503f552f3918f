"""The one table of keys: the bindings of the app and of its panes, and the help, come from it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True)
class Key:
    """A key, or several for the same thing."""

    keys: str  #: as Textual names them, separated by commas
    shown: str  #: as people name them
    action: str
    help: str
    #: ``app``: of the app; ``all``: of the app, where panes would have another use for the key;
    #: ``rows``: in every pane; ``tree``: in the tree; ``strip``: in the strip of steps.
    pane: str
    section: str  #: of the help
    footer: str = ""  #: the word in the last line; empty: only in the help


LOOK, MOVE, TREE, FIND, DO = "Look", "Move", "Timeline", "Find", "Do"
KEYS = (
    Key("space", "space", "pause", "hold the picture; collecting goes on", "app", LOOK, "pause"),
    Key("f,end", "f End", "app.follow", "follow the newest step", "all", LOOK, "follow"),
    Key("1", "1", "view('all')", "everything at once", "app", LOOK),
    Key("2", "2", "view('tree')", "the timeline alone", "app", LOOK),
    Key("3", "3", "view('tables')", "phases, handlers and slowest steps alone", "app", LOOK),
    Key("4", "4", "view('epochs')", "the epochs, and the scalars over the run", "app", LOOK),
    Key("5", "5", "view('ranks')", "the ranks: who makes the others wait", "app", LOOK),
    Key("6", "6", "view('data')",
        "how batches are made: transforms and workers (TraceHandler(data=True))", "app", LOOK),
    Key("W", "W", "why", "the arithmetic behind what is said of workers", "app", LOOK),
    Key("r", "r", "runs", "another run, attempt or rank", "app", LOOK, "runs"),
    Key("t", "t", "theme",
        "the next theme: dark, light, colour-blind safe, the terminal's own", "app", LOOK),
    Key("w", "w", "output",
        "show or hide what the program prints (firetrace run --watch)", "app", LOOK),
    Key("up,k", "↑ k", "cursor_up", "one row up", "rows", MOVE),
    Key("down,j", "↓ j", "cursor_down", "one row down", "rows", MOVE),
    Key("pageup", "PgUp", "page_up", "one page up", "rows", MOVE),
    Key("pagedown", "PgDn", "page_down", "one page down", "rows", MOVE),
    Key("home", "Home", "scroll_top", "the first row", "rows", MOVE),
    Key("tab", "tab", "app.focus_next", "the next pane", "app", MOVE),
    Key("shift+tab", "shift+tab", "app.focus_previous", "the pane before", "app", MOVE),
    Key("left,h", "← h", "fold", "fold; on a folded row: to the row around it", "tree", TREE),
    Key("right,l", "→ l", "unfold", "unfold; on an unfolded row: into it", "tree", TREE),
    Key("enter", "enter", "detail",
        "all about the span; of a match: to its place; in a table: go there", "tree",
        TREE, "detail"),
    Key("plus,equals_sign", "+", "zoom(1)",
        "see less time (also ctrl and the wheel)", "tree", TREE),
    Key("minus", "-", "zoom(-1)", "see more time", "tree", TREE),
    Key("left_square_bracket", "[", "pan(-1)", "earlier (also shift and the wheel)", "tree", TREE),
    Key("right_square_bracket", "]", "pan(1)", "later", "tree", TREE),
    Key("0", "0", "fit", "the whole step, epoch or run", "tree", TREE),
    Key("c", "c", "short",
        "hide the short: what is empty, below 100µs, 1ms, 10ms, 100ms, nothing", "app",
        TREE, "short"),
    Key("left,h", "← h", "earlier", "in the strip of steps: the cell before", "strip", TREE),
    Key("right,l", "→ l", "later", "in the strip of steps: the next cell", "strip", TREE),
    Key("enter", "enter", "choose",
        "in the strip of steps: to the slowest step of the cell", "strip", TREE),
    Key("slash", "/", "search",
        "filter: part of a name, 'step 412', 'epoch 3'", "app", FIND, "filter"),
    Key("n", "n", "match(1)", "the next match", "app", FIND),
    Key("N", "N", "match(-1)", "the match before", "app", FIND),
    Key("e", "e", "error(1)", "the next error", "app", FIND, "error"),
    Key("E", "E", "error(-1)", "the error before", "app", FIND),
    Key("s", "s", "slowest", "the slowest step; again: the next slowest", "app", FIND, "slowest"),
    Key("escape", "esc", "leave", "leave the filter, the detail, a box", "app", FIND),
    Key("x", "x", "export", "write a part of the run as Chrome JSON", "app", DO, "export"),
    Key("o", "o", "perfetto", "open the run in Perfetto, in a browser", "app", DO, "perfetto"),
    Key("y", "y", "copy", "copy the span (OSC 52: over ssh too)", "app", DO),
    Key("S", "S", "save_screen", "save the screen as an SVG picture", "app", DO),
    Key("ctrl+p", "ctrl+p", "app.command_palette", "all commands by name", "app", DO),
    Key("ctrl+c", "ctrl+c", "interrupt",
        "interrupt the program (firetrace run --watch)", "app", DO),
    Key("question_mark", "?", "help", "show or leave this help", "app", DO, "help"),
    Key("q", "q", "quit", "leave; the training goes on", "app", DO, "quit"),
)  # fmt: skip


def bindings(*panes: str) -> list[Binding]:
    """Textual's bindings for these panes."""
    return [
        Binding(key.keys, key.action, key.footer or key.help, show=bool(key.footer),
                key_display=key.shown.split()[0])
        for key in KEYS if key.pane in panes
    ]  # fmt: skip
