"""NCCL between two GPUs, one process for each: collectives from 8 bytes to 1 GiB, their values and their bandwidth.

The bandwidth is that of the bus, as NCCL's own tests define it for n ranks: bytes / second x 2 (n - 1) / n for
all-reduce, x (n - 1) / n for all-gather and reduce-scatter, x 1 for broadcast and for send with receive; bytes are
those of the largest buffer of the call. A time is the median of blocks, each of some calls that end with one wait.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from common import Digest, begin, clock, finish

RANKS = 2
MIB = 1 << 20
SIZES = {"8 B": 8, "64 KiB": MIB >> 4, "1 MiB": MIB, "16 MiB": 16 * MIB, "256 MiB": 256 * MIB, "1 GiB": 1024 * MIB}
BLOCKS = 5
BLOCK_SECONDS = 0.04
MOST_CALLS = 400

Call = Callable[[], None]


def collectives(torch: Any, rank: int, words: int) -> dict[str, tuple[float, Call, Any, Any]]:
    """For each name: the factor of the bus, the call, where its result lies, and what the result is to be.

    Values are small integers, so that sums are exact and do not depend on their order. The all-reduce is in place: its
    first call is the one that is looked at, later ones add sums to sums.
    """
    distributed = torch.distributed
    device = f"cuda:{rank}"
    half = max(words // RANKS, 1)
    index = torch.arange(words, device=device) % 251
    mine = (index + rank).float()
    both = torch.stack([index.float() + other for other in range(RANKS)])
    total = both.sum(0)
    reduced, gathered = mine.clone(), torch.empty(half * RANKS, device=device)
    scattered, sent, received = torch.empty(half, device=device), mine.clone(), torch.empty(words, device=device)
    part, whole = mine[:half].contiguous(), mine[: half * RANKS].contiguous()
    whole = whole if whole.numel() == half * RANKS else torch.cat([part] * RANKS)
    total_whole = total[: half * RANKS] if words >= half * RANKS else torch.cat([total[:half]] * RANKS)
    peer = 1 - rank

    def all_reduce() -> None:
        distributed.all_reduce(reduced)

    def all_gather() -> None:
        distributed.all_gather_into_tensor(gathered, part)

    def reduce_scatter() -> None:
        distributed.reduce_scatter_tensor(scattered, whole)

    def broadcast() -> None:
        distributed.broadcast(sent, 0)

    def send_receive() -> None:
        pairs = [distributed.P2POp(distributed.isend, mine, peer), distributed.P2POp(distributed.irecv, received, peer)]
        for work in distributed.batch_isend_irecv(pairs):
            work.wait()

    return {
        "all_reduce": (2 * (RANKS - 1) / RANKS, all_reduce, reduced, total),
        "all_gather": ((RANKS - 1) / RANKS, all_gather, gathered, both[:, :half].reshape(-1)),
        "reduce_scatter": ((RANKS - 1) / RANKS, reduce_scatter, scattered,
                           total_whole[rank * half : (rank + 1) * half]),
        "broadcast": (1.0, broadcast, sent, both[0]),
        "send_receive": (1.0, send_receive, received, both[peer]),
    }  # fmt: skip


def seconds_of(torch: Any, call: Call) -> float:
    """Median seconds of one call; both ranks make the same calls, since the first decides how many."""

    def block(calls: int) -> float:
        torch.distributed.barrier()
        torch.cuda.synchronize()
        start = clock()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        return (clock() - start) / calls

    block(3)
    calls = torch.tensor([min(MOST_CALLS, max(2, round(BLOCK_SECONDS / block(3))))], device="cuda")
    torch.distributed.broadcast(calls, 0)
    return statistics.median(block(int(calls.item())) for _ in range(BLOCKS))


def rank_of_two(rank: int) -> None:
    import torch

    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=RANKS, device_id=torch.device("cuda", rank))
    digest, metrics = Digest(), {}
    for label, size in SIZES.items():
        for name, (factor, call, result, wanted) in collectives(torch, rank, size // 4).items():
            call()
            torch.cuda.synchronize()
            if not torch.equal(result, wanted):
                raise RuntimeError(f"{name} of {label}: rank {rank} has other values")
            digest.add(f"{name} {label}", result[: 4 * MIB].cpu().numpy().tobytes())
            seconds = seconds_of(torch, call)
            key = f"{name} {label}"
            if size < MIB:
                metrics[f"{key} us"] = seconds * 1e6
            else:
                metrics[f"{key} GB/s"] = size * factor / seconds / 1e9
    torch.distributed.destroy_process_group()
    if rank == 0:
        finish(digest, metrics)


def main() -> None:
    begin()
    if len(sys.argv) > 1:
        rank_of_two(int(sys.argv[1]))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank)], env=env) for rank in range(RANKS)]
    codes = [rank.wait() for rank in ranks]
    sys.exit(next((1 for code in codes if code), 0))


if __name__ == "__main__":
    main()
