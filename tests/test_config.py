"""Connection strings and variables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tensor_fusion.config import (
    VARIABLES,
    ConnectionStringError,
    Fault,
    LogSettings,
    NativeAddress,
    UserError,
    memory_limit,
    parse_connection,
    session_memory,
    switch,
    without_secret,
)

ROOT = Path(__file__).parent.parent
CASES: list[dict[str, Any]] = json.loads((ROOT / "tests/data/connection_strings.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[repr(case["text"][:40]) for case in CASES])
def test_connection_string(case: dict[str, Any]) -> None:
    if "fault" in case:
        with pytest.raises(ConnectionStringError) as caught:
            parse_connection(case["text"])
        assert caught.value.fault == case["fault"]
        assert "\n" not in caught.value.sentence
        return
    address = parse_connection(case["text"])
    expected = dict(case["valid"])
    assert ("native" if isinstance(address, NativeAddress) else "shmem") == expected.pop("protocol")
    assert {name: getattr(address, name) for name in expected} == expected


def test_the_cases_cover_every_fault() -> None:
    assert {case["fault"] for case in CASES if "fault" in case} == {fault.value for fault in Fault}
    assert len(CASES) >= 60


@given(st.text(alphabet=st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=80))
@example("native+h+1+0+secret")
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        address = parse_connection(text)
    except ConnectionStringError as error:
        assert error.sentence  # noqa: PT017
        return
    assert parse_connection(str(address) + (f"+{address.secret}" if address.secret else "")) == address


@given(st.from_regex(r"[a-z0-9]{8,30}", fullmatch=True), st.sampled_from(["host", "ho st", "-", "[::1", ""]))
def test_secret_is_never_shown(secret: str, host: str) -> None:
    secret = "SECRET" + secret
    for text in (f"native+{host}+1+0+{secret}", f"native+{host}+1+0+{secret}+x", f"nativ+{host}+1+0+{secret}"):
        assert secret not in without_secret(text)
        try:
            assert secret not in repr(parse_connection(text))
            assert secret not in str(parse_connection(text))
        except ConnectionStringError as error:
            assert secret not in error.sentence  # noqa: PT017


def test_memory_limit_new_name_wins() -> None:
    assert memory_limit({}) == 0
    assert memory_limit({"TF_GPU_MEMORY_LIMIT": "", "TF_CUDA_MEMORY_LIMIT": "3"}) == 3 << 20
    assert memory_limit({"TF_GPU_MEMORY_LIMIT": " 2 ", "TF_CUDA_MEMORY_LIMIT": "wrong"}) == 2 << 20


@pytest.mark.parametrize(("text", "value"), [("1", True), ("on", True), ("TRUE", True), ("0", False), ("", False)])
def test_switch(text: str, value: bool) -> None:
    assert switch({"TF_ENABLE_LOG": text}, "TF_ENABLE_LOG") is value


def test_switch_refuses_anything_else() -> None:
    with pytest.raises(UserError, match="'2'"):
        switch({"TF_ENABLE_LOG": "2"}, "TF_ENABLE_LOG")


def test_log_settings() -> None:
    assert LogSettings.read({}) == LogSettings(False, "info", None)
    assert LogSettings.read({"TF_ENABLE_LOG": "1", "TF_LOG_LEVEL": "WARN", "TF_LOG_PATH": "/x"}).level == "warn"


def test_only_one_module_of_the_product_imports_ctypes() -> None:
    users = {
        path.relative_to(ROOT / "src/tensor_fusion").as_posix()
        for path in (ROOT / "src/tensor_fusion").rglob("*.py")
        if re.search(r"^\s*(import|from) ctypes", path.read_text(), re.MULTILINE)
    }
    # The demonstration's program is a user's program, and runs in a process of its own.
    assert users == {"abi.py", "demo/program.py"}


def test_every_variable_the_product_reads_is_in_the_table() -> None:
    known = {variable.name for variable in VARIABLES}
    found = set()
    for folder, pattern in (("src", "*.py"), ("native", "*.[ch]")):
        for path in (ROOT / folder).rglob(pattern):
            found |= set(re.findall(r'"((?:TF|TENSOR_FUSION)_[A-Z0-9_]+)"', path.read_text()))
            found |= set(re.findall(r'getenv\("(CUDA_[A-Z0-9_]+)"\)', path.read_text()))
    assert found
    assert found <= known, f"not described in tensor_fusion.config.VARIABLES: {sorted(found - known)}"


@pytest.mark.parametrize(
    ("text", "machine_gb", "megabytes"),
    [("", 512, 16384), ("", 8, 4096), ("", 0.25, 512), ("0", 8, 0), ("2000", 8, 2000), ("99999", 8, 99999)],
)
def test_memory_of_a_session(text: str, machine_gb: float, megabytes: int) -> None:
    assert session_memory({"TF_SESSION_MEMORY_LIMIT": text}, int(machine_gb * (1 << 30))) == megabytes
