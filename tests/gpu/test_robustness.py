"""The robustness checks on the simulated GPU, over both transports: that they are made, and can be made over each.

What they read through NVML is not tried: the memory in use of a simulated GPU is that of one process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import suite
from run import client_library_folder
from simulated import installed_product

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed_product(tmp_path_factory.mktemp("robustness") / "product")


def checks(product: Path, folder: Path, transport: str, *scenarios: str) -> dict[str, dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "TENSOR_FUSION_"))}
    env.update(
        GPU_RUN_INSTALL=str(product), GPU_RUN_CLIENT_FOLDER=str(client_library_folder(product, folder)),
        GPU_RUN_LOGS=str(folder), GPU_RUN_TRANSPORT=transport, GPU_RUN_SEGMENT_MB="128",
        GPU_RUN_WORKER_OPTIONS="--gpu sim", KERNELS_PTX=str(suite.KERNELS_PTX),
    )  # fmt: skip
    command = [sys.executable, str(suite.PROGRAMS_FOLDER / "robustness.py"), *scenarios]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=100)
    found = json.loads(done.stdout.splitlines()[-1])["checks"]
    return {check["name"]: check for check in found}


@pytest.mark.parametrize("transport", ["tcp", "shmem"])
def test_scenarios_hold_over_each_transport(product: Path, tmp_path: Path, transport: str) -> None:
    before = set(Path("/dev/shm").glob("tf_gpu_*"))
    found = checks(product, tmp_path, transport, "session", "worker", "pinning", "illegal")
    assert len(found) == 12
    assert not [check for check in found.values() if not check["ok"]]
    assert found["pinned memory: lies in the segment"]["value"] == (5 if transport == "shmem" else 0)
    assert set(Path("/dev/shm").glob("tf_gpu_*")) <= before
