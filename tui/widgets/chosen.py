"""What a pane says when something in it was chosen."""

from __future__ import annotations

from textual.message import Message


class SpanChosen(Message):
    """Go to a span in the tree; ``number`` is its row's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class RankChosen(Message):
    """Show this rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
