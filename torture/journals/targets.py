"""What the fuzzer runs: ``python -m torture.journals.targets TARGET CORPUS ...``.

Nothing of firetrace may be imported before it is instrumented.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

INSTRUMENTED = (
    "firetrace.tracer.journal", "firetrace.tracer.meta", "firetrace.tracer.reader",
    "firetrace.tracer.table", "firetrace.tracer.pages", "firetrace.tracer.stream",
    "firetrace.tui.model", "firetrace.exporters.spans", "firetrace.exporters.chrome",
)  # fmt: skip


def main(target: str, arguments: list[str]) -> None:
    """Become the fuzzer of a target; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=[*INSTRUMENTED]):
        from firetrace.tracer.errors import FiretraceError
        from firetrace.tracer.journal import HEADER_BYTES, Header
        from firetrace.tracer.meta import Meta
        from firetrace.tui.model.report import read_report
        from torture.journals.readers import chrome, report

    folder = Path(tempfile.mkdtemp())
    journal = folder / "rank0.1.rows"
    seeds = Path(arguments[0])
    header = Header(2**13, 10**18, 0, bytes(16), 1, "", "").pack()
    known = (seeds.parent / "meta" / "seed0").read_bytes()

    def meta(data: bytes) -> None:
        path = journal.with_suffix(".meta.jsonl")
        path.write_bytes(data)
        found = Meta(path)
        found.poll()
        for notes in found._noted.values():
            for row in notes:
                notes.get(row)
        for row in (0, 1, 2**32 - 1):
            found.said_of(row)

    def head(data: bytes) -> None:
        journal.write_bytes(data.ljust(HEADER_BYTES, b"\0"))
        read_report(journal)

    def rows(data: bytes) -> None:
        journal.write_bytes(header + data)
        journal.with_suffix(".meta.jsonl").write_bytes(known)
        report(journal, folder)
        chrome(journal, folder)

    targets: dict[str, Callable[[bytes], None]] = {"meta": meta, "header": head, "rows": rows}

    def try_one(data: bytes) -> None:
        try:
            targets[target](data)
        except FiretraceError as error:
            if "\n" in str(error):
                raise ValueError("the reason has more than one line") from error

    atheris.Setup([sys.argv[0], *arguments], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
