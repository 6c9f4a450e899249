"""What several test files ask for."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensor_fusion.abi import Teleport


@pytest.fixture
def segment_name() -> Iterator[str]:
    """A name in /dev/shm that nobody else has, and no file under it afterwards."""
    name = f"/tf-test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    Path("/dev/shm" + name).unlink(missing_ok=True)


@pytest.fixture(scope="session")
def schema() -> bytes:
    return Teleport().schema
