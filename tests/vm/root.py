"""The guest's system: a Debian kernel and an initial RAM disk made from Debian packages, without installing any.

The packages are those of the release that this machine runs, so that a program linked here finds its C library there.
What was made is kept outside the checkout under a name made of all that went into it, and used again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import lzma
import os
import platform
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HERE = Path(__file__).parent
KERNEL = "linux-image-cloud-amd64"
PACKAGES = ("busybox-static", "libpython3-stdlib", "python3-minimal", "udev")
# Dependencies for a life that this guest does not live: installing packages, logging in, reading mail.
LEFT_OUT = re.compile(
    r"adduser|debconf|dpkg|install-info|lib(db|nsl|pam-|perl|sqlite|tirpc)\S*|mailcap|media-types|mime-support|passwd|"
    r"perl\S*|systemd\S*|tar|readline-common|\S*-base"
)
NOT_COPIED = ("usr/share/*", "usr/lib/*/gconv/*", "usr/lib/udev/hwdb*", "usr/lib/python3*/lib2to3/*", "*.a")
# In the order in which they need each other; the package has no list, because installing it would make one.
MODULES = ("failover", "net_failover", "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev",
           "virtio_pci", "virtio_net")  # fmt: skip
MERGED = ("bin", "lib", "lib64", "sbin")  # links into usr/ on today's Debian, whatever a package calls its files
SECONDS = 240.0
SAID_EVERY = 5.0
PACKED_PER_SECOND = 8e6  # of a package's bytes, until it has been measured
# Is told what is being done, and for how long it and what follows still takes, if that is known.
Step = Callable[[str, float | None], None]


def unsaid(_: str, __: float | None) -> None:
    pass


def _unpack_zst(data: bytes) -> bytes:
    # Debian packs its modules with xz; who tests on a system that uses this one has the package to read it.
    import zstandard

    unpacked: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return unpacked


# How a module's name ends behind .ko: Debian 12 does not pack them, 13 does. The guest's insmod takes plain ones only.
UNPACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".xz": lzma.decompress, ".zst": _unpack_zst}


def missing() -> str | None:
    """Why this machine cannot run the guest, or None."""
    if not shutil.which("qemu-system-x86_64"):
        return "no qemu-system-x86_64 on PATH; install qemu-system-x86"
    system = platform.freedesktop_os_release().get("ID", "unknown")
    if system != "debian":
        return f"the guest is made from the packages of the Debian that the tests run on, and this system is {system}"
    return None


@dataclass(frozen=True)
class Root:
    kernel: Path
    disk: Path


class Cpio:
    """Writes an archive in the one format that the kernel unpacks. Several behind each other are one to it."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.names: set[str] = set()
        self.number = 0

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Add one entry and the folders it is in; the first of a name stays."""
        if name in self.names:
            return
        parent = name.rpartition("/")[0]
        if parent:
            self.add(parent, stat.S_IFDIR | 0o755)
        self.names.add(name)
        self._write(name, mode, data, device)

    def file(self, name: str, path: Path, mode: int = 0o755) -> None:
        self.add(name, stat.S_IFREG | mode, path.read_bytes())

    def link(self, name: str, target: str) -> None:
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def end(self) -> None:
        self._write("TRAILER!!!", 0, b"", (0, 0))
        self.out.write(bytes(-self.out.tell() % 512))

    def _write(self, name: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        self.number += 1
        raw = name.encode() + b"\0"
        fields = [self.number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        self.out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def make(folder: Path, step: Step = unsaid) -> Root:
    """The kernel and the disk, out of the cache in `folder` or newly made there, which `step` is told of."""
    packages = chosen()
    recipe = b"".join(path.read_bytes() for path in (Path(__file__), HERE / "init", HERE / "agent.py"))
    key = hashlib.sha256(recipe + "\n".join(sorted(package.file for package in packages)).encode()).hexdigest()[:16]
    root = Root(folder / f"{key}.kernel", folder / f"{key}.cpio")
    folder.mkdir(parents=True, exist_ok=True)
    forget(folder)
    if root.kernel.is_file() and root.disk.is_file():
        for path in (root.kernel, root.disk):
            path.touch()
        return root
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        whole = sum(package.bytes for package in packages)
        download(packages, scratch, step)
        begin, done = time.monotonic(), 0
        with (scratch / "disk").open("wb") as out:
            disk = Cpio(out)
            for link in MERGED:
                disk.link(link, f"usr/{link}")
            for package in sorted(scratch.glob("*.deb")):
                left = (time.monotonic() - begin) / done * (whole - done) if done else whole / PACKED_PER_SECOND
                step(f"the guest's disk: unpacking {package.name.partition('_')[0]}", left)
                if package.name.startswith("linux-image-"):
                    (scratch / "kernel").write_bytes(take_kernel(package, disk))
                else:
                    take(package, disk)
                done += package.stat().st_size
            disk.file("init", HERE / "init")
            disk.file("agent.py", HERE / "agent.py", 0o644)
            disk.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
            for empty in ("proc", "sys", "run", "tmp", "root", "usr/sbin"):
                disk.add(empty, stat.S_IFDIR | 0o755)
            disk.end()
        # The disk last: with it, everything is there, also for others who look at this moment.
        (scratch / "kernel").replace(root.kernel)
        (scratch / "disk").replace(root.disk)
    return root


def forget(folder: Path) -> None:
    """Remove what nobody has used for a month; every new kernel leaves one behind."""
    for path in folder.glob("*.*"):
        if path.is_file() and path.stat().st_mtime < time.time() - 30 * 86400:
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tensor-fusion" / "vm"


def run(command: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise failed(command, done.stderr)
    return done.stdout


def failed(command: list[str], said: str) -> AssertionError:
    return AssertionError(f"{' '.join(command[:3])} … failed, is `apt-get update` missing? {said}")


@dataclass(frozen=True)
class Package:
    name: str
    file: str  # with its version
    bytes: int


def chosen() -> list[Package]:
    """What the guest is made of, in the versions that apt knows, which reads its whole index at each call."""
    tree = depends(run(["apt-cache", "depends", "--recurse", "--important", *PACKAGES, KERNEL]))
    (kernel,) = (name for name in tree[KERNEL] if name.startswith("linux-image-"))
    names = [*closure(PACKAGES, tree), kernel]
    text = run(["apt-get", "--print-uris", "download", *names])
    found = {file.partition("_")[0]: (file, int(size)) for file, size in re.findall(r"^'\S+' (\S+) (\d+)", text, re.M)}
    assert set(found) == set(names), (text, names)
    return [Package(name, *found[name]) for name in names]


def depends(text: str) -> dict[str, list[str]]:
    """Of each package those that it needs; of alternatives the last one."""
    tree: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith((" ", "<")):
            tree[line] = needed = []
        elif found := re.fullmatch(r" +(?:Pre)?Depends: ([^<\s]+)", line):
            needed.append(found[1])
    return tree


def closure(packages: Iterable[str], tree: dict[str, list[str]]) -> list[str]:
    found: set[str] = set()
    new = set(packages)
    while new:
        found |= new
        new = {name for one in new for name in tree[one] if not LEFT_OUT.fullmatch(name)} - found
    return sorted(found)


def download(packages: list[Package], folder: Path, step: Step) -> None:
    """Their files. apt gives each its name when it is whole, and another one before."""
    command = ["apt-get", "download", *(package.name for package in packages)]
    whole = sum(package.bytes for package in packages)
    begin = time.monotonic()
    with (folder / "apt.log").open("w+") as log:
        apt = subprocess.Popen(command, cwd=folder, env={**os.environ, "LC_ALL": "C"}, stdout=log, stderr=log)
        try:
            told = -SAID_EVERY
            while apt.poll() is None:
                over = time.monotonic() - begin
                if over > SECONDS:
                    raise failed(command, f"{SECONDS:.0f} s are over")
                if over - told >= SAID_EVERY:
                    told = over
                    here = sum(path.stat().st_size for path in folder.rglob("*.deb*") if path.is_file())
                    left = over / here * (whole - here) + whole / PACKED_PER_SECOND if here else None
                    step(f"the guest's packages: {here >> 20} of {whole >> 20} MB of {len(packages)} are here", left)
                time.sleep(0.05)
        finally:
            apt.kill()
            apt.wait()
        if apt.returncode:
            log.seek(0)
            raise failed(command, log.read())


def contents(package: Path) -> tarfile.TarFile:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpack:
        assert unpack.stdout
        data = unpack.stdout.read()
    assert unpack.returncode == 0, package
    return tarfile.open(fileobj=io.BytesIO(data))


def take(package: Path, disk: Cpio) -> None:
    """Everything that the guest may need out of a package."""
    with contents(package) as archive:
        for member in archive:
            name = member.name.removeprefix("./").strip("/")
            if name.partition("/")[0] in MERGED:
                name = f"usr/{name}"
            if not name or any(fnmatch.fnmatch(name, pattern) for pattern in NOT_COPIED):
                continue
            if member.issym():
                disk.link(name, member.linkname)
            elif member.isdir():
                disk.add(name, stat.S_IFDIR | member.mode)
            elif member.isfile() or member.islnk():
                data = archive.extractfile(member)
                assert data
                disk.add(name, stat.S_IFREG | member.mode, data.read())


def take_kernel(package: Path, disk: Cpio) -> bytes:
    """Put the modules on the disk that the kernel does not have in itself; the kernel itself."""
    kernel = b""
    built_in: set[str] = set()
    wanted = {name: f"modules/{number}-{name}.ko" for number, name in enumerate(MODULES)}
    with contents(package) as archive:
        for member in archive:
            base = member.name.rpartition("/")[2]
            module, ko, packed = base.partition(".ko")
            is_module = bool(ko) and module in wanted and packed in UNPACK
            if member.isfile() and (is_module or base == "modules.builtin" or base.startswith("vmlinuz-")):
                data = archive.extractfile(member)
                assert data
                if base == "modules.builtin":
                    built_in = {Path(line).stem for line in data.read().decode().split()}
                elif is_module:
                    disk.add(wanted.pop(module), stat.S_IFREG | 0o644, UNPACK[packed](data.read()))
                else:
                    kernel = data.read()
    assert kernel and not wanted.keys() - built_in, f"{package.name} has no {sorted(wanted.keys() - built_in)}"
    return kernel
