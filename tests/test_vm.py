"""Programs in a real virtual machine, on the worker of the machine that it runs on.

QEMU emulates the processor, so no virtualisation is needed; the guest has a user-mode network card and the memory
device `ivshmem-plain`. tests/vm/ makes the guest out of Debian packages and runs programs in it.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stack.harness import LOSS_SECONDS, LOST, MIB, Worker, succeed, whole_stack
from vm.machine import GuestProgram, Machine
from vm.stack import SEGMENT_MB, USER, Stack, apply_rule, forbid, make_segment, resource
from worker_harness import eventually

pytestmark = [*whole_stack, pytest.mark.timeout(280)]
pytest_plugins = ["stack.fixtures", "vm.fixtures"]
SIMULATED = "right on Simulated NVIDIA H200\n"
GONE_SECONDS = 1.0
PAUSE_SECONDS = float(os.environ.get("TF_TEST_PAUSE_SECONDS", "5"))  # minutes by hand
NVML = """
import json, pynvml as nvml
nvml.nvmlInit()
device = nvml.nvmlDeviceGetHandleByIndex(0)
print(json.dumps([nvml.nvmlDeviceGetCount(), nvml.nvmlDeviceGetName(device), nvml.nvmlDeviceGetUUID(device),
    nvml.nvmlDeviceGetMemoryInfo(device).total, nvml.nvmlSystemGetDriverVersion(),
    nvml.nvmlDeviceGetCudaComputeCapability(device)]))
nvml.nvmlShutdown()
"""
# Maps the device's memory as a client does, and says what four bytes at an offset were before it wrote there.
EXCHANGE = """
import mmap, sys
path, offset, value = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as memory:
    print(len(memory), memory[offset : offset + 4].decode())
    memory[offset : offset + 4] = value
