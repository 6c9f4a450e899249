"""Small figures through PyTorch: first use, elementwise launches, one-value reads, copies, load_state_dict.

All data that is copied is random, so that nothing on the way can gain by compressing it, and is verified both ways.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

from common import Digest, begin, clock, finish

COPY_BYTES = 256 << 20
COPY_REPEATS = 5
ADDS = 20_000
SUMS = 2_000
STATE_BLOCKS = 75
STATE_BLOCK_WORDS = 4 << 20


def copies(torch: Any, metrics: dict[str, float], digest: Digest) -> Any:
    """Copies of 256 MiB, pinned and pageable, both ways; returns the source, 64-bit words on the host."""

    def timed(body: Callable[[], None], repeats: int) -> float:
        """Median seconds of `body` up to the end of its work on the GPU."""
        samples = []
        for _ in range(repeats):
            torch.cuda.synchronize()
            start = clock()
            body()
            torch.cuda.synchronize()
            samples.append(clock() - start)
        return statistics.median(samples)

    generator = torch.Generator().manual_seed(99)
    words = COPY_BYTES // 8
    low, high = -(2**63), 2**63 - 1
    source = torch.randint(low, high, (words,), dtype=torch.int64, generator=generator)
    pinned = source.clone().pin_memory()
    back_pinned = torch.empty(words, dtype=torch.int64).pin_memory()
    back = torch.zeros(words, dtype=torch.int64)
    device = torch.zeros(words, dtype=torch.int64, device="cuda")
    other = torch.zeros(words, dtype=torch.int64, device="cuda")
    size = COPY_BYTES / 1e9

    def h2d_pinned() -> None:
        device.copy_(pinned, non_blocking=True)

    def d2h_pinned() -> None:
        back_pinned.copy_(device, non_blocking=True)

    def h2d_pageable() -> None:
        other.copy_(source)

    def d2h_pageable() -> None:
        back.copy_(other)

    for name, body in (
        ("h2d_pinned_gbps", h2d_pinned),
        ("d2h_pinned_gbps", d2h_pinned),
        ("h2d_pageable_gbps", h2d_pageable),
        ("d2h_pageable_gbps", d2h_pageable),
    ):
        body()
        metrics[name] = size / timed(body, COPY_REPEATS)
    for name, copy in (("pinned", back_pinned), ("pageable", back)):
        if not torch.equal(copy, source):
            wrong = int((copy != source).sum())
            raise RuntimeError(f"{name} copy there and back differs in {wrong} of {words} words")
    expected = int(source.sum())
    for name, there in (("pinned", device), ("pageable", other)):
        if int(there.sum().item()) != expected:
            raise RuntimeError(f"the sum on the device of the {name} copy differs from the sum on the host")
    digest.add("copies", str(expected).encode())
    return source


def main() -> int:
    begin()
    import torch

    metrics: dict[str, float] = {}
    digest = Digest()

    # First CUDA use in this process: nothing above has touched the driver.
    begun = clock()
    torch.cuda.init()
    first = torch.zeros(1024, device="cuda")
    torch.cuda.synchronize()
    metrics["first_use_s"] = clock() - begun
    digest.add("zeros", first.cpu().numpy().tobytes())

    # v.add_(1), nobody waiting until the end.
    v = torch.zeros(1024, device="cuda")
    for _ in range(1000):
        v.add_(1)
    torch.cuda.synchronize()
    begun = clock()
    for _ in range(ADDS):
        v.add_(1)
    metrics["add_issue_us"] = (clock() - begun) / ADDS * 1e6
    torch.cuda.synchronize()
    metrics["add_us"] = (clock() - begun) / ADDS * 1e6
    values = set(v.cpu().tolist())
    if values != {float(ADDS + 1000)}:
        raise RuntimeError(f"v.add_(1) {ADDS + 1000} times gave {sorted(values)[:5]}")

    # v.sum().item(): one blocking read each.
    total = 0.0
    for _ in range(100):
        v.sum().item()
    times = []
    for _ in range(SUMS):
        begun = clock()
        total += v.sum().item()
        times.append(clock() - begun)
    metrics["sum_item_us"] = statistics.median(times) * 1e6
    metrics["sum_item_mean_us"] = statistics.mean(times) * 1e6
    digest.add("sums", repr(total).encode())

    source = copies(torch, metrics, digest)

    # load_state_dict of 1.2 GB from pageable memory into a module that is already on the GPU.
    block = source.view(torch.int32)[:STATE_BLOCK_WORDS]
    state = {str(i): (block + i).view(torch.float32) for i in range(STATE_BLOCKS)}
    module = torch.nn.ParameterList(
        [torch.nn.Parameter(torch.zeros(STATE_BLOCK_WORDS, device="cuda")) for _ in range(STATE_BLOCKS)]
    )
    torch.cuda.synchronize()
    begun = clock()
    module.load_state_dict(state)
    torch.cuda.synchronize()
    metrics["load_state_dict_s"] = clock() - begun
    metrics["load_state_dict_gbps"] = STATE_BLOCKS * STATE_BLOCK_WORDS * 4 / 1e9 / metrics["load_state_dict_s"]
    for i, parameter in enumerate(module):
        there = int(parameter.detach().view(torch.int32).sum(dtype=torch.int64).item())
        here = int(state[str(i)].view(torch.int32).sum(dtype=torch.int64))
        if there != here:
            raise RuntimeError(f"block {i} of load_state_dict differs: sum {there} on the device, {here} on the host")
        digest.add(f"block{i}", str(there).encode())

    finish(digest, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
