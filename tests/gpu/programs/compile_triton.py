"""torch.compile of a small function: inductor writes Triton kernels, Triton loads cubins and launches them itself."""

from __future__ import annotations

import sys
import tempfile

from common import Digest, begin, clock, finish


def main() -> int:
    begin()
    import os

    # A cache of its own: neither side may profit from what the other compiled.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache + "/inductor"
        os.environ["TRITON_CACHE_DIR"] = cache + "/triton"
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        import torch

        def body(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.silu(x) * y + (x - y).sum(dim=-1, keepdim=True)

        torch.manual_seed(11)
        x, y = torch.randn(512, 768).cuda(), torch.randn(512, 768).cuda()
        compiled = torch.compile(body)
        begun = clock()
        first = compiled(x, y)
        torch.cuda.synchronize()
        compile_s = clock() - begun
        begun = clock()
        for _ in range(1000):
            last = compiled(x, y)
        torch.cuda.synchronize()
        call_us = (clock() - begun) / 1000 * 1e6
        if not torch.allclose(first, body(x, y), rtol=1e-4, atol=1e-3):
            raise RuntimeError("the compiled function differs from the eager one")
        digest = Digest()
        digest.add("first", first.cpu().numpy().tobytes())
        digest.add("last", last.cpu().numpy().tobytes())
        finish(digest, {"compile_s": compile_s, "call_us": call_us})
    return 0


if __name__ == "__main__":
    sys.exit(main())
