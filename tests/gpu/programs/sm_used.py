"""Which multiprocessors a program's kernels run on, by each way to launch them, and how fast they are: a line of JSON.

A kernel of 4,000 blocks marks the multiprocessor of each block. The rate is that of a kernel that only multiplies, in
1,600 blocks, which fill any GPU: launches a second, the best of six times four. With a number of seconds as its
argument it counts such launches for so long, and prints how many.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import cupy

SOURCE = r"""
extern "C" __global__ void mark(unsigned *seen, long long ticks) {
    unsigned number;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
    const long long begin = clock64();
    while (clock64() - begin < ticks) {
    }
    if (!threadIdx.x) {
        atomicAdd(seen + number, 1);
    }
}
extern "C" __global__ void multiply(float *out, int rounds) {
    float a = threadIdx.x, b = 1.0001f, c = a;
    for (int i = 0; i < rounds; i++) {
        a = a * b + c;
        c = c * b + a;
    }
    if (a == 12345.f) {
        out[0] = c;
    }
}
"""
TICKS = 20000
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stream", {}),
    ("non-blocking stream", {"non_blocking": True}),
    ("priority", {"priority": -5}),
)


def main() -> None:
    module = cupy.RawModule(code=SOURCE)
    mark, multiply = module.get_function("mark"), module.get_function("multiply")
    # Its launches are cooperative, and its grids cut to what runs at the same time.
    together = cupy.RawModule(code=SOURCE, enable_cooperative_groups=True).get_function("mark")
    seen, out = cupy.zeros(1024, dtype=cupy.uint32), cupy.zeros(1, dtype=cupy.float32)
    if len(sys.argv) > 1:
        multiply((1600,), (256,), (out, 20000))
        cupy.cuda.Device().synchronize()
        print("ready", flush=True)
        sys.stdin.readline()  # until the other is ready
        until, count = time.perf_counter() + float(sys.argv[1]), 0
        while time.perf_counter() < until:
            multiply((1600,), (256,), (out, 20000))
            cupy.cuda.Device().synchronize()
            count += 1
        print(count)
        return

    def used() -> int:
        cupy.cuda.Device().synchronize()
        count = int((seen.get() != 0).sum())
        seen.fill(0)
        cupy.cuda.Device().synchronize()
        return count

    found = {"attribute": cupy.cuda.Device().attributes["MultiProcessorCount"]}
    warnings.simplefilter("ignore")
    mark((4000,), (128,), (seen, TICKS))
    found["default stream"] = used()
    for name, options in WAYS:
        with cupy.cuda.Stream(**options):
            mark((4000,), (128,), (seen, TICKS))
        found[name] = used()
    for name, kernel in (("graph", mark), ("cooperative", together)):
        kernel((4000,), (128,), (seen, TICKS))
        found[f"{name}: the kernel alone"] = used()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            kernel((4000,), (128,), (seen, TICKS))
            graph = stream.end_capture()
            graph.launch()
            found[f"{name}: captured"] = used()
            graph.launch(cupy.cuda.Stream())
            found[f"{name}: in another stream"] = used()
    best = 0.0
    for _ in range(6):
        begin = time.perf_counter()
        for _ in range(4):
            multiply((1600,), (256,), (out, 20000))
        cupy.cuda.Device().synchronize()
        best = max(best, 4 / (time.perf_counter() - begin))
    print(json.dumps({"used": found, "rate": best}))


if __name__ == "__main__":
    main()
