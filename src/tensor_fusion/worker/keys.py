"""The secrets that clients may present, one per line of a file."""

from __future__ import annotations

import hmac
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
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} cannot be read: {error.strerror}.") from error
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"TF_AUTHORIZED_KEY_PATH {self.path} is larger than {MAX_FILE_BYTES} bytes; shorten it.")
        keys = []
        for number, line in enumerate(content.splitlines(), 1):
            key = line.strip()
            if len(key) > MAX_TEXT_FIELD:
                raise UserError(
                    f"Line {number} of TF_AUTHORIZED_KEY_PATH {self.path} has {len(key)} characters; "
                    f"a secret has at most {MAX_TEXT_FIELD}."
                )
            if key:
                keys.append(key.ljust(SECRET_BYTES, b"\0"))
        return keys

    def accept(self, secret: bytes) -> bool:
        """Compare with every key, each in constant time, so that the answer's time says nothing about any of them."""
        found = False
        for key in self.read():
            found |= hmac.compare_digest(key, secret)
        return found
