"""Workers and clients on segments of shared memory, in real processes."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

from worker_harness import HERE, command, environment

from tensor_fusion.abi import Asked, native_file
from tensor_fusion.worker.protocol import Status, Welcome

MB = 1 << 20
# struct tp_segment_header and struct tp_slot of native/ring/tp_segment.h; test_layout asks the compiler.
HEADER = {"magic": 0, "version": 8, "state": 12, "size": 16, "epoch": 24, "schema": 32, "boot_id": 48, "heartbeat": 128}
SLOT = {"state": 0, "beat": 16, "client_boot_id": 40, "client_life": 128, "greeting": 256}
SLOT_AT, SLOT_SIZE = 4096, 8192
FREE, ACCEPTED, ENDED = 0, 4, 6


class SegmentWorker:
    """A worker on a segment; leaving the context stops it."""

    def __init__(self, name: str, folder: Path, *arguments: str, megabytes: int = 64, **variables: str) -> None:
        self.path = Path("/dev/shm" + name)
        self.folder = folder
        log = {"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "debug", "TF_LOG_PATH": str(folder / "log")}
        self.process = subprocess.Popen(
            command("--gpu", "sim", "-n", "shmem", "-m", name, "-M", str(megabytes), *arguments),
            env=worker_environment(**{**log, "FAKE_ADOPTED": str(folder), **variables}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.ready = self.process.stdout.readline()
        if not self.ready.startswith("ready "):
            _, errors = self.process.communicate(timeout=20)
            raise AssertionError(f"the worker did not get ready: {self.ready!r} {errors}")

    def __enter__(self) -> SegmentWorker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            assert self.stop() == 0

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.output, self.errors = self.process.communicate(timeout=15)
        return self.process.returncode

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def word(self, offset: int, form: str = "<I") -> int:
        with self.path.open("rb") as file:
            file.seek(offset)
            value: int = struct.unpack(form, file.read(struct.calcsize(form)))[0]
            return value

    def slot_state(self, slot: int) -> int:
        return self.word(SLOT_AT + SLOT_SIZE * slot)

    def adopted(self) -> dict[int, dict[str, object]]:
        """What each living or dead session was told, by its process id."""
        return {int(path.stem): json.loads(path.read_text()) for path in self.folder.glob("*.json")}


class SegmentClient:
    def __init__(self, path: Path, greeting: bytes, *edits: str, seconds: float = 5.0) -> None:
        words = [sys.executable, str(HERE / "segment_client.py"), str(path), greeting.hex(), str(seconds), *edits]
        native = {key: os.environ[key] for key in ("TF_NATIVE_DIR",) if key in os.environ}
        self.process = subprocess.Popen(
            words, env=environment(**native), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        answer = json.loads(self.process.stdout.readline())
        self.outcome = Asked[answer["outcome"]]
        self.welcome = Welcome.parse(bytes.fromhex(answer["welcome"]))

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=10)

    def status(self) -> Status:
        assert self.outcome is Asked.ANSWERED
        assert self.welcome
        return Status(self.welcome.status)


def worker_environment(**variables: str) -> dict[str, str]:
    return environment(FAKE_TELEPORT=str(native_file("client/libteleport.so.1")), **variables)
