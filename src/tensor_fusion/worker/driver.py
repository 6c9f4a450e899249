"""Which driver a session loads: NVIDIA's, found on this host, or the simulated GPU of the package.

The one mistake that must not happen is a worker that loads our own client libraries and so calls itself: a folder that
holds libteleport is never taken, and a session's environment does not inherit our entries.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensor_fusion.abi import native_file
from tensor_fusion.config import UserError

CUDA = "libcuda.so.1"
NVML = "libnvidia-ml.so.1"
USUAL_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu",
)
_CACHE_LINE = re.compile(r"^\s*(\S+) \(([^)]*)\) => (\S+)$")


@dataclass(frozen=True)
class Driver:
    cuda: Path
    nvml: Path
    simulated: bool


def is_client_folder(folder: Path) -> bool:
    """True for a folder that holds our client libraries, under whatever name it was reached."""
    try:
        return any(
            (place / name).exists()
            for place in (folder, folder.resolve())
            for name in ("libteleport.so", "libteleport.so.1")
        )
    except OSError:
        return False


def _cached_folders() -> list[str]:
    """Folders in which the loader's cache knows an NVIDIA library."""
    for ldconfig in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            result = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        found = [match.groups() for match in map(_CACHE_LINE.match, result.stdout.splitlines()) if match]
        return [str(Path(path).parent) for name, kind, path in found if name in (CUDA, NVML) and "x86-64" in kind]
    return []


def search_folders(environ: Mapping[str, str]) -> list[Path]:
    named = [entry for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    return [Path(entry) for entry in dict.fromkeys([*named, *_cached_folders(), *USUAL_FOLDERS])]


def find_library(name: str, folders: Iterable[Path]) -> Path | None:
    """The first real driver library of that name; never ours and never a link-time stub."""
    for folder in folders:
        path = folder / name
        try:
            real = path.resolve(strict=True)
        except OSError:
            continue
        if "stubs" in folder.parts or is_client_folder(folder) or is_client_folder(real.parent):
            continue
        return path
    return None


def find_nvidia(folders: Iterable[Path]) -> Driver | None:
    """NVIDIA's driver on this host; None when there is no libcuda. Raises UserError when only half of it is there."""
    folders = list(folders)
    cuda = find_library(CUDA, folders)
    if cuda is None:
        return None
    nvml = find_library(NVML, [cuda.parent, *folders])
    if nvml is None:
        raise UserError(
            f"{cuda} is here but {NVML} is not; install the NVIDIA driver's management library, "
            "in a container by NVIDIA_DRIVER_CAPABILITIES=compute,utility.",
        )
    return Driver(cuda, nvml, simulated=False)


def choose_driver(gpu: str | None, environ: Mapping[str, str]) -> Driver:
    """The driver for --gpu. Without --gpu only a real one is taken: a simulated GPU is never a silent substitute."""
    if gpu == "sim":
        library = native_file("lib/libtf-simgpu.so")
        return Driver(library, library, simulated=True)
    driver = find_nvidia(search_folders(environ))
    if driver is None:
        raise UserError(
            f"No NVIDIA driver was found on this host ({CUDA} is in no library folder); install the driver, "
            "or use --gpu sim to try Tensor Fusion with a simulated GPU."
        )
    return driver


def visible_devices(environ: Mapping[str, str], devices: tuple[int, ...]) -> dict[str, str]:
    """What a session that is to see these of its worker's devices only has in its environment; the driver obeys it."""
    named = [entry for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    return {"CUDA_VISIBLE_DEVICES": ",".join(named[d] if named else str(d) for d in devices)} if devices else {}


def session_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a session: ours, without what would put the client libraries in front of the driver."""
    kept = {name: value for name, value in environ.items() if not name.startswith("TENSOR_FUSION_")}
    for name, separators in (("LD_LIBRARY_PATH", ":;"), ("LD_PRELOAD", ": ")):
        if name not in kept:
            continue
        entries = [entry for entry in re.split(f"[{separators}]", kept.pop(name)) if entry]
        entries = [entry for entry in entries if not _leads_to_client(name, Path(entry))]
        if entries:
            kept[name] = ":".join(entries)
    kept.pop("TRITON_LIBCUDA_PATH", None)
    # A session has nothing to say to systemd, and who may come in is not its affair.
    for name in ("NOTIFY_SOCKET", "TF_ENABLE_URL_AUTH", "TF_AUTHORIZED_KEY_PATH", "TF_CONNECTION_INFO_PATH"):
        kept.pop(name, None)
    return kept


def _leads_to_client(name: str, entry: Path) -> bool:
    if name == "LD_LIBRARY_PATH":
        return is_client_folder(entry)
    return os.sep in str(entry) and is_client_folder(entry.parent)
