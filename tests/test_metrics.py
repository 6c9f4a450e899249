"""The endpoint for Prometheus: what it says, in which form, and what it does with whoever comes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from stack.harness import MIB, Worker, whole_stack
from test_top import Peer
from worker_harness import eventually, fails

from tensor_fusion.config import UserError
from tensor_fusion.worker import metrics
from tensor_fusion.worker.metrics import MOST_CONNECTIONS, exposition
from tensor_fusion.worker.options import metrics_address
from tensor_fusion.worker.status import Status, StatusSocket

LINE = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)+)\})? ([0-9.e+-]+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')

NOBODY = {"gpus": [], "sessions": [], "simulated": True, "since": 0.5, "memory_limit_bytes": 0}

Samples = dict[str, list[tuple[dict[str, str], float]]]


def parsed(text: str) -> Samples:
    """As Prometheus reads it: each name is described once, before its samples, which are all different."""
    found: Samples = {}
    described: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            assert what in ("HELP", "TYPE") and (name not in described or what == "TYPE")
            described[name] = rest
            continue
        match = LINE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        assert described[name] in ("gauge", "counter")
        assert name.endswith("_total") == (described[name] == "counter") or name.startswith("DCGM_")
        sample = (dict(LABEL.findall(labels or "")), float(value))
        assert sample[0] not in [other for other, _ in found.get(name, [])]
        found.setdefault(name, []).append(sample)
    return found


@pytest.fixture(params=["native", "shmem"])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    options = ("--metrics", "127.0.0.1:0")
    with Worker(*options, transport=request.param, TF_RUNTIME_PATH=str(tmp_path), TF_GPU_MEMORY_LIMIT="1024") as found:
        yield found


def address(worker: Worker) -> str:
    assert worker.process.stdout
    line = worker.process.stdout.readline()
    assert line.startswith("metrics http://127.0.0.1:"), line
    return line.split()[1]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


class TestWorker:
    pytestmark = whole_stack

    def test_what_it_says(self, worker: Worker) -> None:
        url = address(worker)
        samples = parsed(get(url))
        assert samples["tensor_fusion_sessions"] == [({}, 0)]
        assert samples["tensor_fusion_memory_limit_bytes"] == [({}, 1024 * MIB)]
        for name in ("GPU_UTIL", "FB_FREE", "FB_USED", "GPU_TEMP", "POWER_USAGE", "SM_CLOCK"):
            ((labels, _),) = samples[f"DCGM_FI_DEV_{name}"]
            assert labels["gpu"] == "0" and labels["UUID"].startswith("GPU-") and "H200" in labels["modelName"]
        with Peer(worker) as peer:
            assert peer.call("alloc", 48 * MIB)[0] == 0

            def held() -> list[tuple[dict[str, str], float]]:
                return parsed(get(url)).get("tensor_fusion_session_memory_bytes", [])

            assert eventually(lambda: [value for _, value in held()] == [48 * MIB]), held()
            ((labels, _),) = held()
            assert labels["client_pid"] == str(peer.process.pid) and labels["device"] == "0"
            assert eventually(lambda: parsed(get(url))["tensor_fusion_session_calls_total"][0][1] > 0)
            ((labels, _),) = parsed(get(url))["tensor_fusion_session_calls_total"]
            assert labels["program"] == Path(f"/proc/{peer.process.pid}/comm").read_text().strip()

    def test_other_requests(self, worker: Worker) -> None:
        url = address(worker)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url.removesuffix("metrics"))
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(urllib.request.Request(url, data=b"x"), timeout=30)
        place = ("127.0.0.1", int(url.split(":")[2].partition("/")[0]))
        for raw in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01" * 3000, b"A" * 100000, b""):
            with socket.create_connection(place, timeout=30) as connection:
                try:
                    connection.sendall(raw)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except (ConnectionResetError, BrokenPipeError):  # it closes on what it has not read
                    pass
        assert parsed(get(url))


class Counted(dict[Any, None]):
    """Knows how many it held at most."""

    most = 0

    def __setitem__(self, key: Any, value: None) -> None:
        super().__setitem__(key, value)
        self.most = max(self.most, len(self))


async def flooded() -> tuple[int, bytes]:
    """The most places that were taken, and an answer beside three times as many silent connections."""

    async def tell() -> dict[str, Any]:
        return {**dict.fromkeys(("version", "place"), ""), **NOBODY}

    endpoint = metrics.Metrics(("127.0.0.1", 0), cast(Status, SimpleNamespace(tell=tell)))
    endpoint._open = taken = Counted()
    place = ("127.0.0.1", int(endpoint.place.split(":")[2].partition("/")[0]))
    silent = [socket.create_connection(place, timeout=30) for _ in range(3 * MOST_CONNECTIONS)]
    await endpoint.start()
    reader, writer = await asyncio.open_connection(*place)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 60)
    endpoint.close()
    writer.close()
    for connection in silent:
        connection.close()
    return taken.most, answer


def test_a_flood_of_silent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes, not when its time is over: and never are there more than the places."""
    monkeypatch.setattr(metrics, "PATIENCE", 3600.0)
    most, answer = asyncio.run(flooded())
    assert most == MOST_CONNECTIONS
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_labels_are_escaped() -> None:
    session: dict[str, Any] = dict.fromkeys(
        ("host_memory_bytes", "since", "calls", "round_trips", "received_bytes", "sent_bytes"), 1
    )
    session |= {"memory_bytes": {"0": 2}, "gpu_memory_bytes": {"0": 2}, "gpu_percent": {"0": 2}}
    evil = 'x"} 1\nevil{a="\\'
    session |= {"pid": 5, "program": evil, "user": "\\", "address": '"', "client_pid": 6, "tenant": ""}
    status = {"gpus": [], "version": "1", "place": evil, "simulated": True, "since": 0.5, "memory_limit_bytes": 0}
    samples = parsed(exposition({**status, "sessions": [session]}, "host"))
    assert not [name for name in samples if not name.startswith("tensor_fusion_")]
    ((labels, value),) = samples["tensor_fusion_session_calls_total"]
    assert value == 1 and labels["user"] == r"\\" and labels["address"] == r"\"" and labels["session"] == "5"
    assert re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), labels["program"]) == evil


