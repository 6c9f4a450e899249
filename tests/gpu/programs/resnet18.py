"""ResNet-18 training, batch 32, deterministic algorithms: 20 losses as the digest, the time of a step as the figure.

step_ms is the median of steps that end with the loss on the host; step_sustained_ms is the mean of steps that nobody
waits for, as a training loop that logs rarely runs.
"""

from __future__ import annotations

import os
import statistics
import sys

from common import Digest, begin, clock, finish

STEPS = 20
WARM_UP = 5


def main() -> int:
    begin()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch
    import torchvision

    # Only a warning: PyTorch also lists operations whose path here is deterministic. The digests of all runs decide.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(7)
    model = torchvision.models.resnet18(weights=None).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()
    images = torch.randn(32, 3, 224, 224).cuda()
    labels = torch.randint(0, 1000, (32,)).cuda()

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses: list[float] = []
    times: list[float] = []
    for _ in range(STEPS):
        begun = clock()
        losses.append(float(step().item()))
        times.append(clock() - begun)
    torch.cuda.synchronize()
    begun = clock()
    late = [step() for _ in range(STEPS)]
    torch.cuda.synchronize()
    sustained = (clock() - begun) / STEPS
    losses += [float(loss.item()) for loss in late]

    digest = Digest()
    for index, loss in enumerate(losses):
        digest.add(f"loss{index}", loss.hex().encode())
    digest.add("fc", model.fc.weight.detach().cpu().numpy().tobytes())
    if not losses[STEPS - 1] < losses[0]:
        raise RuntimeError(f"training did not lower the loss: {losses[0]} to {losses[STEPS - 1]}")
    finish(
        digest,
        {"step_ms": statistics.median(times[WARM_UP:]) * 1e3, "step_sustained_ms": sustained * 1e3},
        losses=losses[:STEPS],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
