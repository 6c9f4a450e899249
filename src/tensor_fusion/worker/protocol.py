"""The Python side of docs/wire-format.md: greeting, welcome, packets of the control channel, quota page.

Every `parse` takes bytes from someone who may be hostile and returns either a complete object or None.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

MAGIC = b"TFUSION\0"
# native/wire/tp_wire.h, TP_PROTOCOL and TP_RELEASE.
PROTOCOL_VERSION = 2
RELEASE = 2_000
GREETING_BYTES = 256
WELCOME_BYTES = 512
PACKET_BYTES = 512
SENTENCE_BYTES = 448
TEXT_BYTES = 224
SECRET_BYTES = 64
SECRET_OFFSET = 64
DATA_CONNECTIONS = 8
# Of struct tp_segment_header: its first word, and its state while a worker serves.
SEGMENT_MAGIC = 0x544E_454D_4745_5354
SEGMENT_SERVING = 1

_GREETING = struct.Struct("<8sII16sQQIIQ64s64s32s32s")
_MACHINE = struct.Struct("<QQ")
_WELCOME = struct.Struct("<8sII16sQQIII4x448s")
_PACKET = struct.Struct("<IIQQQ224s256s")
assert (_GREETING.size, _WELCOME.size, _PACKET.size) == (GREETING_BYTES, WELCOME_BYTES, PACKET_BYTES)


class Role(IntEnum):
    CONTROL = 1
    DATA = 2
    PROBE = 3
    LOOK = 4


class Status(IntEnum):
    """The worker's answer to a greeting."""

    ACCEPTED = 0
    PROTOCOL_DIFFERS = 1
    SCHEMA_DIFFERS = 2  # of release 0.1: nobody is refused for it any more
    SECRET_REFUSED = 3
    NO_SESSION = 4
    NOT_A_GREETING = 5
    NO_SUCH_SESSION = 6
    PROBED = 7
    STOPPED = 8

    @property
    def asked(self) -> bool:
        """It answers a question: nobody was kept out."""
        return self in (Status.PROBED, Status.STOPPED)


class PacketType(IntEnum):
    ADOPT = 1
    DATA = 2
    WARM = 3
    SHARED = 4
    IMPORTED = 5
    PAY = 6
    RELEASED = 7
    LISTED = 8
    READY = 16
    FAILED = 17
    GONE = 18
    SPOKEN = 19
    SHARE = 20
    IMPORT = 21
    LEAVE = 22
    PAID = 23
    LIST = 24
    GROWN = 25
    IMAGE = 26


@dataclass(frozen=True)
class Greeting:
    """The first 256 bytes of a connection. `raw` goes on to the session, without the secret."""

    version: int
    role: int
    schema: bytes
    session_id: int
    session_key: int
    data_index: int
    client_pid: int
    secret: bytes = field(repr=False)
    connection_version: bytes
    program: str
    user: str
    raw: bytes = field(repr=False)
    psk: bytes = field(default=b"", repr=False)  # of a connection in TLS: the key, which only the session gets

    @property
    def packet(self) -> bytes:
        """What the session gets: the greeting, with the key of its connection in the place of the secret."""
        if not self.psk:
            return self.raw
        key = (self.psk + b"\1").ljust(SECRET_BYTES, b"\0")
        return self.raw[:SECRET_OFFSET] + key + self.raw[SECRET_OFFSET + SECRET_BYTES :]

    @property
    def machine(self) -> bytes:
        """Of role CONTROL: which machine and process namespace its number is of; nothing if it does not say."""
        said = _MACHINE.pack(self.session_id, self.session_key)
        return said if self.role == Role.CONTROL and any(said) else b""

    @property
    def release(self) -> int:
        """Of the client; 0 if it does not say. It has the place of a data connection's index."""
        return self.data_index if self.version > 1 and self.role != Role.DATA else 0

    @classmethod
    def parse(cls, raw: bytes) -> Greeting | None:
        if len(raw) != GREETING_BYTES or not raw.startswith(MAGIC):
            return None
        _, version, role, schema, session_id, key, index, pid, zero, secret, connection, name, user = _GREETING.unpack(
            raw
        )
        if zero != 0:
            return None
        raw = raw[:SECRET_OFFSET] + bytes(SECRET_BYTES) + raw[SECRET_OFFSET + SECRET_BYTES :]
        texts = connection.rstrip(b"\0"), printable(name), printable(user)
        return cls(version, role, schema, session_id, key, index, pid, secret, *texts, raw)

    @staticmethod
    def build(
        schema: bytes,
        *,
        version: int = PROTOCOL_VERSION,
        role: int = Role.CONTROL,
        session_id: int = 0,
        session_key: int = 0,
        data_index: int = 0,
        client_pid: int = 0,
        secret: str = "",
        connection_version: str = "0",
        program: str = "",
        user: str = "",
        machine: bytes = b"",
        release: int = RELEASE,
    ) -> bytes:
        if machine:
            session_id, session_key = _MACHINE.unpack(machine)
        return _GREETING.pack(
            MAGIC,
            version,
            role,
            schema,
            session_id,
            session_key,
            data_index if role == Role.DATA else release,
            client_pid,
            0,
            secret.encode(),
            connection_version.encode(),
            program.encode()[:31],
            user.encode()[:31],
        )


