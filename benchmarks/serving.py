"""A worker on the loopback address for a benchmark, with or without a secret."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(secret: str, folder: Path, environment: Mapping[str, str], *options: str) -> Iterator[tuple[str, int]]:
    """Its connection string, and its process id. With a secret `folder` gets the file of secrets."""
    variables = {}
    if secret:
        keys = folder / "keys"
        keys.write_text(f"{secret}\n")
        variables = {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)}
    with subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion.worker", "-p", "0", "--host", "127.0.0.1", *options],
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        port = process.stdout.readline().split()[2].rpartition(":")[2]
        try:
            yield f"native+127.0.0.1+{port}+0" + (f"+{secret}" if secret else ""), process.pid
        finally:
            process.terminate()
