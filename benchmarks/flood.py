"""What a flood of connections costs those who have work: starts and calls of good clients, in quiet and under a flood.

    python benchmarks/flood.py [--rate N] [--held N] [--seconds S] [--floods N] [--gpu sim] [--secret] [--out FILE]

One worker listens on the loopback address. Beside it a client makes calls that reach the driver, as fast as they are
answered, and others start, one every 0.2 s: each loads the library in a process of its own, and its start is the time
from before that to the end of the first wait. Then the same while --floods processes hold --held connections open that
say nothing, and connect --rate times a second, by turns closing at once, sending half a greeting, and sending junk.
They come from addresses of their own, so that no quota of the good ones' address is used up. The flood's processes have
the last --floods processors to themselves, where the machine has as many and two more. What must hold: every start
succeeds, the p99 of starts is at most 3 times that of quiet, and a call takes at most 1.2 times as long; else the exit
status is 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple

from serving import serving

from tensor_fusion.client.files import client_environment

EVERY_S = 0.2
STARTS_BOUND, CALLS_BOUND = 3.0, 1.2
OUTSTANDING = 256  # connects of one process that nobody has answered yet
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset and leaves no port behind
# Each client is a fork of one process that has Python and ctypes ready: what is measured is ours.
STARTS = f"""
import ctypes, json, os, sys, time
def start():
    begin = time.perf_counter()
    cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    errors = [cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), cuda.cuCtxSetCurrent(context)]
    errors.append(cuda.cuCtxSynchronize())
    print(json.dumps([max(errors), (time.perf_counter() - begin) * 1e3]), flush=True)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    due = time.monotonic() + {EVERY_S}
    child = os.fork()
    if not child:
        start()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        print(json.dumps([-status, 0.0]), flush=True)
    time.sleep(max(0.0, due - time.monotonic()))
