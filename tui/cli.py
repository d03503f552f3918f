"""The ``firetrace`` command: parses arguments and hands over. Loads neither torch nor textual.

Exit codes: 0 done, 1 a trace could not be read or written (one line says which and why), 2 wrong
usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from firetrace.tracer.errors import FiretraceError, UsageError
from firetrace.tui.helps import (
    DIFF_DESCRIPTION,
    DIFF_EPILOG,
    EPILOG,
    RUN_DESCRIPTION,
    RUN_EPILOG,
)

if TYPE_CHECKING:
    from firetrace.tracer.run import Run

RUN_HELP = "a run's directory or name, or a .rows file; by default the newest run"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a name still works
    words = list(sys.argv[1:] if argv is None else argv)
    program: list[str] = []
    if words[:1] == ["run"]:
        from firetrace.tui.launch import split

        words[1:], program = split(words[1:])
    arguments = parser().parse_args(words)
    arguments.program = program
    try:
        code: int = arguments.action(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except UsageError as error:
        fail(str(error))
        return 2
    except FiretraceError as error:
        return fail(str(error))
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        return fail(f"{name}: {error.strerror}" if name else str(error))


def tell(text: str) -> None:
    """Say something in one line on stderr."""
    from firetrace.tui.format import printable

    sys.stderr.write(f"firetrace: {printable(text)}\n")


def fail(reason: str) -> int:
    """Say in one line what went wrong."""
    tell(reason)
    return 1


class Parser(argparse.ArgumentParser):
    """Says what is wrong without the escape codes that a file's name may bring in by ``*``."""

    def error(self, message: str) -> NoReturn:
        """Say it, and end with exit code 2."""
        from firetrace.tui.format import printable

        super().error(printable(message))


