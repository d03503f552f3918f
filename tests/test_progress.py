"""How far a run is, what bounds it, and what made a step slow: of trainings whose times we made."""

from __future__ import annotations

from pathlib import Path

import pytest

from firetrace.tracer.journal import Flag
from firetrace.tui.model.report import Report, report
from firetrace.tui.model.verdict import hanging
from tests.support.made import MS, MadeTraining, Plan, tree_at

S = 1000 * MS


def every_fifth(iteration: int) -> int:
    """A checkpoint of half a second at every 5th step."""
    return 500 * MS if iteration % 5 == 0 else 0


def look(training: MadeTraining, later: int = 0) -> Report:
    """The report at the moment that the training has come to, or later."""
    return report(tree_at(training.path, training.now + later))


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest) -> MadeTraining:
    """Steps of 100 ms, validations of 2 s, checkpoints; one that waits 10 ms a step for data."""
    return MadeTraining(tmp_path, Plan(handler=every_fifth, validation=2 * S))


def truth(training: MadeTraining, since: int) -> int:
    """How long it really went on."""
    training.finish()
    return training.now - since


@pytest.mark.parametrize(("epoch", "iteration"), [(3, 125), (2, 51), (3, 150), (9, 440)])
def test_the_eta_counts_what_comes_at_the_ends_of_epochs(
    made: MadeTraining, epoch: int, iteration: int
) -> None:
    """Steps, checkpoints and validations to come: within 2% of what it then takes."""
    now = made.until(epoch, iteration)
    found = look(made).progress
    assert found.eta_ns is not None
    assert not found.eta_is_least
    assert found.eta_ns == pytest.approx(truth(made, now), rel=0.02)


def test_the_eta_goes_down_while_nothing_ends(made: MadeTraining) -> None:
    """In the middle of a validation a second later is a second less to go."""
    made.until(3, 150)
    etas = [look(made, later).progress.eta_ns for later in (0, S, 2 * S)]
    assert etas[0] is not None
    assert etas == [etas[0], etas[0] - S, etas[0] - 2 * S]
    assert look(made, 10 * S).progress.eta_ns == etas[2]  # later than expected: not less than that
    made.writer.close()


def test_after_a_validation_the_eta_is_of_the_epochs_to_come(made: MadeTraining) -> None:
    """Between two epochs nothing of the old one is left."""
    made.until(3, 150)
    next(iter(made))
    now = made.now
    found = look(made).progress
    assert found.eta_ns == pytest.approx(truth(made, now), rel=0.02)


def test_the_first_epoch_has_a_least_eta(made: MadeTraining) -> None:
    """What comes at its end is not known, so the figure is of the steps alone."""
    now = made.until(1, 25)
    found = look(made).progress
    assert found.eta_is_least
    left = truth(made, now)
    assert found.eta_ns == pytest.approx(left - 10 * 2 * S, rel=0.02)


def test_the_eta_without_waiting(tmp_path: Path) -> None:
    """As if each step to come took what it does without its wait for data."""
    slow, quick = (
        MadeTraining(tmp_path, Plan(get_batch=wait, validation=2 * S), name)
        for wait, name in ((60 * MS, "rank0.1"), (0, "rank1.1"))
    )
    now, then = slow.until(3, 125), quick.until(3, 125)
    found = look(slow)
    assert found.progress.eta_without_wait_ns == pytest.approx(truth(quick, then), rel=0.02)
    assert found.what_if.startswith("without the wait 90")
    slow.writer.close()
    assert now > then


def test_a_loader_that_starts_slowly_is_not_waited_for_again(tmp_path: Path) -> None:
    """Its seconds before the first step are no reason to expect steps of less than no time."""
    training = MadeTraining(tmp_path, Plan(loader=5 * S))
    training.until(1, 3)
    found = look(training)
    assert "-" not in found.what_if
    assert found.progress.eta_ns is not None
    assert found.progress.eta_without_wait_ns is not None
    assert found.progress.eta_without_wait_ns == pytest.approx(0.9 * found.progress.eta_ns, rel=0.1)
    training.writer.close()


