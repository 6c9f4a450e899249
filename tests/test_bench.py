"""tensor-fusion bench on the simulated GPU: the native program, the comparison, the relay, the census, bad input."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from worker_harness import alive, environment, eventually

from tensor_fusion.abi import native_file, native_folder
from tensor_fusion.bench import compare, plot, relay
from tensor_fusion.bench.program import QUICK, Side, groups
from tensor_fusion.config import UserError

NATIVE = {"TF_NATIVE_DIR": os.environ["TF_NATIVE_DIR"]} if "TF_NATIVE_DIR" in os.environ else {}
GROUPS = ["startup", "launch", "null", "sync", "event", "copy", "memset", "memory", "graph"]
SIM = "lib/libtf-simgpu.so"
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
# A CUDA program in ten lines; its argument is the exit code.
PROGRAM = """
import ctypes, subprocess, sys
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
context = ctypes.c_void_p()
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
config = ctypes.c_int()
for _ in range(int(sys.argv[2])):
    assert cuda.cuCtxGetCacheConfig(ctypes.byref(config)) == 0
cuda.cuMemMapArrayAsync(None, 0, None)
print("from the program")
if sys.argv[3:]:
    sys.exit(subprocess.run([sys.executable, *sys.argv[:1], *sys.argv[3:]], check=False).returncode)
sys.exit(int(sys.argv[1]))
"""


def cli(*arguments: str | Path, timeout: float = 110, **variables: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "tensor_fusion", "bench", *map(str, arguments)],
        env=environment(**NATIVE, **variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def program(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(native_file("bin/tensor-fusion-bench")), *map(str, arguments)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# The native program


def test_program_needs_libc_only() -> None:
    with native_file("bin/tensor-fusion-bench").open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        tags: list[Any] = list(dynamic.iter_tags())
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert needed <= {"libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}


def test_program_lists_its_groups() -> None:
    assert list(groups()) == GROUPS


def run_on(library: str | Path, *only: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = ["--libcuda", library, "--only", ",".join(only), *QUICK.words()]
    return program("run", *words, **variables)


def test_percentiles_are_given_where_there_are_samples_for_them() -> None:
    result = run_on(native_file(SIM), "launch", "copy")
    assert result.returncode == 0, result.stderr
    series = [
        entry
        for line in result.stdout.splitlines()
        if "group" in (found := json.loads(line))
        for entry in found["series"]
    ]
    assert {entry["samples"] >= 1000 for entry in series} == {True, False}
    for entry in series:
        if entry["unit"] == "1/s":
            continue
        assert ("p99" in entry) == (entry["samples"] >= 100), entry
        assert ("p99.9" in entry) == (entry["samples"] >= 1000), entry
        order = [entry[name] for name in ("min", "value", "p99", "p99.9", "max") if name in entry]
        assert order == sorted(order)
        assert entry["min"] <= entry["mean"] <= entry["max"]


SHIM = """
#include <dlfcn.h>
#include <stddef.h>
static int calls;
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t size, void *stream) {
    int (*real)(unsigned long long, const void *, size_t, void *) = dlsym(RTLD_NEXT, "cuMemcpyHtoDAsync_v2");
    return LOSE_COPY && ++calls == 100 ? 0 : real(to, from, size, stream);
}
typedef unsigned u;
int cuLaunchKernel(void *f, u a, u b, u c, u d, u e, u g, u h, void *stream, void **parameters, void **extra) {
    int (*real)(void *, u, u, u, u, u, u, u, void *, void **, void **) = dlsym(RTLD_NEXT, "cuLaunchKernel");
    return !LOSE_COPY && ++calls % 3 == 0 ? 0 : real(f, a, b, c, d, e, g, h, stream, parameters, extra);
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("lose_copy", "group", "sentence"),
    [
        (1, "copy", "Wrong result of H2D pageable async"),
        (0, "launch", "Wrong result of cuLaunchKernel"),
        (0, "sync", "Wrong result of launch + cuStreamSynchronize"),
        (0, "event", "Wrong result of launches waited for by events"),
    ],
)
def test_a_driver_that_loses_work_is_found_out(tmp_path: Path, lose_copy: int, group: str, sentence: str) -> None:
    """A library in front of the simulated GPU that says success for a copy, or for launches, that never happen."""
    (tmp_path / "shim.c").write_text(SHIM)
    shim, simulated = tmp_path / "shim.so", native_file(SIM)
    command = [COMPILER or "", "-D_GNU_SOURCE", f"-DLOSE_COPY={lose_copy}", "-shared", "-fPIC", tmp_path / "shim.c"]
    link = ["-o", shim, "-Wl,--no-as-needed", simulated, f"-Wl,-rpath,{simulated.parent}", "-ldl"]
    subprocess.run([*map(str, command), *map(str, link)], check=True, timeout=60)
    result = run_on(shim, group)
    assert result.returncode == 1
    assert sentence in result.stderr


