"""TF_CUDA_SM_PERCENT_LIMIT and sm= of a secret: on how many multiprocessors a client works, and how it sees that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stack.harness import ROOT, Worker, clean_environment, whole_stack

from tensor_fusion.client.files import client_environment
from tensor_fusion.config import UserError, sm_percent
from tensor_fusion.worker.main import share_line

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]

ALL, STEP = 132, 8  # of the simulated GPU, as of an H200
INVALID_RESOURCE_CONFIGURATION = 915
CLIENT = ROOT / "tests/stack/apart/shares_of_processors.py"


def looks(env: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, CLIENT], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def as_with(count: int) -> dict[str, Any]:
    places = ("attribute", "of the device, before a context", "of the device", "of the context", "affinity")
    whole = dict.fromkeys((*places, "of a created context"), count)
    return {**whole, "left behind": 0, "as much again": INVALID_RESOURCE_CONFIGURATION, "a split": STEP}


@pytest.mark.parametrize("transport", ["native", "shmem"])
@pytest.mark.parametrize(("percent", "count"), [("50", 64), ("97", 128), ("1", STEP), ("100", ALL)])
def test_a_client_has_its_part(transport: str, percent: str, count: int) -> None:
    with Worker(transport=transport, TF_CUDA_SM_PERCENT_LIMIT=percent) as worker:
        found = looks(worker.env)
    assert found.pop("freed") in (1, 709), "memory of a context that was destroyed"
    assert found == as_with(count)


# What else the checks of the whole stack ask is the same in a part: contexts, graphs, arrays, printing, broken devices.
@pytest.mark.parametrize("transport", ["native", "shmem"])
@pytest.mark.parametrize("role", ["parts", "compute", "graphs", "timing"])
def test_programs_run_in_a_part(program: Path, transport: str, role: str) -> None:
    with Worker(program=program, transport=transport, TF_CUDA_SM_PERCENT_LIMIT="50") as worker:
        assert worker.run(role).startswith("right")


def test_a_secret_with_less_gets_a_session_of_its_own(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a sm=25\nb sm=90\nc\n")
    keys.chmod(0o600)
    variables: dict[str, Any] = {
        "TF_ENABLE_URL_AUTH": "1",
        "TF_AUTHORIZED_KEY_PATH": str(keys),
        "TF_CUDA_SM_PERCENT_LIMIT": "50",
    }
    with Worker("--warm", "1", transport="native", **variables) as worker:
        assert worker.process.stdout
        said = ""
        while "TF_CUDA_SM_PERCENT_LIMIT" not in said:
            said += worker.process.stdout.readline().replace("\n", " ")
        assert "each client works on 64 of 132 multiprocessors (48.5 %;" in said
        found = {}
        for secret in "abc":
            env = {**worker.env, **client_environment(f"{worker.connection}+{secret}", clean_environment())}
            found[secret] = looks(env)["attribute"]
    assert found == {"a": 32, "b": 64, "c": 64}


def test_a_driver_that_cannot_divide_says_so() -> None:
    command = [sys.executable, "-m", "tensor_fusion.worker", "-p", "0", "--gpu", "sim", "--warm", "0"]
    env = clean_environment(TF_CUDA_SM_PERCENT_LIMIT="50", TF_SIM_FAULTS="cuDeviceGetDevResource:1+=801")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "TF_CUDA_SM_PERCENT_LIMIT cannot be kept: error 801 (CUDA_ERROR_NOT_SUPPORTED)" in said


@pytest.mark.parametrize("text", ["0", "101", "half", "-5", "1000", "50%"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(UserError) as error:
        sm_percent({"TF_CUDA_SM_PERCENT_LIMIT": text})
    assert "from 1 to 100" in str(error.value)


def test_the_line_tells_what_the_steps_make_of_it() -> None:
    assert share_line(50, 64, 132).endswith("(48.5 %; TF_CUDA_SM_PERCENT_LIMIT is 50)")
    assert share_line(3, 8, 132).endswith("is 3, the least that this GPU can be divided into)")