def test_a_loader_that_started_slowly_is_no_part_of_epochs_to_come(tmp_path: Path) -> None:
    """The workers start once before the first step; the ETA does not expect that each epoch."""
    training = MadeTraining(tmp_path, Plan(loader=20 * S, validation=2 * S))
    now = training.until(2, 75)
    found = look(training)
    assert found.epoch_times[0].loading_ns == 20 * S
    assert found.progress.eta_ns == pytest.approx(truth(training, now), rel=0.02)


def test_how_far_a_run_is(made: MadeTraining) -> None:
    """Epoch, iteration, share and speed; and of a run that is over all of it."""
    made.until(3, 125)
    found = look(made)
    assert (found.progress.epoch, found.progress.iteration) == (3, 125)
    assert (found.progress.max_epochs, found.progress.epoch_length) == (10, 50)
    assert found.progress.fraction == 0.25
    seconds = (made.ends[3, 125] - made.ends[1, 1]) / S
    assert found.progress.steps_per_second == pytest.approx(124 / seconds)
    assert (found.state, found.steps, found.epochs) == ("running", 125, 3)
    assert found.duration_ns == made.now - made.begin
    made.finish()
    found = look(made)
    assert (found.state, found.steps, found.epochs) == ("finished", 500, 10)
    assert (found.progress.fraction, found.progress.eta_ns) == (1.0, None)
    assert found.duration_ns == made.now - made.begin


def test_rates_are_of_equal_times_up_to_now(tmp_path: Path) -> None:
    """Steady steps give a steady rate; a pause shows as zeros at the end."""
    training = MadeTraining(tmp_path, Plan(epochs=1, steps=1000))
    training.until(1, 1000)
    rates = look(training).progress.rates
    assert 10 < len(rates) <= 40
    assert rates == pytest.approx([10.0] * len(rates), rel=0.08)
    paused = look(training, 30 * S).progress.rates
    assert set(paused[-19:]) == {0.0}
    assert paused[0] == pytest.approx(10.0, rel=0.08)
    training.writer.close()


PLANS = {
    "DATA-BOUND": Plan(epochs=2, get_batch=200 * MS),
    "COMPUTE-BOUND": Plan(epochs=2),
    "HANDLER-BOUND": Plan(epochs=2, handler=300 * MS),
    "VALIDATION-BOUND": Plan(epochs=2, validation=20 * S),
    "BALANCED": Plan(
        epochs=2, get_batch=50 * MS, forward=25 * MS, backward=25 * MS,
        handler=50 * MS, validation=2500 * MS,
    ),
}  # fmt: skip
FIGURES = {
    "DATA-BOUND": ("waiting for data is 69% of the run", "get_batch is 69% of a step"),
    "COMPUTE-BOUND": ("process function is 90% of the run", "forward alone 50%"),
    "HANDLER-BOUND": ("handlers are 75% of the run, save 75%",),
    "VALIDATION-BOUND": ("Evaluator is 80% of the run",),
    "BALANCED": ("nothing dominates", "25% of the run"),
}


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize("word", PLANS)
def test_the_verdict_names_what_takes_longest(tmp_path: Path, word: str, over: bool) -> None:
    """With its share of the run, of a run that is over and of one whose last epoch has ended."""
    training = MadeTraining(tmp_path, PLANS[word])
    if over:
        training.finish()
    else:
        training.until(2, 100)
        next(iter(training))
    said = look(training).verdict
    assert said.startswith(word + ": ")
    for figure in FIGURES[word]:
        assert figure in said
    training.writer.close()


def test_a_validation_counts_while_it_goes_on(tmp_path: Path) -> None:
    """The open part of it is part of the run's time already."""
    training = MadeTraining(tmp_path, Plan(epochs=1))
    end = training.until(1, 50)
    event = training.opened(129, "event", "EPOCH_COMPLETED", 1, 50)
    handler = training.opened(event, "handler", "validate", 1, 50)
    lane = training.writer.lane("Evaluator", 2)
    training.opened(handler, "run", "run", 0, 0, lane)
    said = report(tree_at(training.path, end + 45 * S)).verdict
    assert "VALIDATION-BOUND: Evaluator is 90% of the run" in said
    training.writer.close()


