"""Does shared memory work here? In a virtual machine: the device, permissions, memory type, and both directions.

Standard library only, so that it runs where the command tensor-fusion with its packages is not installed:

    python3 -m tensor_fusion.client.vmcheck [--json] [FILE [MB]]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from tensor_fusion.client.check import Check, Waiting, check, unseen
from tensor_fusion.client.segment import (
    ANSWER_TIME,
    PULSE_TIME,
    UNCACHED,
    UNCACHED_REMEDY,
    SegmentFile,
    describe,
    remedy,
    user,
)
from tensor_fusion.config import UserError, segment_path
from tensor_fusion.worker.protocol import Role, Status, release_name

VENDOR, DEVICE = 0x1AF4, 0x1110
PCI_DEVICES = Path("/sys/bus/pci/devices")


def find_devices(folder: Path = PCI_DEVICES) -> list[Path]:
    """The folders of the ivshmem devices of this machine, in the order of their addresses."""
    return [device for device in sorted(folder.glob("*")) if is_device(device)]


def is_device(folder: Path) -> bool:
    return _identity(folder) == (VENDOR, DEVICE)


def _identity(device: Path) -> tuple[int, int] | None:
    try:
        vendor, number = (int((device / name).read_text(), 16) for name in ("vendor", "device"))
    except (OSError, ValueError):
        return None
    return vendor, number


# Uncached memory is read at some MB/s, and how long that takes depends on the machine.
READ_TIME = 10.0


def examine(
    file: str | None, megabytes: int | None, folder: Path = PCI_DEVICES, waiting: Waiting = unseen
) -> Iterator[Check]:
    """All checks in order, of one file or of every device; what needs an earlier one that failed is left out."""
    if file is not None:
        yield from _examine_file(segment_path(file), megabytes, waiting)
        return
    devices = find_devices(folder)
    found = check("device", lambda: _found(devices))
    yield found
    for device in devices:
        switched = check("enabled", lambda device=device: enabled(device))  # type: ignore[misc]
        yield switched
        if switched.passed:
            yield from _examine_file(device / "resource2", megabytes, waiting)


def _found(devices: Sequence[Path]) -> str:
    if not devices:
        raise UserError(
            "This machine has no ivshmem device (PCI 1af4:1110); start the virtual machine with the arguments that "
            "'tensor-fusion vm' prints on the host, or name a segment of this machine with -m."
        )
    return ", ".join(device.name for device in devices)


def enabled(device: Path) -> str:
    switch = device / "enable"
    try:
        if switch.read_text().strip() not in ("", "0"):
            return f"{device.name} is enabled"
        switch.write_text("1")
    except OSError as error:
        raise UserError(
            f"{device.name} is not enabled and {user()} may not do it ({error.strerror}); "
            f"{remedy(device / 'resource2')}."
        ) from error
    return f"{device.name} was not enabled and is now"


def _examine_file(path: Path, megabytes: int | None, waiting: Waiting) -> Iterator[Check]:
    opened: list[SegmentFile] = []

    def access() -> str:
        opened.append(SegmentFile(path, megabytes))
        return f"{path}, {describe(opened[0].size)}, can be read and written by {user()}"

    first = check("file", access)
    yield first
    if not first.passed:
        return
    with opened[0] as segment:
        yield check("memory type", lambda: memory_type(segment), waiting("memory to be read", READ_TIME))
        steps = (
            ("worker", _worker, None),
            ("heartbeat", _heartbeat, waiting("the worker's heart", PULSE_TIME)),
            ("writes arrive", _writes, waiting("the worker's answer", ANSWER_TIME)),
        )
        for name, look, during in steps:
            result = check(name, lambda look=look: look(segment), during)  # type: ignore[misc]
            yield result
            if not result.passed:
                return
        yield Check("connection string", True, f"shmem+{path}+{segment.size >> 20}+0")


def memory_type(segment: SegmentFile) -> str:
    speed = segment.read_speed()
    if speed < UNCACHED:
        raise UserError(f"{segment.path} is read at {speed:.0f} MB/s, {UNCACHED_REMEDY}.")
    return f"read at {speed:,.0f} MB/s, so it is cached"


def _worker(segment: SegmentFile) -> str:
    header = segment.header()
    return f"serving, release {release_name(header.version, header.release)}, schema {header.schema.hex()}"


def _heartbeat(segment: SegmentFile) -> str:
    return f"{segment.pulse():.0f} beats per second: what the worker writes arrives here"


def _writes(segment: SegmentFile) -> str:
    welcome = segment.ask("", "0", "tensor-fusion vm --check", Role.PROBE)
    if welcome.status == Status.SECRET_REFUSED:
        return "the worker answers; it asks for a secret, which the connection string must carry"
    if welcome.status != Status.PROBED:
        raise UserError(f"What is written here arrives, but the worker refuses: {welcome.sentence}")
    return "the worker answers a greeting and would let a client in"


def main(arguments: Sequence[str]) -> int:
    words = [word for word in arguments if word != "--json"]
    as_json = len(words) < len(arguments)
    if len(words) > 2 or any(word.startswith("-") for word in words) or not all(map(str.isdecimal, words[1:])):
        sys.stderr.write("usage: python3 -m tensor_fusion.client.vmcheck [--json] [FILE [MB]]\n")
        return 2
    try:
        checks = list(examine(words[0] if words else None, int(words[1]) if len(words) > 1 else None))
    except UserError as error:
        sys.stderr.write(f"{error.sentence}\n")
        return error.exit_code
    passed = all(result.passed for result in checks)
    if as_json:
        text = json.dumps({"passed": passed, "checks": [asdict(result) for result in checks]}, indent=1)
    else:
        text = os.linesep.join(
            f"{'pass' if result.passed else 'FAIL'}  {result.name}: {result.text}" for result in checks
        )
    sys.stdout.write(text + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
