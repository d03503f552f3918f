"""The first promise, for programs that nobody thought of.

The same programs each time; ``FIRETRACE_EXAMPLES=5000`` makes that many new ones.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.plans import ATTACHING, PLAIN, Plan, plans
from tests.support.unchanged import WAYS, compare

EXAMPLES = int(os.environ.get("FIRETRACE_EXAMPLES", "0"))
generated = settings(
    max_examples=EXAMPLES or 250,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@generated
@given(plan=plans(), way=st.sampled_from(WAYS))
def test_programs(plan: Plan, way: str) -> None:
    """Whatever a program does, it does the same traced, and its tree is well formed."""
    compare(plan, way)


@generated
@given(plan=plans((*PLAIN, *ATTACHING)), way=st.sampled_from(WAYS))
def test_programs_that_are_traced_now_and_then(plan: Plan, way: str) -> None:
    """The same where tracing begins and ends in mid-run."""
    compare(plan, way)


THIN = [
    pytest.param({"every": 2}, id="every second step"),
    pytest.param({"every": 3}, id="every third step"),
    pytest.param({"max_bytes": 2**16}, id="a tiny budget"),
]  # fmt: skip


@pytest.mark.parametrize("how", THIN)
@generated
@given(plan=plans(), way=st.sampled_from(WAYS))
def test_programs_that_are_recorded_in_part(how: dict[str, Any], plan: Plan, way: str) -> None:
    """The same where steps are thinned out, or the disk budget is tiny."""
    compare(plan, way, **how)
