"""What a virtual machine needs so that its programs reach a worker through shared memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tensor_fusion.config import CONNECTION_INFO, MAX_SHMEM_MEGABYTES, SHARED_MEMORY_FOLDER, UserError, segment_path

RULE_FILE = "/etc/udev/rules.d/70-tensor-fusion.rules"


@dataclass(frozen=True)
class Instructions:
    """Texts to copy, each with where it belongs."""

    worker: str
    qemu: str
    libvirt: str
    udev: str
    client: str


def instructions(name: str, megabytes: int, group: str) -> Instructions:
    """For a segment of that name and size; `group` is the one of the guest's users. Raises UserError."""
    path = segment_path(name)
    for option, text in (("-m", name), ("--group", group)):
        if not re.fullmatch(r"[A-Za-z0-9_./-]+", text):
            raise UserError(
                f"{option} {text!r} holds a character that QEMU, a shell or a connection string would take apart."
            )
    if not 16 <= megabytes <= MAX_SHMEM_MEGABYTES or megabytes & (megabytes - 1):
        raise UserError(
            f"{megabytes} MB cannot be the memory of an ivshmem device: it must be a power of two, "
            f"16 to {MAX_SHMEM_MEGABYTES}; 256 is usual."
        )
    return Instructions(
        worker=f"tensor-fusion-worker -n shmem -m {name} -M {megabytes}",
        qemu=_qemu(path, megabytes),
        libvirt=_libvirt(path, megabytes),
        udev=_udev(group),
        client=_client(megabytes),
    )


def _backend(path: Path, megabytes: int) -> str:
    return f"memory-backend-file,id=tensorfusion,mem-path={path},size={megabytes}M,share=on"


def _qemu(path: Path, megabytes: int) -> str:
    return f"-object {_backend(path, megabytes)} -device ivshmem-plain,memdev=tensorfusion"


def _libvirt(path: Path, megabytes: int) -> str:
    if path.parent == SHARED_MEMORY_FOLDER:
        return (
            f"<shmem name='{path.name}'>\n"
            f"  <model type='ivshmem-plain'/>\n"
            f"  <size unit='M'>{megabytes}</size>\n"
            f"</shmem>"
        )
    # <shmem> knows names in /dev/shm only.
    words = ("-object", _backend(path, megabytes), "-device", "ivshmem-plain,memdev=tensorfusion")
    lines = "\n".join(f"  <qemu:arg value='{word}'/>" for word in words)
    return (
        "<!-- with xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' on <domain> -->\n"
        f"<qemu:commandline>\n{lines}\n</qemu:commandline>"
    )


def _udev(group: str) -> str:
    """Files of sysfs have no owner that a rule could set, so a shell does it; the rule enables the device as well."""
    command = f"chgrp {group} $sys$devpath/resource2 && chmod 0660 $sys$devpath/resource2"
    return (
        f'ACTION!="remove", SUBSYSTEM=="pci", ATTR{{vendor}}=="0x1af4", ATTR{{device}}=="0x1110", '
        f'ATTR{{enable}}="1", RUN+="/bin/sh -c \'{command}\'"'
    )


def _client(megabytes: int) -> str:
    return (
        "device=$(grep -lx 0x1110 /sys/bus/pci/devices/*/device | head -n 1)\n"
        f"export {CONNECTION_INFO}=shmem+${{device%/device}}/resource2+{megabytes}+0"
    )