def test_a_failing_call_is_named() -> None:
    result = run_on(native_file(SIM), "memset", TF_SIM_FAULTS="cuMemsetD8Async:2=700")
    assert result.returncode == 1
    assert "cuMemsetD8Async failed with 700 (CUDA_ERROR_ILLEGAL_ADDRESS)" in result.stderr


def test_a_driver_without_graphs_is_measured_without_them() -> None:
    result = run_on(native_file(SIM), "graph", TF_SIM_FAULTS="cuStreamBeginCapture_v2:1=801")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["series"] == [] and "digest" not in found
    assert found["skipped"] == "cuStreamBeginCapture is not supported by this driver"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--only", "luanch"], "There is no group luanch"),
        (["run", "--only", ""], "--only names no group"),
        (["run", "--budget", "0"], "--budget is 0; use a number from"),
        (["run", "--budget"], "--budget needs a value"),
        (["run", "--fast", "1"], "Unknown option --fast"),
        (["run", "--libcuda", "/nowhere/libcuda.so.1"], "The CUDA driver library cannot be loaded"),
        (["run", "--libcuda", "libc.so.6"], "does not export cuInit"),
        (["relay", "--listen", "0"], "needs --delay-us"),
        (["relay", "--delay-us", "-1"], "--delay-us is -1"),
        (["relay", "--delay-us", "5"], "needs --to HOST:PORT"),
        (["relay", "--delay-us", "5", "--to", "localhost"], "needs --to HOST:PORT"),
        (["relay", "--delay-us", "5", "--to", "localhost:99999"], "The port in --to is 99999"),
    ],
)
def test_program_refuses_with_a_sentence(words: list[str], sentence: str) -> None:
    result = program(*words)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stdout == ""


