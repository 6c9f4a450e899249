"""NVML in the supervisor: what it does not have, what fails, and a GPU that hangs."""

from __future__ import annotations

import asyncio
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensor_fusion.abi import NVML_NOT_SUPPORTED, NvmlError
from tensor_fusion.worker import gpus
from tensor_fusion.worker.gpus import Gpus, Sampler
from tensor_fusion.worker.status import Status

UUID = bytes(range(16))


class FakeNvml:
    """A GPU of which some figures are missing; `hangs` is waited for by all."""

    hangs: threading.Event | None = None
    asked = 0

    def __init__(self, library: Path) -> None:
        assert library == Path("library")

    def device(self, name: str) -> str:
        FakeNvml.asked += 1
        if self.hangs:
            self.hangs.wait(60)
        if name != f"GPU-{uuid.UUID(bytes=UUID)}":
            raise NvmlError("nvmlDeviceGetHandleByUUID", 6)
        return "device"

    def index(self, device: str) -> int:
        return 3

    minor = index

    def name(self, device: str) -> str:
        return "GPU"

    def utilization(self, device: str) -> tuple[int, int]:
        raise NvmlError("nvmlDeviceGetUtilizationRates", NVML_NOT_SUPPORTED)

    def memory(self, device: str) -> dict[str, int]:
        return {"total": 9, "reserved": 1, "free": 3, "used": 5}

    def temperature(self, device: str) -> int:
        raise NvmlError("nvmlDeviceGetTemperature", 999)

    def milliwatts(self, device: str) -> int:
        return 1500

    def millijoules(self, device: str) -> int:
        return 7

    def megahertz(self, device: str) -> tuple[int, int]:
        return 1, 2

    def processes(self, device: str) -> dict[int, int | None]:
        return {10: 100, 11: None}

    def shares(self, device: str, since: float) -> dict[int, int]:
        return {10: 40, 99: 60}


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Sampler:
    monkeypatch.setattr(gpus, "Nvml", FakeNvml)
    monkeypatch.setattr(FakeNvml, "hangs", None)
    monkeypatch.setattr(FakeNvml, "asked", 0)
    return Sampler(Path("library"), lambda: [UUID, bytes(16), b"x" * 16])


def test_what_is_missing_is_left_out(sampler: Sampler, caplog: pytest.LogCaptureFixture) -> None:
    found = asyncio.run(sampler.look())
    assert found.devices[0] == {
        "index": 0,
        "uuid": f"GPU-{uuid.UUID(bytes=UUID)}",
        "host_index": 3,
        "minor": 3,
        "name": "GPU",
        "memory_total_bytes": 9,
        "memory_reserved_bytes": 1,
        "memory_free_bytes": 3,
        "memory_used_bytes": 5,
        "power_watts": 1.5,
        "energy_millijoules": 7,
        "sm_megahertz": 1,
        "memory_megahertz": 2,
    }
    assert [sorted(device) for device in found.devices[1:]] == [["index", "uuid"]] * 2
    assert found.processes == [{10: 100, 11: None}, {}, {}]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["nvmlDeviceGetTemperature returned 999", "nvmlDeviceGetHandleByUUID returned 6"], said


def test_two_who_ask_at_once_get_one_answer(sampler: Sampler) -> None:
    async def both() -> tuple[Gpus, Gpus]:
        return await asyncio.gather(sampler.look(), sampler.look())

    first, second = asyncio.run(both())
    assert first is second and FakeNvml.asked == 2, "once for each device that has a name"


def test_a_gpu_that_hangs(sampler: Sampler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for long; when it answers again, so do we. The event loop's end does not wait for the thread."""
    hangs = threading.Event()
    monkeypatch.setattr(gpus, "PATIENCE", 0.2)
    monkeypatch.setattr(FakeNvml, "hangs", hangs)

    async def asks() -> tuple[Gpus, Gpus, Gpus]:
        first, second = await sampler.look(), await sampler.look()
        hangs.set()
        while not (third := await sampler.look()).devices:
            pass
        return first, second, third

    first, second, third = asyncio.run(asks())
    assert first == second == Gpus() and third.devices[0]["name"] == "GPU"
    assert "NVML has not answered" in caplog.text

    before = set(threading.enumerate())
    monkeypatch.setattr(FakeNvml, "hangs", threading.Event())
    stuck = Sampler(Path("library"), lambda: [UUID])
    assert asyncio.run(stuck.look()) == Gpus()
    assert FakeNvml.hangs
    (thread,) = set(threading.enumerate()) - before
    FakeNvml.hangs.set()
    thread.join(30)
    assert not thread.is_alive(), "nobody is there who could be told"


def test_a_library_that_is_not_there(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "none.so", lambda: [UUID])
    assert asyncio.run(sampler.look()) == Gpus()
    assert "NVML cannot be used" in caplog.text


def test_the_load_of_a_session(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known only of those that the driver lists; one that did nothing lately has none; not known is not 0 %."""

    def session(pid: int) -> Any:
        place: dict[str, Any] = {"connection": ("a", 1, 2), "program": "p", "user": "u", "since": float(pid)}
        process = SimpleNamespace(pid=pid)
        return SimpleNamespace(process=process, host_memory=lambda: 0, tenant_name="", **place)

    figures = SimpleNamespace(calls=0, round_trips=0, received=0, sent=0, contexts=0b101)
    sessions: Any = SimpleNamespace(
        serving=lambda: [session(pid) for pid in (10, 11, 12)],
        figures=lambda _: figures,
        held=lambda _: (5, 0, 6),
        jail="basic",
        layers={},
    )
    place: Any = SimpleNamespace(place="here")
    told = asyncio.run(Status(sessions, place, sampler, simulated=False, limit=0).tell())["sessions"]
    assert [one["gpu_percent"] for one in told] == [{"0": 40}, {"0": 0}, {}]
    assert [one["gpu_memory_bytes"] for one in told] == [{"0": 100}, {}, {}]
    assert told[0]["memory_bytes"] == {"0": 5, "2": 6} and told[0]["devices"] == [0, 2]

    def refuses(self: FakeNvml, device: str, since: float) -> dict[int, int]:
        raise NvmlError("nvmlDeviceGetProcessUtilization", 999)

    monkeypatch.setattr(FakeNvml, "shares", refuses)
    unknown = Sampler(Path("library"), lambda: [UUID])
    told = asyncio.run(Status(sessions, place, unknown, simulated=False, limit=0).tell())["sessions"]
    assert [one["gpu_percent"] for one in told] == [{}, {}, {}]
