"""The secrets that clients may present, and what each of them may have: docs/operations.md, Secrets.

One secret in a line, with words such as name=alice behind it; lines and words that begin with # are comments. Sentences
about the file give its line and never anything that may be part of a secret. One thread, the event loop's, enters here.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from tensor_fusion.config import MAX_TEXT_FIELD, MEGABYTE, UserError
from tensor_fusion.terminal import counted
from tensor_fusion.worker.hello import Hello, key_id
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import SECRET_BYTES
from tensor_fusion.worker.quota import DEVICES, ROWS

MAX_FILE_BYTES = 1 << 20
# A file that was changed less than this before it was read may be changed again without looking different.
SETTLED = 2.0
WORDS = "name=, expires=, memory=, sm=, clients= or devices="
_DATES = ("%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Key:
    """A line of the file."""

    secret: bytes = field(repr=False)  # zero-padded, as a greeting carries it
    line: int
    name: str = ""
    expires: datetime | None = None
    memory: int = 0  # bytes on each device for all of its sessions together; 0: no limit of its own
    sm: int = 100  # percent of each device's multiprocessors for each of its sessions
    clients: int = 0  # at the same time; 0: as many as --max-clients-per-secret says
    devices: tuple[int, ...] = ()  # of the worker; nothing: all

    @cached_property
    def id(self) -> bytes:
        """What names it on the network."""
        return key_id(self.secret)

    @property
    def tenant(self) -> bytes:
        """Who may share with whom: whoever has the same secret and sees the same devices under the same numbers."""
        return self.secret + bytes(self.devices)

    def expired(self) -> bool:
        return self.expires is not None and time.time() >= self.expires.timestamp()

    @property
    def expiry(self) -> str:
        return f"{self.expires:%Y-%m-%dT%H:%M:%SZ}" if self.expires else ""


class AuthorizedKeys:
    """Read at the making, or UserError; then whenever `refresh` finds another file, or `reload` is called.

    A file that cannot be read, or in which something is wrong, leaves the keys as they were, with a line in the log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._devices = DEVICES
        self._seen: tuple[int, ...] | None = None
        self._said = ""  # of the file, in the log
        self.keys: tuple[Key, ...] = self._read()

    def find(self, secret: bytes) -> Key | None:
        """Compare with every key, each in constant time, so that the answer's time says nothing about any of them."""
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.secret, secret):
                found = key
        return found

    def proven(self, hello: Hello) -> Key | None:
        """The key that the maker of this first message knows. The answer's time may tell which there are: their ids are
        on the network anyway."""
        return next((key for key in self.keys if key.id == hello.key_id and hello.is_by(key.secret)), None)

    def devices_are(self, count: int) -> None:
        """The worker has so many. Raises UserError when a line names another."""
        self._devices = count
        for key in self.keys:
            self._check_devices(key)

    def refresh(self) -> bool:
        """Read the file if it has changed; True if the keys are others now."""
        now = self._look()
        return (now is None or now != self._seen) and self._read_again(self._said)

    def reload(self) -> bool:
        """Read the file, and say in the log what came of it; True if the keys are others now."""
        return self._read_again("")

    def _read_again(self, said: str) -> bool:
        before = self.keys
        try:
            if self.path.exists() and not self.path.is_file():
                raise UserError(
                    f"TF_AUTHORIZED_KEY_PATH {self.path} is no regular file, and was read once, at the start."
                )
            self.keys = self._read()
        except UserError as error:
            self._said = error.sentence
            if self._said != said:
                LOGGER.error("the secrets stay as they were: %s", self._said)
            return False
        self._said = f"TF_AUTHORIZED_KEY_PATH {self.path}: {counted(len(self.keys), 'secret')}"
        if self.keys != before or not said:
            LOGGER.info("%s", self._said)
        return self.keys != before

    def check_use(self) -> None:
        """Raises UserError when nobody could come in."""
        if not self.keys:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} has no secret in it; put one into a line of its own.")
        if all(key.expired() for key in self.keys):
            last = max(self.keys, key=lambda key: key.expiry)
            raise UserError(
                f"All secrets in TF_AUTHORIZED_KEY_PATH {self.path} have expired, the last on {last.expiry}; add one."
            )

    def readable_by_all(self) -> bool:
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return False
        return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)

    # The file

    def _read(self) -> tuple[Key, ...]:
        self._seen = self._look()
        try:
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                self._check_writers(os.fstat(file.fileno()).st_mode)
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} cannot be read: {error.strerror}.") from error
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} is larger than {MAX_FILE_BYTES} bytes; shorten it.")
        keys: list[Key] = []
        for number, line in enumerate(content.splitlines(), 1):
            key = self._line(number, line.split())
            if key is None:
                continue
            for other in keys:
                if key.secret == other.secret:
                    raise self._wrong(number, f"has the same secret as line {other.line}; remove one of them.")
                if key.name and key.name == other.name:
                    raise self._wrong(number, f"has the name {key.name}, as line {other.line}; change one of them.")
            self._check_devices(key)
            keys.append(key)
        return tuple(keys)

    def _look(self) -> tuple[int, ...] | None:
        """What the file looks like, nothing where there is none; None: it was changed just now, and has to be read."""
        try:
            about = self.path.stat()
        except OSError:
            return ()
        if not stat.S_ISREG(about.st_mode):
            return (about.st_dev, about.st_ino)
        recent = abs(time.time() - max(about.st_mtime, about.st_ctime)) < SETTLED
        return None if recent else (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)

    def _line(self, number: int, words: list[bytes]) -> Key | None:
        if not words or words[0].startswith(b"#"):
            return None
        if len(words[0]) > MAX_TEXT_FIELD:
            raise self._wrong(number, f"has {len(words[0])} characters; a secret has at most {MAX_TEXT_FIELD}.")
        said: dict[str, object] = {}
        for place, word in enumerate(words[1:], 2):
            if word.startswith(b"#"):
                break
            what, equals, value = word.decode("ascii", "replace").partition("=")
            if not equals or what not in _READERS:
                raise self._wrong(number, f"says something unknown in word {place}; behind a secret come {WORDS}.")
            if what in said:
                raise self._wrong(number, f"says {what}= twice; remove one of them.")
            try:
                said[what] = _READERS[what](value)
            except ValueError as error:
                raise self._wrong(number, f"says {what}={value!r}; {error}.") from error
        return Key(words[0].ljust(SECRET_BYTES, b"\0"), number, **said)  # type: ignore[arg-type]  # as _READERS has it

    def _check_devices(self, key: Key) -> None:
        most = max(key.devices, default=0)
        if most >= self._devices:
            raise self._wrong(key.line, f"names device {most}; this worker has {self._devices}, counted from 0.")

    def _check_writers(self, mode: int) -> None:
        if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
            raise UserError(
                f"TF_AUTHORIZED_KEY_PATH {self.path} can be written by every user of this machine, who could add a "
                "secret; take that away: chmod o-w."
            )

    def _wrong(self, number: int, what: str) -> UserError:
        return UserError(f"Line {number} of TF_AUTHORIZED_KEY_PATH {self.path} {what}")


# What may stand behind a secret. Each raises ValueError with the next step.


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,32}", text):
        raise ValueError("a name has 1 to 32 letters, digits, dots, dashes and underscores")
    return text


def _expires(text: str) -> datetime:
    for form in _DATES:
        try:
            return datetime.strptime(text, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
    raise ValueError("write a moment in UTC such as 2027-01-31T00:00Z")


def _number(text: str, largest: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= largest:
        raise ValueError(f"use a whole number from 1 to {largest}")
    return int(text)


def _memory(text: str) -> int:
    return _number(text, 999_999_999) * MEGABYTE


def _sm(text: str) -> int:
    return _number(text, 100)


def _clients(text: str) -> int:
    return _number(text, ROWS)


def _devices(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if any(not re.fullmatch(r"[0-9]{1,2}", number) or int(number) >= DEVICES for number in numbers):
        raise ValueError(f"list numbers from 0 to {DEVICES - 1}, such as devices=0,1")
    found = tuple(map(int, numbers))
    if len(set(found)) < len(found):
        raise ValueError("name each device once")
    return found


_READERS = {
    "name": _name,
    "expires": _expires,
    "memory": _memory,
    "sm": _sm,
    "clients": _clients,
    "devices": _devices,
}
