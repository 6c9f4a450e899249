"""The delay relay between client and worker: started, calibrated, proved, stopped."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tensor_fusion.abi import native_file
from tensor_fusion.config import NativeAddress, UserError, parse_connection

LONGEST_MS = 10_000.0
STOP_TIMEOUT = 10.0
# A relay that spins through a whole round trip is exact, and takes a core per connection; on few cores it would take
# the cores of what is measured.
CORES_TO_SPIN_ON = 8
SHORT_SPIN_US = 50
MOST_SPIN_US = 5000
# What the hop itself costs is taken off the delay, but no more than a hop can cost: beyond, the machine is too busy.
MOST_CORRECTION_US = 40.0


@dataclass(frozen=True)
class Relay:
    """A running relay: the round trip asked for, and the one its self-test measured (median), in microseconds."""

    connection: str
    asked_us: float
    added_us: float
    p99_us: float
    delay_us: int

    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "connection"}


def check_rtt(rtt_ms: float) -> None:
    if not 0 < rtt_ms <= LONGEST_MS:
        raise UserError(f"--rtt is {rtt_ms:g}; use a round trip in milliseconds above 0 and up to {LONGEST_MS:g}.")


@contextmanager
def relayed(connection: str, rtt_ms: float) -> Iterator[Relay]:
    """A relay to the worker at `connection` that makes a round trip take `rtt_ms` longer. Raises UserError."""
    check_rtt(rtt_ms)
    address = parse_connection(connection)
    if not isinstance(address, NativeAddress):
        raise UserError("--rtt delays TCP; shared memory has no network between client and worker. Leave --rtt out.")
    asked = rtt_ms * 1000
    spin = min(int(asked) + 200, MOST_SPIN_US) if (os.cpu_count() or 1) >= CORES_TO_SPIN_ON else SHORT_SPIN_US
    delay = round(asked / 2)
    excess = self_test(delay, spin)["added_p50_us"] - asked
    delay = max(0, round((asked - min(max(excess, 0.0), MOST_CORRECTION_US)) / 2))
    measured = self_test(delay, spin)
    host = f"[{address.host}]" if ":" in address.host else address.host
    process = subprocess.Popen(
        [*_command(delay, spin), "--listen", "0", "--to", f"{host}:{address.port}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        ready = process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            raise UserError("The delay relay did not start; its own sentence is above.", exit_code=1)
        through = str(NativeAddress("127.0.0.1", int(ready[1]), address.version))
        secret = f"+{address.secret}" if address.secret else ""
        yield Relay(through + secret, asked, measured["added_p50_us"], measured["relayed_p99_us"], delay)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def self_test(delay_us: int, spin_us: int) -> dict[str, float]:
    """Ping-pong through a relay of its own; what the relay adds to a round trip, in microseconds."""
    result = subprocess.run(
        [*_command(delay_us, spin_us), "--self-test"], capture_output=True, text=True, timeout=300, check=False
    )
    if result.returncode != 0:
        raise UserError(f"The self-test of the delay relay failed: {result.stderr.strip()}", exit_code=1)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def _command(delay_us: int, spin_us: int) -> list[str]:
    program = str(native_file("bin/tensor-fusion-bench"))
    return [program, "relay", "--delay-us", str(delay_us), "--spin-us", str(spin_us)]
