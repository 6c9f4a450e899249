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
    "test_stack",
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
    "test_rules",
    "test_three_files",
    "test_vm_root",
    "test_worker_parts",
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
    some = config.option.markexpr or config.option.keyword
    if some or config.args_source not in (pytest.Config.ArgsSource.TESTPATHS, pytest.Config.ArgsSource.INVOCATION_DIR):
        return "on the simulated GPU"
    side = (
        "side by side, 7 or 8 minutes on two cores"
        if getattr(config.option, "numprocesses", None)
        else "one after the other, about 20 minutes; -n 3 runs three at once"
    )
    return f"all tests on the simulated GPU, {side}; every change's own are `-m fast`, under a minute"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in FAST and not item.name.startswith(SLOW_AMONG_FAST):
            item.add_marker("fast")
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
