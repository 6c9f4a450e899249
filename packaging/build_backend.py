"""The build backend: scikit-build-core, and ziglang from PyPI as the C compiler where the machine has none.

`pip install .` must work on a machine with Python and nothing else. Whether the machine has a compiler is found out by
compiling a program, because a `cc` without the C library's headers is as good as none.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import scikit_build_core.build as backend
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist
from wheel_tag import tagged

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

OLDEST_PYTHON = (3, 10)  # as requires-python in pyproject.toml
ZIGLANG = "ziglang>=0.13,<0.17"
# The oldest C library that the client files work with; CentOS 7 has it.
ZIG_TARGET = "x86_64-linux-gnu.2.17"
PROGRAM = '#include <pthread.h>\n#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'


def works(compiler: list[str]) -> bool:
    """True when the compiler makes an executable out of a small program."""
    if not shutil.which(compiler[0]):
        return False
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "program.c"
        source.write_text(PROGRAM)
        command = [*compiler, "-pthread", "-o", str(source.with_suffix("")), str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def has_compiler() -> bool:
    """True when CMake will find a compiler that works: the one named by CC, or cc, gcc or clang.

    TF_BUILD_COMPILER=ziglang takes the one from PyPI all the same: its files work with an old C library.
    """
    if os.environ.get("TF_BUILD_COMPILER") == "ziglang":
        return False
    if os.environ.get("CC"):
        return works(shlex.split(os.environ["CC"]))
    return any(works([name]) for name in ("cc", "gcc", "clang"))


@contextmanager
def compiler() -> Iterator[None]:
    """Point CC at Zig's C compiler for the time of the build, if there is no other."""
    if has_compiler():
        yield
        return
    import ziglang  # only there when get_requires_for_build_wheel asked for it

    zig = Path(ziglang.__file__).parent / "zig"
    with tempfile.TemporaryDirectory() as name:
        for tool, words in (("cc", f"cc -target {ZIG_TARGET}"), ("ar", "ar"), ("ranlib", "ranlib")):
            wrapper = Path(name) / tool
            wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(str(zig))} {words} "$@"\n')
            wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        sys.stdout.write(f"No C compiler was found; building with {ZIGLANG} from PyPI.\n")
        changed = {"CC": f"{name}/cc", "AR": f"{name}/ar", "RANLIB": f"{name}/ranlib"}
        # Zig keeps 300 MB of compiled C library, in the home folder if it is not told where.
        changed |= {"ZIG_GLOBAL_CACHE_DIR": f"{name}/cache", "ZIG_LOCAL_CACHE_DIR": f"{name}/cache"}
        before = {key: os.environ.get(key) for key in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def check_python() -> None:
    """Before anything is fetched or built: pip itself looks at the version that is wanted only after that."""
    if sys.version_info < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, version[:3])) for version in (OLDEST_PYTHON, sys.version_info))
        sys.exit(f"Tensor Fusion needs Python {wanted} or newer, and this is {found}.")


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    check_python()
    return [*backend.get_requires_for_build_wheel(config_settings), *([] if has_compiler() else [ZIGLANG])]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    check_python()
    return [*backend.get_requires_for_build_editable(config_settings), *([] if has_compiler() else [ZIGLANG])]


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    with compiler():
        name = backend.build_wheel(wheel_directory, config_settings, metadata_directory)
    return tagged(Path(wheel_directory) / name).name


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    with compiler():
        return backend.build_editable(wheel_directory, config_settings, metadata_directory)
