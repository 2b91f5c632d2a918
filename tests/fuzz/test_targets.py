"""Each fuzz target takes what the fuzzer begins with, what once made it fail, and some seconds of bytes by chance."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

ALL = [pytest.param(function, seeds, id=name) for name, (function, seeds) in TARGETS.items()]


@pytest.mark.parametrize(("function", "seeds"), ALL)
def test_what_the_fuzzer_begins_with(function: Target, seeds: list[bytes]) -> None:
    for seed in seeds:
        function(seed)


@pytest.mark.parametrize(("function", "seeds"), ALL)
@settings(max_examples=100, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_seeds_with_bytes_by_chance_in_them(function: Target, seeds: list[bytes], data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from([seed for seed in seeds if len(seed) < 5_000]))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, min(start + 5, len(seed))))
    function(seed[:start] + data.draw(st.binary(max_size=8)) + seed[end:])
