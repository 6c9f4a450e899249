"""The secrets that clients may present, one per line of a file; lines that begin with # are comments."""

from __future__ import annotations

import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tensor_fusion.config import MAX_TEXT_FIELD, UserError
from tensor_fusion.worker.protocol import SECRET_BYTES

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class AuthorizedKeys:
    """The file is read at every connection, so that a key added or removed counts at once."""

    path: Path

    def read(self) -> list[bytes]:
        """All keys, zero-padded as a greeting carries them. Raises UserError when the file is of no use."""
        try:
            with self.path.open("rb") as file:
                self._check_writers(os.fstat(file.fileno()).st_mode)
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} cannot be read: {error.strerror}.") from error
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} is larger than {MAX_FILE_BYTES} bytes; shorten it.")
        keys = []
        for number, line in enumerate(content.splitlines(), 1):
            key = line.strip()
            if key.startswith(b"#"):
                continue
            if len(key) > MAX_TEXT_FIELD:
                raise UserError(
                    f"Line {number} of TF_AUTHORIZED_KEY_PATH {self.path} has {len(key)} characters; "
                    f"a secret has at most {MAX_TEXT_FIELD}."
                )
            if key:
                keys.append(key.ljust(SECRET_BYTES, b"\0"))
        return keys

    def _check_writers(self, mode: int) -> None:
        if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
            raise UserError(
                f"TF_AUTHORIZED_KEY_PATH {self.path} can be written by every user of this machine, who could add a "
                "secret; take that away: chmod o-w."
            )

    def readable_by_all(self) -> bool:
        try:
            mode = self.path.stat().st_mode
        except OSError:
            return False
        return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)

    def accept(self, secret: bytes) -> bool:
        """Compare with every key, each in constant time, so that the answer's time says nothing about any of them."""
        found = False
        for key in self.read():
            found |= hmac.compare_digest(key, secret)
        return found
