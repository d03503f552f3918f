"""A training whose phases take their time on a simulated GPU, which is some steps behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.device_exports import Training
from tests.support.launching import finish
from tests.support.simulated import SimulatedGpu


def main() -> None:
    """Train, and let the GPU come to the end."""
    training = Training(Path(os.environ["FIRETRACE_DIR"]) / "device", SimulatedGpu(label="cuda:0"))
    training.trainer.run()
    finish(training.handler, training.gpu)


if __name__ == "__main__":
    main()
