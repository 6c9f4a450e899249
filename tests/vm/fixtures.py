"""The fixtures of tests/test_vm.py: one guest for all of them, and how it reaches a worker."""

from __future__ import annotations

import importlib.util
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

import tensor_fusion
from tensor_fusion.cli.progress import duration
from tensor_fusion.client.files import client_folder
from vm import root as recipe
from vm.machine import Machine
from vm.root import Cpio, Root
from vm.stack import CLIENT, GROUP, PROGRAM, PYTHON_FILES, USER, Stack, apply_rule, make_segment, printed

ACCOUNTS = {
    "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{GROUP}:x:{USER}:{USER}:{GROUP}:/tmp:/bin/sh\n",
    "etc/group": f"root:x:0:\n{GROUP}:x:{USER}:\n",
}


class Announced:
    """Says in lines between pytest's own what takes long: the first of each kind, and then one every few seconds."""

    EVERY = 5.0

    def __init__(self, config: pytest.Config) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._kind, self._at = "", 0.0

    def __call__(self, what: str, seconds: float | None) -> None:
        kind, now = what.partition(":")[0], time.monotonic()
        if kind == self._kind and now - self._at < self.EVERY:
            return
        self._kind, self._at = kind, now
        with self._capture.global_and_fixture_disabled():
            left = "" if seconds is None else f", about {duration(seconds)} left"
            print(f"\ntests: {what}{left}", file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def announced(pytestconfig: pytest.Config) -> Announced:
    return Announced(pytestconfig)


@pytest.fixture(scope="session")
def guest_root(announced: Announced) -> Root:
    reason = recipe.missing()
    if reason:
        if os.environ.get("TF_TEST_VM") == "required":
            pytest.fail(f"TF_TEST_VM=required, but this machine cannot run a guest: {reason}")
        pytest.skip(reason)
    return recipe.make(recipe.cache_folder(), announced)


@pytest.fixture(scope="session")
def guest_files(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is ours in the guest: the client files, our Python package, the test program, nvidia-ml-py."""
    archive = tmp_path_factory.mktemp("vm") / "files.cpio"
    nvml = importlib.util.find_spec("pynvml")
    with archive.open("wb") as out:
        files = Cpio(out)
        for path in client_folder().iterdir():
            files.file(f"{CLIENT[1:]}/{path.name}", path)
        files.file(PROGRAM[1:], program)
        if nvml and nvml.origin:
            files.file(f"{PYTHON_FILES[1:]}/pynvml.py", Path(nvml.origin), 0o644)
        package = Path(tensor_fusion.__file__).parent
        for path in [*package.glob("*.py"), *package.glob("client/*.py"), *package.glob("worker/*.py")]:
            files.file(f"{PYTHON_FILES[1:]}/tensor_fusion/{path.relative_to(package)}", path, 0o644)
        for name, text in ACCOUNTS.items():
            files.add(name, stat.S_IFREG | 0o644, text.encode())
        files.end()
    return archive


@pytest.fixture(scope="session")
def boot_guest(
    guest_root: Root, guest_files: Path, tmp_path_factory: pytest.TempPathFactory, announced: Announced
) -> Callable[..., Machine]:
    def start(segment: Path, share: str = "share=on") -> Machine:
        words = printed(segment).qemu
        assert "share=on" in words
        devices = shlex.split(words.replace("share=on", share))
        announced("a virtual machine boots, its processor emulated: 5 to 10 s", None)
        return Machine(guest_root, guest_files, tmp_path_factory.mktemp("machine"), *devices)

    return start


@pytest.fixture(scope="module")
def guest_memory() -> Iterator[Path]:
    with make_segment("tf-test-vm") as path:
        yield path


@pytest.fixture(scope="module")
def guest(boot_guest: Callable[..., Machine], guest_memory: Path) -> Iterator[Machine]:
    with boot_guest(guest_memory) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the guest's console says belongs to the report of a test that failed."""
    report = yield
    running = getattr(item, "funcargs", {}).get("guest")
    if report.failed and isinstance(running, Machine):
        report.sections.append(("the guest", running.report()))
    return report


@pytest.fixture(params=["native", "shmem"])
def guest_stack(request: pytest.FixtureRequest, guest: Machine, guest_memory: Path) -> Stack:
    if request.param == "shmem":
        apply_rule(guest, guest_memory)
    return Stack(guest, request.param, guest_memory)