"""


@pytest.fixture
def worker(guest_stack: Stack) -> Iterator[Worker]:
    with guest_stack.worker() as running:
        yield running


def lost(client: GuestProgram, killed_at: float) -> None:
    """The client has told its loss in time, gets the same error from every later call, and ends by itself."""
    line = client.line(LOSS_SECONDS)
    assert time.monotonic() - killed_at < LOSS_SECONDS
    assert re.fullmatch(rf"\S+( \S+)? gave {LOST} after \d+ ms", line), line
    assert client.wait(5) == 0
    assert client.errors().count("is lost") == 1, client.errors()


# Over either transport


def test_program_for_the_driver(guest_stack: Stack, worker: Worker) -> None:
    assert guest_stack.run("compute") == SIMULATED
    assert guest_stack.run("threads") == "right\n"
    assert guest_stack.run("order") == "right\n"


def test_nvidia_ml_py(guest_stack: Stack, worker: Worker) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    with Worker() as here:
        expected = json.loads(succeed([sys.executable, "-c", NVML], here.env))
    assert "H200" in expected[1]
    assert json.loads(guest_stack.python(NVML)) == expected


def test_two_processes_at_once(guest_stack: Stack, worker: Worker) -> None:
    with guest_stack.start("steady", "1") as first, guest_stack.start("steady", "2") as second:
        assert first.line() == "steady"
        assert second.line() == "steady"
        assert len(worker.sessions()) == 2
        time.sleep(1)
        for client in (first, second):
            assert client.end() == 0, client.errors()
            assert client.line().startswith("right after ")


@pytest.mark.parametrize("memory", ["pageable", "pinned"])
def test_process_killed_in_the_middle_of_a_copy(guest_stack: Stack, memory: str) -> None:
    with (
        guest_stack.worker(TF_GPU_MEMORY_LIMIT="64") as worker,
        guest_stack.start("steady") as other,
        guest_stack.console() as observer,
    ):
        assert other.line() == "steady"
        free = observer.free()
        with guest_stack.start("copy", "16", memory) as victim:
            assert victim.line() == "copying"
            time.sleep(0.5)
            assert observer.free() == free - 16 * MIB
            assert len(worker.sessions()) == 3
            killed_at = time.monotonic()
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
        assert eventually(lambda: len(worker.sessions()) == 2 and observer.free() == free, GONE_SECONDS)
        assert time.monotonic() - killed_at < GONE_SECONDS + 0.2
        assert observer.code(f"alloc 0 {free}") == 0
        assert other.end() == 0, other.errors()
        assert other.line().startswith("right after ")


def test_guest_paused_in_the_middle_of_work(guest_stack: Stack, worker: Worker) -> None:
    with guest_stack.start("steady") as client, guest_stack.start("copy", "16") as copying:
        assert client.line() == "steady"
        assert copying.line() == "copying"
        time.sleep(0.5)
        guest_stack.machine.command("stop")
        try:
            assert guest_stack.machine.status() == "paused"
            time.sleep(PAUSE_SECONDS)
            assert len(worker.sessions()) == 2
        finally:
            guest_stack.machine.command("cont")
        time.sleep(1)
        assert copying.running(), copying.errors()
        assert client.end() == 0, client.errors()
        assert client.line().startswith("right after ")
        assert guest_stack.run("compute") == SIMULATED


def test_worker_started_again(guest_stack: Stack) -> None:
    with guest_stack.worker() as worker, guest_stack.console() as idle, guest_stack.start("copy", "16") as copying:
        assert copying.line() == "copying"
        assert idle.code("alloc 0 4096") == 0
        time.sleep(0.5)
        killed_at = time.monotonic()
        worker.end(signal.SIGKILL)
        lost(copying, killed_at)
        assert eventually(lambda: idle.code("alloc 1 4096") == LOST, LOSS_SECONDS)
        with guest_stack.worker():
            assert idle.code("launch good 0") == LOST  # what was lost stays lost
            assert guest_stack.run("compute") == SIMULATED
        assert idle.end() == 0


def test_worker_that_is_not_there(guest_stack: Stack) -> None:
    with guest_stack.worker() as worker:
        worker.end(signal.SIGTERM)
    with guest_stack.start("compute") as client:
        assert client.wait() > 0
        assert guest_stack.connection.split("+")[1] in client.errors(), client.errors()


def test_user_without_rights_over_the_network(guest: Machine, guest_memory: Path) -> None:
    stack = Stack(guest, "native", guest_memory)
    with stack.worker():
        assert stack.run("compute", user=USER) == SIMULATED


# The memory device, with what `tensor-fusion vm` prints


def test_memory_is_the_hosts(guest: Machine, guest_memory: Path) -> None:
    apply_rule(guest, guest_memory)
    offset = SEGMENT_MB * MIB - 64
    with guest_memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[offset : offset + 4] = b"host"
        said = guest.run("python3", "-c", EXCHANGE, resource(guest, guest_memory), str(offset), "gues")
        assert said == f"{SEGMENT_MB * MIB} host\n"
        assert memory[offset : offset + 4] == b"gues"


def test_user_with_and_without_the_rule(guest: Machine, guest_memory: Path) -> None:
    stack = Stack(guest, "shmem", guest_memory)
    forbid(guest, guest_memory)
    with stack.worker():
        with stack.start("compute", user=USER) as client:
            assert client.wait() > 0
            told = rf"resource2 is not readable by the user with id {USER}\b.*udev rule"
            assert re.search(told, client.errors()), client.errors()
        failed = stack.check(user=USER)
        assert [name for name, passed, _ in failed if not passed] == ["file"], failed
        apply_rule(guest, guest_memory)
        assert stack.run("compute", user=USER) == SIMULATED
        report = stack.check(user=USER)
        assert all(passed for _, passed, _ in report), report
        assert [name for name, *_ in report][-3:] == ["heartbeat", "writes arrive", "connection string"]
        assert report[-1][2] == stack.connection
    (text,) = [text for _, passed, text in stack.check(user=USER) if not passed]
    assert "has ended" in text


def test_share_forgotten(boot_guest: Callable[..., Machine]) -> None:
    with make_segment("tf-test-vm-off") as segment, boot_guest(segment, "share=off") as guest:
        apply_rule(guest, segment)
        stack = Stack(guest, "shmem", segment)
        with stack.worker():
            with stack.start("compute") as client:
                assert client.wait() > 0
                assert "share=on" in client.errors(), client.errors()
            (failed,) = [text for _, passed, text in stack.check() if not passed]
            assert "share=on" in failed


def test_guest_vanishes_and_another_boots(boot_guest: Callable[..., Machine]) -> None:
    """QEMU is killed, so that nobody in the guest can say anything: the network tells it, memory does not."""
    with (
        make_segment("tf-test-vm-gone") as segment,
        boot_guest(segment) as first,
        Stack(first, "shmem", segment).worker() as sharing,
    ):
        apply_rule(first, segment)
        over_network = Stack(first, "native", segment)
        with (
            over_network.worker() as listening,
            over_network.start("steady") as one,
            Stack(first, "shmem", segment).start("steady") as other,
        ):
            assert one.line() == "steady"
            assert other.line() == "steady"
            assert len(listening.sessions()) == len(sharing.sessions()) == 1
            (left,) = sharing.sessions()
            first.close()
            assert eventually(lambda: not listening.sessions(), GONE_SECONDS)
        with boot_guest(segment) as second:
            apply_rule(second, segment)
            assert Stack(second, "shmem", segment).run("compute") == SIMULATED
            assert eventually(lambda: left not in sharing.sessions(), GONE_SECONDS)
