"""What must hold on the real driver when somebody dies or misbehaves. Each scenario has a worker of its own.

    robustness.py [SCENARIO…]       a word of its name is enough; without one, all of them

The workers are reached over what run.py --transport says; the same must hold over both.

Memory in use is read through NVML in this process, which uses the machine's own library: a reading takes microseconds,
so "within one second" can be measured.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from checking import LOGS, SEGMENT_MB, TRANSPORT, Checks, Client, a_worker
from common import begin
from harness import Worker, wait_until

MIB = 1 << 20
GIB = 1 << 30
LIMIT_MB = 20_000
# A session's context takes about half a GiB, and one waits ready: what may come and go while a scenario runs.
CONTEXT_SLACK = 700 * MIB


def used_bytes() -> int:
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


def settled() -> int:
    """Memory in use once it has stopped changing: the next ready session may still be starting."""
    last, since = used_bytes(), time.monotonic()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and time.monotonic() - since < 0.7:
        time.sleep(0.05)
        now = used_bytes()
        if abs(now - last) > 8 * MIB:
            last, since = now, time.monotonic()
    return last


def processor_ticks(pid: int) -> int:
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def busiest_session(worker: Worker) -> int:
    """The session that serves the copying client: of the worker's descendants the one that works."""
    before = {pid: processor_ticks(pid) for pid in worker.descendants()}
    time.sleep(0.5)
    spent = {pid: processor_ticks(pid) - ticks for pid, ticks in before.items()}
    if not spent or max(spent.values()) == 0:
        raise RuntimeError(f"no session of the worker is busy: {spent}")
    return max(spent, key=lambda pid: spent[pid])


def kill_client(checks: Checks) -> None:
    with a_worker("kill-client") as worker:
        baseline = settled()
        with Client(worker, "copy", GIB) as client:
            client.wait_for("copying", 60)
            time.sleep(1.0)
            during = used_bytes()
            client.process.send_signal(signal.SIGKILL)
            took = wait_until(lambda: used_bytes() < baseline + CONTEXT_SLACK, 10.0)
        detail = f"before {baseline // MIB} MiB, during {during // MIB}, after {used_bytes() // MIB}"
        checks.add("kill -9 of a copying client: it held 1 GiB", during >= baseline + GIB, detail)
        ok = took is not None and took <= 1.0
        checks.add("kill -9 of a copying client: memory back", ok, detail, took, "<= 1 s")
        with Client(worker, "digest", 5) as after:
            checks.add("kill -9 of a copying client: the next one works", after.wait_for("equal", 60) == "equal")


def kill_session(checks: Checks) -> None:
    with a_worker("kill-session") as worker, Client(worker, "copy", 256 * MIB) as client:
        client.wait_for("copying", 60)
        session = busiest_session(worker)
        begun = time.monotonic()
        os.kill(session, signal.SIGKILL)
        line = client.wait_for("error", 10)
        took = time.monotonic() - begun
        checks.add("kill -9 of a session: the client gets an error", took <= 3.0, line, took, "<= 3 s")
        error = int(line.split()[1])
        again = int(client.wait_for("then", 10).split()[1])
        checks.add(
            "kill -9 of a session: the same error from then on", error == again != 0, f"{error}, then {again}", error
        )
        code = client.process.wait(10)
        checks.add("kill -9 of a session: the client can exit", code == 0, f"exit code {code}", code)
        with Client(worker, "digest", 6) as after:
            checks.add("kill -9 of a session: the next client works", after.wait_for("equal", 60) == "equal")


def kill_worker(checks: Checks) -> None:
    with a_worker("kill-worker") as worker, Client(worker, "copy", 256 * MIB) as client:
        client.wait_for("copying", 60)
        sessions = worker.descendants()
        worker.process.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        line = client.wait_for("error", 10)
        took = time.monotonic() - begun
        checks.add("kill -9 of the worker: the client gets an error", took <= 3.0, line, took, "<= 3 s")
        gone = wait_until(lambda: not any((Path("/proc") / str(pid) / "exe").exists() for pid in sessions), 5.0)
        checks.add("kill -9 of the worker: no session is left", gone is not None, f"{sessions}", gone)


