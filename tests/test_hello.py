"""The first message of a client with a secret, as the supervisor sees it: strangers', changed, recorded, half ones."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from worker_harness import SCHEMA, Worker, eventually, opening, read_welcome

from tensor_fusion.worker import hello
from tensor_fusion.worker.admission import GUESSES, Admission, NotYet, Refused
from tensor_fusion.worker.keys import AuthorizedKeys
from tensor_fusion.worker.protocol import GREETING_BYTES, SECRET_BYTES, SECRET_OFFSET, Greeting, Role, Status

SECRET, OTHER = b"sesame", b"poppy"


def greeting(secret: str = "", **fields: object) -> bytes:
    return Greeting.build(SCHEMA, secret=secret, **fields)  # type: ignore[arg-type]


def proven(raw: bytes, secret: bytes = SECRET) -> bool:
    """Whether a supervisor would let its sender in."""
    try:
        found = hello.parse(raw)
    except hello.BadHello:
        return False
    return found.key_id == hello.key_id(secret) and found.is_by(secret)


# The message


def test_a_hello_is_by_whoever_knows_the_secret() -> None:
    raw = hello.build(SECRET, greeting(program="train.py"))
    found = hello.parse(raw)
    assert proven(raw) and not proven(raw, OTHER) and not found.is_by(OTHER)
    assert found.identity[:SECRET_OFFSET] == greeting(program="train.py")[:SECRET_OFFSET]
    assert (
        found.identity[SECRET_OFFSET + SECRET_BYTES :] == greeting(program="train.py")[SECRET_OFFSET + SECRET_BYTES :]
    )
    assert SECRET not in raw
    other = hello.parse(hello.build(SECRET, greeting()))
    assert other.key_id == found.key_id and other.nonce != found.nonce
    assert hello.derive_psk(SECRET, other.identity) != hello.derive_psk(SECRET, found.identity)


def test_the_key_schedule_gives_what_others_give() -> None:
    """RFC 5869's first case of HKDF, as far as it has SHA-256 and one block; and the id is an HMAC."""
    prk = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    first = bytes.fromhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
    assert hello._expand(prk, bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")) == first
    assert hello.key_id(b"x") == hello.key_id(b"x".ljust(SECRET_BYTES, b"\0")) != hello.key_id(b"y")


def test_a_hello_that_is_cut_is_none() -> None:
    raw = hello.build(SECRET, greeting())
    for size in range(len(raw)):
        with pytest.raises(hello.BadHello):
            hello.parse(raw[:size])
    with pytest.raises(hello.BadHello):
        hello.parse(raw + b"\0")


def test_every_bit_counts() -> None:
    raw = hello.build(SECRET, greeting())
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            # The lower byte of the record's version says nothing, and nobody looks at it (RFC 8446, 5.1).
            assert proven(bytes(changed)) is (place == 2), (place, bit)


def test_whatever_comes_is_a_hello_or_none() -> None:
    """Nothing else than BadHello comes out of it."""
    random = Random(11)
    raw = hello.build(SECRET, greeting())
    for _ in range(20000):
        changed = bytearray(raw)
        for _ in range(random.randrange(1, 5)):
            at = random.randrange(len(changed))
            kind = random.randrange(4)
            if kind == 0:
                changed[at] = random.choice([0, 1, 0x7F, 0xFF, random.randrange(256)])
            elif kind == 1:
                del changed[at : at + random.randrange(1, 40)]
            elif kind == 2:
                changed[at:at] = random.randbytes(random.randrange(1, 40))
            else:
                changed[at : at + 2] = random.choice([2, 255, 4096, 65535]).to_bytes(2, "big")
            if not changed:
                changed = bytearray(raw)
        if random.randrange(2):  # with sizes that fit, so that more than the head is looked at
            changed[3:5] = (len(changed) - 5 & 0xFFFF).to_bytes(2, "big")
            changed[6:9] = (max(len(changed) - 9, 0)).to_bytes(3, "big")
        if bytes(changed[:2] + changed[3:]) != raw[:2] + raw[3:]:
            assert not proven(bytes(changed))


@pytest.mark.parametrize("size", [hello.HELLO_BYTES - hello.HEAD_BYTES + 1, 65535])
def test_a_long_hello_is_refused_by_its_head(size: int) -> None:
    with pytest.raises(hello.BadHello, match="more than 2048"):
        hello.wanted(b"\x16\x03\x01" + size.to_bytes(2, "big"))


def test_nonces_are_remembered_and_bounded() -> None:
    nonces = hello.Nonces(3)
    assert [nonces.is_new(bytes([n])) for n in (1, 2, 1, 3, 2)] == [True, True, False, True, False]
    assert nonces.is_new(b"\4") and nonces.is_new(b"\1")  # the first of them was forgotten for the fourth
    assert not nonces.is_new(b"\3")


# The worker, whose stand-in session proves that the right key came along


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_bytes(SECRET + b"\n" + OTHER + b"\n")
    keys.chmod(0o600)
    with Worker(TF_ENABLE_URL_AUTH="1", TF_AUTHORIZED_KEY_PATH=str(keys)) as running:
        yield running


def says(worker: Worker, raw: bytes) -> tuple[Status, str]:
    """A refusal, in plain, with nothing behind it."""
    with worker.connect() as connection:
        connection.sendall(raw)
        welcome = read_welcome(connection)
        assert connection.recv(1) == b""
    return Status(welcome.status), welcome.sentence


def test_a_secret_lets_in(worker: Worker) -> None:
    for secret in (SECRET, OTHER):
        client = worker.client(secret=secret.decode())
        assert secret.hex() not in client.ask("greeting")
        client.close()
    assert says(worker, hello.build(SECRET, greeting(role=Role.PROBE)))[0] == Status.PROBED


def test_who_does_not_know_a_secret_is_refused(worker: Worker) -> None:
    status, sentence = says(worker, hello.build(b"guess", greeting()))
    assert status == Status.SECRET_REFUSED and "The secret was refused" in sentence
    # The id of a secret is on the network for everybody; it lets nobody in.
    raw = bytearray(hello.build(b"guess", greeting()))
    at = raw.index(hello.key_id(b"guess"))
    raw[at : at + hello.ID_BYTES] = hello.key_id(SECRET)
    assert says(worker, bytes(raw)) == (status, sentence)


def test_a_recorded_hello_is_refused(worker: Worker) -> None:
    raw, psk = opening(greeting(secret="sesame"))
    with worker.connect() as connection:
        connection.sendall(raw)
        assert read_welcome(connection, psk).status == Status.ACCEPTED
        status, sentence = says(worker, raw)
        assert status == Status.SECRET_REFUSED and "used before" in sentence
    assert says(worker, raw) == (status, sentence)


@pytest.mark.parametrize("secret", ["", "sesame", "guess"])
def test_plain_text_is_refused(worker: Worker, secret: str) -> None:
    status, sentence = says(worker, greeting(secret=secret))
    assert status == Status.SECRET_REFUSED
    assert ("sent its secret as plain text" if secret else "fifth field of the connection string") in sentence
    assert "guess" not in sentence and "sesame" not in sentence


def test_a_session_s_data_are_for_its_secret(worker: Worker) -> None:
    """The session's key is to be read in its client's hello: another tenant's secret does not go with it."""
    client = worker.client(secret="sesame")
    for secret, plain in (("poppy", False), ("guess", False), ("", True), ("sesame", True)):
        raw = worker.data_greeting(client, 0, secret=secret)
        assert says(worker, raw if plain else opening(raw)[0])[0] == Status.SECRET_REFUSED
    connection, welcome = worker.exchange(worker.data_greeting(client, 0, secret="sesame"))
    assert welcome.status == Status.ACCEPTED and client.ask("data") == "0"
    connection.close()
    client.close()


def test_guesses_of_a_neighbour_stop_no_data(tmp_path: Path) -> None:
    """They come from the same address, and as many as it may make."""
    (tmp_path / "keys").write_bytes(SECRET)
    session = SimpleNamespace(secret=SECRET.ljust(SECRET_BYTES, b"\0"))
    settings: Any = SimpleNamespace(keys=AuthorizedKeys(tmp_path / "keys"))
    sessions: Any = SimpleNamespace(find=lambda number, key: session if (number, key) == (3, 4) else None)
    admission = Admission(settings, SCHEMA, sessions)
    wrong = greeting(role=Role.PROBE)

    def checked(secret: bytes, content: bytes) -> Greeting:
        raw = hello.build(secret, content)
        return admission.check(raw, "here", network=True, hello=admission.hello(raw))

    for _ in range(GUESSES):
        with pytest.raises(Refused):
            checked(OTHER, wrong)
    with pytest.raises(NotYet, match="too many wrong secrets"):
        checked(OTHER, wrong)
    data = greeting(role=Role.DATA, session_id=3, session_key=4)
    assert checked(SECRET, data).secret == session.secret
    with pytest.raises(NotYet):
        checked(OTHER, data)


def test_the_data_of_a_session_whose_secret_was_taken_away(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\nnew\n")
    with Worker(TF_ENABLE_URL_AUTH="1", TF_AUTHORIZED_KEY_PATH=str(keys)) as worker:
        client = worker.client(secret="old")
        keys.write_text("new\n")
        assert says(worker, hello.build(b"old", greeting()))[0] == Status.SECRET_REFUSED
        worker.exchange(worker.data_greeting(client, 1, secret="old"))[0].close()
        assert client.ask("data") == "1"
        client.close()


def test_a_worker_without_secrets_says_so() -> None:
    with Worker() as worker:
        status, sentence = says(worker, hello.build(SECRET, greeting()))
        assert status == Status.SECRET_REFUSED and "This worker has no secrets" in sentence
        worker.client().close()


def test_a_hello_may_come_in_pieces(worker: Worker) -> None:
    for pause in (3, 5, 60, 256, 300):
        raw, psk = opening(greeting(secret="sesame"))
        with worker.connect() as connection:
            for at in range(0, len(raw), pause):
                connection.sendall(raw[at : at + pause])
                time.sleep(0.002)
            assert read_welcome(connection, psk).status == Status.ACCEPTED, pause


def test_half_a_hello_costs_the_worker_nothing(worker: Worker) -> None:
    """It waits for the rest without looking again and again, for as long as a greeting may take."""
    import psutil

    raw, _ = opening(greeting(secret="sesame"))
    connections = [worker.connect() for _ in range(20)]
    for number, connection in enumerate(connections):
        connection.sendall(raw[: 1 + number * 20])
    time.sleep(0.2)
    before = psutil.Process(worker.process.pid).cpu_times()
    time.sleep(1)
    after = psutil.Process(worker.process.pid).cpu_times()
    assert after.user + after.system - before.user - before.system < 0.2
    for connection in connections:
        assert read_welcome(connection).status == Status.NOT_A_GREETING
        assert connection.recv(1) == b""
        connection.close()


GOOD = hello.build(SECRET, greeting())
BAD = {
    "a long record": b"\x16\x03\x01\xff\xff",
    "zeros": b"\x16\x03\x01\x08\x00" + bytes(2048),
    "HTTP": b"\x16GET / HTTP/1.1\r\n\r\n",
    "an empty record": b"\x16\x03\x01\x00\x00",
    "an empty hello": b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    "another message": b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
    "another binder": GOOD[:-1] + bytes([GOOD[-1] ^ 1]),
    "no greeting": hello.build(SECRET, bytes(GREETING_BYTES)),
    "another version": hello.build(SECRET, greeting(version=7)),
    "another role": hello.build(SECRET, greeting(role=9)),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_hello_is_refused_with_a_sentence(worker: Worker, what: str) -> None:
    status, sentence = says(worker, BAD[what])
    assert status not in (Status.ACCEPTED, Status.PROBED) and sentence


def test_another_client_of_tls_is_told_in_plain(worker: Worker) -> None:
    context = ssl.create_default_context()
    with worker.connect() as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection, server_hostname="worker")
    assert says(worker, other_hello(context))[0] == Status.NOT_A_GREETING


def other_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname="worker")
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def test_hellos_that_are_reset_are_survived(worker: Worker) -> None:
    for size in (1, 5, 100, 426):
        connection = worker.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.send(opening(greeting(secret="sesame"))[0][:size])
        connection.close()
    assert eventually(lambda: worker.client(secret="sesame").ask("row") != "")
