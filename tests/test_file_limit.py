"""A program under a small limit on the size of files (ulimit -f): the signal that comes with it ends no call of ours.

`tensor-fusion run` gives a program the signals of a shell, and SIGXFSZ ends who does not expect it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from stack.harness import COMPILER, Worker, clean_environment, whole_stack

from tensor_fusion.abi import native_file

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
PROGRAM = """
#include <signal.h>
#include <string.h>
int cuInit(unsigned), cuDevicePrimaryCtxRetain(void **, int), cuCtxSetCurrent(void *);
int cuMemAlloc_v2(unsigned long long *, unsigned long), cuMemAllocHost_v2(void **, unsigned long);
int cuMemHostAlloc(void **, unsigned long, unsigned), cuMemAllocManaged(unsigned long long *, unsigned long, unsigned);
int cuMemcpyHtoD_v2(unsigned long long, void *, unsigned long), cuCtxSynchronize(void);

static char bytes[4 << 20];

int main(void) {
    void *context, *pinned;
    unsigned long long device, managed;
    int failed = signal(SIGXFSZ, SIG_DFL) != SIG_DFL; /* as run leaves it */
    failed += cuInit(0) != 0;
    failed += cuDevicePrimaryCtxRetain(&context, 0) != 0;
    failed += cuCtxSetCurrent(context) != 0;
    failed += cuMemAlloc_v2(&device, sizeof bytes) != 0;
    failed += cuMemcpyHtoD_v2(device, bytes, sizeof bytes) != 0;
    failed += cuMemAllocHost_v2(&pinned, sizeof bytes) != 0;
    memset(pinned, 1, sizeof bytes);
    failed += cuMemHostAlloc(&pinned, sizeof bytes, 2) != 0;
    failed += cuMemAllocManaged(&managed, sizeof bytes, 1) != 0;
    failed += cuMemcpyHtoD_v2(managed, bytes, sizeof bytes) != 0;
    return failed + (cuCtxSynchronize() != 0);
}
"""
WRITTEN = {
    "nothing": {},
    "log": {"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "trace", "TF_LOG_PATH": "{}/log"},
    "statistics": {"TF_STATS_PATH": "{}/stats"},
    "trace": {"TF_TRACE_PATH": "{}/trace"},
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limited")
    (folder / "program.c").write_text(PROGRAM)
    client = native_file("client/libcuda.so.1")
    words = [str(folder / "program.c"), "-o", str(folder / "program"), str(client)]
    subprocess.run([str(COMPILER), *words, f"-Wl,-rpath-link,{client.parent}"], check=True)
    return folder / "program"


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("most", [0, 100, 1 << 16])
def test_a_limit_on_files_ends_no_call(
    python_worker: Worker, limited: Path, most: int, written: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tensor_fusion", "run", "--connect", python_worker.connection, "--", str(limited)],
        env=clean_environment(**{name: value.format(tmp_path) for name, value in WRITTEN[written].items()}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most)),
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
