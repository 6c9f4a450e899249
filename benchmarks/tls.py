"""What a secret costs: the same program over TCP in plain and in TLS, in alternation, on the simulated GPU.

    python benchmarks/tls.py [--pairs N] [--megabytes N] [--mbit N] [--out FILE]

Two workers listen on the loopback address, one with a secret and one without. Each has a client that takes short turns
with the other: calls that do nothing but reach the driver, then copies to the GPU and back. Beside the
clock's time stands that of the processors, of client and session together, which other work on the machine changes
less. With --mbit each of the four data connections is paced by the kernel to a quarter of that (SO_MAX_PACING_RATE), as
if a slower network were in between; that needs a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil
from serving import serving

from tensor_fusion.client.files import client_environment

SECRET = "benchmark-secret"
CALL_TURNS = 20
ROLE = """
import ctypes, json, resource, statistics, sys, time
cuda, by, size = ctypes.CDLL("libcuda.so.1"), ctypes.byref, ctypes.c_size_t
megabytes, calls = int(sys.argv[1]), int(sys.argv[2])
context, address, place = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_int()
assert cuda.cuInit(0) == cuda.cuDevicePrimaryCtxRetain(by(context), 0) == cuda.cuCtxSetCurrent(context) == 0
count = megabytes << 20
assert cuda.cuMemAlloc_v2(by(address), size(count)) == 0
memory = ctypes.create_string_buffer(b"x" * count, count)
def used():
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime
def copy(function, *words):
    best, begin = [], used()
    for _ in range(5):
        now = time.perf_counter()
        assert function(*words, size(count)) == 0
        best.append(time.perf_counter() - now)
    return {"GB/s": count / min(best) / 1e9, "median GB/s": count / statistics.median(best) / 1e9}
query, free = cuda.cuMemGetInfo_v2, size()
assert cuda.cuMemcpyHtoD_v2(address, memory, size(count)) == 0
print("{}", flush=True)
for line in sys.stdin:
    if line == "call\\n":
        times = []
        for _ in range(calls):
            now = time.perf_counter()
            query(by(free), by(free))
            times.append(time.perf_counter() - now)
        times.sort()
        print(json.dumps({"median us": times[calls // 2] * 1e6, "tenth us": times[calls // 10] * 1e6}), flush=True)
        continue
    begin = used()
    up = copy(cuda.cuMemcpyHtoD_v2, address, memory)
    down = copy(cuda.cuMemcpyDtoH_v2, memory, address)
    print(json.dumps({"up": up, "down": down, "client seconds": used() - begin, "bytes": 10 * count}), flush=True)
"""
PACED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
static void pace(int fd) {
    unsigned rate = BYTES_A_SECOND;
    setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate);
}
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    pace(fd);
    return REAL(connect)(fd, to, size);
}
int accept4(int fd, struct sockaddr *from, socklen_t *size, int flags) {
    int found = REAL(accept4)(fd, from, size, flags);
    if (found >= 0)
        pace(found);
    return found;
}
"""


def session_seconds(process: psutil.Process) -> float:
    return sum(sum(child.cpu_times()[:2]) for child in process.children())


class Client:
    """A program that does what it is told, in its worker's GPU."""

    def __init__(self, connection: str, worker: int, environment: Mapping[str, str], words: list[str]) -> None:
        self._worker = psutil.Process(worker)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ROLE, *words],
            env={**environment, **client_environment(connection, environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.calls: list[dict[str, float]] = []
        self.copies: list[dict] = []
        self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def turn(self, what: str) -> dict:
        assert self.process.stdin
        before = session_seconds(self._worker)
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        found = self._answer()
        return found | {"session seconds": session_seconds(self._worker) - before}

    def figures(self) -> dict[str, float]:
        """Of each figure the middle of the turns; of copies also the best."""
        spent = [(one["client seconds"] + one["session seconds"]) / one["bytes"] * 1e9 for one in self.copies]
        return {
            "call, median (us)": statistics.median(one["median us"] for one in self.calls),
            "call, one in ten is faster (us)": statistics.median(one["tenth us"] for one in self.calls),
            "copy to the GPU (GB/s)": statistics.median(one["up"]["median GB/s"] for one in self.copies),
            "copy to the GPU, best (GB/s)": max(one["up"]["GB/s"] for one in self.copies),
            "copy from the GPU (GB/s)": statistics.median(one["down"]["median GB/s"] for one in self.copies),
            "copy from the GPU, best (GB/s)": max(one["down"]["GB/s"] for one in self.copies),
            "processors, both sides (ns for each byte copied)": statistics.median(spent),
        }


def table(plain: dict[str, float], tls: dict[str, float]) -> str:
    lines = [f"{'':50}{'plain':>10}{'TLS':>10}{'TLS / plain':>14}"]
    lines += [f"{name:50}{plain[name]:10.2f}{tls[name]:10.2f}{tls[name] / plain[name]:14.2f}" for name in plain]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a secret costs.")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--mbit", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TENSOR_FUSION_")}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if given.mbit:
            (folder / "paced.c").write_text(PACED)
            compiler = shutil.which("cc") or "gcc"
            rate = f"-DBYTES_A_SECOND={given.mbit * 1000000 // 8 // 4}u"
            command = [
                compiler,
                rate,
                "-shared",
                "-fPIC",
                "-o",
                str(folder / "paced.so"),
                str(folder / "paced.c"),
                "-ldl",
            ]
            subprocess.run(command, check=True)
            environment["LD_PRELOAD"] = str(folder / "paced.so")
        words = [str(given.megabytes), str(given.calls)]
        both = [
            Client(
                *stack.enter_context(serving(secret, folder, environment, "--gpu", "sim", "--warm", "0")),
                environment,
                words,
            )
            for secret in ("", SECRET)
        ]
        for pair in range(given.pairs):
            clients = both if pair % 2 == 0 else both[::-1]
            for _ in range(CALL_TURNS):
                for client in clients:
                    client.calls.append(client.turn("call"))
            for client in clients:
                client.copies.append(client.turn("copy"))
        plain, tls = (client.figures() for client in both)
        for client in both:
            client.process.communicate()
    cores, load = os.cpu_count(), os.getloadavg()[0]
    link = f"{given.mbit} Mbit/s by pacing" if given.mbit else "loopback"
    head = (
        f"{link}; {given.pairs} pairs, copies of {given.megabytes} MiB; {cores} processors ({platform.machine()}), "
        f"load {load:.1f} with it; the simulated GPU"
    )
    text = f"{head}\n\n{table(plain, tls)}\n"
    sys.stdout.write(text)
    if given.out:
        with given.out.open("a") as file:
            file.write(f"{text}\n")


if __name__ == "__main__":
    main()
