"""How many calls one client may have open."""

from __future__ import annotations

import pytest

from eastwest.errors import Overloaded, Phase
from router.clients import Clients, client_of


def test_a_client_has_so_many_calls_open_and_others_have_theirs() -> None:
    clients = Clients(2)
    with clients.stream("a"):
        with clients.stream("a"):
            with pytest.raises(Overloaded, match=r"a has 2 calls open; .*client_streams, 2") as e:
                clients.stream("a").__enter__()
            assert (e.value.phase, e.value.retry_after_s) == (Phase.ADMISSION, 1.0)
            with clients.stream("b"):
                pass
        with clients.stream("a"):
            pass


def test_a_call_that_fails_is_open_no_more() -> None:
    clients = Clients(1)
    for _ in range(3):
        with pytest.raises(KeyError), clients.stream("a"):
            raise KeyError


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:127.0.0.1:5555", "127.0.0.1"),
        ("ipv6:[::1]:5555", "::1"),
        ("ipv6:%5B2001:db8::1%5D:5555", "2001:db8::1"),
        ("unix:", "unix"),
        ("unix:/run/sock", "unix"),
        ("", ""),
    ],
)
def test_a_client_is_an_address_without_its_port(peer: str, client: str) -> None:
    assert client_of(peer) == client
