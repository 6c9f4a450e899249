"""The native program tensor-fusion-bench, run on one driver library at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tensor_fusion.abi import native_file
from tensor_fusion.client.files import client_environment
from tensor_fusion.config import UserError
from tensor_fusion.worker.driver import choose_driver, session_environment

GROUP_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    budget: float = 0.5
    most_bytes: int = 256 << 20
    startups: int = 5
    quick: bool = False

    def words(self) -> list[str]:
        sizes = ["--budget", str(self.budget), "--most-bytes", str(self.most_bytes), "--startups", str(self.startups)]
        return [*sizes, *(["--quick"] if self.quick else [])]


QUICK = Effort(budget=0.02, most_bytes=1 << 20, startups=1, quick=True)


@dataclass(frozen=True)
class Side:
    """One of the two things compared: a driver library, and the environment that leads to it."""

    name: str
    library: str | None
    environment: Mapping[str, str] = field(repr=False)


def native_side(gpu: str | None) -> Side:
    """The driver of this host, or the simulated GPU loaded directly. Raises UserError when there is none."""
    try:
        driver = choose_driver(gpu, os.environ)
    except UserError as error:
        raise UserError(
            f"There is no native side to measure. {error.sentence} "
            "With --connect, --no-native measures the worker alone."
        ) from error
    return Side("native", str(driver.cuda), session_environment(os.environ))


def remote_side(connection: str) -> Side:
    """The client files, found as programs find them."""
    environment = {**os.environ, **client_environment(connection, os.environ)}
    environment.pop("TF_STATS_PATH", None)
    return Side("remote", None, environment)


def groups() -> dict[str, str]:
    """The groups that the program knows, with what they measure."""
    result = subprocess.run(
        [str(native_file("bin/tensor-fusion-bench")), "list"], capture_output=True, text=True, timeout=30, check=True
    )
    return dict(line.split("\t", 1) for line in result.stdout.splitlines())


def run_group(side: Side, group: str, effort: Effort) -> tuple[dict[str, Any], dict[str, Any]]:
    """One group on one side: what the program said about the driver, and the group's object. Raises UserError."""
    library = ["--libcuda", side.library] if side.library else []
    command = [str(native_file("bin/tensor-fusion-bench")), "run", "--only", group, *library, *effort.words()]
    try:
        result = subprocess.run(
            command, env=dict(side.environment), capture_output=True, text=True, timeout=GROUP_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"The group {group} did not end within {GROUP_TIMEOUT:.0f} s on the {side.name} side.", exit_code=1
        ) from error
    if result.returncode != 0:
        said = " / ".join(result.stderr.strip().splitlines()[-3:]) or f"exit code {result.returncode}, and no sentence"
        raise UserError(f"The group {group} failed on the {side.name} side: {said}", exit_code=1)
    about: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    for line in result.stdout.splitlines():
        entry = json.loads(line)
        if "about" in entry:
            about = entry["about"]
        else:
            measured = entry
    if about["remote"] != (side.name == "remote"):
        raise UserError(
            f"The {side.name} side loaded {about['libcuda']}, which is {'our' if about['remote'] else 'not our'} "
            "client library; look at LD_LIBRARY_PATH and LD_PRELOAD.",
            exit_code=1,
        )
    return about, measured
