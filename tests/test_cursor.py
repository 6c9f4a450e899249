"""The cursor that writes frames: once it is bad it takes nothing more, whatever it is given."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
PROGRAM = """
#include <tp_wire.h>
int main(void) {
    unsigned char memory[64], data[24] = {1};
    for (size_t size = 0; size <= sizeof data; size++) {
        struct tp_cursor c = tp_cursor_make(memory, sizeof memory);
        c.bad = true;
        tp_put_bytes(&c, data, size);
        if (!c.bad || c.left != sizeof memory) { return 1; }
        struct tp_cursor room = tp_cursor_make(memory, 8 + (size + 7) / 8 * 8);
        tp_put_bytes(&room, data, size);
        if (room.bad || room.left) { return 2; }
    }
    struct tp_cursor c = tp_cursor_make(memory, sizeof memory);
    tp_put_bytes(&c, data, SIZE_MAX - 3); /* which padding would make small */
    return c.bad ? 0 : 3;
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("flags", [["-O0"], ["-O1"], ["-O2"], ["-O3"]], ids=lambda flags: flags[0])
def test_bad_cursor_takes_nothing(tmp_path: Path, flags: list[str]) -> None:
    source, out = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    includes = [f"-I{ROOT / 'native' / name}" for name in ("base", "wire")]
    command = [COMPILER or "cc", "-std=gnu17", *flags, "-Wall", "-Wextra", "-Werror", *includes, str(source)]
    built = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([str(out)], timeout=20, check=False).returncode == 0
