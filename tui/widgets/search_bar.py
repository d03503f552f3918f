"""Where the filter is typed."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input


class SearchBar(Input):
    """One line under the tree; hidden while nothing is searched for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back", show=False),
        Binding("down", "to_matches", "to the matches", show=False),
    ]

    class Left(Message):
        """The user is done typing. ``keep``: with the filter as it is."""

        def __init__(self, keep: bool) -> None:
            super().__init__()
            self.keep = keep

    def __init__(self) -> None:
        super().__init__(
            id="search", placeholder="part of a name, 'step 412', 'epoch 3'", compact=True
        )

    def action_leave(self) -> None:
        """Without the filter."""
        self.post_message(self.Left(False))

    def action_to_matches(self) -> None:
        """To the list."""
        self.post_message(self.Left(True))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """To the list."""
        event.stop()
        self.post_message(self.Left(True))
