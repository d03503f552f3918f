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
    #: ``rows``: in every pane; ``tree``: in the tree.
    pane: str
    footer: str = ""  #: the word in the last line; empty: only in the help


KEYS = (
    Key("q", "q", "quit", "leave; the training goes on", "app", "quit"),
    Key("space", "space", "pause", "hold the picture; collecting goes on", "app", "pause"),
    Key("f,end", "f End", "app.follow", "follow the newest step", "all", "follow"),
    Key("up,k", "↑ k", "cursor_up", "one row up", "rows"),
    Key("down,j", "↓ j", "cursor_down", "one row down", "rows"),
    Key("pageup", "PgUp", "page_up", "one page up", "rows"),
    Key("pagedown", "PgDn", "page_down", "one page down", "rows"),
    Key("home", "Home", "scroll_top", "the first row", "rows"),
    Key("left,h", "← h", "fold", "fold; on a folded row: to the row around it", "tree", "fold"),
    Key("right,l", "→ l", "unfold", "unfold; on an unfolded row: into it", "tree", "unfold"),
    Key("enter", "enter", "toggle_fold", "fold or unfold; in the slowest steps: go there", "tree"),
    Key("tab", "tab", "app.focus_next", "the next pane", "app", "pane"),
    Key("c", "c", "short", "hide or show events on which nothing ran", "app", "short"),
    Key("e", "e", "error(1)", "the next error", "app", "error"),
    Key("E", "E", "error(-1)", "the error before", "app"),
    Key("s", "s", "slowest", "the slowest step; again: the next slowest", "app", "slowest"),
    Key("question_mark", "?", "help", "show or leave this help", "app", "help"),
)


def bindings(*panes: str) -> list[Binding]:
    """Textual's bindings for these panes."""
    return [
        Binding(key.keys, key.action, key.footer or key.help, show=bool(key.footer),
                key_display=key.shown.split()[0])
        for key in KEYS if key.pane in panes
    ]  # fmt: skip
