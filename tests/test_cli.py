"""The command tensor-fusion, with stand-ins for the native files."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import stat
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import typer
from worker_harness import environment

from tensor_fusion.cli import report
from tensor_fusion.cli.main import app
from tensor_fusion.client.files import client_environment, client_folder
from tensor_fusion.config import UserError, product_version

CONNECTION = "native+192.168.1.100+12345+0"
INFO = "TENSOR_FUSION_OPERATOR_CONNECTION_INFO"
NAMES = ("libcuda", "libnvidia-ml", "libteleport")
COVERAGE = {
    "cuda": {
        "functions": {
            "cuInit": {"kind": "local", "reason": None, "detail": None},
            "cuMemAlloc_v2": {"kind": "remote", "reason": None, "detail": "call"},
            "cuMemAlloc": {"kind": "alias", "reason": None, "detail": "cuMemAlloc_v2"},
            "cuGLInit": {
                "kind": "refused",
                "reason": "no display in the client",
                "detail": "CUDA_ERROR_OPERATING_SYSTEM",
            },
            "cuIpcGetMemHandle": {"kind": "unsupported", "reason": "comes later", "detail": None},
        }
    },
    "nvml": {"functions": {"nvmlInit_v2": {"kind": "custom", "reason": None, "detail": None}}},
}


@pytest.fixture
def native(tmp_path: Path) -> Path:
    folder = tmp_path / "native"
    (folder / "client").mkdir(parents=True)
    for name in NAMES:
        (folder / "client" / f"{name}.so.1").write_text(name)
    (folder / "coverage.json").write_text(json.dumps(COVERAGE))
    return folder


def cli(native: Path | None, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    if native:
        variables["TF_NATIVE_DIR"] = str(native)
    result = subprocess.run(
        [sys.executable, "-m", "tensor_fusion", *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


SHOW = (
    "import json, os; "
    f"print(json.dumps({{name: os.environ.get(name) for name in ({INFO!r}, 'LD_LIBRARY_PATH', 'LD_PRELOAD',"
    " 'TRITON_LIBCUDA_PATH')}))"
)


def test_run_sets_the_environment_and_becomes_the_program(native: Path) -> None:
    result = cli(native, "run", "--connect", CONNECTION, "--", sys.executable, "-c", SHOW, LD_LIBRARY_PATH="/opt/x")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        INFO: CONNECTION,
        "LD_LIBRARY_PATH": f"{native}/client:/opt/x",
        "LD_PRELOAD": None,
        "TRITON_LIBCUDA_PATH": f"{native}/client",
    }


def test_run_without_dashes_and_with_the_program_s_own_options(native: Path) -> None:
    result = cli(
        native, "run", "--connect", CONNECTION, sys.executable, "-c", "import sys; print(sys.argv)", "-x", "--y"
    )
    assert result.stdout.strip() == "['-c', '-x', '--y']"


def test_run_returns_the_program_s_exit_code(native: Path) -> None:
    assert cli(native, "run", "--connect", CONNECTION, "--", "sh", "-c", "exit 41").returncode == 41


def test_run_gives_the_program_the_signals_of_a_shell(native: Path) -> None:
    """Python ignores SIGPIPE, and what a process ignores is ignored in the program that it becomes."""
    result = cli(native, "run", "--connect", CONNECTION, "--", "grep", "SigIgn", "/proc/self/status")
    assert int(result.stdout.split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0


def test_run_takes_the_connection_from_the_environment(native: Path) -> None:
    result = cli(native, "run", "--", sys.executable, "-c", SHOW, **{INFO: CONNECTION})
    assert json.loads(result.stdout)[INFO] == CONNECTION
    url = "TENSOR_FUSION_OPERATOR_GET_CONNECTION_URL"
    assert cli(native, "run", "--", "true", **{url: "http://127.0.0.1:1/"}).returncode == 0


def test_preload_keeps_what_was_there(native: Path) -> None:
    changed = cli(native, "env", "--connect", CONNECTION, "--preload", LD_PRELOAD="").stdout
    assert f"export LD_PRELOAD={native}/client/libcuda.so.1:{native}/client/libnvidia-ml.so.1\n" in changed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "--connect", "foo", "--", "true"], 2, "'foo'"),
        (["demo", "--transport", "shm"], 2, "Invalid value for '--transport': 'shm' is not one of 'tcp', 'shmem'"),
        (["doctor", CONNECTION], 2, f"--connect {CONNECTION}; see tensor-fusion doctor --help."),
        (["install"], 2, "--prefix'; see tensor-fusion install --help."),
        (["worker"], 2, "tensor-fusion-worker -n native -p 12345; see tensor-fusion --help."),
        (["help", "rnu"], 2, "'run'? see tensor-fusion --help."),
        (["rnu"], 2, "'run'? see tensor-fusion --help."),
        (["service", "instal"], 2, "Invalid value for 'action': 'instal' is not one of"),
        (["run", "--connect", "", "--", "true"], 2, "empty"),
        (["run", "--connect", "native+h+x+0", "--", "true"], 2, "'x'"),
        (["run", "--connect", "shmem+/f+many+0", "--", "true"], 2, "size in MB"),
        (["run", "--", "true"], 2, "--connect"),
        (["run", "--connect", CONNECTION], 2, "PROGRAM"),
        (["run", "--conect", CONNECTION, "--", "true"], 2, "--conect"),
        (["run", "--connect", CONNECTION, "--", "no-such-program"], 127, "'no-such-program'"),
        (["run", "--connect", CONNECTION, "--", ""], 127, "''"),
        (["run", "--connect", CONNECTION, "--", "/etc/passwd"], 126, "'/etc/passwd'"),
        (["env", "--connect", "native+h+1"], 2, "3 fields"),
        (["vm", "-M", "100"], 2, "100 MB"),
        (["vm", "-M", "2097152"], 2, "2097152 MB"),
        (["vm", "-M", "many"], 2, "'many'"),
        (["frobnicate"], 2, "'frobnicate'"),
        (["demo", "--gpu", "amd"], 2, "'amd'"),
        (["coverage", "--api", "vulkan"], 2, "'vulkan'"),
        (["coverage", "--frob"], 2, "--frob"),
    ],
)
def test_wrong_input_gets_one_sentence(native: Path, arguments: list[str], code: int, words: str) -> None:
    result = cli(native, *arguments)
    assert result.returncode == code
    assert words.lower() in result.stderr.lower()
    assert result.stderr.startswith("tensor-fusion: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_secret_is_not_shown_in_an_error(native: Path) -> None:
    result = cli(native, "run", "--connect", "native+h+x+0+hush-hush", "--", "true")
    assert result.returncode == 2
    assert "hush" not in result.stderr
    assert "hush" not in cli(native, "config", **{INFO: "native+h+1+0+hush-hush"}).stdout
    assert "hush" not in cli(native, "config", https_proxy="http://user:hush@proxy:3128").stdout


def test_version(native: Path) -> None:
    assert cli(native, "--version").stdout == cli(native, "-v").stdout == f"tensor-fusion {product_version()}\n"


def without_colours(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


def in_terminal(native: Path, columns: int, *arguments: str, **variables: str) -> list[str]:
    """What a terminal of that width gets, line by line."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = environment(TF_NATIVE_DIR=str(native), TERM="xterm", **variables)
    env.pop("COLUMNS", None)  # tests that run side by side have it, and it counts for more than the terminal
    process = subprocess.Popen(
        [sys.executable, "-m", "tensor_fusion", *arguments],
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the program has ended
            break
        text += part
    process.wait(20)
    os.close(ours)
    return text.decode().splitlines()


@pytest.mark.parametrize("arguments", [["config"], ["doctor", "--connect", "native+127.0.0.1+1+0"]])
def test_words_are_whole_in_80_columns(native: Path, arguments: list[str]) -> None:
    """Escape sequences apart, no line is longer, so the terminal breaks none."""
    lines = in_terminal(native, 80, *arguments)
    plain = [without_colours(line) for line in lines]
    whole = [line for line in plain if len(line) > 80 and " " in line.strip()]
    assert len(plain) > 2
    assert not whole


COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_help_is_a_word_too(native: Path) -> None:
    assert cli(native, "help").stdout == cli(native, "--help").stdout
    assert cli(native, "help", "run").stdout == cli(native, "run", "-h").stdout != cli(native, "help").stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(native: Path, command: str) -> None:
    """And no sentence in it is cut short."""
    lines = [without_colours(line) for line in in_terminal(native, 80, *command.split(), "--help")]
    assert lines and all(len(line) <= 80 for line in lines), lines
    assert not any(line.endswith("...") for line in lines if not line.startswith("Usage:")), lines


@pytest.mark.parametrize(
    "arguments",
    [["run", "--", "true"], ["run", "--connect", "x", "--", "true"], ["vm", "-M", "48"], ["service", "start"]],
    ids=" ".join,
)
def test_what_is_wrong_is_said_without_a_broken_word(native: Path, arguments: list[str]) -> None:
    """On a terminal. In a file it is one line."""
    lines = in_terminal(native, 80, *arguments)
    assert len(lines) > 1 and all(len(line) <= 80 for line in lines), lines
    (line,) = cli(native, *arguments).stderr.splitlines()
    assert line == " ".join(line.strip() for line in lines)


def test_no_color(native: Path) -> None:
    arguments = ["doctor", "--connect", "native+127.0.0.1+1+0"]
    colour = re.compile(r"\x1b\[(?:[0-9]+;)*[349][0-9]")
    assert any(colour.search(line) for line in in_terminal(native, 80, *arguments))
    assert not any(colour.search(line) for line in in_terminal(native, 80, *arguments, NO_COLOR="1"))


def test_env_can_be_evaluated_by_a_shell(native: Path, tmp_path: Path) -> None:
    odd = tmp_path / "it's a folder"
    native.rename(odd)
    printed = cli(odd, "env", "--connect", CONNECTION).stdout
    script = f'{printed}\nprintf "%s\\n" "$LD_LIBRARY_PATH" "${INFO}"'
    shown = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    assert shown.stdout.splitlines() == [f"{odd}/client", CONNECTION]
    assert all(len(shlex.split(line)) == 2 for line in printed.splitlines())


def test_lib_path_makes_the_links(native: Path) -> None:
    folder = Path(cli(native, "lib-path").stdout.strip())
    assert folder == native / "client"
    for name in NAMES:
        assert (folder / f"{name}.so").readlink() == Path(f"{name}.so.1")
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.so{end}" for n in NAMES for end in ("", ".1"))


def test_read_only_folder_gets_its_links_elsewhere(
    native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_NATIVE_DIR", str(native))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = Path.symlink_to

    def refuse(self: Path, target: Path, target_is_directory: bool = False) -> None:
        if self.parent == native / "client":
            raise PermissionError(13, "Permission denied")
        real(self, target, target_is_directory)

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = client_folder()
    assert folder.is_relative_to(tmp_path / "cache")
    for name in NAMES:
        assert (folder / f"{name}.so").read_text() == name
        assert (folder / f"{name}.so.1").read_text() == name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert client_folder() == folder


def test_environment_is_the_same_when_applied_twice(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NATIVE_DIR", str(native))
    once = client_environment(CONNECTION, {"LD_PRELOAD": "/opt/a.so /opt/b.so"}, preload=True)
    assert client_environment(CONNECTION, once, preload=True) == once
    assert once["LD_PRELOAD"].endswith(":/opt/a.so:/opt/b.so")


def test_missing_native_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_NATIVE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"libcuda\.so\.1 is missing"):
        client_folder()


def test_coverage_json(native: Path) -> None:
    table = json.loads(cli(native, "coverage", "--json").stdout)
    assert table["cuda"] == {
        "total": 5,
        "remote": 1,
        "local": 1,
        "custom": 0,
        "alias": 1,
        "refused": 1,
        "unsupported": 1,
        "refused_functions": {"cuGLInit": "no display in the client"},
        "unsupported_functions": {"cuIpcGetMemHandle": "comes later"},
    }
    assert list(json.loads(cli(native, "coverage", "--json", "--api", "nvml").stdout)) == ["nvml"]


def test_coverage_table(native: Path) -> None:
    lines = cli(native, "coverage").stdout.splitlines()
    assert lines[0].split() == ["API", "names", "remote", "local", "custom", "alias", "refused", "unsupported"]
    assert lines[1].split()[-7:] == ["5", "1", "1", "0", "1", "1", "1"]


def test_coverage_tells_reasons(native: Path) -> None:
    assert "coverage --reasons" in cli(native, "coverage").stdout
    told = cli(native, "coverage", "--reasons").stdout.splitlines()
    place = told.index("CUDA driver API, refused as a driver does: no display in the client")
    assert told[place + 1] == "  cuGLInit"
    place = told.index("CUDA driver API, not supported: comes later")
    assert told[place + 1] == "  cuIpcGetMemHandle"


def test_coverage_is_whole_on_a_narrow_terminal(native: Path) -> None:
    assert cli(native, "coverage", COLUMNS="20").stdout == cli(native, "coverage", COLUMNS="200").stdout


def test_terminal_that_knows_ascii_only(native: Path) -> None:
    """A sentence with an ellipsis or a path of other bytes is no reason to fail after the work has been done."""
    result = cli(native, "vm", "--check", "-m", "/tf-nö", PYTHONIOENCODING="ascii")
    assert result.returncode == 1
    assert "does not exist" in result.stdout


def test_broken_coverage_is_one_sentence(native: Path) -> None:
    for text in ("{", "[]", '{"cuda": {"functions": {"cuInit": {"kind": "guessed"}}}}'):
        (native / "coverage.json").write_text(text)
        result = cli(native, "coverage")
        assert result.returncode == 1
        assert "coverage.json" in result.stderr


def test_config_lists_every_variable(native: Path) -> None:
    rows = json.loads(cli(native, "config", "--json", TF_LOG_LEVEL="debug").stdout)
    values = {row["name"]: row["value"] for row in rows}
    assert values["TF_LOG_LEVEL"] == "debug"
    assert values["TF_ENABLE_LOG"] == ""
    assert "TF_GPU_MEMORY_LIMIT=" in cli(native, "config").stdout


def test_help_and_version() -> None:
    assert "Commands:" in cli(None).stdout
    assert "--connect" in cli(None, "run", "-h").stdout
    assert cli(None, "version").stdout.startswith("tensor-fusion ")


def test_reader_that_goes_away_is_no_error(native: Path) -> None:
    command = f'"{sys.executable}" -m tensor_fusion config | head -1'
    result = subprocess.run(
        ["sh", "-c", command], env=environment(TF_NATIVE_DIR=str(native)), capture_output=True, text=True, check=False
    )
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_reader_that_was_never_there_is_no_error(native: Path) -> None:
    """The pipe's other end is closed: what a small output does at its end, in a buffer, a large one does at once."""
    for unbuffered in ("", "1"):
        for words in (["config"], ["config", "--json"], ["coverage"], ["vm"], ["lib-path"], ["-h"], ["version"]):
            reading, writing = os.pipe()
            os.close(reading)
            result = subprocess.run(
                [sys.executable, "-m", "tensor_fusion", *words],
                env=environment(TF_NATIVE_DIR=str(native), PYTHONUNBUFFERED=unbuffered),
                stdout=writing,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
            os.close(writing)
            assert (result.returncode, result.stderr) == (141, ""), (words, unbuffered)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_is_one_sentence(native: Path, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "tensor_fusion", "config", "--json"],
            env=environment(TF_NATIVE_DIR=str(native), PYTHONUNBUFFERED=unbuffered),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == "tensor-fusion: The output cannot be written: No space left on device.\n"


def test_doctor_names_a_damaged_file(native: Path) -> None:
    result = cli(native, "doctor", "--connect", CONNECTION, "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["passed"] is False
    assert [check["name"] for check in report["checks"]] == ["client files"]
    assert "SONAME" in report["checks"][0]["text"]


def test_the_demo_s_last_line_starts_a_worker_in_this_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "tensor-fusion-worker -n native -p 12345"
    folder = tmp_path / "a place" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    # A checkout has no commands, a virtual environment has a script that leads to them, others have neither.
    module = plain.replace("tensor-fusion-worker", f"'{folder}/python' -m tensor_fusion.worker")
    assert report.start_command(simulated=True) == f"{module} --gpu sim"
    worker = folder / "tensor-fusion-worker"
    worker.write_text("")
    worker.chmod(0o755)
    assert report.start_command(simulated=False) == plain.replace("tensor-fusion-worker", f"'{worker}'")
    (folder / "activate").write_text("")
    assert report.start_command(simulated=False) == f". 'a place/bin/activate' && {plain}"
    for elsewhere in ("/usr", folder):  # a shell looks for a name without a slash on PATH
        monkeypatch.chdir(elsewhere)
        assert report.start_command(simulated=False) == f". '{folder}/activate' && {plain}"
    monkeypatch.setenv("PATH", str(folder))
    assert report.start_command(simulated=False) == plain


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", CONNECTION, "--", "true"], f"A connection string follows --connect: --connect {CONNECTION}"),
        (["doctr"], "No such command 'doctr'. Did you mean 'doctor'? See tensor-fusion --help."),
        (
            ["run", "--connect", "gpu-host:12345", "--", "true"],
            "Unknown protocol 'gpu-host:12345' in the connection string; is native+gpu-host+12345+0 meant?",
        ),
    ],
)
def test_what_was_meant_is_said(words: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "tensor_fusion", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, f"tensor-fusion: {sentence}\n")


def test_a_folder_that_the_loader_would_break_in_two(native: Path) -> None:
    """LD_PRELOAD has spaces and colons between names, LD_LIBRARY_PATH colons."""
    spaced = native.rename(native.with_name("a b"))
    assert cli(spaced, "env", "--connect", CONNECTION).returncode == 0
    refused = cli(spaced, "env", "--connect", CONNECTION, "--preload")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"tensor-fusion: LD_PRELOAD cannot hold {spaced}/client, "), refused.stderr
    assert cli(spaced.rename(native.with_name("a:b")), "env", "--connect", CONNECTION).returncode == 2