def test_without_a_step_there_is_no_verdict(tmp_path: Path) -> None:
    """Nothing can be said of a run that has just begun."""
    training = MadeTraining(tmp_path, Plan())
    training.opened(0, "run", "run", 0, 0)
    found = look(training, S)
    assert found.verdict == "no step has been completed yet"
    assert (found.state, found.steps, found.slowest_steps) == ("running", 0, ())
    training.writer.close()


@pytest.mark.parametrize(
    ("factor", "words"), [(2.0, "slower than the run's, forward +100%"), (1.05, ""),
                          (0.2, "faster than the run's, forward -80%")],
)  # fmt: skip
def test_steps_that_drift_are_told_with_the_phase(
    tmp_path: Path, factor: float, words: str
) -> None:
    """The last steps against the run's, and which phase it is; a little is nothing."""

    def forward(iteration: int) -> int:
        return round(50 * MS * (factor if iteration > 900 else 1))

    training = MadeTraining(tmp_path, Plan(epochs=2, steps=600, forward=forward)).finish()
    drift = look(training).drift
    assert words in drift
    assert bool(drift) == bool(words)


def test_what_hangs_is_the_innermost_that_is_usually_quicker(tmp_path: Path) -> None:
    """A phase that is open for far longer than any before is named, not the step around it."""
    training = MadeTraining(tmp_path, Plan())
    training.until(1, 20)
    step = training.opened(129, "step", "step", 1, 21)
    iteration = training.opened(step, "iteration", "iteration", 1, 21)
    training.opened(iteration, "phase", "forward", 1, 21)
    for later, words in ((S, ""), (9 * S, ""), (60 * S, "hangs for 1m")):
        found = look(training, later)
        said = hanging(found.incomplete, training.now + later)
        assert said.startswith(words)
        assert bool(said) == bool(words)
        assert ("in forward of Trainer's iteration 21; p99 50" in said) == bool(words)
    training.writer.close()


def test_what_was_never_seen_before_does_not_hang(tmp_path: Path) -> None:
    """A first validation may take its time; of what is around it the innermost known one tells."""
    training = MadeTraining(tmp_path, Plan())
    training.until(1, 50)
    event = training.opened(129, "event", "EPOCH_COMPLETED", 1, 50)
    training.opened(event, "handler", "never seen", 1, 50)
    assert hanging(look(training, 900 * S).incomplete, training.now + 900 * S) == ""
    training.writer.close()


def test_a_slow_step_is_told_with_what_made_it_slow(tmp_path: Path) -> None:
    """The part that took longer than usual, and by how much; what always takes long is not it."""
    slow = {17: 300, 44: 200, 61: 100}

    def backward(iteration: int) -> int:
        return (40 + slow.get(iteration, 0)) * MS

    plan = Plan(epochs=2, backward=backward, handler=lambda i: 400 * MS if i == 71 else 0)
    found = look(MadeTraining(tmp_path, plan).finish()).slowest_steps
    assert [step.iteration for step in found[:4]] == [71, 17, 44, 61]
    assert found[0].because == (("save", 400 * MS),)
    assert found[0].epoch == 2
    for step in found[1:4]:
        assert step.because == (("backward", slow[step.iteration] * MS),)
        assert step.largest[0] == ("backward", backward(step.iteration))
        assert step.duration_ns == (100 + slow[step.iteration]) * MS
    assert all(step.because == () for step in found[4:])
    assert len(found) == 10


def test_time_that_is_in_no_part_is_told_as_other(tmp_path: Path) -> None:
    """A step that is slow outside of all of its phases."""
    training = MadeTraining(tmp_path, Plan(epochs=1))
    training.until(1, 30)
    step = training.opened(129, "step", "step", 1, 31)
    training.now += 700 * MS
    training.ended(step)
    (slowest, *_) = look(training).slowest_steps
    assert slowest.number == step
    assert slowest.because == (("other", 700 * MS),)
    training.writer.close()


@pytest.mark.parametrize("flag", [Flag.SKIPPED, Flag.CUT, Flag.ERROR])
def test_steps_that_all_end_unusually_are_no_error(tmp_path: Path, flag: Flag) -> None:
    """Where no step came to its own end there is no usual one to compare with."""
    plan = Plan(epochs=1, steps=20, flags=int(flag))
    found = look(MadeTraining(tmp_path, plan).finish())
    assert found.steps == 20
    assert (found.step is None) == (flag != Flag.ERROR)
