"""Programs in a real virtual machine, on the worker of the machine that it runs on.

QEMU emulates the processor, so no virtualisation is needed; the guest has a user-mode network card and the memory
device `ivshmem-plain`. tests/vm/ makes the guest out of Debian packages and runs programs in it.
"""

from __future__ import annotations

import json
import mmap
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stack.harness import LOSS_SECONDS, LOST, MIB, Worker, succeed, whole_stack
from vm.machine import SHARED_DEVICE, GuestProgram, Machine
from vm.stack import PYTHON_FILES, SEGMENT_MB, USER, Stack, make_segment
from worker_harness import eventually

from tensor_fusion.client.vm import instructions

pytestmark = [*whole_stack, pytest.mark.timeout(280)]
pytest_plugins = ["stack.fixtures", "vm.fixtures"]
SIMULATED = "right on Simulated NVIDIA H200\n"
GONE_SECONDS = 1.0
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
            time.sleep(5)
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


# The memory device


def test_memory_is_the_hosts(guest: Machine, guest_memory: Path) -> None:
    guest.enable_device()
    offset = SEGMENT_MB * MIB - 64
    with guest_memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[offset : offset + 4] = b"host"
        said = guest.run("python3", "-c", EXCHANGE, f"{SHARED_DEVICE}/resource2", str(offset), "gues")
        assert said == f"{SEGMENT_MB * MIB} host\n"
        assert memory[offset : offset + 4] == b"gues"


def test_udev_rule_lets_a_user_in(guest: Machine) -> None:
    words = ("python3", "-c", EXCHANGE, f"{SHARED_DEVICE}/resource2", "4096", "user")
    guest.run("chmod", "0600", f"{SHARED_DEVICE}/resource2")
    with guest.start(*words, user=USER) as client:
        assert client.wait() != 0
        assert "Permission denied" in client.errors()
    apply_rule(guest)
    assert guest.run(*words, user=USER).startswith(f"{SEGMENT_MB * MIB} ")


def apply_rule(machine: Machine) -> None:
    """What a guest does at its start with the rule that tensor-fusion vm prints."""
    rule = instructions("/my_shm", SEGMENT_MB, "somebody").udev
    text = f"mkdir -p /etc/udev/rules.d && cat > /etc/udev/rules.d/70-tensor-fusion.rules <<'END'\n{rule}\nEND\n"
    machine.run("sh", "-c", text)
    machine.run("sh", "-c", "pidof systemd-udevd || /lib/systemd/systemd-udevd --daemon")
    machine.run("sh", "-c", "udevadm control --reload && udevadm trigger --subsystem-match=pci && udevadm settle -t 20")


def test_user_with_and_without_the_rule(needs_shmem: None, guest: Machine, guest_memory: Path) -> None:
    stack = Stack(guest, "shmem", guest_memory)
    guest.run("chmod", "0600", f"{SHARED_DEVICE}/resource2")
    with stack.worker():
        with stack.start("compute", user=USER) as client:
            assert client.wait() > 0
            assert re.search(rf"resource2 is not readable by the user with id {USER}\b.*udev rule", client.errors()), (
                client.errors()
            )
        apply_rule(guest)
        assert stack.run("compute", user=USER) == SIMULATED


def vm_check(machine: Machine, user: int = 0) -> tuple[int, list[dict[str, str]]]:
    """Exit code and checks of `tensor-fusion vm --check`, which the guest has without the command."""
    words = ("python3", "-m", "tensor_fusion.client.vmcheck", "--json")
    env = {"PYTHONPATH": PYTHON_FILES, "TF_NATIVE_DIR": f"{PYTHON_FILES}/native"}
    with machine.start(*words, user=user, env=env) as client:
        code = client.wait()
        return code, json.loads(client.output())["checks"]


def test_check_in_the_guest(needs_shmem: None, guest: Machine, guest_memory: Path) -> None:
    apply_rule(guest)
    with Stack(guest, "shmem", guest_memory).worker():
        code, checks = vm_check(guest, USER)
        assert code == 0, checks
        assert checks[-1]["text"] == f"shmem+/sys/bus/pci/devices/0000:00:04.0/resource2+{SEGMENT_MB}+0"
        guest.run("chmod", "0600", f"{SHARED_DEVICE}/resource2")
        code, checks = vm_check(guest, USER)
        assert code == 1
        assert "user somebody" in checks[-1]["text"] and "udev rule" in checks[-1]["text"]
    code, checks = vm_check(guest)
    assert code == 1
    assert "has ended" in checks[-1]["text"]


def test_share_forgotten(needs_shmem: None, boot_guest: Callable[..., Machine]) -> None:
    with make_segment("tf-test-vm-off") as segment, boot_guest(segment, share="off") as machine:
        machine.enable_device()
        stack = Stack(machine, "shmem", segment)
        with stack.worker(), stack.start("compute") as client:
            assert client.wait() > 0
            assert "share=on" in client.errors(), client.errors()
            code, checks = vm_check(machine)
            assert code == 1
            assert "share=on" in checks[-1]["text"], checks
