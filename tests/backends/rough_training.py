"""A training that leaves all that a span can carry: an error, an interruption, odd attributes."""

from __future__ import annotations

import contextlib
from typing import Any

from ignite.engine import Engine, Events

from firetrace import TraceHandler


def main() -> None:
    """Interrupt a training, go on with it, and fail."""
    handler = TraceHandler()

    def step(engine: Engine, batch: Any) -> float:
        with handler.span(
            "augment \u6f22 \U0001f600", text='a"b\\c\n\u00e9', empty="", cases=2**53 + 1, minus=-1,
            share=0.1, certain=False, names=["a", "b"], sizes=[1, 2], dotted={"x": 1}.get("x", 0),
        ):  # fmt: skip
            pass
        if engine.state.iteration == 7:
            raise ValueError("no luck: \u00e9")
        return 1 / engine.state.iteration

    trainer = Engine(step)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), trainer.interrupt)
    handler.attach(trainer, output_transform=lambda output: {"loss": output})
    trainer.run(range(4), max_epochs=2)
    with contextlib.suppress(ValueError):
        trainer.run(range(4), max_epochs=2)
    handler.close()


if __name__ == "__main__":
    main()
