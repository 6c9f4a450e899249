"""Two GPUs in one process: copies both ways, peer access, streams and events across, memory of each; all in the digest.

The first copies are made by the driver API before PyTorch has enabled peer access between the two, so both ways of
copying are asked: without access, and with it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any

from common import Digest, begin, finish

Add = Callable[[str, Any], None]
MIB = 1 << 20


class Driver:
    """The few functions of the driver API that copy between devices, with every error raised by name."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self.contexts = [self._primary(device) for device in range(2)]

    def _primary(self, device: int) -> ctypes.c_void_p:
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        return context

    def call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._cuda, name)(*arguments)
        if error:
            raise RuntimeError(f"{name} gave {error}")

    def synchronize(self, device: int) -> None:
        self.enter(device)
        self.call("cuCtxSynchronize")

    def enter(self, device: int) -> None:
        self.call("cuCtxSetCurrent", self.contexts[device])


def pointer(tensor: Any) -> ctypes.c_uint64:
    return ctypes.c_uint64(tensor.data_ptr())


def by_driver(torch: Any, add: Add) -> None:
    """Before peer access: peer copies, plain copies and copies with the host, with either context current."""
    driver = Driver()
    for size in (64, 5000, 3 * MIB, 64 * MIB):
        host = torch.randint(0, 256, (size,), dtype=torch.uint8)
        pinned = host.flip(0).contiguous().pin_memory()
        sides = [torch.zeros(size, dtype=torch.uint8, device=f"cuda:{device}") for device in range(2)]
        bytes_ = ctypes.c_size_t(size)
        for current in range(2):
            for source, target in ((0, 1), (1, 0)):
                sides[source].copy_(host)
                sides[target].zero_()
                driver.synchronize(0)
                driver.synchronize(1)
                driver.enter(current)
                driver.call("cuMemcpyPeerAsync", pointer(sides[target]), driver.contexts[target],
                            pointer(sides[source]), driver.contexts[source], bytes_, None)  # fmt: skip
                driver.synchronize(current)
                add(f"peer copy {size} {source} to {target} by {current}", sides[target])
                sides[target].zero_()
                driver.synchronize(target)
                driver.enter(current)
                driver.call("cuMemcpyDtoDAsync_v2", pointer(sides[target]), pointer(sides[source]), bytes_, None)
                driver.synchronize(current)
                add(f"plain copy {size} {source} to {target} by {current}", sides[target])
                driver.enter(current)
                driver.call("cuMemcpyHtoDAsync_v2", pointer(sides[target]), pointer(pinned), bytes_, None)
                driver.synchronize(current)
                add(f"from the host {size} to {target} by {current}", sides[target])
                back = torch.zeros(size, dtype=torch.uint8).pin_memory()
                driver.enter(current)
                driver.call("cuMemcpyDtoHAsync_v2", pointer(back), pointer(sides[target]), bytes_, None)
                driver.synchronize(current)
                add(f"to the host {size} from {target} by {current}", back)
    driver.enter(0)


def copies(torch: Any, add: Add) -> None:
    """What `x.to("cuda:1")` does: contiguous, strided (a kernel on the other's memory), converting, pinned."""
    for size in (1, 1000, MIB, 16 * MIB):
        x = torch.randn(size)
        there = x.to("cuda:0").to("cuda:1")
        add(f"there {size}", there)
        add(f"and back {size}", (there * 2).to("cuda:0", non_blocking=True))
        add(f"as half {size}", there.to("cuda:0", dtype=torch.float16))
    y = torch.randn(512, 768, device="cuda:1")
    target = torch.zeros(768, 512, device="cuda:0")
    target.copy_(y.t())
    add("transposed", target)
    target[::2, 1::3] = y.t()[::2, 1::3]
    add("strided", target)
    pinned = torch.empty(MIB).pin_memory()
    pinned.copy_(torch.randn(MIB, device="cuda:1"), non_blocking=True)
    torch.cuda.synchronize(1)
    add("pinned", pinned.to("cuda:0", non_blocking=True))
    broadcast = [torch.ones(1000, device=f"cuda:{device}") * (device + 1) for device in range(2)]
    add("sum", broadcast[0] + broadcast[1].to("cuda:0"))


def across(torch: Any, add: Add) -> None:
    """Streams of both devices that wait for each other's events, and threads that each use one."""
    streams = [torch.cuda.Stream(device=device) for device in range(2)]
    x = [torch.full((MIB,), float(device + 1), device=f"cuda:{device}") for device in range(2)]
    torch.cuda.synchronize(0)
    torch.cuda.synchronize(1)
    for i in range(20):
        source, target = i % 2, 1 - i % 2
        with torch.cuda.stream(streams[source]):
            x[source].mul_(1.0 + 1.0 / (i + 2))
            ready = torch.cuda.Event()
            ready.record(streams[source])
        with torch.cuda.stream(streams[target]):
            streams[target].wait_event(ready)
            x[target].add_(x[source].to(f"cuda:{target}", non_blocking=True))
        streams[source].wait_stream(streams[target])
    for device in range(2):
        streams[device].synchronize()
        add(f"ping-pong {device}", x[device])
    results: dict[int, Any] = {}

    def body(device: int) -> None:
        generator = torch.Generator().manual_seed(device)
        w = (torch.randn(256, 256, generator=generator) * 0.1).to(f"cuda:{device}")
        y = torch.randn(256, 256, generator=generator).to(f"cuda:{device}")
        for _ in range(50):
            y = torch.tanh(y @ w)
        results[device] = y.cpu()

    crew = [threading.Thread(target=body, args=(device,)) for device in range(2)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    for device in range(2):
        add(f"thread of {device}", results[device])


def memory(torch: Any, digest: Digest) -> None:
    """Allocating on one device takes nothing from the other."""
    torch.cuda.empty_cache()
    before = [torch.cuda.mem_get_info(device) for device in range(2)]
    held = torch.empty(512 * MIB, dtype=torch.uint8, device="cuda:1")
    after = [torch.cuda.mem_get_info(device) for device in range(2)]
    taken = [before[device][0] - after[device][0] for device in range(2)]
    if taken[0] >= 256 * MIB or taken[1] < 512 * MIB:
        raise RuntimeError(f"{held.numel()} bytes on cuda:1 took {taken} from the two devices")
    facts = [total for _, total in after] + [torch.cuda.can_device_access_peer(i, 1 - i) for i in range(2)]
    digest.add("facts", repr(facts).encode())


def main() -> int:
    begin()
    import torch

    if torch.cuda.device_count() < 2:
        sys.stderr.write(f"two GPUs are needed, {torch.cuda.device_count()} are here\n")
        return 2
    torch.manual_seed(11)
    for device in range(2):
        torch.zeros(1, device=f"cuda:{device}")
    digest = Digest()

    def add(name: str, tensor: Any) -> None:
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.add(name, flat.view(torch.uint8).numpy().tobytes())

    by_driver(torch, add)
    copies(torch, add)
    across(torch, add)
    memory(torch, digest)
    finish(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
