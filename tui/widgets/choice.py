"""A box with a list to choose from, and perhaps a line to type: runs, and parts to export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from firetrace.tui.format import printable


@dataclass(frozen=True)
class Chosen:
    """What was chosen: the option's id, and what was typed."""

    id: str
    text: str


class Choice(ModalScreen[Chosen | None]):
    """Enter takes the option, escape none.

    Args:
        title: of the box.
        options: id and label of each; labels may be out of a trace.
        text: what stands in the line to type; None: there is no such line.
        label: what that line is for.
        at: id of the option that is marked at first.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "back", show=False)
    ]

    def __init__(
        self, title: str, options: list[tuple[str, str]], text: str | None = None, label: str = "",
        at: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._title, self._options, self._text = title, options, text
        self._label, self._at = label, at

    def compose(self) -> ComposeResult:
        """One box."""
        with Vertical(id="choice") as box:
            box.border_title = self._title
            yield OptionList(
                *(
                    Option(Text(printable(label), no_wrap=True), id=id)
                    for id, label in self._options
                )
            )
            if self._text is not None:
                yield Static(self._label, markup=False)
                yield Input(self._text, compact=True)

    def on_mount(self) -> None:
        """Mark an option."""
        ids = [id for id, _ in self._options]
        options = self.query_one(OptionList)
        options.highlighted = ids.index(self._at) if self._at in ids else 0
        options.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take it."""
        event.stop()
        self._take(str(event.option.id))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what is marked."""
        event.stop()
        highlighted = self.query_one(OptionList).highlighted
        self._take(self._options[highlighted or 0][0])

    def _take(self, id: str) -> None:
        typed = self.query_one(Input).value if self._text is not None else ""
        self.dismiss(Chosen(id, typed))
