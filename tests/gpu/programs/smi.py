"""The unmodified nvidia-smi and the usual monitoring calls, in the client and on the host, under a memory limit.

In the client: the worker's GPU by name, the limit as its memory, every form of the tool. On the host: the session's
process and its memory while a client holds 1 GiB. Runs on the GPU machine, with a worker of its own.
"""

from __future__ import annotations

import re
import sys

from checking import LOGS, Checks, Client, a_worker, client_env, compute_processes, smi
from common import begin
from harness import Worker, wait_until

LIMIT_MB = 20_000
GIB = 1 << 30


def model() -> str:
    """The word of the GPU's name that every tool shows, however narrow its column: H200 of NVIDIA H200."""
    code, name = smi(["--query-gpu=name", "--format=csv,noheader", "-i", "0"])
    if code != 0 or len(name.split()) < 2:
        raise RuntimeError(f"the host's nvidia-smi gave {code} and the name {name!r}")
    return name.split()[1]


def in_client(checks: Checks, worker: Worker) -> None:
    env = client_env(worker)
    code, plain = smi([], env)
    (LOGS / "nvidia-smi.txt").write_text(plain)
    checks.add("client nvidia-smi: exit code 0", code == 0, plain[-400:], code)
    checks.add("client nvidia-smi: names the GPU", model() in plain, plain[:2000])
    checks.add("client nvidia-smi: the limit is the memory", f"{LIMIT_MB}MiB" in plain.replace(" ", ""), plain[:2000])
    code, listed = smi(["-L"], env)
    native_code, native_list = smi(["-L"])
    checks.add(
        "client nvidia-smi -L: equals the host's",
        (code, listed) == (native_code, native_list),
        f"client {listed!r}, host {native_list!r}",
    )
    code, long = smi(["-q"], env)
    (LOGS / "nvidia-smi-q.txt").write_text(long)
    checks.add("client nvidia-smi -q: exit code 0", code == 0, long[-400:], code)
    _, native_long = smi(["-q"])
    (LOGS / "nvidia-smi-q-native.txt").write_text(native_long)
    for name in ("Product Name", "Driver Version", "CUDA Version", "GPU UUID", "VBIOS Version"):
        here = re.findall(rf"^\s*{name}\s*:\s*(.*)$", long, re.M)
        there = re.findall(rf"^\s*{name}\s*:\s*(.*)$", native_long, re.M)
        checks.add(f"client nvidia-smi -q: {name}", bool(here) and here == there, f"client {here}, host {there}")
    unknown = sum(1 for line in long.splitlines() if "Unknown Error" in line or "GPU access blocked" in line)
    known = sum(1 for line in native_long.splitlines() if "Unknown Error" in line or "GPU access blocked" in line)
    checks.add(
        "client nvidia-smi -q: no unknown errors", unknown <= known, f"{unknown} lines, natively {known}", unknown
    )
    fields = "index,name,uuid,driver_version,memory.total,compute_cap,pci.bus_id,pstate,temperature.gpu,power.draw"
    code, row = smi([f"--query-gpu={fields}", "--format=csv,noheader,nounits"], env)
    native_code, native_row = smi([f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    here, there = [p.strip() for p in row.split(",")], [p.strip() for p in native_row.split(",")]
    checks.add("client --query-gpu: exit code 0", code == 0, row, code)
    if len(here) == len(there) == 10:
        same = [here[i] == there[i] for i in (0, 1, 2, 3, 5, 6)]
        checks.add("client --query-gpu: identity equals the host's", all(same), f"client {here}, host {there}")
        checks.add("client --query-gpu: memory.total", here[4] == str(LIMIT_MB), f"{here[4]}", None, f"= {LIMIT_MB}")
    else:
        checks.add("client --query-gpu: ten fields", False, f"client {row!r}, host {native_row!r}")


def session_on_host(checks: Checks, worker: Worker) -> None:
    """Whether the host sees the session; first whether this machine's nvidia-smi shows processes at all."""
    with Client(None, "hold", GIB) as native:
        before = compute_processes()
        native.wait_for("holding", 60)
        shows = bool(compute_processes()) and compute_processes() != before
    before = compute_processes()
    with Client(worker, "hold", GIB) as client:
        client.wait_for("holding", 60)
        during = compute_processes()
        env = client_env(worker)
        _, inside = smi(["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"], env)
        _, used_text = smi(["--query-gpu=memory.used", "--format=csv,noheader,nounits"], env)
        sessions = worker.descendants()
    largest = max(during.values(), default=0)
    detail = f"before {before}, during {during}, sessions {sessions}, native process shown {shows}"
    # Some container runtimes hide processes from nvidia-smi: where no native one is shown, none is asked for.
    seen = largest >= 1024
    checks.add("host nvidia-smi: shows the session as it shows a native process", seen == shows, detail, largest)
    if shows:
        named = any(pid in sessions for pid, mib in during.items() if mib >= 1024)
        checks.add("host nvidia-smi: the process is a session of the worker", named, detail)
    used = int(used_text.split()[0]) if used_text.split() and used_text.split()[0].isdigit() else -1
    checks.add("client memory.used counts its own 1 GiB", 1024 <= used <= LIMIT_MB, used_text, used, ">= 1024 MiB")
    checks.add("client nvidia-smi: process list answers", "rror" not in inside, inside)
    gone = wait_until(lambda: max(compute_processes().values(), default=0) < 1024, 5.0)
    checks.add("host nvidia-smi: gone after the client", gone is not None, f"{gone}", gone)


def usual_tools(checks: Checks, worker: Worker) -> None:
    """The monitoring calls in one client process, under the limit: they must agree with the driver API."""
    import os
    import subprocess

    code = (
        "import pynvml as n, json, sys; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0);"
        "m = n.nvmlDeviceGetMemoryInfo(h); v = n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2);"
        "print(json.dumps([m.total, v.total, m.used, m.free]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=client_env(worker), capture_output=True, text=True, check=False, timeout=60
    )
    words = done.stdout.strip().strip("[]").split(", ")
    totals = {int(word) for word in words[:2]} if done.returncode == 0 and len(words) == 4 else set()
    expected = LIMIT_MB << 20
    checks.add(
        "NVML in the client: v1 and v2 totals are the limit", totals == {expected}, done.stdout + done.stderr[-500:]
    )
    for tool in ("gpustat", "nvitop"):
        arguments = [sys.executable, "-m", tool] + (["--once"] if tool == "nvitop" else [])
        found = subprocess.run([sys.executable, "-c", f"import {tool}"], capture_output=True, check=False, timeout=60)
        if found.returncode != 0:
            sys.stderr.write(f"{tool} is not installed on this machine; its calls are in nvml_calls.py\n")
            continue
        ran = subprocess.run(
            arguments,
            env={**client_env(worker), "TERM": os.environ.get("TERM", "xterm")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        checks.add(f"{tool} in the client", ran.returncode == 0 and model() in ran.stdout, ran.stdout + ran.stderr)


def main() -> int:
    begin()
    checks = Checks()
    LOGS.mkdir(parents=True, exist_ok=True)

    def everything(into: Checks) -> None:
        with a_worker("smi-worker", TF_GPU_MEMORY_LIMIT=str(LIMIT_MB)) as worker:
            into.scenario("in the client", lambda c: in_client(c, worker))
            into.scenario("the session on the host", lambda c: session_on_host(c, worker))
            into.scenario("usual tools", lambda c: usual_tools(c, worker))

    checks.scenario("worker under a limit", everything)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
