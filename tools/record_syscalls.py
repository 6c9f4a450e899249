"""Record which system calls sessions make, as a list for `tensor-fusion-worker --seccomp FILE`.

    python tools/record_syscalls.py -o FILE [--gpu sim] -- PROGRAM …

starts a worker, runs the program on it, and adds what its sessions called to the list. PROGRAM may start workers of its
own: those of the tests are recorded as well, so `-- python -m pytest tests/test_stack.py` records what the tests do. A
call that was not recorded fails in a session under the list, so record everything that clients will do: all that loads
code, JIT among it, and NVML. Needs a C compiler, and Linux 5.5.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tensor_fusion.client.files import client_environment
from tensor_fusion.worker.driver import choose_driver
from tensor_fusion.worker.jail import driver_version

HERE = Path(__file__).resolve().parent
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
PATIENCE = 20.0
HEAD = """\
# System calls of sessions, for tensor-fusion-worker --seccomp: number, name, how often; of ioctl file and request.
# Recorded by tools/record_syscalls.py on {machine}. A worker refuses it with another kind of driver.
"""


def build(folder: Path) -> Path:
    """The library that records, for LD_PRELOAD."""
    if not COMPILER:
        sys.exit("There is no C compiler here (cc, gcc or clang).")
    library = folder / "record.so"
    flags = ["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([COMPILER, *flags, str(HERE / "record_syscalls.c"), "-ldl", "-o", str(library)], check=True)
    return library


def names() -> dict[int, str]:
    """Of the calls, as the compiler's headers have them."""
    command = [COMPILER or "", "-E", "-dM", "-x", "c", "-"]
    done = subprocess.run(command, input="#include <asm/unistd.h>\n", capture_output=True, text=True, check=True)
    return {int(number): name for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", done.stdout, re.MULTILINE)}


Key = tuple[int, str]  # number, and of ioctl the file and the request


def gathered(folder: Path) -> Counter[Key]:
    """What all sessions called, once all of their recorders have written it."""
    until = time.monotonic() + PATIENCE
    while list(folder.glob("*.part")):
        if time.monotonic() > until:
            sys.exit(f"A session has not ended within {PATIENCE:.0f} s: what it called would be missing.")
        time.sleep(0.1)
    counts: Counter[Key] = Counter()
    for path in folder.glob("*.calls"):
        for line in path.read_text().splitlines():
            number, count, rest = re.fullmatch(r"(\d+) (\d+)(.*)", line).groups()  # type: ignore[union-attr]
            counts[int(number), general(rest.strip())] += int(count)
    return counts


def general(rest: str) -> str:
    """Files of which there are many count as one: sockets, memory without a name."""
    return re.sub(r":\[\d+\]", "", re.sub(r"\(deleted\)", "", rest))


def read(path: Path, driver: str) -> Counter[Key]:
    """A list that is there already."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    if lines[:1] != [f"driver {driver}"]:
        sys.exit(f"{path} was recorded with another driver than {driver}; name another file.")
    found = [re.fullmatch(r"(\d+) \w+ (\d+)(.*)", line) for line in lines[1:]]
    return Counter({(int(line[1]), line[3].strip()): int(line[2]) for line in found if line})


def write(path: Path, driver: str, counts: Counter[Key]) -> None:
    known = names()
    machine = f"Linux {platform.release()}, {' '.join(platform.libc_ver())}"
    lines = [
        " ".join(filter(None, (str(number), known.get(number, "unknown"), str(counts[number, rest]), rest)))
        for number, rest in sorted(counts)
    ]
    path.write_text(HEAD.format(machine=machine) + f"driver {driver}\n" + "".join(f"{line}\n" for line in lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the list; what it has stays in it")
    parser.add_argument("--gpu", choices=("nvidia", "sim"), help="the worker's driver")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="and its arguments, behind --")
    given = parser.parse_args()
    program = given.program[1:] if given.program[:1] == ["--"] else given.program
    if not program:
        parser.error("name a program behind --")
    chosen = choose_driver(given.gpu, os.environ)
    driver = "simulated" if chosen.simulated else f"nvidia {driver_version()}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recording = {"LD_PRELOAD": str(build(folder)), "RECORD_FOLDER": name}
        command = [sys.executable, "-m", "tensor_fusion.worker", "-p", "0", "--host", "127.0.0.1", "--warm", "0"]
        command += ["--gpu", given.gpu] if given.gpu else []
        worker = subprocess.Popen(command, env={**os.environ, **recording}, stdout=subprocess.PIPE, text=True)
        assert worker.stdout
        try:
            ready = worker.stdout.readline().split()
            if ready[:2] != ["ready", "native"]:
                sys.exit("The worker did not start; what it says stands above.")
            connection = f"native+127.0.0.1+{ready[2].rpartition(':')[2]}+0"
            tests = {"TF_TEST_PRELOAD": recording["LD_PRELOAD"], "RECORD_FOLDER": name}
            environment = {**os.environ, **tests, **client_environment(connection, os.environ)}
            code = subprocess.run(program, env=environment, check=False).returncode
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(PATIENCE)
            worker.stdout.close()
        counts = gathered(folder)
    if given.output.exists():
        counts += read(given.output, driver)
    write(given.output, driver, counts)
    calls = len({number for number, _ in counts})
    print(f"{given.output}: {calls} system calls of {driver}; the program ended with {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