"""
CALLS = """
import ctypes, json, sys, time
cuda, context, free = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_size_t()
assert cuda.cuInit(0) == cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == cuda.cuCtxSetCurrent(context) == 0
by, times, end = ctypes.byref(free), [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    now = time.perf_counter()
    assert cuda.cuMemGetInfo_v2(by, by) == 0
    times.append((time.perf_counter() - now) * 1e6)
print(json.dumps(times))
"""


def percentile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def good_clients(environment: Mapping[str, str], seconds: float) -> dict[str, float]:
    """One that works and others that start beside it, for so long: their figures."""
    roles = [
        subprocess.Popen([sys.executable, "-c", role, str(seconds)], env=environment, stdout=subprocess.PIPE, text=True)
        for role in (CALLS, STARTS)
    ]
    calls, starts = (role.communicate(timeout=seconds + 120)[0] for role in roles)
    if any(role.returncode for role in roles):
        sys.exit(f"flood.py: a good client ended with {[role.returncode for role in roles]}")
    answers = [json.loads(line) for line in starts.splitlines()]
    times = [milliseconds for error, milliseconds in answers if not error]
    microseconds = json.loads(calls)
    return {
        "starts": len(answers),
        "starts that failed": len(answers) - len(times),
        "start, median (ms)": percentile(times, 0.5),
        "start, p99 (ms)": percentile(times, 0.99),
        "start, longest (ms)": max(times),
        "calls a second": len(microseconds) / seconds,
        "call, mean (us)": sum(microseconds) / len(microseconds),
        "call, median (us)": percentile(microseconds, 0.5),
        "call, p99 (us)": percentile(microseconds, 0.99),
    }


class Flood:
    """What one process of the flood does."""

    def __init__(self, number: int, port: int, made: Synchronized[int], held: Synchronized[int]) -> None:
        self._hosts = [f"127.{number + 1}.{i // 250}.{i % 250 + 1}" for i in range(500)]
        self._port, self._made, self._held_now = port, made, held
        self._next = 0
        self._poll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self._held: dict[int, socket.socket] = {}

    def _begin(self) -> socket.socket:
        self._next += 1
        one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        one.bind((self._hosts[self._next % len(self._hosts)], 0))
        one.connect_ex(("127.0.0.1", self._port))
        return one

    def _connect(self) -> None:
        one = self._begin()
        self._open[one.fileno()] = one
        self._poll.register(one, select.EPOLLOUT)

    def _hold(self) -> None:
        one = self._begin()
        self._held[one.fileno()] = one
        self._poll.register(one, select.EPOLLIN)

    def _due(self, number: int) -> None:
        self._poll.unregister(number)
        if number in self._held:  # the worker has ended it
            self._held.pop(number).close()
            return
        one = self._open.pop(number)
        if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            with self._made.get_lock():
                self._made.value += 1
        if number % 3:
            with suppress(OSError):  # reset by the worker, as it may
                one.send(b"TFUS" if number % 3 == 1 else bytes(range(64)))
        else:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.close()

    def run(self, rate: float, held: int, stop: float) -> None:
        begun, connects = time.monotonic(), 0
        while (now := time.monotonic()) < stop:
            while connects < (now - begun) * rate and len(self._open) < OUTSTANDING:
                self._connect()
                connects += 1
            connects = max(connects, int((now - begun) * rate) - OUTSTANDING)  # what could not be is not made up for
            for _ in range(min(50, held - len(self._held))):
                self._hold()
            self._held_now.value = len(self._held)
            for number, _ in self._poll.poll(0.002):
                self._due(number)


class Share(NamedTuple):
    """What one process of the flood is told."""

    number: int
    core: int | None
    port: int
    rate: float
    held: int
    stop: float


def flood(share: Share, made: Synchronized[int], held: Synchronized[int]) -> None:
    if share.core is not None:
        os.sched_setaffinity(0, {share.core})
    Flood(share.number, share.port, made, held).run(share.rate, share.held, share.stop)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a flood of connections costs good clients.")
    parser.add_argument("--rate", type=float, default=10000)
    parser.add_argument("--held", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--floods", type=int, default=4)
    parser.add_argument("--gpu", default="")
    parser.add_argument("--secret", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    own = cores[-given.floods :] if len(cores) >= given.floods + 2 else []
    os.sched_setaffinity(0, set(cores) - set(own))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TENSOR_FUSION_")}
    options = ["--warm", "2", *(["--gpu", given.gpu] if given.gpu else [])]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connection, _ = stack.enter_context(serving("flood" * given.secret, folder, plain, *options))
        environment = {**plain, **client_environment(connection, plain)}
        quiet = good_clients(environment, given.seconds)
        made, port = multiprocessing.Value("q"), int(connection.split("+")[2])
        held = [multiprocessing.Value("q") for _ in range(given.floods)]
        stop = time.monotonic() + given.seconds + 4
        most = given.floods
        shares = [
            Share(i, own[i] if own else None, port, given.rate / most, given.held // most, stop) for i in range(most)
        ]
        crowd = [multiprocessing.Process(target=flood, args=(shares[i], made, held[i])) for i in range(most)]
        for one in crowd:
            one.start()
        time.sleep(2)
        before, begun = made.value, time.monotonic()
        flooded = good_clients(environment, given.seconds)
        rate, kept = (made.value - before) / (time.monotonic() - begun), sum(one.value for one in held)
        for one in crowd:
            one.join()
    again = f"{platform.machine()}, {len(cores)} processors, {len(own)} of them the flood's own"
    print(f"{again}; {rate:.0f} connects a second came through, {kept} were held open at the end")
    print(f"{'':28}{'quiet':>12}{'flood':>12}{'ratio':>9}")
    for name, value in quiet.items():
        print(f"{name:28}{value:12.1f}{flooded[name]:12.1f}{flooded[name] / value if value else 0:9.2f}")
    if given.out:
        given.out.write_text(
            json.dumps({"rate": rate, "held": kept, "quiet": quiet, "flood": flooded}, indent=1) + "\n"
        )
    starts = flooded["start, p99 (ms)"] / quiet["start, p99 (ms)"]
    calls = flooded["call, mean (us)"] / quiet["call, mean (us)"]
    failed = quiet["starts that failed"] + flooded["starts that failed"]
    holds = not failed and starts <= STARTS_BOUND and calls <= CALLS_BOUND
    print(f"every start succeeds, p99 <= {STARTS_BOUND}, a call <= {CALLS_BOUND}: {'yes' if holds else 'no'}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
