"""PyTorch operations that reach one library each; every result goes bit for bit into the digest.

Usage: torch_ops.py cublas|cudnn|cufft|streams|threads|mixed
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from common import Digest, begin, finish

Add = Callable[[str, Any], None]


def cublas(torch: Any, add: Add) -> None:
    """bf16 matmul with bias (cuBLASLt's fused epilogue), addmm, batched and plain products in three precisions."""
    functional = torch.nn.functional
    shapes = ((1, 1024, 3072), (8, 1024, 1024), (33, 3072, 1024), (512, 4096, 4096), (7, 129, 65))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for batch, inner, outer in shapes:
            x = torch.randn(batch, inner, dtype=torch.float32).to(dtype).cuda()
            w = torch.randn(outer, inner, dtype=torch.float32).to(dtype).cuda()
            b = torch.randn(outer, dtype=torch.float32).to(dtype).cuda()
            add(f"linear {dtype} {batch}x{inner}x{outer}", functional.linear(x, w, b))
            add(f"addmm {dtype} {batch}x{inner}x{outer}", torch.addmm(b, x, w.t(), beta=0.5, alpha=2.0))
            add(f"gelu {dtype} {batch}x{inner}x{outer}", functional.gelu(functional.linear(x, w, b)))
    a = torch.randn(16, 64, 96).cuda()
    add("bmm", torch.bmm(a, a.transpose(1, 2).contiguous()))
    add("matvec", torch.mv(a[0], torch.randn(96).cuda()))
    add("double", torch.randn(65, 33, dtype=torch.float64).cuda() @ torch.randn(33, 17, dtype=torch.float64).cuda())


def cudnn(torch: Any, add: Add) -> None:
    """Convolution forward and backward in two precisions, batch norm, and a recurrent layer."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, weight, options in (
            ((8, 3, 64, 64), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
            ((4, 32, 28, 28), (64, 32, 3, 3), {"padding": 1}),
            ((4, 32, 28, 28), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
        ):
            x = torch.randn(shape).to(dtype).cuda().requires_grad_()
            w = torch.randn(weight).to(dtype).cuda().requires_grad_()
            b = torch.randn(weight[0]).to(dtype).cuda().requires_grad_()
            y = torch.nn.functional.conv2d(x, w, b, **options)
            y.backward(torch.ones_like(y) * 0.5)
            name = f"{dtype} {shape} {weight}"
            for part, tensor in (("y", y), ("dx", x.grad), ("dw", w.grad), ("db", b.grad)):
                add(f"conv {name} {part}", tensor)
    norm = torch.nn.BatchNorm2d(32).cuda()
    add("batch norm", norm(torch.randn(4, 32, 28, 28).cuda()))
    add("running mean", norm.running_mean)


def cufft(torch: Any, add: Add) -> None:
    """Transforms of one, two and three dimensions, of lengths that are and are not powers of two."""
    for length in (256, 1000, 1023, 65536):
        x = torch.randn(4, length).cuda()
        add(f"rfft {length}", torch.view_as_real(torch.fft.rfft(x)))
        add(f"fft {length}", torch.view_as_real(torch.fft.fft(torch.complex(x, x.flip(1)))))
        add(f"there and back {length}", torch.fft.irfft(torch.fft.rfft(x), n=length))
    y = torch.randn(3, 48, 60).cuda()
    add("rfft2", torch.view_as_real(torch.fft.rfft2(y)))
    add("fftn", torch.view_as_real(torch.fft.fftn(y)))
    add("double", torch.view_as_real(torch.fft.fft(torch.randn(100, dtype=torch.float64).cuda())))


def streams(torch: Any, add: Add) -> None:
    """Side streams ordered by events, elapsed time, and a D2H copy whose arrival is learned by polling an event."""
    side = torch.cuda.Stream(priority=-1)
    x = torch.arange(1 << 20, dtype=torch.float32).cuda()
    for i in range(50):
        with torch.cuda.stream(side):
            side.wait_stream(torch.cuda.default_stream())
            x.mul_(1.0 + 1.0 / (i + 2))
        torch.cuda.default_stream().wait_stream(side)
        x.add_(1)
    add("ordered", x)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    torch.cuda._sleep(20_000_000)
    end.record()
    end.synchronize()
    elapsed = start.elapsed_time(end)
    if not 1.0 < elapsed < 1000.0:
        raise RuntimeError(f"20 million cycles took {elapsed} ms by the events")
    target = torch.zeros(1 << 20, dtype=torch.float32).pin_memory()
    done = torch.cuda.Event()
    torch.cuda._sleep(5_000_000)
    target.copy_(x, non_blocking=True)
    done.record()
    polls = 0
    while not done.query():
        polls += 1
    add("polled", target)
    if not torch.equal(target, x.cpu()):
        raise RuntimeError("a pinned D2H copy was not visible when its event said complete")


def threads(torch: Any, add: Add) -> None:
    """Eight threads with a stream each, on data of their own, all at once."""
    results: dict[int, Any] = {}
    failures: list[BaseException] = []

    def body(index: int) -> None:
        try:
            generator = torch.Generator().manual_seed(index)
            with torch.cuda.stream(torch.cuda.Stream()):
                x = torch.randn(256, 256, generator=generator).cuda()
                # Gain above one: every rounding matters to the end, nothing settles to a constant.
                w = (torch.randn(256, 256, generator=generator) * 0.1).cuda()
                for _ in range(100):
                    x = torch.tanh(x @ w + 0.01 * index)
                results[index] = x.cpu()
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    crew = [threading.Thread(target=body, args=(i,)) for i in range(8)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if failures:
        raise failures[0]
    for index in range(8):
        add(f"thread {index}", results[index])


def mixed(torch: Any, add: Add) -> None:
    """What models use besides products: sorting, sampling, attention, indexing, random numbers on the GPU."""
    torch.cuda.manual_seed_all(5)
    x = torch.randn(64, 1000).cuda()
    add("sort", torch.sort(x, dim=1).values)
    add("topk", torch.topk(x, 20, dim=1).indices)
    add("cumsum", torch.cumsum((x * 1000).long(), dim=1))
    add("softmax", torch.softmax(x, dim=1))
    add("multinomial", torch.multinomial(torch.softmax(x, dim=1), 5))
    add("gpu random", torch.randn(1000, device="cuda"))
    add("unique", torch.unique((x * 10).int()))
    add("nonzero", torch.nonzero(x > 1.0))
    add("embedding", torch.nn.functional.embedding(torch.arange(50).cuda(), x))
    q = torch.randn(2, 8, 128, 64).to(torch.bfloat16).cuda()
    add("attention", torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True))
    add("fill", torch.full((1000, 1001), 3.25, device="cuda"))
    add("strided", x[:, ::3].contiguous())
    add("inverse", torch.linalg.inv(torch.eye(32).cuda() * 3 + 0.01 * x[:32, :32]))


PARTS: dict[str, Callable[[Any, Add], None]] = {
    "cublas": cublas,
    "cudnn": cudnn,
    "cufft": cufft,
    "streams": streams,
    "threads": threads,
    "mixed": mixed,
}


def main() -> int:
    begin()
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.stderr.write(f"usage: torch_ops.py {'|'.join(PARTS)}\n")
        return 2
    import torch

    torch.manual_seed(3)
    digest = Digest()

    def add(name: str, tensor: Any) -> None:
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        if flat.dtype.is_floating_point and not bool(torch.isfinite(flat).all()):
            raise RuntimeError(f"{name} holds values that are not finite")
        digest.add(name, flat.view(torch.uint8).numpy().tobytes())

    PARTS[sys.argv[1]](torch, add)
    finish(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