# Native and remote


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every group, both sides, on a worker that the command starts."""
    folder = tmp_path_factory.mktemp("bench")
    result = cli("--gpu", "sim", "--quick", "--pairs", "1", "--json", folder / "r.json", "--plot", folder / "plot")
    assert result.returncode == 0, result.stderr
    assert "SIMULATED" in result.stdout and "SIMULATED" in result.stderr
    assert "equal bit for bit in every run" in result.stdout
    found: dict[str, Any] = json.loads((folder / "r.json").read_text())
    found["folder"] = folder
    return found


def test_every_group_ran(report: dict[str, Any]) -> None:
    measured = {
        (result["group"], side) for result in report["results"] for side in ("native", "remote") if side in result
    }
    skipped = {(entry["group"], entry["side"]) for entry in report["skipped"]}
    assert measured == {(group, side) for group in GROUPS for side in ("native", "remote")}
    assert skipped == set()


def test_results_are_identical_and_were_computed(report: dict[str, Any]) -> None:
    assert report["identical"] and report["different"] == []
    skipped = {entry["group"] for entry in report["skipped"]}
    for group in set(GROUPS) - skipped:
        assert len(report["digests"][group]["native"]) == 1
        assert report["digests"][group]["native"] == report["digests"][group]["remote"]
    assert len({report["digests"][group]["native"][0] for group in set(GROUPS) - skipped}) == len(set(GROUPS) - skipped)


def test_sides_are_what_they_are_called(report: dict[str, Any]) -> None:
    native, remote = report["sides"]["native"], report["sides"]["remote"]
    assert native["libcuda"].endswith(SIM) and not native["remote"]
    assert remote["libcuda"].endswith("client/libcuda.so.1") and remote["remote"]
    assert native["uuid"] == remote["uuid"]
    assert report["simulated"] and report["machine"]["cores"] >= 1
    assert 0 < native["timer_overhead_ns"] < 100_000


def test_null_call_reaches_the_worker_and_launches_do_not_wait(report: dict[str, Any]) -> None:
    by_name = {result["name"]: result for result in report["results"]}
    assert by_name["null call (cuCtxGetCacheConfig)"]["remote"]["round_trips"] == 1
    assert by_name["cuLaunchKernel, null kernel"]["remote"]["round_trips"] < 0.01
    assert "round_trips" not in by_name["cuLaunchKernel, null kernel"]["native"]
    assert report["traffic"]["copy"]["bytes_sent"] > 1 << 20
    # Started processes have counters of their own; none of this one's may stand for them.
    assert "startup" not in report["traffic"]
    assert "round_trips" not in by_name["process start to first finished kernel"]["remote"]


def test_copies_come_in_every_size_and_kind(report: dict[str, Any]) -> None:
    copies = {(result["name"], result["bytes"]) for result in report["results"] if result["group"] == "copy"}
    kinds = {
        f"{way} {kind} {call}"
        for way in ("H2D", "D2H")
        for kind in ("pageable", "pinned")
        for call in ("sync", "async")
    }
    assert copies == {(kind, 4**power) for kind in kinds for power in range(1, 11)}


def test_plots_are_pictures(report: dict[str, Any]) -> None:
    for name in ("bandwidth", "ratios"):
        assert (report["folder"] / f"plot-{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        root = ElementTree.parse(report["folder"] / f"plot-{name}.svg").getroot()
        assert root.tag.endswith("svg") and len(list(root.iter())) > 100


def test_shared_memory(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ["--transport", "shmem", "--shmem-size", "256", "--only", "null,launch,copy", "--json", str(path)]
    result = cli("--gpu", "sim", "--quick", "--pairs", "1", *words)
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    assert found["identical"] and found["transport"] == "shared memory"
    assert {entry["group"] for entry in found["results"] if "remote" in entry} == {"null", "launch", "copy"}
    # Other commands may be running; what is there belongs to one of them.
    left = [path for path in Path("/dev/shm").glob("tensor-fusion-*") if not Path(f"/proc/{path.name[14:]}").exists()]
    assert not left


def test_remote_alone() -> None:
    result = cli("--gpu", "sim", "--quick", "--pairs", "1", "--only", "null,launch", "--no-native")
    assert result.returncode == 0, result.stderr
    assert "null call" in result.stdout
    assert "native" not in result.stdout.replace("alternating run of each side", "").split("Ratio")[0]


def series(name: str, value: float, unit: str = "us") -> dict[str, Any]:
    return {"name": name, "bytes": 0, "samples": 10, "unit": unit, "value": value}


class FakeRuns:
    """In place of the native program: durations 10, 20, 30 natively and twice that remotely."""

    def __init__(self, digests: dict[str, list[str]], uuids: tuple[str, str] = ("a", "a")) -> None:
        self.order: list[str] = []
        self.digests, self.uuids = digests, dict(zip(("native", "remote"), uuids, strict=True))

    def __call__(self, side: Side, group: str, _effort: object) -> tuple[dict[str, Any], dict[str, Any]]:
        run = self.order.count(side.name)
        self.order.append(side.name)
        value = 10.0 * (run + 1) * (2 if side.name == "remote" else 1)
        measured = {"group": group, "digest": self.digests[side.name][run], "series": [series("call", value)]}
        return {"device": f"GPU {self.uuids[side.name]}", "uuid": self.uuids[side.name]}, measured


def measured_with(monkeypatch: pytest.MonkeyPatch, fake: FakeRuns) -> dict[str, Any]:
    monkeypatch.setattr(compare, "run_group", fake)
    sides = [Side("native", "x", {}), Side("remote", None, {})]
    return compare.measure(sides, compare.Plan(["launch"], 3, QUICK), lambda *_: None)


def test_sides_alternate_and_medians_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRuns({"native": ["d"] * 3, "remote": ["d"] * 3})
    found = measured_with(monkeypatch, fake)
    assert fake.order == ["native", "remote", "remote", "native", "native", "remote"]
    (result,) = found["results"]
    assert (result["native"]["median"], result["native"]["lowest"], result["native"]["highest"]) == (20, 10, 30)
    assert result["remote"]["median"] == 40
    assert result["ratio"] == {"median": 2, "lowest": 2, "highest": 2}
    assert found["identical"]


def test_one_different_run_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured_with(monkeypatch, FakeRuns({"native": ["d"] * 3, "remote": ["d", "d", "e"]}))
    assert not found["identical"] and found["different"] == ["launch"]


def test_two_gpus_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"not the same GPU \(GPU a and GPU b\)"):
        measured_with(monkeypatch, FakeRuns({"native": ["d"] * 3, "remote": ["d"] * 3}, ("a", "b")))


def test_missing_matplotlib_is_said_before_measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'matplotlib>=3"):
        plot.check_plotting(tmp_path / "plot")


# The relay


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends everything back, and ends its side when the peer does."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while part := connection.recv(1 << 16):
                connection.sendall(part)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_relay_keeps_every_byte_of_many_connections(echo: int) -> None:
    sent = [secrets.token_bytes(8 << 20) for _ in range(4)]
    came: dict[int, bytes] = {}

    def exchange(index: int, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            writer = threading.Thread(target=send, args=(connection, sent[index]))
            writer.start()
            parts = []
            while part := connection.recv(1 << 20):
                parts.append(part)
            writer.join(60)
            came[index] = b"".join(parts)

    def send(connection: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view:
            size = 1 + secrets.randbelow(300_000)
            connection.sendall(view[:size])
            view = view[size:]
        connection.shutdown(socket.SHUT_WR)

    with relay.relayed(f"native+127.0.0.1+{echo}+0", 1.0) as running:
        port = int(running.connection.split("+")[2])
        threads = [threading.Thread(target=exchange, args=(index, port)) for index in range(len(sent))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
    assert [came.get(index) == data for index, data in enumerate(sent)] == [True] * len(sent)


def test_relay_delays_each_way_and_the_handshake(echo: int) -> None:
    with (
        relay.relayed(f"native+127.0.0.1+{echo}+0", 40.0) as running,
        socket.create_connection(("127.0.0.1", int(running.connection.split("+")[2])), timeout=20) as connection,
    ):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            connection.sendall(b"ping")
            assert connection.recv(16) == b"ping"
            times.append(time.perf_counter() - began)
    assert 0.075 < times[0] < 0.5  # a round trip for the handshake, another for the message
    assert all(0.0395 < seconds < 0.4 for seconds in times[1:])
    assert min(times[1:]) < 0.06


def test_relay_is_close_to_what_was_asked_for() -> None:
    """Never early; the best of 500 is not late either, however busy this machine is."""
    found = relay.self_test(500, relay.SHORT_SPIN_US)
    assert found["asked_us"] == 1000
    assert 1000 <= found["relayed_min_us"] < 1150
    assert found["relayed_p50_us"] >= found["relayed_min_us"]


def test_relay_ends_a_connection_that_leads_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with (
        relay.relayed(f"native+127.0.0.1+{port}+0", 1.0) as running,
        socket.create_connection(("127.0.0.1", int(running.connection.split("+")[2])), timeout=20) as connection,
    ):
        assert connection.recv(1) == b""


def test_benchmark_through_the_relay(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    result = cli("--gpu", "sim", "--quick", "--pairs", "1", "--only", "null", "--rtt", "3", "--json", path)
    assert result.returncode == 0, result.stderr
    found = json.loads(path.read_text())
    (null,) = [entry for entry in found["results"] if entry["name"].startswith("null call")]
    assert null["remote"]["median"] >= 2950
    assert null["native"]["median"] < 1000
    assert found["relay"]["asked_us"] == 3000 and found["relay"]["added_us"] >= 2950
    assert "round trip + 3 ms" in found["transport"]


# The census


def counted(tmp_path: Path, *words: str, options: tuple[str, ...] = ()) -> tuple[subprocess.CompletedProcess[str], Any]:
    (tmp_path / "app.py").write_text(PROGRAM)
    path = tmp_path / "census.json"
    command = [sys.executable, str(tmp_path / "app.py"), *words]
    result = cli("--gpu", "sim", *options, "--json", path, "--", *command)
    return result, json.loads(path.read_text())


def test_census_counts_what_blocked_and_passes_the_exit_code_on(tmp_path: Path) -> None:
    result, found = counted(tmp_path, "7", "25")
    assert result.returncode == 7
    assert result.stdout == "from the program\n"
    (process,) = found["processes"]
    assert process["by_function"]["cuCtxGetCacheConfig"]["round_trips"] == 25
    assert process["by_function"]["cuInit"]["round_trips"] == 1
    assert process["round_trips"] == sum(of["round_trips"] for of in process["by_function"].values())
    assert process["blocked_ns"] > 0 and process["bytes_sent"] > 0 and process["bytes_received"] > 0
    assert process["program"].startswith("python")
    assert "cuCtxGetCacheConfig" in result.stderr and "exit code 7" in result.stderr
    assert found["unsupported"] == {"cuMemMapArrayAsync": 1}
    assert "cuMemMapArrayAsync is not supported and was refused 1 time." in result.stderr


def test_census_of_two_processes_has_each_and_the_sum(tmp_path: Path) -> None:
    result, found = counted(tmp_path, "0", "10", "3", "20")
    assert result.returncode == 3
    assert sorted(entry["by_function"]["cuCtxGetCacheConfig"]["round_trips"] for entry in found["processes"]) == [
        10,
        20,
    ]
    assert found["by_function"]["cuCtxGetCacheConfig"]["round_trips"] == 30
    assert found["total"]["round_trips"] == sum(entry["round_trips"] for entry in found["processes"])
    assert "all 2 processes" in result.stderr


def test_census_with_a_round_trip_shows_it(tmp_path: Path) -> None:
    _, found = counted(tmp_path, "0", "10", options=("--rtt", "4"))
    null = found["by_function"]["cuCtxGetCacheConfig"]
    assert null["blocked_ns"] / null["round_trips"] > 3.9e6


def test_census_of_a_program_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "census.json"
    result = cli("--gpu", "sim", "--json", path, "--", "sh", "-c", "kill -9 $$")
    assert result.returncode == 137
    assert json.loads(path.read_text())["processes"] == []
    assert "No process of the program wrote statistics" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", [["--pairs", "1000", "--only", "null"], ["--", "sleep", "60"]])
def test_told_to_end_it_leaves_nothing_behind(words: list[str], number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion", "bench", "--gpu", "sim", *words],
        env=environment(**NATIVE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    while "Started a worker" not in process.stderr.readline():
        assert process.poll() is None
    assert eventually(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 3)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    process.stderr.close()
    assert eventually(lambda: not [child for child in started if alive(child)])


@pytest.mark.parametrize("words", [["--rtt", "0.5"], ["--transport", "shmem", "--shmem-size", "64"]])
def test_killed_it_leaves_no_worker_relay_or_segment(words: list[str]) -> None:
    """Nothing can be done in the process that was killed: the kernel tells what it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion", "bench", "--gpu", "sim", *words, "--", "sleep", "2"],
        env=environment(**NATIVE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    segment = Path(f"/dev/shm/tensor-fusion-{process.pid}")

    def started() -> list[psutil.Process]:
        return psutil.Process(process.pid).children(recursive=True)

    assert eventually(lambda: "sleep" in [child.name() for child in started()], 20)
    assert segment.exists() == ("shmem" in words)
    children = started()
    process.kill()
    process.wait()
    assert eventually(lambda: not [child for child in children if alive(child)], 10)
    assert not segment.exists()


# Bad input


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--pairs", "0"], 2, "--pairs is 0; use 1 to 1000"),
        (["--pairs", "two"], 2, "Invalid value for '--pairs'"),
        (["--rtt", "-1"], 2, "--rtt is -1; use a round trip in milliseconds above 0"),
        (["--rtt", "0"], 2, "--rtt is 0"),
        (["--rtt", "nan"], 2, "--rtt is nan"),
        (["--rtt", "0.5", "--transport", "shmem"], 2, "--rtt delays TCP"),
        (["--rtt", "0.5", "--connect", "shmem+/x+256+0"], 2, "--rtt delays TCP"),
        (["--transport", "shmem", "--shmem-size", "0"], 2, "--shmem-size is 0; use 1 to"),
        (["--connect", "shmem+/tf-none+256+0", "--no-native", "--only", "null"], 1, "/tf-none"),
        (["--only", "luanch"], 2, "There is no group 'luanch'; the groups are startup, launch"),
        (["--only", ","], 2, "--only names no group"),
        (["--connect", "native+127.0.0.1+1+0", "--no-native"], 2, "Nothing listens at 127.0.0.1 port 1"),
        (["--connect", "native+127.0.0.1"], 2, "has 2 fields instead of 4 or 5"),
        (["--json", "/nowhere/r.json"], 2, "The folder /nowhere of --json"),
        (["--json", "/dev"], 2, "--json /dev is a folder"),
        (["--json", "/proc/r.json"], 2, "--json /proc/r.json cannot be written"),
        (["--plot", "/nowhere/p"], 2, "The folder /nowhere of --plot"),
        (["--"], 2, "There is no program after --"),
        (["--only", "null", "--", "true"], 2, "--only belongs to the benchmark's own groups"),
        (["--gpu", "sim", "--", "/nowhere/app"], 127, "The program '/nowhere/app' was not found"),
        (["--frequency", "3"], 2, "No such option"),
    ],
)
def test_bad_input_gets_a_sentence(words: list[str], code: int, sentence: str) -> None:
    given = words if "--gpu" in words or "--connect" in words else ["--gpu", "sim", *words]
    given = words if words == ["--"] else given
    result = cli(*given)
    assert result.returncode == code, result.stderr
    assert sentence in result.stderr
    assert result.stdout == ""


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has NVIDIA's driver")
@pytest.mark.parametrize("words", [[], ["--", "true"]])
def test_no_driver_is_no_simulated_one(words: list[str]) -> None:
    result = cli(*words)
    assert result.returncode != 0
    assert "No NVIDIA driver was found" in result.stderr and "--gpu sim" in result.stderr
    assert result.stdout == ""


def test_a_native_folder_without_the_program(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    shutil.copytree(native_folder(), folder, symlinks=True)
    (folder / "bin/tensor-fusion-bench").unlink()
    result = subprocess.run(
        [sys.executable, "-m", "tensor_fusion", "bench", "--gpu", "sim"],
        env=environment(TF_NATIVE_DIR=str(folder)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "tensor-fusion-bench is missing" in result.stderr


def test_a_full_disk_does_not_take_the_table() -> None:
    """The figures of an hour are on the terminal before a file is written."""
    result = cli("--gpu", "sim", "--quick", "--pairs", "1", "--only", "null", "--json", "/dev/full")
    assert result.returncode == 1
    assert "cuCtxGetDevice" in result.stdout or "null" in result.stdout
    assert "Results: equal bit for bit" in result.stdout
    assert "/dev/full cannot be written: No space left on device" in result.stderr
