import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PipelineError
from common.triton_addresses import parse, socket_address, socket_path
from serving.client import addresses

hosts = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
parts = st.builds("{}{}:{}".format, st.sampled_from(["", "dns:///"]), hosts, st.integers(min_value=1, max_value=65_535))


@given(st.lists(parts, min_size=1, max_size=5))
def test_addresses_are_read_as_they_were_written(given_parts: list[str]) -> None:
    assert parse(", ".join(given_parts)) == list(dict.fromkeys(given_parts))


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60))
def test_the_path_of_a_socket_may_have_any_characters(name: str) -> None:
    path = Path("/somewhere") / name.replace("/", ",")
    written = socket_address(path)
    assert parse(f"a:1,{written}") == ["a:1", written]
    assert socket_path(written) == path


@given(st.text(max_size=30))
def test_whatever_else_is_written_is_told_as_wrong(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert all(0 < int(part.rpartition(":")[2]) < 65_536 for part in parse(text))


@pytest.mark.parametrize(
    "wrong",
    ["", "triton", "triton:", ":8001", "triton:0", "triton:65536", "http://triton:8001", "a:1,,b:2", "::1:8001"],
)
def test_what_is_no_address_is_told(wrong: str) -> None:
    with pytest.raises(ValueError, match="is no address of a Triton"):
        parse(wrong)


def test_a_name_stands_for_all_its_addresses() -> None:
    own = sorted({str(found[4][0]) for found in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)})
    expected = [f"[{address}]:8001" if ":" in address else f"{address}:8001" for address in own]
    assert addresses.find("dns:///localhost:8001") == expected
    assert addresses.find("far-away:7001, dns:///localhost:8001") == ["far-away:7001", *expected]
    assert not addresses.is_fixed("far-away:7001,dns:///localhost:8001")
    assert addresses.is_fixed("localhost:7001,localhost:8001")


def test_a_name_that_has_no_address_is_told() -> None:
    with pytest.raises(PipelineError, match=r"The name nowhere\.invalid of Triton's addresses cannot be resolved"):
        addresses.find("dns:///nowhere.invalid:8001")
