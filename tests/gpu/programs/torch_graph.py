"""CUDA graphs through PyTorch: a small model with dropout, and a decode step like Qwen's, captured once and replayed.

replay_us is the time of one replay when nobody waits in between, replay_issue_us what the calling thread spends on it;
decode_replay_us is the same for the decode step. The digest holds every output: dropout draws other numbers at each
replay, so equal digests also mean that the random state went on alike.
"""

from __future__ import annotations

import sys
from typing import Any

from common import Digest, begin, clock, finish

REPLAYS = 200
LAYERS = 24
HIDDEN = 896
HEADS, HEAD = 14, 64
CACHE = 128


def timed(torch: Any, graph: Any) -> tuple[float, float]:
    """Microseconds of one replay in a row of them: altogether, and of the calling thread alone."""
    torch.cuda.synchronize()
    begun = clock()
    for _ in range(REPLAYS):
        graph.replay()
    issued = clock() - begun
    torch.cuda.synchronize()
    return (clock() - begun) / REPLAYS * 1e6, issued / REPLAYS * 1e6


def warm_up(torch: Any, body: Any) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            body()
    torch.cuda.current_stream().wait_stream(side)


def small_model(torch: Any, digest: Digest, metrics: dict[str, float]) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Dropout(0.2), torch.nn.Linear(512, 64)
    ).cuda()
    source = torch.randn(32, 256, device="cuda")
    warm_up(torch, lambda: model(source))
    graph = torch.cuda.CUDAGraph()
    begun = clock()
    with torch.cuda.graph(graph):
        result = model(source)
    metrics["capture_ms"] = (clock() - begun) * 1e3
    seen = set()
    for turn in range(REPLAYS):
        source.fill_(turn / REPLAYS)
        graph.replay()
        data = result.detach().cpu().numpy().tobytes()
        digest.add(f"small{turn}", data)
        seen.add(data)
    if len(seen) != REPLAYS:
        raise RuntimeError(f"{REPLAYS} replays with dropout gave {len(seen)} different outputs")
    metrics["replay_us"], metrics["replay_issue_us"] = timed(torch, graph)


def decode_step(torch: Any, digest: Digest, metrics: dict[str, float]) -> None:
    """One token through attention with a cache and a gated feed-forward block, LAYERS times, in half precision."""
    functional = torch.nn.functional
    options = {"device": "cuda", "dtype": torch.float16}

    def weight(rows: int, columns: int) -> Any:
        return torch.randn(rows, columns, **options) / rows**0.5

    layers = [
        {
            "qkv": weight(HIDDEN, 3 * HIDDEN),
            "out": weight(HIDDEN, HIDDEN),
            "up": weight(HIDDEN, 8 * HIDDEN),
            "down": weight(4 * HIDDEN, HIDDEN),
            "norm": torch.ones(HIDDEN, **options),
            "keys": torch.zeros(HEADS, CACHE, HEAD, **options),
            "values": torch.zeros(HEADS, CACHE, HEAD, **options),
        }
        for _ in range(LAYERS)
    ]
    token = torch.randn(1, HIDDEN, **options)
    position = torch.zeros(1, dtype=torch.int64, device="cuda")
    slots = torch.arange(CACHE, device="cuda")

    def step() -> Any:
        x = token
        masked = (slots > position).view(1, 1, CACHE)
        for layer in layers:
            normed = functional.rms_norm(x, (HIDDEN,), layer["norm"])
            query, key, value = (normed @ layer["qkv"]).view(3, HEADS, 1, HEAD).unbind(0)
            layer["keys"].index_copy_(1, position, key)
            layer["values"].index_copy_(1, position, value)
            scores = (query @ layer["keys"].transpose(1, 2)) / HEAD**0.5
            weights = torch.softmax(scores.masked_fill(masked, float("-inf")), dim=-1)
            x = x + (weights @ layer["values"]).view(1, HIDDEN) @ layer["out"]
            gate, up = (functional.rms_norm(x, (HIDDEN,), layer["norm"]) @ layer["up"]).chunk(2, dim=-1)
            x = x + (functional.silu(gate) * up) @ layer["down"]
        token.copy_(functional.rms_norm(x, (HIDDEN,), layers[0]["norm"]))
        position.add_(1).remainder_(CACHE)
        return x

    with torch.no_grad():
        warm_up(torch, step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = step()
    for turn in range(REPLAYS):
        graph.replay()
        digest.add(f"decode{turn}", result.cpu().numpy().tobytes())
    if not torch.isfinite(result).all().item():
        raise RuntimeError("the decode step gave numbers that are not finite")
    metrics["decode_replay_us"], metrics["decode_issue_us"] = timed(torch, graph)


def main() -> int:
    begin()
    import torch

    torch.manual_seed(11)
    digest = Digest()
    metrics: dict[str, float] = {}
    small_model(torch, digest, metrics)
    decode_step(torch, digest, metrics)
    finish(digest, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
