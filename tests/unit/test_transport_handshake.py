"""Neither side believes the other without a proof made for this very handshake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal._core.transport.errors import HandshakeError, NotShoal, VersionMismatch, WrongToken
from shoal._core.transport.handshake import UNPROVED_LIMIT_BYTES, Handshake
from shoal._core.transport.trust import Tokens

TOKENS = Tokens(b"t" * 32)
STRANGER = Tokens(b"s" * 32)
#: Bytes of a hello, and of a hello with a proof behind it.
HELLO, ANSWER = 58, 90


def pair(client: Tokens = TOKENS, server: Tokens = TOKENS, seen: tuple[bytes, bytes] = (b"", b"")) -> tuple[Handshake, Handshake]:
    return Handshake("client", client, seen[0]), Handshake("server", server, seen[1])


def agree(client: Handshake, server: Handshake) -> None:
    server.receive(client.receive(server.receive(client.start())))
    assert client.done
    assert server.done


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


def test_a_server_proves_nothing_to_a_client_without_the_token() -> None:
    client, server = pair(client=STRANGER)
    with pytest.raises(WrongToken, match="client at the other side does not hold this cluster's token"):
        server.receive(client.start())
    assert not server.done
    assert len(server.farewell) == HELLO
    with pytest.raises(WrongToken, match="server at the other side does not hold this cluster's token"):
        client.receive(server.farewell)
    assert not client.done


def test_a_client_refuses_a_server_that_only_names_the_token() -> None:
    client, server = pair()
    hello = server.receive(client.start())[:HELLO]
    with pytest.raises(WrongToken, match="server at the other side"):
        client.receive(hello + b"\0" * 32)
    assert not client.done


def test_a_server_refuses_a_client_that_only_names_the_token() -> None:
    client, server = pair()
    server.receive(client.start())
    with pytest.raises(WrongToken, match="client"):
        server.receive(b"\0" * 32)
    assert not server.done


NEW, OLD, OLDER = b"n" * 32, b"o" * 32, b"p" * 32


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Tokens(NEW), Tokens(NEW, OLD)),
        (Tokens(OLD), Tokens(NEW, OLD)),
        (Tokens(NEW, OLD), Tokens(NEW, OLD)),
        (Tokens(OLD, OLDER), Tokens(NEW, OLD)),
    ],
)
def test_those_who_share_one_token_find_it(one: Tokens, other: Tokens) -> None:
    agree(*pair(one, other))
    agree(*pair(other, one))


@pytest.mark.parametrize("late", [Tokens(OLDER), Tokens(OLDER, b"q" * 32), STRANGER])
def test_a_token_before_the_previous_one_is_not_accepted(late: Tokens) -> None:
    client, server = pair(late, Tokens(NEW, OLD))
    with pytest.raises(WrongToken):
        server.receive(client.start())


def test_tokens_are_not_recognized_in_hellos() -> None:
    """Two hellos of one process have nothing in common that tells that their tokens are the same."""
    hellos = [Handshake("client", Tokens(NEW, OLD)).start() for _ in range(2)]
    names = [hello[42 + start :][:8] for hello in hellos for start in (0, 8)]
    assert len(set(names)) == 4
    assert not any(token in hello for hello in hellos for token in (NEW, OLD))


def test_what_the_two_sides_see_must_be_the_same() -> None:
    agree(*pair(seen=(b"certificate", b"certificate")))
    client, server = pair(seen=(b"certificate of a man in the middle", b"certificate"))
    with pytest.raises(WrongToken, match="somebody between the two"):
        client.receive(server.receive(client.start()))


def test_reflection_proves_nothing() -> None:
    """An attacker sends the server its own hello and its own proof."""
    server = Handshake("server", TOKENS, nonce=b"n" * 32)
    hello = Handshake("client", TOKENS, nonce=b"n" * 32).start()
    answer = server.receive(hello)
    assert answer[:HELLO] == hello  # the hellos are alike: only the keys differ
    with pytest.raises(WrongToken):
        server.receive(answer[HELLO:])


def test_proof_of_one_server_does_not_serve_another_client() -> None:
    server = Handshake("server", TOKENS)
    recorded = server.receive(Handshake("client", TOKENS).start())
    victim = Handshake("client", TOKENS)
    victim.start()
    with pytest.raises(WrongToken):
        victim.receive(recorded)


def test_replayed_client_is_refused() -> None:
    client, server = pair()
    hello = client.start()
    proof = client.receive(server.receive(hello))
    again = Handshake("server", TOKENS)
    again.receive(hello)
    with pytest.raises(WrongToken):
        again.receive(proof)


def test_nonces_are_fresh() -> None:
    assert len({Handshake("client", TOKENS).start() for _ in range(100)}) == 100


def test_version_mismatch_is_told_to_both() -> None:
    client = Handshake("client", TOKENS, version=2)
    server = Handshake("server", TOKENS, version=1)
    with pytest.raises(VersionMismatch, match=r"speaks protocol version 1, the other side version 2\. Use the same release"):
        server.receive(client.start())
    assert server.farewell
    with pytest.raises(VersionMismatch, match="speaks protocol version 2, the other side version 1"):
        client.receive(server.farewell)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x80\x04\x95", b"s\0", b"SSH-2.0"])
def test_strangers_are_refused_at_the_first_wrong_byte(data: bytes) -> None:
    for role in ("client", "server"):
        with pytest.raises(NotShoal, match="does not speak shoal's protocol"):
            Handshake(role, TOKENS).receive(data)  # type: ignore[arg-type]


def test_truncated_hello_is_not_answered() -> None:
    server = Handshake("server", TOKENS)
    assert server.receive(Handshake("client", TOKENS).start()[:57]) == b""
    assert not server.done


def test_talking_out_of_turn_is_refused() -> None:
    server = Handshake("server", TOKENS)
    with pytest.raises(HandshakeError, match="out of turn"):
        server.receive(Handshake("client", TOKENS).start() + b"x" * UNPROVED_LIMIT_BYTES)


@given(st.binary(max_size=200), st.integers(0, ANSWER - 1))
def test_nothing_but_the_right_bytes_gets_through(noise: bytes, keep: int) -> None:
    client, server = pair()
    answer = server.receive(client.start())
    forged = answer[:keep] + noise
    if forged[:ANSWER] == answer:
        return
    try:
        client.receive(forged)
    except HandshakeError:
        pass
    assert not client.done
