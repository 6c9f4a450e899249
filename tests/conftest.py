"""What several test files ask for, and how the tests are spread over processes: `pytest -n 3` runs three files at once.

Nothing is left behind: what the tests write lies in one folder, which goes when they have passed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cuda_compiler
import pytest

from tensor_fusion.abi import Teleport

cuda_compiler.put_on_path()

# Each file is run by one process, because its tests share workers, programs and a guest. The longest begin. Two
# processes would keep two cores busy four fifths of the time: many tests wait for something to happen, or not to.
LONGEST = (
    "test_vm",
    "test_skew_build",
    "test_stack",
    "test_random_programs",
    "test_doctor",
    "test_uploads",
    "test_bench",
    "test_completion_model",
    "test_shmem_pinned",
    "test_ring_model",
    "test_waiting",
    "test_worker_shmem",
    "test_transport",
    "test_calls",
    "test_stack_ends",
    "test_timeline",
    "test_worker",
    "test_image_cache",
    "test_memory",
    "test_tls",
    "test_ipc_pools",
    "test_strangers",
    "test_ipc",
    "test_pages",
)
# What is worth running after every change: under a minute for all of them together.
FAST = (
    "test_answers",
    "test_binaries",
    "test_compile_cache",
    "test_config",
    "test_fork",
    "test_linking",
    "test_quiet_streams",
    "test_quota",
    "test_rules",
    "test_three_files",
    "test_vm_root",
    "test_worker_parts",
)
# What takes long because it looks at one thing closely, with all that measures on a GPU machine (tests/gpu): README's
# second line of tests. Single tests are marked where they stand.
DEEP = (
    "test_bench",
    "test_calls",
    "test_captures",
    "test_completion_model",
    "test_faults",
    "test_image_cache",
    "test_ipc_pools",
    "test_jail",
    "test_kernel_timeout",
    "test_memory",
    "test_random_programs",
    "test_record_syscalls",
    "test_ring_adversary",
    "test_ring_model",
    "test_shmem_pinned",
    "test_simgpu",
    "test_skew_build",
    "test_stack_ends",
    "test_stopped",
    "test_strangers",
    "test_uploads",
    "test_vm",
)
SLOW_AMONG_FAST = ("test_every_message_survives_the_wire",)
_own_folder = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Under nohup, or behind an & in a script, these are ignored, and so they would be by every process of a test.
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)
    if getattr(config.option, "numprocesses", None):
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False
    if not config.option.basetemp:
        folder = Path(tempfile.mkdtemp(prefix="tensor-fusion-tests-"))
        config.stash[_own_folder] = folder
        config.option.basetemp = str(folder / "tests")
        os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
        # So that what a process leaves that a test kills goes, too.
        os.environ["TMPDIR"] = str(folder / "tmp")
        (folder / "tmp").mkdir()
        tempfile.tempdir = None
        # Where Python is told to keep no bytecode, each of some thousand processes would compile our modules.
        if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
            os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(_own_folder, None)
    if folder and not config.stash.get(_failed, False):
        shutil.rmtree(folder, ignore_errors=True)


_failed = pytest.StashKey[bool]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_failed] = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    folder = config.stash.get(_own_folder, None)
    if folder and terminalreporter.stats.get("failed", []) + terminalreporter.stats.get("error", []):
        terminalreporter.write_line(f"What the tests wrote is kept for a look: {folder}")


def pytest_report_header(config: pytest.Config) -> str:
    marks = config.option.markexpr
    some = marks not in ("", "deep", "not deep") or config.option.keyword
    if some or config.args_source not in (pytest.Config.ArgsSource.TESTPATHS, pytest.Config.ArgsSource.INVOCATION_DIR):
        return "on the simulated GPU"
    minutes = {"": 18, "deep": 10, "not deep": 8}[marks]
    side = (
        f"side by side, about {minutes} minutes on two cores"
        if getattr(config.option, "numprocesses", None)
        else f"one after the other, about {2 * minutes} minutes; -n 3 runs three at once"
    )
    what = {"": "all tests", "deep": "the tests that look closely", "not deep": "the tests but those that look closely"}
    return f"{what[marks]}, on the simulated GPU, {side}; every change's own are `-m fast`, under a minute"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in FAST and not item.name.startswith(SLOW_AMONG_FAST):
            item.add_marker("fast")
        if item.path.stem in DEEP or item.path.parent.name == "gpu":
            item.add_marker("deep")
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture
def segment_name() -> Iterator[str]:
    """A name in /dev/shm that nobody else has, and no file under it afterwards."""
    name = f"/tf-test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    Path("/dev/shm" + name).unlink(missing_ok=True)


@pytest.fixture(scope="session")
def schema() -> bytes:
    return Teleport().schema
