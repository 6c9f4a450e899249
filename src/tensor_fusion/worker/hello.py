"""The first message of a client that has a secret: a TLS 1.3 ClientHello whose pre-shared key is derived from it.

The supervisor speaks no TLS. It looks at this message only: whether it is whole, and whether whoever made it knows one
of the secrets, which its binder proves (RFC 8446, 4.2.11.2). Then the session speaks with the client. The identity of
the key is the greeting, in which the secret's place holds the secret's id, which is the same for all connections, and
a number that is never the same. docs/wire-format.md has all of it.

What is parsed here comes from strangers: every length is looked at before it is used, and what does not fit exactly is
refused.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict
from dataclasses import dataclass, field

from tensor_fusion.worker.protocol import GREETING_BYTES, SECRET_BYTES, SECRET_OFFSET

HANDSHAKE = b"\x16"  # the first byte of a hello; a greeting begins with another
HEAD_BYTES = 5
HELLO_BYTES = 2048
PSK_BYTES = 32
ID_BYTES = 8
NONCE_BYTES = 32
HASH_BYTES = 32
MOST_NONCES = 65536

_CLIENT_HELLO = 1
_TLS_1_2, _TLS_1_3 = 0x0303, 0x0304
_CIPHER = 0x1301  # TLS_AES_128_GCM_SHA256
_X25519 = 29
_GROUPS, _SIGNATURES, _PRE_SHARED_KEY, _EARLY_DATA, _VERSIONS, _EXCHANGES, _SHARES = 10, 13, 41, 42, 43, 45, 51
_WITH_EXCHANGE = 1  # psk_dhe_ke
_LABEL_ID = b"tensor-fusion key id"
_SALT = b"tensor-fusion psk"


class BadHello(Exception):
    """It is no hello of a client of ours; the sentence says where it went wrong."""


@dataclass(frozen=True)
class Hello:
    """A whole message. Nothing of it has been proven before `is_by` says so."""

    identity: bytes  # a greeting, with the id and the nonce in the secret's place
    binder: bytes = field(repr=False)
    bound: bytes = field(repr=False)  # what the binder covers

    @property
    def key_id(self) -> bytes:
        return self.identity[SECRET_OFFSET:][:ID_BYTES]

    @property
    def nonce(self) -> bytes:
        return self.identity[SECRET_OFFSET + ID_BYTES :][:NONCE_BYTES]

    def is_by(self, secret: bytes) -> bool:
        """Whether it was made by somebody who knows the secret. Takes the same time for every binder."""
        return hmac.compare_digest(self.binder, _binder(derive_psk(secret, self.identity), self.bound))


def key_id(secret: bytes) -> bytes:
    """What names the secret on the network. `secret` is padded with zeros, as everywhere here."""
    return hmac.digest(_padded(secret), _LABEL_ID, "sha256")[:ID_BYTES]


def derive_psk(secret: bytes, identity: bytes) -> bytes:
    """The key of one connection: HKDF-SHA256."""
    return _expand(hmac.digest(_SALT, _padded(secret), "sha256"), identity)


def wanted(start: bytes) -> int:
    """How many bytes a message has that begins so, head included. Raises BadHello."""
    if len(start) < HEAD_BYTES:
        return HEAD_BYTES
    if start[:1] != HANDSHAKE or start[1] != 3:
        raise BadHello("it begins with no record of TLS")
    size = HEAD_BYTES + int.from_bytes(start[3:5], "big")
    if size > HELLO_BYTES:
        raise BadHello(f"it has {size} bytes, more than {HELLO_BYTES}")
    return size


def parse(raw: bytes) -> Hello:
    """Exactly one record with exactly one ClientHello. Raises BadHello."""
    if len(raw) != wanted(raw) or len(raw) <= HEAD_BYTES:
        raise BadHello("it ends early")
    message = raw[HEAD_BYTES:]
    whole = _Reader(message)
    if whole.number(1) != _CLIENT_HELLO:
        raise BadHello("it is no ClientHello")
    hello = whole.part(3)
    whole.end()
    if hello.number(2) != _TLS_1_2:
        raise BadHello("its version is not that of TLS 1.3")
    hello.take(32)  # random
    if len(hello.part(1).rest()) > 32:
        raise BadHello("its session id is too long")
    if _CIPHER not in hello.part(2).numbers():
        raise BadHello("it does not offer TLS_AES_128_GCM_SHA256")
    if hello.part(1).rest() != b"\0":
        raise BadHello("it asks for compression")
    found = _extensions(hello.part(2))
    hello.end()
    if list(found)[-1:] != [_PRE_SHARED_KEY]:
        raise BadHello("it names no pre-shared key, or not at its end")
    if _EARLY_DATA in found:
        raise BadHello("it sends early data")
    for number, size, value, what in (
        (_VERSIONS, 1, _TLS_1_3, "TLS 1.3"),
        (_EXCHANGES, 1, _WITH_EXCHANGE, "an exchange of keys beside the pre-shared one"),
    ):
        offered = found.get(number)
        if offered is None or value not in _only(offered, size).numbers(2 if number == _VERSIONS else 1):
            raise BadHello(f"it does not offer {what}")
    if _SHARES not in found:
        raise BadHello("it has no share of a key")
    keys = _Reader(found[_PRE_SHARED_KEY])
    identities = keys.part(2)
    identity = identities.part(2).rest()
    identities.take(4)  # the age of a ticket, which this is not
    identities.end()
    behind = len(message) - keys.left
    binders = keys.part(2)
    keys.end()
    binder = binders.part(1).rest()
    binders.end()
    if len(identity) != GREETING_BYTES or len(binder) != HASH_BYTES:
        raise BadHello("its key is not named by a greeting")
    return Hello(identity, binder, message[:behind])


def build(secret: bytes, greeting: bytes) -> bytes:
    """A hello that proves the secret, for somebody who asks and goes no further: its share of a key is random bytes.

    What the secret's place of the greeting holds is not used.
    """
    name = (key_id(secret) + os.urandom(NONCE_BYTES)).ljust(SECRET_BYTES, b"\0")
    identity = greeting[:SECRET_OFFSET] + name + greeting[SECRET_OFFSET + SECRET_BYTES :]
    keys = _sized(2, _sized(2, identity) + bytes(4)) + _sized(2, _sized(1, bytes(HASH_BYTES)))
    extensions = b"".join(
        _number(2, number) + _sized(2, content)
        for number, content in (
            (_GROUPS, _sized(2, _number(2, _X25519))),
            (_SIGNATURES, _sized(2, _number(2, 0x0403))),
            (_VERSIONS, _sized(1, _number(2, _TLS_1_3))),
            (_EXCHANGES, _sized(1, _number(1, _WITH_EXCHANGE))),
            (_SHARES, _sized(2, _number(2, _X25519) + _sized(2, os.urandom(32)))),
            (_PRE_SHARED_KEY, keys),
        )
    )
    ciphers = _sized(2, _number(2, _CIPHER))
    hello = _number(2, _TLS_1_2) + os.urandom(32) + _sized(1, b"") + ciphers + _sized(1, b"\0") + _sized(2, extensions)
    message = _number(1, _CLIENT_HELLO) + _sized(3, hello)
    message = message[: -HASH_BYTES - 3]
    binder = _binder(derive_psk(secret, identity), message)
    return HANDSHAKE + _number(2, 0x0301) + _sized(2, message + _sized(2, _sized(1, binder)))


class Nonces:
    """The numbers that came lately, so that nobody is let in with what somebody else's hello was. A hello that was sent
    before the worker began, or before so many others, gets as far as a session, which it cannot speak with."""

    def __init__(self, most: int = MOST_NONCES) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def is_new(self, nonce: bytes) -> bool:
        """Whether it comes for the first time, as far as is remembered; it is remembered from now on."""
        if nonce in self._seen:
            return False
        self._seen[nonce] = None
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return True


# ---- the key schedule, as far as the binder (RFC 8446, 7.1) ----


def _padded(secret: bytes) -> bytes:
    return secret.ljust(SECRET_BYTES, b"\0")


def _expand(key: bytes, info: bytes) -> bytes:
    return hmac.digest(key, info + b"\1", "sha256")


def _labelled(key: bytes, label: bytes, context: bytes) -> bytes:
    return _expand(key, _number(2, HASH_BYTES) + _sized(1, b"tls13 " + label) + _sized(1, context))


def _binder(psk: bytes, bound: bytes) -> bytes:
    early = hmac.digest(bytes(HASH_BYTES), psk, "sha256")
    key = _labelled(early, b"ext binder", hashlib.sha256(b"").digest())
    return hmac.digest(_labelled(key, b"finished", b""), hashlib.sha256(bound).digest(), "sha256")


# ---- bytes ----


def _number(size: int, value: int) -> bytes:
    return value.to_bytes(size, "big")


def _sized(size: int, content: bytes) -> bytes:
    return _number(size, len(content)) + content


class _Reader:
    """A part of the message, from its beginning on. Whatever it has not enough bytes for raises BadHello."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise BadHello(f"a part of it wants {size} bytes where {self.left} are left")
        self._at += size
        return self._raw[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def part(self, size: int) -> _Reader:
        """What is behind a length of so many bytes."""
        return _Reader(self.take(self.number(size)))

    def rest(self) -> bytes:
        return self.take(self.left)

    def numbers(self, size: int = 2) -> list[int]:
        """The rest, as numbers of so many bytes."""
        if self.left % size:
            raise BadHello("a list of it ends in the middle of a number")
        return [self.number(size) for _ in range(self.left // size)]

    def end(self) -> None:
        if self.left:
            raise BadHello(f"{self.left} bytes of it stand where nothing may")


def _only(raw: bytes, size: int) -> _Reader:
    """What is behind a length that covers all."""
    reader = _Reader(raw)
    inside = reader.part(size)
    reader.end()
    return inside


def _extensions(list_of: _Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while list_of.left:
        number = list_of.number(2)
        if number in found:
            raise BadHello(f"it has extension {number} twice")
        found[number] = list_of.part(2).rest()
    return found
