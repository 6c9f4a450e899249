"""The installed product as its users see it: real files, a real worker, the simulated GPU.

These need the native files (pip install ., or TF_NATIVE_DIR) and fail without them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from worker_harness import alive, environment, eventually

from tensor_fusion.abi import Teleport, native_folder
from tensor_fusion.client.elf import soname
from tensor_fusion.client.files import client_folder
from tensor_fusion.worker.protocol import Greeting, Status, Welcome

ROOT = Path(__file__).parent.parent
LIBRARIES = ("libcuda", "libnvidia-ml", "libteleport")
NATIVE = {"TF_NATIVE_DIR": os.environ["TF_NATIVE_DIR"]} if "TF_NATIVE_DIR" in os.environ else {}


def cli(*arguments: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tensor_fusion", *arguments],
        env=environment(**NATIVE, **variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class RealWorker:
    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tensor_fusion.worker",
                "-p",
                "0",
                "--host",
                "127.0.0.1",
                "--gpu",
                "sim",
                *arguments,
            ],
            env=environment(**NATIVE, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.ready = self.process.stdout.readline()
        assert self.ready.startswith("ready native 127.0.0.1:"), self.process.communicate(timeout=20)
        self.port = int(self.ready.split()[2].rpartition(":")[2])
        self.connection = f"native+127.0.0.1+{self.port}+0"

    def stop(self) -> None:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=20)
        # What of the line about warm sessions came after the ready line was read.
        assert output == "" or re.fullmatch(r"warm \d+ session.*\n", output)
        assert self.process.returncode == 0
        assert not [child for child in children if alive(child)]


@pytest.fixture
def worker() -> Iterator[RealWorker]:
    started = RealWorker()
    yield started
    started.stop()


# Files


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_has_its_soname_and_needs_libc_only(name: str) -> None:
    path = native_folder() / "client" / f"{name}.so.1"
    assert soname(path) == f"{name}.so.1"
    with path.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        tags: list[Any] = list(dynamic.iter_tags())
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        runpath = [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
    assert needed <= {"libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}
    assert not runpath


@pytest.mark.parametrize(("name", "api"), [("libcuda", "cuda"), ("libnvidia-ml", "nvml")])
def test_library_exports_what_the_driver_exports(name: str, api: str) -> None:
    with (native_folder() / "client" / f"{name}.so.1").open("rb") as file:
        table: Any = ELFFile(file).get_section_by_name(".dynsym")
        exported = {
            symbol.name
            for symbol in table.iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
        }
    assert exported == set(json.loads((ROOT / "api/exports.json").read_text())[api])


def size_without_debugging(path: Path) -> int:
    with path.open("rb") as file:
        return sum(part["sh_size"] for part in ELFFile(file).iter_sections() if not part.name.startswith(".debug"))


def test_client_folder_has_each_name_once() -> None:
    folder = client_folder()
    for name in LIBRARIES:
        assert (folder / f"{name}.so").samefile(folder / f"{name}.so.1")
    assert sum(size_without_debugging(folder / f"{name}.so.1") for name in LIBRARIES) < (3 << 20) + (128 << 10)


def test_soname_of_other_files_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = (native_folder() / "client" / "libteleport.so.1").read_bytes()
    for content in (b"", b"\x7fELF", b"text" * 100, whole[:70], whole[:200]):
        path.write_bytes(content)
        assert soname(path) is None


def test_preloaded_file_answers_for_the_soname() -> None:
    program = (
        "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); count = ctypes.c_int(); "
        "print(cuda.cuDeviceGetCount(ctypes.byref(count)))"
    )
    folder = client_folder()
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(LD_PRELOAD=f"{folder}/libcuda.so {folder}/libnvidia-ml.so"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == "3\n", result.stderr  # CUDA_ERROR_NOT_INITIALIZED, from the real thing


# libteleport


def test_schema_is_sixteen_bytes_of_a_hash() -> None:
    assert len(Teleport().schema) == 16
    assert any(Teleport().schema)


# Commands


def test_coverage_counts_every_name() -> None:
    table = json.loads(cli("coverage", "--json").stdout)
    assert table["cuda"]["total"] == 674
    assert table["nvml"]["total"] == 404
    for counts in table.values():
        kinds = [counts[kind] for kind in ("remote", "local", "custom", "alias", "refused", "unsupported")]
        assert sum(kinds) == counts["total"]
        for kind in ("refused", "unsupported"):
            assert len(counts[f"{kind}_functions"]) == counts[kind]
            assert all(counts[f"{kind}_functions"].values())


def test_demo_on_the_simulated_gpu() -> None:
    result = cli("demo", "--gpu", "sim", "--json")
    assert result.returncode == 0, result.stderr
    assert "SIMULATED" in result.stderr
    report = json.loads(result.stdout)
    assert report["passed"] is True
    assert report["simulated"] is True
    assert report["results"] == {"vector_add": True, "saxpy": True, "fill_u32": True, "iota_u32": True}
    assert report["statistics"]["calls"] > report["launch"]["launches"]
    # 2,000 launches, and one synchronisation that must wait.
    assert report["launch"]["round_trips"] <= 2
    assert report["bandwidth"]["h2d_gb_per_s"] > 0


def test_demo_table_says_that_it_is_simulated() -> None:
    result = cli("demo", "--gpu", "sim")
    assert result.returncode == 0, result.stderr
    for word in ("device", "SIMULATED", "transport", "results", "4 of 4 right", "round trips", "bandwidth"):
        assert word in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_demo_that_is_told_to_end_leaves_nothing_behind(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion", "demo", "--gpu", "sim", "--transport", "shmem"],
        env=environment(**NATIVE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    segment = Path(f"/dev/shm/tensor-fusion-{process.pid}")
    assert eventually(segment.exists, 20)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(20) == (-9 if number is signal.SIGKILL else 128 + number)
    assert eventually(lambda: not [child for child in started if alive(child)], 10)
    assert not segment.exists()


def test_doctor_passes_on_a_good_worker(worker: RealWorker) -> None:
    result = cli("doctor", "--connect", worker.connection, "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0, report
    assert [check["name"] for check in report["checks"]] == [
        "client files", "loader", "connection string", "worker reachable", "greeting", "devices",
    ]  # fmt: skip
    assert "Simulated" in report["checks"][-1]["text"]


def test_doctor_names_what_is_wrong(worker: RealWorker) -> None:
    def last(connection: str) -> tuple[str, str]:
        result = cli("doctor", "--connect", connection, "--json")
        assert result.returncode == 1
        check = json.loads(result.stdout)["checks"][-1]
        assert check["passed"] is False
        return check["name"], check["text"]

    assert last("native+127.0.0.1+99999+0")[0] == "connection string"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert last(f"native+127.0.0.1+{port}+0") == (
        "worker reachable",
        f"Nothing listens at 127.0.0.1 port {port}; start it there: tensor-fusion-worker -n native -p {port}.",
    )


def test_doctor_names_a_host_that_is_no_name() -> None:
    result = cli("doctor", "--connect", "native+gpu..example+1+0", "--json")
    assert result.returncode == 1, result.stderr
    last = json.loads(result.stdout)["checks"][-1]
    assert (last["name"], last["passed"]) == ("worker reachable", False)
    assert "gpu..example" in last["text"]


def test_doctor_shows_the_refusal_of_a_secret(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    worker = RealWorker(TF_ENABLE_URL_AUTH="1", TF_AUTHORIZED_KEY_PATH=str(keys))
    try:
        refused = cli("doctor", "--connect", f"{worker.connection}+wrong")
        assert refused.returncode == 1
        assert "secret was refused" in refused.stdout
        assert cli("doctor", "--connect", f"{worker.connection}+right").returncode == 0
    finally:
        worker.stop()


PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
result = cuda.cuInit(0)
if result:
    sys.exit(f"cuInit returned {result}")
cuda.cuDeviceGet(ctypes.byref(device), 0)
cuda.cuDeviceGetName(name, 100, device)
print(name.value.decode())
"""


