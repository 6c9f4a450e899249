"""A session that somebody stops is named to its client within seconds, once, and the call goes on with it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from stack.harness import WITH_MEMORY, Program, Worker, whole_stack
from worker_harness import eventually

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
SEEN = "is stopped, and its client waits"
SAID = "is stopped there, by SIGSTOP or a debugger; calls wait until it goes on"
# Waits for the session in the way that its argument says, at each line that it gets.
PROGRAM = f"""{WITH_MEMORY}
import threading, time
sleeps = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: time.sleep(9))
print("there", flush=True)
for line in sys.stdin:
    if line == "posts\\n":  # until nothing more can be sent
        for i in range(30000):
            must(cuda.cuMemsetD8Async(address, ctypes.c_ubyte(i & 255), size(16), None))
    elif line == "host\\n":  # a function of the program's own, for which the stream waits
        must(cuda.cuLaunchHostFunc(None, sleeps, None))
    elif line == "threads\\n":
        wait = lambda: must(cuda.cuCtxSetCurrent(context) or cuda.cuCtxSynchronize())
        waiters = [threading.Thread(target=wait) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join()
    must(cuda.cuCtxSynchronize())
    print("done", flush=True)
"""


@pytest.mark.parametrize("transport", ["native", "tls", "shmem"])
@pytest.mark.parametrize("how", ["waits", "threads", "posts"])
def test_it_is_said_once_each_time(transport: str, how: str, tmp_path: Path) -> None:
    log = tmp_path / "worker"
    with (
        Worker(transport=transport, TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker,
        Program([sys.executable, "-c", PROGRAM], worker.env) as program,
    ):
        assert program.line() == "there"
        assert program.ask(how) == "done"
        (session,) = worker.sessions()
        for times in (1, 2):
            session.send_signal(signal.SIGSTOP)
            program.begin(how)
            assert eventually(lambda times=times: log.read_text().count(SEEN) == times, 15)  # type: ignore[misc]
            time.sleep(0.5)  # until the client has said it
            session.send_signal(signal.SIGCONT)
            assert program.line() == "done"
            time.sleep(1.5)  # until it counts as going on
        assert program.end() == 0
        assert program.errors().count(SAID) == 2


def test_a_session_that_works_is_not_called_stopped(tmp_path: Path) -> None:
    """A call that takes nine seconds: the worker is asked twice, and says so."""
    log = tmp_path / "worker"
    with (
        Worker(transport="native", TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker,
        Program([sys.executable, "-c", PROGRAM], worker.env) as program,
    ):
        assert program.line() == "there"
        assert program.ask("host", 30) == "done"
        assert program.end() == 0
        assert program.errors() == ""
    assert log.read_text().count("asked: The session is not stopped.") == 2