def parser() -> Parser:
    """The command's arguments."""
    root = Parser(
        prog="firetrace",
        description="Shows where a training loop's time goes, while it runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=_version())
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run", help="start a program, unchanged, and record every engine in it",
        usage="firetrace run [-o DIR] [-n NAME] [-q] [--data] [--no-device] [--watch] "
        "(SCRIPT | -m MODULE | COMMAND) [ARG ...]",
        description=RUN_DESCRIPTION, epilog=RUN_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="the run's directory (default: a new one in ./firetrace-runs or $FIRETRACE_DIR)",
    )  # fmt: skip
    run.add_argument("-n", "--name", help="of the run (default: the script's)")
    run.add_argument(
        "-q", "--quiet", action="store_true", help="do not say where the run is recorded"
    )
    run.add_argument(
        "-w", "--watch", action="store_true",
        help="run it under the live app, its output in a pane; q leaves the app, not the program",
    )  # fmt: skip
    run.add_argument(
        "-d", "--data", action="store_true",
        help="record the data pipeline as well: each batch, sample and transform, in workers too",
    )  # fmt: skip
    run.add_argument(
        "--no-device", action="store_true",
        help="do not record how long the GPU takes for each phase, and what is allocated on it",
    )  # fmt: skip
    run.set_defaults(action=_run, wrong_usage=run.error)

    watch = _command(commands, "watch", _watch, "the live app: follow a run while it trains")
    watch.add_argument(
        "--exit", action="store_true", help="leave when the run is over, instead of waiting for q"
    )

    report = _command(commands, "report", _report, "the numbers as text, for a log or a script")
    how = report.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as JSON; times in ns, shares 0 to 1")
    how.add_argument(
        "--html", type=Path, metavar="FILE",
        help="as one HTML page with plots, which needs nothing else: to be mailed or kept "
        "(-: stdout)",
    )  # fmt: skip

    diff = commands.add_parser(
        "diff", help="compare two runs: what got slower, and could noise have done it",
        description=DIFF_DESCRIPTION, epilog=DIFF_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    run_help = "a run's directory or name, or a .rows file"
    diff.add_argument("before", metavar="RUN", help=run_help)
    diff.add_argument("after", metavar="RUN", help="the one to compare with it")
    diff.add_argument("--json", action="store_true", help="as JSON; times in ns")
    diff.set_defaults(action=_diff)

    from firetrace.tui import export

    export.add(_command(commands, "export", _export, export.HELP, epilog=export.EPILOG))
    export.add_open(_command(commands, "open", _open, export.OPEN_HELP, epilog=export.OPEN_EPILOG))

    listing = commands.add_parser(
        "list", help="the runs known here", description="The runs known here."
    )
    listing.set_defaults(action=_list)

    prune = commands.add_parser(
        "prune", help="remove old runs", description="Removes old runs; never one that is alive."
    )
    which = prune.add_mutually_exclusive_group(required=True)
    which.add_argument("--keep", type=_natural, metavar="N", help="remove all but the newest N")
    which.add_argument(
        "--older-than", type=_natural, metavar="DAYS", help="remove those begun before that"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.set_defaults(action=_prune)
    return root


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str, action: Callable[[argparse.Namespace], int], help: str, epilog: str = "",
) -> Parser:  # fmt: skip
    command = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    command.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    command.set_defaults(action=action)
    return command


def _version() -> str:
    from importlib.metadata import version

    return f"firetrace {version('firetrace')}"


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _find(arguments: argparse.Namespace) -> Run:
    from firetrace.tracer.run import find_run

    return find_run(arguments.run)


def newest(run: Run) -> Path:
    """The newest attempt of a run's lowest rank, as the app shows it; the others are named."""
    chosen = run.main
    others = len(run.journals) - 1
    if others:
        tell(f"this is {chosen.name}; {others} more in {run.path} (name a .rows file to see it)")
    return chosen


def _run(arguments: argparse.Namespace) -> int:
    import shlex

    from firetrace.tracer.run import unused_directory
    from firetrace.tui.launch import become, command, default_name, environment

    if not arguments.program:
        arguments.wrong_usage("name a program, such as: firetrace run train.py")
    try:
        file, words = command(arguments.program)
    except FileNotFoundError as error:
        fail(str(error))
        return 2
    name = arguments.name or default_name(arguments.program)
    directory = arguments.output.absolute() if arguments.output else unused_directory(name)
    variables = environment(directory, name, arguments.data, not arguments.no_device)
    if arguments.watch:
        if not all(os.isatty(stream) for stream in range(3)):
            arguments.wrong_usage("--watch needs a terminal for input, output and errors")
        from firetrace.tui.session import run_under_app

        return run_under_app(file, words, variables, directory)
    if not arguments.quiet:
        watch = f"firetrace watch {shlex.quote(str(directory))}"
        tell(f"recording to {directory}; see it with: {watch}")
    become(file, words, variables)
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    if not sys.stdout.isatty() or not os.isatty(2):
        return fail("watch needs a terminal (also for errors); 'firetrace report' prints as text")
    import gc

    gc.disable()  # until the first picture: it would look through what is being made
    from firetrace.tui.session import watch

    code: int = watch(arguments.run, exit_when_done=arguments.exit)
    return code


def _report(arguments: argparse.Namespace) -> int:
    if arguments.html is not None:
        return _write_page(newest(_find(arguments)), arguments.html)
    from firetrace.tui.model.ranks import Ranks, skew
    from firetrace.tui.model.report import read_report

    run, between = _find(arguments), None
    if len(run.ranks) > 1:
        result, ranks = read_report(run.main), Ranks(run.path)
        ranks.poll()
        between = skew(ranks)
    else:
        result = read_report(newest(run))
    if arguments.json:
        import json

        said = {**result.as_json(), "ranks": between.as_json() if between else None}
        sys.stdout.write(json.dumps(said, indent=2, allow_nan=False) + "\n")
    else:
        from firetrace.tui.text import print_report

        print_report(result, between)
    return 0


def _write_page(journal: Path, file: Path) -> int:
    from firetrace.exporters.files import whole_file
    from firetrace.tui.html.page import page
    from firetrace.tui.model.report import read_both

    data = page(*read_both(journal)).encode()
    if str(file) == "-":
        sys.stdout.buffer.write(data)
        return 0
    with whole_file(file) as out:
        out.write(data)
    tell(f"wrote {file} ({len(data) / 2**10:,.0f} KiB)")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from firetrace.tracer.run import find_run
    from firetrace.tui.diff import diff

    result = diff(newest(find_run(arguments.before)), newest(find_run(arguments.after)))
    if arguments.json:
        import json

        sys.stdout.write(json.dumps(result.as_json(), indent=2) + "\n")
    else:
        from firetrace.tui.diff_text import print_diff

        print_diff(result)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from firetrace.tui.export import export

    return export(_find(arguments), arguments)


def _open(arguments: argparse.Namespace) -> int:
    from firetrace.tui.export import open_in_perfetto

    return open_in_perfetto(_find(arguments), arguments)


def _list(arguments: argparse.Namespace) -> int:
    from firetrace.tracer.run import base_directory, known_runs
    from firetrace.tui.text import print_runs

    runs = known_runs()
    if not runs:
        print_line(f"no runs in {base_directory()}, and none in your list")
    else:
        print_runs(runs)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    import time

    from firetrace.tracer.run import begun_ns, known_runs, remove

    runs = known_runs()
    if arguments.keep is not None:
        old = runs[: max(0, len(runs) - arguments.keep)]
    else:
        limit = time.time_ns() - arguments.older_than * 86_400 * 10**9
        old = [run for run in runs if begun_ns(run) < limit]
    freed = 0
    for run in old:
        if run.alive():
            print_line(f"kept     {run.path} (still being written)")
            continue
        freed += run.size_bytes()
        if not arguments.dry_run:
            remove(run)
        print_line(f"{'would remove' if arguments.dry_run else 'removed'}  {run.path}")
    print_line(f"{freed / 2**20:,.1f} MiB {'would be ' if arguments.dry_run else ''}freed")
    return 0


def print_line(text: str) -> None:
    """Print a line that may hold names from a trace, or of a file."""
    from firetrace.tui.format import printable

    sys.stdout.write(printable(text) + "\n")


if __name__ == "__main__":
    sys.exit(main())