def test_addresses() -> None:
    assert metrics_address("127.0.0.1:9400") == ("127.0.0.1", 9400)
    assert metrics_address("[::1]:0") == ("::1", 0)
    for wrong in ("", "9400", ":9400", "::1:9400", "host:", "host:x", "host:65536", "[]:1", "host:1:2"):
        with pytest.raises(UserError, match="ADDRESS:PORT"):
            metrics_address(wrong)


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, errors = fails("--gpu", "sim", "-p", "0", "--metrics", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 2 and "--metrics cannot listen on 127.0.0.1 port" in errors and "already in use" in errors


@pytest.mark.parametrize("kind", ["metrics", "socket"])
def test_a_worker_ends_while_somebody_asks(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """GPUs that hang keep them waiting; that the event loop ends is nothing to write about."""

    async def ends() -> None:
        asked = asyncio.Event()

        async def tell() -> dict[str, Any]:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

        status = cast(Status, SimpleNamespace(tell=tell))
        if kind == "metrics":
            endpoint = metrics.Metrics(("127.0.0.1", 0), status)
            await endpoint.start()
            host, port = endpoint.place.split("/")[2].split(":")
            writer = (await asyncio.open_connection(host, int(port)))[1]
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            await asked.wait()
            endpoint.close()
            writer.close()
        else:
            listener = StatusSocket(status, {"TF_RUNTIME_PATH": str(tmp_path)})
            await listener.start()
            writer = (await asyncio.open_unix_connection(tmp_path / f"worker-{os.getpid()}.sock"))[1]
            await asked.wait()
            listener.close()
            writer.close()

    asyncio.run(ends())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
