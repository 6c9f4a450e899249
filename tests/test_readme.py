"""README.md as a newcomer types it: all its commands in one shell, one after the other, as they stand there.

Three words are another machine's here: the host's address, its port, and the folder of the client files. What takes
packages from the network is a stand-in, which makes what the real one would; CI runs these lines on a fresh system.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pages
import pytest
from pages import ROOT, Block
from test_pages import Place, archive, place, substituted  # noqa: F401 - fixtures

README = ROOT / "README.md"
BLOCKS = list(enumerate(pages.blocks(README)))
PROGRAM = 'import ctypes; print("cuInit gave", ctypes.CDLL("libcuda.so.1").cuInit(0))\n'
STAND_IN = """\
#!/bin/sh
# python3 -m venv DIR, with a pip whose `install .` finds our package where this test does.
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3" && cat > "$3/bin/pip" <<'END' && chmod +x "$3/bin/pip"
#!/bin/sh
[ "$1 $2" = "install ." ] || exit 9
folder=$(cd "$(dirname "$0")" && pwd)
printf '%s\\n' {paths} > "$(echo "$folder"/../lib/python*/site-packages)/found.pth"
command() {{ printf '#!/bin/sh\\nexec %s/python -m %s "$@"\\n' "$folder" "$2" > "$folder/$1"; }}
command tensor-fusion tensor_fusion
command tensor-fusion-worker 'tensor_fusion.worker --gpu sim --warm 0'
chmod +x "$folder"/tensor-fusion*
END
"""
START = """\
{text} > out.{number} 2> err.{number} &
for i in $(seq 400); do grep -q '^ready ' out.{number} && break; sleep 0.05; done
"""
# What a newcomer tries before the line about PATH.
TOO_EARLY = "tensor-fusion-worker -n native -p 12345 > early 2>&1; echo $? > early.code\n"


def script(given: dict[str, str]) -> str:
    """All blocks in their order. The lines of tests are CI's."""
    lines = ["set -m; trap 'kill $(jobs -p); wait' EXIT"]
    for number, block in BLOCKS:
        text = substituted(block.text, given)
        if block.mark == "demo":
            lines.append(f"{{ {text}\n}} > out.{number} 2>&1; echo $? > code.{number}\n{TOO_EARLY}")
        elif block.mark == "start":
            lines.append(START.format(text=text, number=number))
        elif block.mark == "run":
            lines.append(f"{{ {text}\n}} > out.{number} 2>&1; echo $? > code.{number}")
    return "\n".join(lines)


def test_every_command_is_run_or_ci_s() -> None:
    """Blocks of commands have a mark here."""
    marks = [block.mark for _, block in BLOCKS if block.language == "sh"]
    assert sorted(set(marks)) == ["deep tests", "demo", "run", "start", "tests"]
    assert marks.count("demo") == marks.count("tests") == marks.count("deep tests") == 1


@pytest.fixture
def shell(place: Place, tmp_path: Path) -> Place:  # noqa: F811
    """A folder and an environment in which our commands are where README's lines put them, and nowhere else."""
    folder, env, given = place
    commands, machine = tmp_path / "bin", tmp_path / "machine"
    machine.mkdir()
    paths = shlex.join(path for path in sys.path if Path(path).is_dir())
    stand_in = STAND_IN.format(python=shlex.quote(sys.executable), paths=paths)
    for name, text in (
        ("python3", stand_in),
        ("apt-get", "#!/bin/sh\n"),
        ("sudo", '#!/bin/sh\nexec "$@"\n'),
    ):
        (machine / name).write_text(text)
        (machine / name).chmod(0o755)
    (folder / "train.py").write_text(PROGRAM)
    path = [entry for entry in env["PATH"].split(":") if not (Path(entry) / "tensor-fusion-worker").exists()]
    client = tmp_path / "client"
    lib_path = subprocess.run(
        [commands / "tensor-fusion", "lib-path"], env=env, capture_output=True, text=True, check=True
    )
    client.symlink_to(lib_path.stdout.strip())
    return (
        folder,
        {**env, "PATH": ":".join([str(machine), *path])},
        {**given, "/opt/tensor-fusion-client": str(client)},
    )


def test_all_commands_in_one_shell(shell: Place) -> None:
    folder, env, given = shell
    done = subprocess.run(
        ["bash", "-c", script(given)], env=env, cwd=folder, timeout=60, capture_output=True, text=True, check=False
    )
    said = {path.name: path.read_text() for path in sorted(folder.glob("*.*[0-9]"))}

    def output(block: Block) -> str:
        (number,) = [number for number, one in BLOCKS if one is block]
        assert said.get(f"code.{number}", "0\n") == "0\n", (block.text, said, done.stderr)
        return said[f"out.{number}"]

    blocks = [block for _, block in BLOCKS]
    (demo,) = [block for block in blocks if block.mark == "demo"]
    assert "4 of 4 right" in output(demo)
    # Typed at once, before this shell was told where the commands are: the shell says so, the demo has said what to do.
    assert (folder / "early.code").read_text() == "127\n"
    assert "tensor-fusion-worker: command not found" in (folder / "early").read_text()
    assert "  . .venv/bin/activate && tensor-fusion-worker -n native -p 12345" in output(demo)
    for block in blocks:
        if block.mark == "start":
            assert output(block).startswith("ready "), said
        elif block.mark == "run":
            assert ("train.py" not in block.text) or output(block) == "cuInit gave 0\n"
