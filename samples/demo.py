"""What ``make demo`` does: train the sample bundle under firetrace, watch it, keep the trace.

In a terminal the live app follows the training and leaves when that is over; elsewhere progress
is printed. Either way the report comes last, with where the journal and the Chrome trace lie.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent
RUNS = SAMPLES.parent / "firetrace-runs"
FIRETRACE = [sys.executable, "-m", "firetrace.tui.cli"]
TRAINING = ["-m", "monai.bundle", "run", "--config_file", "configs/train.json"]


def main() -> int:
    """Run the demo; the exit code is the training's."""
    bundle = SAMPLES / "spleen_bundle"
    subprocess.run([sys.executable, str(bundle / "make_data.py"), str(bundle / "data")], check=True)
    log_path = bundle / "output" / "training.log"
    log_path.parent.mkdir(exist_ok=True)
    before = set(RUNS.glob("*")) if RUNS.is_dir() else set()
    # Threads that spin while they wait take the cores from one another on a shared machine.
    environment = {**os.environ, "FIRETRACE_DIR": str(RUNS), "OMP_WAIT_POLICY": "PASSIVE"}
    say(f"Training the sample bundle; what it prints goes to {log_path}")
    with open(log_path, "w") as log:
        training = subprocess.Popen(
            [sys.executable, *TRAINING], cwd=bundle, env=environment, stdout=log, stderr=log
        )
        try:
            run = wait_for_run(training, before)
            if run is None:
                say(f"The training ended before it began:\n{log_path.read_text()[-2000:]}")
                return training.wait() or 1
            if sys.stdout.isatty():
                subprocess.run([*FIRETRACE, "watch", "--exit", str(run)], check=False)
            else:
                print_progress(run, training)
            code = training.wait()
        finally:
            if training.poll() is None:
                training.terminate()
    if code:
        say(f"The training failed; see {log_path}")
        return code
    trace = run / "trace.json.gz"
    subprocess.run([*FIRETRACE, "report", str(run)], check=True)
    subprocess.run([*FIRETRACE, "export", "--to", "chrome", "-o", str(trace), str(run)], check=True)
    command = Path(sys.executable).with_name("firetrace")
    say(
        f"\nThe journal is in  {run}\n"
        f"  watch it again:  {command} watch {run}\n"
        f"  as text:         {command} report {run}\n"
        f"The Chrome trace is {trace}\n"
        "  open it:         https://ui.perfetto.dev, 'Open trace file' (it stays on your machine)"
    )
    return 0


def wait_for_run(training: subprocess.Popen[bytes], before: set[Path]) -> Path | None:
    """The new run's directory, once its journal is there: torch and MONAI take seconds to load."""
    say("Loading MONAI and the volumes ...")
    while training.poll() is None:
        new = [path for path in RUNS.glob("*") if path not in before and any(path.glob("*.rows"))]
        if new:
            return new[0]
        time.sleep(0.2)
    return None


def print_progress(run: Path, training: subprocess.Popen[bytes]) -> None:
    """A line an epoch, from the journal alone."""
    from firetrace.tracer.run import open_run
    from firetrace.tui.format import duration
    from firetrace.tui.model.report import read_report

    shown, journal = 0, open_run(run).newest
    while training.poll() is None:
        now = read_report(journal)
        if now.progress.epoch > shown:
            shown = now.progress.epoch
            left = now.progress.eta_ns
            eta = "" if left is None else f", ETA {duration(left)}"
            say(f"epoch {shown} of {now.progress.max_epochs}, {now.steps} steps{eta}")
        time.sleep(0.5)


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
