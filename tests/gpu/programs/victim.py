"""The clients that the robustness checks start, kill and count on. Usage: victim.py ROLE [NUMBER]

Each role prints single words on stdout as it gets to a point, so that the checker can wait for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import begin
from driver_ctypes import Driver, DriverError


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def hold(driver: Driver, size: int) -> None:
    """Hold NUMBER bytes until stdin ends."""
    pointer = driver.alloc(size)
    driver.call("cuMemsetD8_v2", ctypes.c_ulonglong(pointer), ctypes.c_ubyte(1), ctypes.c_size_t(size))
    driver.synchronize()
    say("holding")
    sys.stdin.read()


def copy(driver: Driver, size: int) -> None:
    """Copy NUMBER bytes up and down for ever; on a loss, say the error's number and how long it took, then end."""
    pointer = driver.alloc(size)
    data = random.Random(1).randbytes(1 << 20) * (size >> 20)
    buffer = ctypes.create_string_buffer(size)
    say("copying")
    while True:
        begun = time.monotonic()
        try:
            driver.upload(pointer, data)
            driver.call("cuMemcpyDtoH_v2", buffer, ctypes.c_ulonglong(pointer), ctypes.c_size_t(size))
        except DriverError as error:
            say(f"error {error.code} of {error.name} after {time.monotonic() - begun:.3f}")
            again = driver.ask("cuCtxSynchronize")
            say(f"then {again}")
            return


def pin(driver: Driver, size: int) -> None:
    """Hold NUMBER bytes of pinned memory until stdin ends; says how many of its blocks lie in shared memory.

    Every block goes up and down again, so that memory which is not what it says would show.
    """
    block = 16 << 20
    count = max(1, size // block)
    device = driver.alloc(block)
    shared = 0
    for number in range(count):
        out = ctypes.c_void_p()
        driver.call("cuMemHostAlloc", ctypes.byref(out), ctypes.c_size_t(block), 0)
        assert out.value is not None
        data = random.Random(number).randbytes(block)
        ctypes.memmove(out, data, block)
        driver.call("cuMemcpyHtoDAsync_v2", ctypes.c_ulonglong(device), out, ctypes.c_size_t(block), None)
        driver.synchronize()
        ctypes.memset(out, 0, block)
        driver.call("cuMemcpyDtoHAsync_v2", out, ctypes.c_ulonglong(device), ctypes.c_size_t(block), None)
        driver.synchronize()
        if ctypes.string_at(out, block) != data:
            say(f"DIFFERENT in block {number}")
            return
        shared += in_shared_memory(out.value)
    say(f"pinned {count}")
    say(f"shared {shared}")
    say("holding")
    sys.stdin.read()


def in_shared_memory(place: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin_text, _, end_text = line.split()[0].partition("-")
        if int(begin_text, 16) <= place < int(end_text, 16):
            return "/dev/shm/" in line
    return False


def digest(driver: Driver, seed: int) -> None:
    """Some seconds of copies and kernels on data of its own; says the digest, which must equal the CPU's."""
    words = 1 << 20
    fill, iota = driver.kernel("fill_u32"), driver.kernel("iota_u32")
    data = random.Random(seed).randbytes(words * 4)
    first, second = driver.alloc(words * 4), driver.alloc(words * 4)
    here = hashlib.sha256()
    there = hashlib.sha256()
    expected_iota = b"".join(i.to_bytes(4, "little") for i in range(words))
    for turn in range(120):
        driver.upload(first, data)
        driver.launch(
            fill, 4096, 256, ctypes.c_ulonglong(second), ctypes.c_uint(seed * 1000 + turn), ctypes.c_size_t(words)
        )
        there.update(driver.download(first, words * 4))
        there.update(driver.download(second, words * 4))
        here.update(data)
        here.update((seed * 1000 + turn).to_bytes(4, "little") * words)
        driver.launch(iota, 8192, 128, ctypes.c_ulonglong(first), ctypes.c_size_t(words))
        there.update(driver.download(first, words * 4))
        here.update(expected_iota)
    say("equal" if here.digest() == there.digest() else "DIFFERENT")


def illegal(driver: Driver, _number: int) -> None:
    """Write through an address that is nobody's; the error must be this client's alone."""
    fill = driver.kernel("fill_u32")
    driver.launch(fill, 1, 1, ctypes.c_ulonglong(0x700000000000), ctypes.c_uint(1), ctypes.c_size_t(1))
    say(f"synchronize {driver.ask('cuCtxSynchronize')}")


def limit(driver: Driver, size: int) -> None:
    """What a limit of NUMBER bytes looks like from inside: totals, the exact fit, one byte more, in steps."""
    free, total = driver.memory()
    say(f"total {total}")
    say(f"free {free}")
    reported = ctypes.c_size_t()
    driver.call("cuDeviceTotalMem_v2", ctypes.byref(reported), 0)
    say(f"device_total {reported.value}")
    out = ctypes.c_ulonglong()
    say(f"over {driver.ask('cuMemAlloc_v2', ctypes.byref(out), ctypes.c_size_t(size + 1))}")
    code = driver.ask("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(size))
    say(f"exact {code}")
    if code == 0:
        more = ctypes.c_ulonglong()
        say(f"one_more {driver.ask('cuMemAlloc_v2', ctypes.byref(more), ctypes.c_size_t(1))}")
        say(f"free_when_full {driver.memory()[0]}")
        say("full")
        if sys.stdin.readline():
            driver.free(int(out.value))
            say(f"free_again {driver.memory()[0]}")
    sys.stdin.read()


def alloc(driver: Driver, size: int) -> None:
    """The result of one allocation of NUMBER bytes."""
    out = ctypes.c_ulonglong()
    say(f"result {driver.ask('cuMemAlloc_v2', ctypes.byref(out), ctypes.c_size_t(size))}")


ROLES: dict[str, Callable[[Driver, int], None]] = {
    "hold": hold,
    "copy": copy,
    "pin": pin,
    "digest": digest,
    "illegal": illegal,
    "limit": limit,
    "alloc": alloc,
}


def main() -> int:
    begin()
    if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
        sys.stderr.write(f"usage: victim.py {'|'.join(ROLES)} [NUMBER]\n")
        return 2
    driver = Driver()
    driver.start()
    say("started")
    ROLES[sys.argv[1]](driver, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    say("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