def kill_pinning_client(checks: Checks) -> None:
    """Over shared memory pinned memory is a part of the segment: what a killed client had must come back to it."""
    share = SEGMENT_MB * 5 // 8 * MIB  # more than half: the second client needs what the first one had
    with a_worker("kill-pinning") as worker:
        with Client(worker, "pin", share) as first:
            blocks = first.value("pinned", 60)
            shared = first.value("shared")
            first.wait_for("holding", 10)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(10)
        expected = blocks if TRANSPORT == "shmem" else 0
        checks.add("pinned memory: lies in the segment", shared == expected, f"{shared} of {blocks} blocks", shared)
        time.sleep(1.0)
        with Client(worker, "pin", share) as second:
            checks.add("kill -9 of a pinning client: as much is there again", second.value("pinned", 60) == blocks)
            again = second.value("shared")
            checks.add("kill -9 of a pinning client: and in the segment", again == expected, f"{again} of {blocks}")


def illegal_address(checks: Checks) -> None:
    with a_worker("illegal") as worker, Client(worker, "digest", 7) as good:
        good.wait_for("started", 60)
        with Client(worker, "illegal") as bad:
            code = bad.value("synchronize", 60)
            checks.add("illegal address: its own client gets 700", code == 700, f"{code}", code, "= 700")
        checks.add("illegal address: the other client is untouched", good.wait_for("", 60) in ("equal",), good.seen)
        with Client(worker, "digest", 8) as after:
            checks.add("illegal address: the next client works", after.wait_for("equal", 60) == "equal")


def memory_limit(checks: Checks) -> None:
    limit = LIMIT_MB * MIB
    with a_worker("limit", TF_GPU_MEMORY_LIMIT=str(LIMIT_MB)) as worker:
        with Client(worker, "limit", limit) as client:
            values = {name: client.value(name, 60) for name in ("total", "free", "device_total", "over", "exact")}
            checks.add("limit: cuMemGetInfo total", values["total"] == limit, f"{values['total']} for {limit}")
            checks.add(
                "limit: cuDeviceTotalMem", values["device_total"] == limit, f"{values['device_total']} for {limit}"
            )
            checks.add("limit: one byte over", values["over"] == 2, f"{values['over']}", values["over"], "= 2")
            checks.add("limit: exactly the limit", values["exact"] == 0, f"{values['exact']}", values["exact"], "= 0")
            if values["exact"] == 0:
                more = client.value("one_more")
                checks.add("limit: one byte more when full", more == 2, f"{more}", more, "= 2")
                full = client.value("free_when_full")
                checks.add("limit: nothing is free when full", full == 0, f"{full}", full, "= 0")
                client.wait_for("full", 10)
                with Client(worker, "alloc", 1) as other:
                    result = other.value("result", 60)
                    checks.add("limit: a second client gets nothing", result == 2, f"{result}", result, "= 2")
                client.tell("free")
                again = client.value("free_again")
                checks.add("limit: all is free again", again == limit, f"{again} for {limit}")
        with Client(worker, "limit", limit) as filler:
            filler.value("exact", 60)
            filler.wait_for("full", 20)
            filler.process.send_signal(signal.SIGKILL)
            time.sleep(1.0)
            with Client(worker, "alloc", limit) as other:
                result = other.value("result", 60)
                checks.add("limit: a killed client's share is back after 1 s", result == 0, f"{result}", result, "= 0")


def four_clients(checks: Checks) -> None:
    with a_worker("four") as worker:
        clients = [Client(worker, "digest", seed) for seed in range(1, 5)]
        try:
            for seed, client in enumerate(clients, 1):
                client.wait_for("started", 90)
                answer = client.wait_for("", 120)
                checks.add(f"four clients at once: digest of client {seed}", answer == "equal", client.seen)
        finally:
            for client in clients:
                client.stop()


SCENARIOS = {
    "kill -9 of a copying client": kill_client,
    "kill -9 of a session": kill_session,
    "kill -9 of the worker": kill_worker,
    "kill -9 of a pinning client": kill_pinning_client,
    "illegal address": illegal_address,
    "memory limit": memory_limit,
    "four clients at once": four_clients,
}


def main() -> int:
    begin()
    LOGS.mkdir(parents=True, exist_ok=True)
    checks = Checks()
    for name, body in SCENARIOS.items():
        if len(sys.argv) < 2 or any(word in name for word in sys.argv[1:]):
            checks.scenario(name, body)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