def test_run_gives_a_program_the_worker_s_gpu(worker: RealWorker) -> None:
    for extra in ([], ["--preload"]):
        result = cli("run", "--connect", worker.connection, *extra, "--", sys.executable, "-c", PROGRAM)
        assert (result.returncode, result.stdout) == (0, "Simulated NVIDIA H200\n"), result.stderr


def test_copied_folder_works_alone(worker: RealWorker, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    shutil.copytree(client_folder(), folder)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(LD_LIBRARY_PATH=str(folder), TENSOR_FUSION_OPERATOR_CONNECTION_INFO=worker.connection),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == "Simulated NVIDIA H200\n", result.stderr


def test_client_of_another_schema_is_let_in_by_the_real_worker(worker: RealWorker) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as connection:
        connection.sendall(Greeting.build(bytes(16)))
        raw = connection.makefile("rb").read(512)
    welcome = Welcome.parse(raw)
    assert welcome
    assert (welcome.status, welcome.schema) == (Status.ACCEPTED, Teleport().schema)


def test_killed_client_leaves_no_session(worker: RealWorker) -> None:
    program = PROGRAM + "\nimport time; print('up', flush=True); time.sleep(60)"
    folder = client_folder()
    client = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(LD_LIBRARY_PATH=str(folder), TENSOR_FUSION_OPERATOR_CONNECTION_INFO=worker.connection),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout
    assert client.stdout.readline() == "Simulated NVIDIA H200\n"
    assert client.stdout.readline() == "up\n"
    supervisor = psutil.Process(worker.process.pid)
    assert eventually(lambda: len(supervisor.children()) == 2), "no session was warmed for the next client"
    client.kill()
    client.communicate()
    assert eventually(lambda: len(supervisor.children()) == 1, 2)


@pytest.mark.parametrize("connection", ["", "native+127.0.0.1+1+0", "nonsense"])
def test_program_without_a_worker_gets_an_error_and_a_sentence(connection: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment(LD_LIBRARY_PATH=str(client_folder()), TENSOR_FUSION_OPERATOR_CONNECTION_INFO=connection),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "cuInit returned" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2, result.stderr
