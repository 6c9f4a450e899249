"""Command line and environment of the worker: the original's help, and one sentence for everything wrong."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import psutil
import pytest
from worker_harness import Worker, command, environment, eventually, fails

from tensor_fusion.config import UserError
from tensor_fusion.worker.options import Request, Settings, parse
from tensor_fusion.worker.segment import SegmentSettings

ORIGINAL_HELP = """\
Usage: tensor-fusion-worker [option]
Options
  -h, --help            Display this information.
  -v, --version         Display version information.
  -n, --net             Specified network protocol.
  -p, --port            Specified the port for server.
  -l, --load            Specified the file path of snapshot.
  -m, --shmem-file      Specified the file path of shared memory.
  -M, --shmem-size      Specified the size(MB) of shared memory.
"""


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_begins_with_the_original_text(flag: str) -> None:
    result = subprocess.run(command(flag), env=environment(), capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0
    assert result.stdout.startswith(ORIGINAL_HELP)
    for option in ("--gpu", "--host", "--warm", "--max-clients", "--shmem-group"):
        assert option in result.stdout.removeprefix(ORIGINAL_HELP)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version(flag: str) -> None:
    result = subprocess.run(command(flag), env=environment(), capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0
    assert result.stdout.startswith("tensor-fusion-worker ")


def test_long_and_short_forms_and_defaults() -> None:
    settings = parse([], {})
    assert isinstance(settings, Settings)
    assert (settings.port, settings.host, settings.gpu, settings.warm) == (8000, "0.0.0.0", None, 1)
    for arguments in (["-n", "native", "-p", "12345"], ["--net=NATIVE", "--port=12345"], ["-nNative", "-p12345"]):
        settings = parse(arguments, {})
        assert isinstance(settings, Settings)
        assert settings.port == 12345


@pytest.mark.parametrize("protocol", ["shmem", "SHMEM", "ShMem"])
def test_shared_memory_as_the_original_has_it(protocol: str) -> None:
    settings = parse(["-n", protocol, "-m", "/my_shm", "-M", "64"], {})
    assert isinstance(settings, Settings)
    assert settings.segment == SegmentSettings("/my_shm", 64)
    assert settings.notices == ()
    assert str(settings.segment.path) == "/dev/shm/my_shm"
    settings = parse([f"--net={protocol}", "--shmem-file=/mnt/huge/one", "--shmem-group=kvm"], {})
    assert isinstance(settings, Settings)
    assert settings.segment == SegmentSettings("/mnt/huge/one", 256, "kvm")
    assert str(settings.segment.path) == "/mnt/huge/one"


def test_help_wins_over_other_options() -> None:
    assert parse(["-h", "-n", "shmem"], {}) == Request("help")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "shmem"], "-m /my_shm"),
        (["-n", "shmem", "-m", "/"], "'/'"),
        (["-n", "shmem", "-m", ".."], "'..'"),
        (["-n", "shmem", "-m", "n" * 256], "name of shared memory"),
        (["-n", "shmem", "-m", "/my_shm", "-M", "15"], "'15'"),
        (["-n", "shmem", "-m", "/my_shm", "-M", "-256"], "-M"),
        (["-n", "shmem", "-m", "/my_shm", "-M", "256MB"], "'256MB'"),
        (["-n", "shmem", "-m", "/my_shm", "-M", "1048577"], "'1048577'"),
        (["--shmem-group", "kvm"], "--shmem-group kvm"),
        (["-l", "state.snap"], "state.snap"),
        (["-m", "/my_shm"], "/my_shm"),
        (["-M", "256"], "256"),
        (["-n", "rdma"], "'rdma'"),
        (["--frobnicate"], "'--frobnicate'"),
        (["-x"], "'-x'"),
        (["stray"], "'stray'"),
        ([""], "''"),
        (["-p"], "-p"),
        (["-p", "99999"], "'99999'"),
        (["-p", "-1"], "-p"),
        (["-p", "http"], "'http'"),
        (["-p", "1e3"], "'1e3'"),
        (["-p", "٣"], "'٣'"),
        (["--gpu", "amd"], "'amd'"),
        (["--warm", "1000"], "'1000'"),
        (["--warm", "-2"], "--warm"),
        (["--max-clients", "0"], "'0'"),
        (["--max-clients-per-address", "0"], "'0'"),
        (["--max-clients-per-secret", "many"], "'many'"),
        (["--jail", "deep"], "'deep'"),
        (["--jail", "off", "--require-jail"], "contradict"),
        (["--jail", "off", "--seccomp", "list"], "contradict"),
        (["--kernel-timeout", "1.5"], "'1.5'; use a whole number from 0 to 86400"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(arguments, {})
    assert words in caught.value.sentence
    assert "\n" not in caught.value.sentence
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TF_GPU_MEMORY_LIMIT": "lots"}, "'lots'"),
        ({"TF_GPU_MEMORY_LIMIT": "-5"}, "'-5'"),
        ({"TF_GPU_MEMORY_LIMIT": "1.5"}, "'1.5'"),
        ({"TF_CUDA_MEMORY_LIMIT": "10GB"}, "TF_CUDA_MEMORY_LIMIT"),
        ({"TF_GPU_MEMORY_LIMIT": "9999999999"}, "'9999999999'"),
        ({"TF_SESSION_MEMORY_LIMIT": "1G"}, "'1G'"),
        ({"TF_SESSION_MEMORY_LIMIT": "100"}, "512 or more"),
        ({"TF_ENABLE_LOG": "maybe"}, "'maybe'"),
        ({"TF_LOG_LEVEL": "loud"}, "'loud'"),
        ({"TF_ENABLE_URL_AUTH": "1"}, "TF_AUTHORIZED_KEY_PATH"),
        ({"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": "/nowhere/keys"}, "/nowhere/keys"),
        ({"TF_AUTHORIZED_KEY_PATH": "/etc/hostname"}, "nobody would be asked"),
    ],
)
def test_wrong_environment_gets_one_sentence(variables: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse([], variables)
    assert words in caught.value.sentence
    assert caught.value.exit_code == 2


def test_too_long_key_is_named_by_line_and_not_shown(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("fine\n" + "k" * 64 + "\n")
    with pytest.raises(UserError) as caught:
        parse([], {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)})
    assert "Line 2" in caught.value.sentence
    assert "kkk" not in caught.value.sentence


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n \n# first\n  #second\n")
    keys.chmod(0o600)
    with pytest.raises(UserError, match="has no secret in it"):
        parse([], {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)})


@pytest.mark.parametrize(("mode", "said"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_secrets_that_everybody_can_read_are_said(tmp_path: Path, mode: int, said: int) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(mode)
    request = parse(["--host", "127.0.0.1"], {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)})
    assert not isinstance(request, Request)
    assert len(request.notices) == said
    assert all("chmod o-r" in notice for notice in request.notices)


def test_secrets_that_everybody_can_write_are_refused(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o602)
    with pytest.raises(UserError, match="chmod o-w"):
        parse([], {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)})


def test_everybody_may_be_let_in_by_name(tmp_path: Path) -> None:
    """Whoever says 0 has decided; whoever says nothing may believe that the file counts."""
    request = parse([], {"TF_ENABLE_URL_AUTH": "0", "TF_AUTHORIZED_KEY_PATH": str(tmp_path)})
    assert not isinstance(request, Request) and request.keys is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], True),
        (["--host", "0.0.0.0"], True),
        (["--host", "::"], True),
        (["--host", "127.0.0.1"], False),
        (["--host", "192.0.2.1"], False),
        (["-n", "shmem", "-m", "/one"], False),
    ],
)
def test_a_worker_for_everybody_says_so(arguments: list[str], said: bool) -> None:
    request = parse(arguments, {})
    assert not isinstance(request, Request)
    assert any("everybody who reaches this port" in notice for notice in request.notices) == said


def test_port_in_use_is_one_sentence_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, errors = fails("--gpu", "sim", "--host", "127.0.0.1", "-p", str(port))
    assert code == 2
    assert f"Port {port}" in errors
    assert "Traceback" not in errors


def test_unknown_host_is_one_sentence() -> None:
    code, errors = fails("--gpu", "sim", "-p", "0", "--host", "203.0.113.7")
    assert code == 2
    assert "203.0.113.7" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("host", ["", "gpu..example", "g" * 64 + ".example"])
def test_host_that_is_no_name_is_one_sentence(host: str) -> None:
    code, errors = fails("--gpu", "sim", "-p", "0", "--host", host)
    assert code == 2
    assert f"--host {host!r}" in errors
    assert "Traceback" not in errors


def test_no_driver_names_the_simulated_gpu(tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this host has an NVIDIA driver")
    code, errors = fails("-p", "0", LD_LIBRARY_PATH=str(tmp_path))
    assert code == 2
    assert "--gpu sim" in errors


def test_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    code, errors = fails("--gpu", "sim", "-p", "0", TF_ENABLE_LOG="1", TF_LOG_PATH=str(tmp_path / "no" / "log"))
    assert code == 2
    assert os.fspath(tmp_path / "no" / "log") in errors


@pytest.mark.parametrize("words", [["-h"], ["-v"], ["--gpu", "sim", "-p", "0"]])
def test_standard_output_that_takes_nothing_is_one_sentence(words: list[str]) -> None:
    for unbuffered in ("", "1"):
        with Path("/dev/full").open("w") as full:
            result = subprocess.run(
                command(*words),
                env=environment(PYTHONUNBUFFERED=unbuffered),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
                check=False,
            )
        assert result.returncode == 1
        sentence = "tensor-fusion-worker: The standard output cannot be written: No space left on device."
        assert [line for line in result.stderr.splitlines() if "NOTICE" not in line] == [sentence]


def test_worker_without_standard_files_serves(tmp_path: Path) -> None:
    """As a script or an old service manager may start it: no socket may get the number of what is missing."""
    connections = tmp_path / "connections"
    words = ["--gpu", "sim", "-p", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command(*words)],
        env=environment(TF_CONNECTION_INFO_PATH=str(connections), TF_ENABLE_LOG="1"),
    )
    try:
        assert eventually(lambda: bool(psutil.Process(process.pid).children()), 20)
        for number in (process.pid, psutil.Process(process.pid).children()[0].pid):
            for standard in ("0", "1", "2"):
                assert Path(f"/proc/{number}/fd/{standard}").readlink() == Path(os.devnull)
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_full_log_is_said_once_and_the_worker_serves() -> None:
    with Worker(TF_ENABLE_LOG="1", TF_LOG_LEVEL="debug", TF_LOG_PATH="/dev/full") as worker:
        worker.client().ask("pid")
        worker.stop()
        said = [line for line in worker.errors.splitlines() if "NOTICE" not in line]
    assert said == ["tensor-fusion-worker: The log cannot be written: No space left on device; lines are missing."]


def test_log_on_a_closed_pipe_does_not_end_the_worker() -> None:
    """As tensor-fusion-worker | head leaves it."""
    process = subprocess.Popen(
        command("--gpu", "sim", "-p", "0", "--host", "127.0.0.1"),
        env=environment(TF_ENABLE_LOG="1", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while not process.stdout.readline().startswith("warm "):
        assert process.poll() is None
    process.stdout.close()
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    said = [line for line in errors.splitlines() if "NOTICE" not in line]
    assert said == ["tensor-fusion-worker: The log cannot be written: Broken pipe; lines are missing."]


def test_connections_file_that_cannot_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("elsewhere")
    for path in (tmp_path / "no" / "file", tmp_path, tmp_path / "fifo", tmp_path / "link", Path("/")):
        code, errors = fails("--gpu", "sim", "-p", "0", TF_CONNECTION_INFO_PATH=str(path))
        assert code == 2
        assert f"TF_CONNECTION_INFO_PATH {path} " in errors
        assert "Traceback" not in errors
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fifo", "link"]
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("content", [b"notes\n", bytes(range(256)), b"127.0.0.1,1,2\nmore\n", b"x" * 5000, b"\0"])
def test_a_file_of_something_else_is_not_overwritten(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    if content == b"\0":
        os.truncate(path, 1 << 40)  # of which nobody reads more than the begin
    code, errors = fails("--gpu", "sim", "-p", "0", TF_CONNECTION_INFO_PATH=str(path))
    assert code == 2
    assert errors.splitlines()[-1] == (
        f"tensor-fusion-worker: TF_CONNECTION_INFO_PATH {path} holds something else than lines address,port,pid, "
        "and would be overwritten; name another file, or unset it."
    )
    with path.open("rb") as file:
        assert file.read(5000)[: len(content)] == content


@pytest.mark.parametrize("content", ["", "127.0.0.1,40000,7\n", "fe80::1%eth0,1,2\n" * 1000])
def test_a_list_of_another_worker_is_begun_anew(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with Worker(TF_CONNECTION_INFO_PATH=str(path)):
        assert path.read_text() == ""


def noticed(folder: Path) -> list[str]:
    """What a worker with this folder says of it before it is ready."""
    with Worker(TF_IMAGE_CACHE_PATH=str(folder)) as worker:
        worker.stop()
    begin = f"NOTICE: images are not kept: TF_IMAGE_CACHE_PATH is {folder}, and "
    return [line.removeprefix(begin) for line in worker.errors.splitlines() if "images" in line]


def test_a_folder_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file/images"):
        assert noticed(path) == [f"{tmp_path / 'file'} cannot be made: File exists."]
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert noticed(tmp_path / "open") == [f"others than this user ({os.geteuid()}) can write there."]
    assert noticed(tmp_path / "a/b/images") == []
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/images")] == [0o700] * 3


def test_a_list_of_calls_that_is_not_there() -> None:
    code, errors = fails("--gpu", "sim", "-p", "0", "--seccomp", "nothing")
    assert code == 2
    assert errors.splitlines()[-1] == (
        "tensor-fusion-worker: --seccomp nothing cannot be read: No such file or directory."
    )


def test_a_misspelt_variable_is_said() -> None:
    """It does nothing, and the worker would let in everybody, or as much memory be used as there is."""
    settings = parse(
        [], {"TF_ENABLE_URL_AUHT": "1", "TF_GPU_MEMORY_LIMT": "400", "TF_WORKER_OPTIONS": "-p 1", "TF_X": ""}
    )
    assert isinstance(settings, Settings)
    assert settings.notices[:2] == (
        "TF_ENABLE_URL_AUHT is no variable of Tensor Fusion; is TF_ENABLE_URL_AUTH meant?",
        "TF_GPU_MEMORY_LIMT is no variable of Tensor Fusion; is TF_GPU_MEMORY_LIMIT meant?",
    )
    assert not any("WORKER_OPTIONS" in notice or "TF_X" in notice for notice in settings.notices)
