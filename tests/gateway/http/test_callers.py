"""Who counts as one caller."""

import pytest

from gateway.http.callers import caller_of


@pytest.mark.parametrize(
    ("addresses", "caller"),
    [
        (["127.0.0.1", "127.0.0.2", "127.255.0.9", "::1", "::ffff:127.0.0.3"], "address this machine"),
        (["10.0.0.1", "::ffff:10.0.0.1"], "address 10.0.0.1"),
        (["2001:db8:1:2::1", "2001:db8:1:2:ffff::9"], "address 2001:db8:1:2::/64"),
        (["fe80::1%eth0", "fe80::2%eth1"], "address fe80::/64"),
        (["a unix socket"], "address a unix socket"),
    ],
)
def test_addresses_that_one_caller_may_have_many_of_are_one(addresses: list[str], caller: str) -> None:
    assert {caller_of({"client": (address, 1)}) for address in addresses} == {caller}


def test_a_key_is_a_caller_wherever_it_comes_from() -> None:
    states = [{"state": {"caller": "shop"}, "client": (address, 1)} for address in ("127.0.0.1", "10.0.0.1")]
    assert {caller_of(state) for state in states} == {"key shop"}
    assert caller_of({"state": {"caller": "anonymous"}, "client": None}) != caller_of(states[0])
