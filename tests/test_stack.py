"""Programs of all kinds against a worker on the simulated GPU, every process real, every result compared.

The C programs are in tests/stack/, the kernels in tests/kernels/. What happens when a process is killed is in
test_stack_ends.py, what happens on bad input and failing calls in test_stack_errors.py.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import cuda_compiler
import pytest
from stack.harness import HERE, ROOT, Worker, clean_environment, connected_elsewhere, succeed, whole_stack

from tensor_fusion.client.files import client_environment, client_folder

pytestmark = [*whole_stack, pytest.mark.usefixtures("both_transports")]
pytest_plugins = ["stack.fixtures"]
SIMULATED = "right on Simulated NVIDIA H200\n"


# The driver API


@pytest.mark.parametrize("how", ["LD_LIBRARY_PATH", "LD_PRELOAD", "both"])
def test_program_linked_with_the_driver(worker: Worker, program: Path, how: str) -> None:
    clean = clean_environment()
    env = client_environment(worker.connection, clean, preload=how != "LD_LIBRARY_PATH")
    if how == "LD_PRELOAD":
        del env["LD_LIBRARY_PATH"]
    assert succeed([program, "compute"], {**clean, **env}) == SIMULATED


def test_program_linked_with_the_driver_needs_a_library_path(worker: Worker, program: Path) -> None:
    """The proof that the program above uses our file because of the environment, and not for another reason."""
    env = {**worker.env, "LD_LIBRARY_PATH": ""}
    done = subprocess.run([program, "compute"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Simulated" not in done.stdout


@pytest.mark.parametrize("variables", [{"TF_STRICT": "1"}, {"TF_MAX_CACHE_REQUEST_COUNT": "1"}])
def test_settings_do_not_change_results(worker: Worker, variables: dict[str, str]) -> None:
    assert worker.run("compute", **variables) == SIMULATED
    assert worker.run("order", **variables) == "right\n"


def test_threads_with_streams_of_their_own(worker: Worker) -> None:
    assert worker.run("threads") == "right\n"


def test_order_between_threads(worker: Worker) -> None:
    assert worker.run("order") == "right\n"


@pytest.mark.parametrize("variables", [{}, {"TF_STRICT": "1"}])
def test_graphs(worker: Worker, variables: dict[str, str]) -> None:
    assert worker.run("graphs", **variables) == "right\n"


def test_host_functions_in_one_queue(program: Path) -> None:
    """What streams share on a device, at its worst: what needs a second one while a graph stands has no end."""
    with Worker(program=program, TF_SIM_QUEUES="1") as worker:
        assert worker.run("graphs", "mixes") == "right\n"
        assert worker.run("callbacks", "frees-while-one-stands") == "right\n"


@pytest.mark.parametrize("variables", [{}, {"TF_STRICT": "1"}])
def test_device_memory_in_the_place_of_host_memory(worker: Worker, variables: dict[str, str]) -> None:
    assert worker.run("places", **variables) == "right\n"


def test_arrays(worker: Worker) -> None:
    assert worker.run("arrays") == "right\n"


def test_launching_by_parts(worker: Worker) -> None:
    assert worker.run("parts") == "right\n"


@pytest.mark.parametrize("variables", [{}, {"TF_STRICT": "1"}])
def test_green_contexts(worker: Worker, variables: dict[str, str]) -> None:
    assert worker.run("green", **variables) == "right\n"


def test_polls_of_who_knows(worker: Worker) -> None:
    assert worker.run("polls") == "right\n"


@pytest.mark.usefixtures("both_transports")
def test_polls_whose_words_are_lent_again(worker: Worker) -> None:
    assert worker.run("polls", "lent") == "right\n"


@pytest.mark.usefixtures("both_transports")
def test_waits_for_an_event_that_is_recorded_again(worker: Worker) -> None:
    assert worker.run("polls", "again") == "right\n"


@pytest.mark.usefixtures("both_transports")
def test_many_events_are_asked_for_together(worker: Worker, tmp_path: Path) -> None:
    """Beside a capture each of 600; then 600 together, and 600 of which 24 are not complete: those are asked anew, and
    what a graph may have changed."""
    path = tmp_path / "statistics.json"
    assert worker.run("polls", "sweep", TF_STATS_PATH=str(path)) == "right\n"
    assert json.loads(path.read_text())["by_function"]["cuEventQuery"]["round_trips"] < 850
    assert worker.run("polls", "sweep", TF_STRICT="1") == "right\n"


@pytest.mark.parametrize("stream", ["legacy", "per-thread"])
def test_polls_of_default_streams(program: Path, tmp_path: Path, stream: str) -> None:
    """Over shared memory they are answered there, but for a question each millisecond."""
    path = tmp_path / "statistics.json"
    with Worker(program=program, transport="shmem") as shared:
        polls = int(shared.run("polls", stream, TF_STATS_PATH=str(path)))
    asked = json.loads(path.read_text())["by_function"]["cuStreamQuery"]["round_trips"]
    assert polls > 2 * asked, "polled seldom, or answered by the worker"
    assert asked < 400


@pytest.mark.parametrize("variables", [{}, {"TF_STRICT": "1"}])
def test_times_between_events(worker: Worker, variables: dict[str, str]) -> None:
    assert worker.run("timing", **variables) == "right\n"


@pytest.mark.parametrize(("what", "questions", "most"), [("once", 100, 4), ("many", 300, 13), ("one", 20, 1)])
def test_times_come_together(worker: Worker, tmp_path: Path, what: str, questions: int, most: int) -> None:
    """A benchmark's questions are answered with another's answer, or with that of the wait before."""
    for variables, least in (({}, 1), ({"TF_STRICT": "1"}, questions)):
        path = tmp_path / f"{least}.json"
        assert worker.run("timing", what, TF_STATS_PATH=str(path), **variables) == "right\n"
        asked = json.loads(path.read_text())["by_function"]["cuEventElapsedTime"]["round_trips"]
        assert least <= asked <= (most if least == 1 else questions)


@pytest.mark.parametrize(
    "check",
    [
        "streams-of-another-context",
        "capture-ends-with-its-context",
        "handles-that-are-values",
        "nothing-fails-later",
        "copies-by-device-address",
        "parameters-of-a-node",
        "mapped-memory-while-posts-wait",
        "stream-of-a-callback",
        "capture-in-a-threads-default-stream",
        "host-functions-see-copies",
        "polls-see-copies",
        "priorities-of-streams",
        "large-copies-behind-host-functions",
        "event-of-a-capture-that-is-over",
    ],
)
def test_corners(worker: Worker, check: str) -> None:
    assert worker.run("corners", check) == "right\n"


@pytest.mark.parametrize(
    "check",
    [
        "before-any-context",
        "thread-without-a-context",
        "functions-without-a-context",
        "kernels-of-another-thread",
        "wrapper-of-relocatable-code",
        "images-that-are-none",
        "text-of-a-compiler",
        "names-of-kernels",
        "attributes-of-two-threads",
    ],
)
def test_images(worker: Worker, check: str) -> None:
    assert worker.run("images", check) == "right\n"


@pytest.mark.deep
@pytest.mark.parametrize("check", ["memsets", "uploads-follow", "copies", "refusals", "kernels-reach"])
@pytest.mark.parametrize("variables", [{}, {"TF_STRICT": "1"}])
def test_pinned_memory_by_its_host_address(worker: Worker, check: str, variables: dict[str, str]) -> None:
    assert worker.run("pinned", check, **variables) == "right\n"


@pytest.mark.parametrize("check", ["all-ways", "sources-that-change", "refusals", "captures"])
@pytest.mark.parametrize("variables", [{}, {"TF_STRICT": "1"}])
def test_batches_of_copies(worker: Worker, check: str, variables: dict[str, str]) -> None:
    assert worker.run("batches", check, **variables) == "right\n"


def test_kernels_and_large_pinned_memory(worker: Worker) -> None:
    """The GPU reaches memory that was allocated and memory that was registered."""
    assert worker.run("pinned", "kernels-of-large") == "2\nright\n"


@pytest.mark.deep
@pytest.mark.parametrize(
    "check",
    [
        "allocated",
        "registered",
        "copies",
        "host-functions",
        "lives",
        "threads",
        "freed-behind-functions",
        "graph-copies",
        "many",
        "neighbours",
        "read-only",
    ],
)
def test_large_mapped_memory(worker: Worker, check: str) -> None:
    """100 MiB that kernels and the program read and write; what is in one page is kept apart to the word."""
    assert worker.run("mapped", check) == "right\n"


def test_registered_memory_that_was_unmapped(worker: Worker) -> None:
    assert worker.run("mapped", "unmapped") == "right\n"


def test_large_mapped_memory_where_the_kernel_does_not_tell(worker: Worker) -> None:
    done = subprocess.run(
        [str(worker.program), "mapped", "compared"],
        env={**worker.env, "TF_ENABLE_LOG": "1"}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    assert len(re.findall("compared as a whole before each launch", done.stderr)) == 1


def test_words_in_pinned_memory(worker: Worker) -> None:
    """Streams write and wait for those that the GPU reaches; others are refused with a sentence."""
    done = subprocess.run(
        [str(worker.program), "pinned", "words"],
        env=worker.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    shared = worker.connection.startswith("shmem")
    assert (done.returncode, done.stdout) == (0, f"{3 if shared else 1}\nright\n"), done.stderr
    assert len(re.findall(r"the word at the host address .* is refused", done.stderr)) == 1


@pytest.mark.parametrize("check", ["short-buffers", "one-address"])
def test_what_nccl_asks_of_launches_and_pinned_memory(worker: Worker, check: str) -> None:
    assert worker.run("pinned", check) == "right\n"


def test_addresses_of_pinned_memory_inside_structs(worker: Worker) -> None:
    """Over TCP a twin is made of memory that was allocated for kernels, or is small, and of no other."""
    reached = 2 if worker.connection.startswith("shmem") else 1
    assert worker.run("pinned", "hidden-addresses") == f"{reached}\nright\n"


def test_addresses_of_pinned_memory_inside_parameters(program: Path) -> None:
    with Worker(program=program, TF_SIM_UNKNOWN_KERNELS="skip") as worker:
        assert worker.run("pinned", "addresses-in-parameters") == "right\n"


def test_copies_inside_host_memory_in_captures(worker: Worker) -> None:
    done = subprocess.run(
        [str(worker.program), "pinned", "copies-inside-captures"],
        env=worker.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    said = "cuMemcpyAsync of one place of host memory to another cannot be part of a graph here"
    assert len(re.findall(said, done.stderr)) == 1


def test_what_an_illegal_address_may_have_been(worker: Worker) -> None:
    done = subprocess.run(
        [str(worker.program), "pinned", "kernels-break"],
        env=worker.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    named = re.findall(r"kernels do not reach the (\d+) bytes of pinned host memory at 0x", done.stderr)
    large = str((9 << 20) + 4096)
    assert sorted(named) == ([large] if worker.connection.startswith("shmem") else sorted(["8192", large, large]))


@pytest.mark.parametrize("check", ["attributes-of-two-devices", "limits-of-a-kernel"])
def test_corners_of_other_workers(program: Path, check: str) -> None:
    with Worker(program=program, TF_SIM_DEVICES="2", TF_SIM_UNKNOWN_KERNELS="skip") as worker:
        assert worker.run("corners", check) == "right\n"


@pytest.mark.parametrize(
    "check",
    [
        "copies",
        "host-copies",
        "frees",
        "peers",
        "peers-of-contexts-that-end",
        "strangers",
        "occupancy",
        "pools",
        "order",
        "one-of-two-breaks",
    ],
)
def test_two_devices_in_one_program(program: Path, check: str) -> None:
    machine = {"TF_SIM_DEVICES": "2", "TF_SIM_PEERS": "none" if check == "strangers" else ""}
    with Worker(program=program, TF_GPU_MEMORY_LIMIT="1000", **machine) as worker:
        assert worker.run("devices", check) == "right\n"


def test_a_launch_that_breaks_one_of_two_devices(program: Path) -> None:
    """Nobody waits for a launch: the next call that waits is one on the other device."""
    faults = "cuLaunchKernel:1=700,sticky"
    with Worker(program=program, TF_SIM_DEVICES="2", TF_SIM_FAULTS=faults) as worker:
        assert worker.run("devices", "one-of-two-breaks-at-a-launch") == "right\n"


def test_fork_after_init(worker: Worker) -> None:
    assert worker.run("fork") == "right\n"


def test_fork_before_init(worker: Worker) -> None:
    assert worker.run("fork-first") == "right\n"


def test_several_clients_at_once(worker: Worker) -> None:
    clients = [worker.start("steady", str(seed)) for seed in range(1, 5)]
    try:
        for client in clients:
            assert client.line() == "steady"
        assert len(worker.sessions()) == 4
        time.sleep(1)
        for client in clients:
            assert client.end() == 0, client.errors()
            assert client.line().startswith("right after ")
    finally:
        for client in clients:
            client.__exit__(None, None, None)


def test_two_simulated_gpus_and_visible_devices(program: Path) -> None:
    with Worker(program=program, TF_SIM_DEVICES="2") as worker:
        count = (
            "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); n = ctypes.c_int(); "
            "print(cuda.cuInit(0), cuda.cuDeviceGetCount(ctypes.byref(n)), n.value)"
        )
        for visible, expected in (("0,1", "0 0 2"), ("1", "0 0 1"), ("", "100 3 0"), ("-1", "100 3 0")):
            env = {**worker.env, "CUDA_VISIBLE_DEVICES": visible}
            assert succeed([sys.executable, "-c", count], env) == f"{expected}\n"
        assert worker.run("compute", CUDA_VISIBLE_DEVICES="1") == SIMULATED


# The runtime API


@pytest.fixture(scope="module")
def runtime_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Objects of the runtime programs: one compilation, linked once with each cudart."""
    folder = tmp_path_factory.mktemp("runtime")
    sources = {"known": HERE / "runtime.cu", "any": ROOT / "tests/gpu/programs/cudart.cu"}
    compilers = [
        subprocess.Popen(
            [cuda_compiler.nvcc(), "-arch=sm_90", "-fmad=false", "-c", str(source), "-o", str(folder / f"{name}.o")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, source in sources.items()
    ]
    for compiler in compilers:
        _, errors = compiler.communicate(timeout=110)
        assert compiler.returncode == 0, errors
    return folder


def runtime_program(objects: Path, name: str, cudart: str) -> Path:
    out = objects / f"{name}-{cudart}"
    command = [cuda_compiler.nvcc(), str(objects / f"{name}.o"), *cuda_compiler.linked(cudart), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("cudart", ["static", "shared"])
def test_program_on_the_runtime(worker: Worker, runtime_objects: Path, cudart: str) -> None:
    built = runtime_program(runtime_objects, "known", cudart)
    assert succeed([built], worker.env) == "right on Simulated NVIDIA H200, 1 device\n"


def test_program_of_relocatable_code(worker: Worker, tmp_path: Path) -> None:
    """Compiled for linking: the runtime registers a wrapper of version 2 with the linked image."""
    out = tmp_path / "relocatable"
    command = [
        cuda_compiler.nvcc(),
        "-rdc=true",
        "-arch=sm_90",
        "-fmad=false",
        *cuda_compiler.linked("static"),
        str(HERE / "runtime.cu"),
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert succeed([out], worker.env) == "right on Simulated NVIDIA H200, 1 device\n"


@pytest.mark.parametrize("cudart", ["static", "shared"])
def test_program_with_kernels_that_the_simulated_gpu_skips(runtime_objects: Path, cudart: str) -> None:
    """Everything but the kernels' own results: symbols, 2D copies, pools, occupancy, launch errors, threads, reset."""
    built = runtime_program(runtime_objects, "any", cudart)
    with Worker(TF_SIM_UNKNOWN_KERNELS="skip") as worker:
        report = json.loads(succeed([built], worker.env))
    assert report["libraries"]
    assert {Path(path).parent.resolve() for path in report["libraries"]} == {client_folder().resolve()}
    with Worker() as worker:
        done = subprocess.run([built], env=worker.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, "a kernel without a body was not refused"


# Python


def test_cuda_bindings(worker: Worker, tmp_path: Path) -> None:
    """NVIDIA's own Python package, which resolves every name through cuGetProcAddress."""
    report = json.loads(
        succeed(
            [sys.executable, str(ROOT / "tests/gpu/programs/cuda_bindings_add.py")],
            {**worker.env, "KERNELS_PTX": str(ROOT / "tests/kernels/kernels.ptx")},
        )
    )
    assert report["digest"]


# Around the program


def test_run_reaches_the_children_of_a_program(worker: Worker, program: Path) -> None:
    script = f"{program} compute 1 && {{ {program} compute 2 & {program} compute 3; wait $!; }}"
    command = [sys.executable, "-m", "tensor_fusion", "run", "--connect", worker.connection, "--", "sh", "-c", script]
    assert succeed(command, clean_environment()) == SIMULATED * 3


def test_statistics_of_a_program(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "%p.json"
    with worker.start("console", TF_STATS_PATH=str(path)) as console:
        assert console.line() == "console"
        assert console.code("init") == 0
        assert console.code("alloc 0 4096") == 0
        for _ in range(500):
            assert console.code("launch good 0") == 0
        assert console.code("sync") == 0
        pid = console.process.pid
        assert console.end() == 0
    (written,) = tmp_path.iterdir()
    assert written.name == f"{pid}.json"
    statistics = json.loads(written.read_text())
    functions = statistics["by_function"]
    assert statistics["frames"] > 500
    assert statistics["round_trips"] < 50
    assert statistics["round_trips"] == sum(entry["round_trips"] for entry in functions.values())
    assert functions["cuCtxSynchronize"]["round_trips"] == 1
    assert "cuLaunchKernel" not in functions, "launches wait for nobody"
    assert statistics["bytes_sent"] > 500 * 64
    assert statistics["bytes_received"] > 0
    assert 0 < statistics["blocked_ns"] < 60e9


@pytest.mark.parametrize(("strict", "waits"), [("1", 20), ("on", 20), ("false", 0), ("maybe", 0)])
def test_strict_mode_waits_for_every_launch(worker: Worker, tmp_path: Path, strict: str, waits: int) -> None:
    path = tmp_path / "statistics.json"
    with worker.start("console", TF_STATS_PATH=str(path), TF_STRICT=strict) as console:
        assert console.line() == "console"
        assert console.code("init") == 0
        assert console.code("alloc 0 4096") == 0
        for _ in range(20):
            assert console.code("launch good 0") == 0
        assert console.end() == 0
    waited = json.loads(path.read_text())["by_function"].get("cuLaunchKernel", {"round_trips": 0})
    assert waited["round_trips"] == waits


def test_nothing_connects_before_the_first_call(program: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = f"native+127.0.0.1+{server.getsockname()[1]}+0"
        server.settimeout(0.2)
        env = connected_elsewhere(connection)
        folder = client_folder()
        env["LD_PRELOAD"] = f"{folder}/libcuda.so.1 {folder}/libnvidia-ml.so.1"
        assert succeed([shutil.which("true") or "true"], env) == ""
        loading = (
            "import ctypes; cuda = ctypes.CDLL('libcuda.so.1'); ctypes.CDLL('libnvidia-ml.so.1'); "
            "p = ctypes.c_void_p(); print(cuda.cuCtxGetCurrent(ctypes.byref(p)), cuda.cuMemAlloc_v2(0, 0))"
        )
        assert succeed([sys.executable, "-c", loading], env) == "3 3\n"
        with pytest.raises(TimeoutError):
            server.accept()
        # The same program does connect with its first call of cuInit: the silence above means something.
        starting = subprocess.Popen(
            [sys.executable, "-c", loading + "; print(cuda.cuInit(0))"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.settimeout(20)
        server.accept()[0].close()
        output, errors = starting.communicate(timeout=20)
        assert output == "3 3\n46\n", errors
