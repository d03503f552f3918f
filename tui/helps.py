"""What the command says of itself in ``--help``, where that is more than a line."""

from __future__ import annotations

EPILOG = """\
Trace a program without changing it:

    firetrace run train.py

or, in the training program:

    from firetrace import TraceHandler
    TraceHandler().attach(trainer)

or, in a MONAI bundle's config, {"_target_": "firetrace.tracer.TraceHandler"} among the handlers.
Runs go to ./firetrace-runs, or to $FIRETRACE_DIR.
"""

RUN_DESCRIPTION = """\
Starts a program as python would and records every ignite and MONAI engine that runs in it and in
its children. Arguments, output, exit code and signals are the program's own."""
RUN_EPILOG = """\
examples:
  firetrace run train.py --epochs 20
  firetrace run -m monai.bundle run --config_file configs/train.json
  firetrace run --watch train.py                          under the live app
  firetrace run -o runs/first torchrun --nproc_per_node 2 train.py

With --watch, processes that the program leaves in the background lose their terminal when the
command ends, as when a terminal window is closed.
Options for firetrace come before the program. The directory is made when the first engine runs.
"""

DIFF_DESCRIPTION = """\
Compares two runs: which step, phase or handler got slower or faster, and whether noise could have
made that. Of runs that differ by noise alone, one pair in twenty gets any claim at all; and what is
claimed is at least 5% and 2 µs. 'typical' is what a few stalls do not move, 'p' the chance that
noise makes such a difference somewhere, 'a step' what it is for each step of the training."""
DIFF_EPILOG = """\
examples:
  firetrace diff baseline candidate
  firetrace diff firetrace-runs/20250102-030405-train firetrace-runs/20250102-040506-train
  firetrace diff --json before/rank0.1.rows after/rank0.1.rows | jq -r .verdict

Noise is what varies within a run. A busy neighbour, another clock frequency, a cold file cache or
a different machine can make the whole of one run slower, and no statistics of two runs can rule
that out: of six equal trainings of half a second on a shared machine, 5 of the 15 pairs differed,
by 6% to 13%. Before you believe such a difference, record both again, in turn.
The first tenth of each name's spans (at most ten) is left out as warm-up. Exit code 0 means that
the runs were compared, whatever came of it.
"""
