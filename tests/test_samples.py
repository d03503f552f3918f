"""The samples run as their README says, and their spans have the shape that it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from firetrace.tracer.run import open_run
from firetrace.tracer.table import read_table
from tests.conftest import SAMPLES
from tests.support.shape import assert_well_formed, outline, tree

STEP = """\
GET_BATCH_STARTED
get_batch
GET_BATCH_COMPLETED
iteration
  ITERATION_STARTED
  prepare_batch
  forward
  FORWARD_COMPLETED
  loss
  LOSS_COMPLETED
  backward
  BACKWARD_COMPLETED
  optimizer
  MODEL_COMPLETED
    Workflow._decollate_data
  output
  ITERATION_COMPLETED
    StatsHandler.iteration_completed"""

VALIDATION = """\
EPOCH_COMPLETED
  ValidationHandler
    run
      STARTED
      epoch
        EPOCH_STARTED
          MeanDice.started
        loader
        step
          GET_BATCH_STARTED
          get_batch
          GET_BATCH_COMPLETED
          iteration
            ITERATION_STARTED
            prepare_batch
            forward
            FORWARD_COMPLETED
            MODEL_COMPLETED
              Workflow._decollate_data
              Workflow._run_postprocessing
            ITERATION_COMPLETED
              MeanDice.iteration_completed"""


def test_the_bundle_s_span_tree(sample_run: Path) -> None:
    """The whole tree of the bundle's training: order, parents, containment."""
    table = read_table(sample_run)
    assert_well_formed(table)
    assert not len(table.open_positions())
    roots = tree(table)
    assert [name for name, _ in roots] == ["run"]
    children = roots[0][1]
    assert [name for name, _ in children] == ["STARTED", "epoch", "epoch", "COMPLETED"]
    first, second = (node for node in children if node[0] == "epoch")
    assert [name for name, _ in first[1]] == [
        "EPOCH_STARTED", "loader", "step", "step", "EPOCH_COMPLETED",
    ]  # fmt: skip
    assert [name for name, _ in second[1]] == [
        "EPOCH_STARTED", "step", "step", "EPOCH_COMPLETED",
    ]  # fmt: skip
    steps = [node for node in first[1] if node[0] == "step"]
    assert [outline(step[1]) for step in steps] == [STEP, STEP]
    # From the second epoch on the loader is restarted inside its first step.
    restart = "get_batch\nDATALOADER_STOP_ITERATION\nloader\nget_batch"
    again = [node for node in second[1] if node[0] == "step"]
    assert [outline(step[1]) for step in again] == [STEP.replace("get_batch", restart, 1), STEP]
    for epoch in (first, second):
        text = outline([epoch[1][-1]])
        assert text.startswith(VALIDATION), text
        assert "CheckpointSaver.metrics_completed" in text
    lanes = table.meta.lanes.values()
    assert [lane.engine for lane in lanes] == ["SupervisedTrainer", "SupervisedEvaluator"]
    assert {table.lane(i).engine for i in table.of_kind("run")[1:].tolist()} == {
        "SupervisedEvaluator"
    }


def test_the_ignite_sample(own_folders: Path) -> None:
    """Plain ignite with events of its own: a pair, a lone event, a checkpoint, a validation."""
    done = subprocess.run(
        [sys.executable, str(SAMPLES / "ignite_trainer.py"), "--epochs", "2", "--batches", "4"],
        env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation accuracy" in done.stdout
    (run,) = own_folders.iterdir()
    table = read_table(open_run(run).newest)
    assert_well_formed(table)
    text = outline(tree(table))
    assert "clip\n          CLIP_STARTED\n          CLIP_COMPLETED" in text
    assert "GRADIENTS_CLIPPED\n          main.remember_clipping" in text
    assert "main.validate\n        run" in text
    assert "COMPLETED\n            ModelCheckpoint" in text
    assert [lane.engine for lane in table.meta.lanes.values()] == ["trainer", "evaluator"]
    assert len(table.of_kind("step")) == 2 * (4 + 1)