@dataclass(frozen=True)
class Welcome:
    version: int
    status: int
    schema: bytes
    session_id: int
    session_key: int
    data_connections: int
    sentence: str
    release: int = 0  # of the worker; 0 before 0.2.0

    @classmethod
    def parse(cls, raw: bytes) -> Welcome | None:
        if len(raw) != WELCOME_BYTES or not raw.startswith(MAGIC):
            return None
        _, version, status, schema, session_id, key, count, _, release, sentence = _WELCOME.unpack(raw)
        text = sentence.partition(b"\0")[0].decode("utf-8", "replace")
        return cls(version, status, schema, session_id, key, count, text, release)

    @staticmethod
    def build(
        status: Status,
        schema: bytes,
        sentence: str = "",
        *,
        session_id: int = 0,
        session_key: int = 0,
        data_connections: int = 0,
    ) -> bytes:
        text = _cut(sentence, SENTENCE_BYTES - 1)
        return _WELCOME.pack(
            MAGIC, PROTOCOL_VERSION, status, schema, session_id, session_key, data_connections, 0, RELEASE, text
        )


@dataclass(frozen=True)
class Packet:
    """One message of the control channel between supervisor and session."""

    type: int
    argument: int = 0
    session_id: int = 0
    session_key: int = 0
    value: int = 0
    text: str = ""
    body: bytes = b""  # the greeting of a client, what is shared, or processes

    def build(self) -> bytes:
        return _PACKET.pack(
            self.type,
            self.argument,
            self.session_id,
            self.session_key,
            self.value,
            _cut(self.text, TEXT_BYTES - 1),
            self.body,
        )

    @classmethod
    def parse(cls, raw: bytes) -> Packet | None:
        if len(raw) != PACKET_BYTES:
            return None
        kind, argument, session_id, key, value, text, body = _PACKET.unpack(raw)
        return cls(kind, argument, session_id, key, value, printable(text), body)


def release_name(version: int, release: int) -> str:
    """The release of somebody who speaks this frame version, as a sentence has it."""
    if version == 1:
        return "0.1"  # which did not say
    return f"{release // 1_000_000}.{release // 1_000 % 1_000}.{release % 1_000}"


def apart(who: str, version: int, release: int, *, us: str, them: str) -> str:
    """The sentence for a peer, `who`, of another frame version; `us` and `them` are the two sides."""
    ours, theirs = release_name(PROTOCOL_VERSION, RELEASE), release_name(version, release)
    old, new = (them, ours) if version < PROTOCOL_VERSION else (us, theirs)
    return (
        f"{who} is of release {theirs} and this {us} of {ours}; the two cannot talk to each other (frame versions "
        f"{version} and {PROTOCOL_VERSION}): upgrade the {old} to release {new} or a later one."
    )


def printable(raw: bytes) -> str:
    """Zero-terminated text from outside, fit for a log line and a terminal: printable ASCII, the rest as '?'."""
    text = raw.partition(b"\0")[0].decode("ascii", "replace")
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def _cut(text: str, limit: int) -> bytes:
    return text.encode()[:limit].decode("utf-8", "ignore").encode()
