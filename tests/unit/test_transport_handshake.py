"""Neither side believes the other without a proof made for this very handshake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.transport.errors import HandshakeError, NotShoal, VersionMismatch, WrongToken
from shoal._core.transport.handshake import UNPROVED_LIMIT_BYTES, Handshake

TOKEN = b"t" * 32


def pair(client_token: bytes = TOKEN, server_token: bytes = TOKEN, **kwargs: int) -> tuple[Handshake, Handshake]:
    return Handshake("client", client_token, **kwargs), Handshake("server", server_token, **kwargs)  # type: ignore[arg-type]


def test_both_prove_and_pass_on_what_follows() -> None:
    client, server = pair()
    proof = client.receive(server.receive(client.start()))
    assert client.done
    assert not server.done
    assert server.receive(proof + b"first frame") == b""
    assert server.done
    assert server.rest == b"first frame"
    server.receive(b" and more")
    assert server.rest == b"first frame and more"


@given(st.lists(st.integers(1, 20), max_size=40))
def test_any_split_works(sizes: list[int]) -> None:
    client, server = pair()
    to_server, to_client = client.start(), b""
    rounds = iter([*sizes, *[1000] * 10])
    for size in rounds:
        to_client += server.receive(to_server[:size])
        to_server = to_server[size:]
        to_server += client.receive(to_client[:size])
        to_client = to_client[size:]
    assert client.done
    assert server.done


def test_client_refuses_a_server_without_the_token() -> None:
    client, server = pair(server_token=b"s" * 32)
    with pytest.raises(WrongToken, match="server at the other side does not hold this cluster's token"):
        client.receive(server.receive(client.start()))
    assert not client.done


def test_server_refuses_a_client_without_the_token() -> None:
    client, server = pair(client_token=b"s" * 32)
    server.receive(client.start())
    with pytest.raises(WrongToken, match="client"):
        server.receive(b"\0" * 32)
    assert not server.done


def test_reflection_proves_nothing() -> None:
    """An attacker sends the server its own hello and its own proof."""
    server = Handshake("server", TOKEN, nonce=b"n" * 32)
    answer = server.receive(Handshake("client", b"?" * 32, nonce=b"n" * 32).start())
    assert answer[:42] == Handshake("client", TOKEN, nonce=b"n" * 32).start()  # the hellos are alike: only the keys differ
    with pytest.raises(WrongToken):
        server.receive(answer[42:])


def test_proof_of_one_server_does_not_serve_another_client() -> None:
    server = Handshake("server", TOKEN)
    recorded = server.receive(Handshake("client", TOKEN).start())
    victim = Handshake("client", TOKEN)
    victim.start()
    with pytest.raises(WrongToken):
        victim.receive(recorded)


def test_replayed_client_is_refused() -> None:
    client, server = pair()
    hello = client.start()
    proof = client.receive(server.receive(hello))
    again = Handshake("server", TOKEN)
    again.receive(hello)
    with pytest.raises(WrongToken):
        again.receive(proof)


def test_nonces_are_fresh() -> None:
    assert len({Handshake("client", TOKEN).start() for _ in range(100)}) == 100


def test_version_mismatch_is_told_to_both() -> None:
    client = Handshake("client", TOKEN, version=2)
    server = Handshake("server", TOKEN, version=1)
    with pytest.raises(VersionMismatch, match=r"speaks protocol version 1, the other side version 2\. Use the same release"):
        server.receive(client.start())
    assert server.farewell
    with pytest.raises(VersionMismatch, match="speaks protocol version 2, the other side version 1"):
        client.receive(server.farewell)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x80\x04\x95", b"s\0", b"SSH-2.0"])
def test_strangers_are_refused_at_the_first_wrong_byte(data: bytes) -> None:
    for role in ("client", "server"):
        with pytest.raises(NotShoal, match="does not speak shoal's protocol"):
            Handshake(role, TOKEN).receive(data)  # type: ignore[arg-type]


def test_truncated_hello_is_not_answered() -> None:
    server = Handshake("server", TOKEN)
    assert server.receive(Handshake("client", TOKEN).start()[:41]) == b""
    assert not server.done


def test_talking_out_of_turn_is_refused() -> None:
    server = Handshake("server", TOKEN)
    with pytest.raises(HandshakeError, match="out of turn"):
        server.receive(Handshake("client", TOKEN).start() + b"x" * UNPROVED_LIMIT_BYTES)


@given(st.binary(max_size=200), st.integers(0, 73))
def test_nothing_but_the_right_bytes_gets_through(noise: bytes, keep: int) -> None:
    client, server = pair()
    answer = server.receive(client.start())
    forged = answer[:keep] + noise
    if forged[:74] == answer:
        return
    try:
        client.receive(forged)
    except HandshakeError:
        pass
    assert not client.done
