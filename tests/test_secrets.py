"""The file of secrets: its words, who is refused, what each secret may have, and how it is read again."""

from __future__ import annotations

import hmac
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stack.harness import MIB, ROOT, Program, clean_environment, connected_elsewhere, whole_stack
from stack.harness import Worker as Stack
from worker_harness import SCHEMA, Worker, eventually, fails

from tensor_fusion.config import UserError
from tensor_fusion.worker.driver import visible_devices
from tensor_fusion.worker.keys import AuthorizedKeys, Key
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.protocol import Greeting, Role, Status

PAST = "2001-01-01T00:00Z"


def padded(secret: str) -> bytes:
    return secret.encode().ljust(64, b"\0")


@pytest.fixture
def keys(tmp_path: Path) -> Callable[[str], Path]:
    path = tmp_path / "keys"

    def write(text: str) -> Path:
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def variables(path: Path, log: Path | None = None) -> dict[str, Any]:
    said = {} if log is None else {"TF_ENABLE_LOG": "1", "TF_LOG_PATH": str(log)}
    return {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(path), **said}


# ---- the file ----


def test_a_line_says_what_its_secret_may_have(keys: Callable[[str], Path]) -> None:
    path = keys(
        "bare\n"
        "# name=none\n"
        "  first  name=alice expires=2027-01-31T00:00Z memory=100 clients=3 devices=2,0   # of March\n"
        "with=sign name=b.o-b_2 expires=2027-01-31T01:02:03Z\n"
    )
    read = AuthorizedKeys(path)
    bare, first, other = read.keys
    assert (bare.name, bare.expires, bare.memory, bare.clients, bare.devices) == ("", None, 0, 0, ())
    assert (first.name, first.memory, first.clients, first.devices) == ("alice", 100 * MIB, 3, (2, 0))
    assert first.expiry == "2027-01-31T00:00:00Z"
    assert (other.secret, other.name, other.expiry) == (padded("with=sign"), "b.o-b_2", "2027-01-31T01:02:03Z")
    for key in read.keys:
        assert read.find(key.secret) == key
        assert key.secret.rstrip(b"\0").decode() not in repr(key)
    assert read.find(padded("first  name=alice")) is None
    assert first.tenant != AuthorizedKeys(keys("first devices=0,2\n")).keys[0].tenant


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hush colour=red", "unknown in word 2; behind a secret come name=, expires="),
        ("hush alice", "unknown in word 2"),
        ("hush name=a cores=20", "unknown in word 3"),
        ("hush name=", "name=''; a name has 1 to 32"),
        ("hush name=" + "a" * 33, "a name has 1 to 32"),
        ("hush name=a name=b", "name= twice"),
        ("hush expires=tomorrow", "expires='tomorrow'; write a moment in UTC such as"),
        ("hush expires=2027-02-30T00:00Z", "write a moment in UTC"),
        ("hush expires=2027-01-31", "write a moment in UTC"),
        ("hush expires=2027-01-31T00:00+01:00", "write a moment in UTC"),
        ("hush memory=0", "memory='0'; use a whole number from 1"),
        ("hush memory=1G", "memory='1G'"),
        ("hush clients=1025", "clients='1025'; use a whole number from 1 to 1024"),
        ("hush clients=-1", "clients='-1'"),
        ("hush sm=0", "sm='0'; use a whole number from 1 to 100"),
        ("hush sm=101", "use a whole number from 1 to 100"),
        ("hush devices=", "devices=''; list numbers from 0 to 15"),
        ("hush devices=0,16", "list numbers from 0 to 15"),
        ("hush devices=1,1", "name each device once"),
        ("fine", "has the same secret as line 1; remove one"),
        ("hush name=first", "has the name first, as line 1; change one"),
        ("h" * 64, "has 64 characters; a secret has at most 63"),
    ],
)
def test_a_wrong_line_is_named_and_shows_no_secret(keys: Callable[[str], Path], line: str, words: str) -> None:
    path = keys(f"fine name=first\n\n{line}\n")
    with pytest.raises(UserError) as caught:
        AuthorizedKeys(path)
    assert caught.value.sentence.startswith(f"Line 3 of TF_AUTHORIZED_KEY_PATH {path} ")
    assert words in caught.value.sentence
    assert "hush" not in caught.value.sentence and "fine" not in caught.value.sentence


def test_every_secret_is_compared(keys: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """However early one fits: the time says nothing about its place."""
    read, compared = AuthorizedKeys(keys("a\nb\nc\n")), []
    same = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return bool(same(one, other))

    monkeypatch.setattr("tensor_fusion.worker.keys.hmac.compare_digest", noted)
    for secret in ("a", "c", "none"):
        compared.clear()
        found = read.find(padded(secret))
        assert (found and found.line) == {"a": 1, "c": 3}.get(secret)
        assert compared == [(padded(one), padded(secret)) for one in "abc"]


def test_the_file_is_read_when_it_has_changed(
    keys: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    path = keys("one\n")
    monkeypatch.setattr("tensor_fusion.worker.keys.SETTLED", -1.0)  # no change is too fresh
    read = AuthorizedKeys(path)
    reads = []
    real = AuthorizedKeys._read

    def noted(self: AuthorizedKeys) -> tuple[Key, ...]:
        reads.append(self)
        return real(self)

    monkeypatch.setattr(AuthorizedKeys, "_read", noted)
    assert not read.refresh() and not reads
    keys("two\n")
    assert read.refresh() and [key.secret for key in read.keys] == [padded("two")]
    reads.clear()
    assert not read.refresh() and not reads
    for wrong in (lambda: keys("two colour=red\n"), path.unlink, lambda: keys("x\n").chmod(0o602)):
        caplog.clear()
        wrong()
        for _ in range(3):
            assert not read.refresh()
        assert [key.secret for key in read.keys] == [padded("two")]
        assert len(caplog.messages) == 1 and "the secrets stay as they were" in caplog.text and str(path) in caplog.text
    keys("")
    assert read.refresh() and not read.keys


def test_a_file_that_was_changed_just_now_is_read_again(keys: Callable[[str], Path]) -> None:
    """Its time has no finer grain: a second change may look like the first."""
    path = keys("one\n")
    about = path.stat()
    read = AuthorizedKeys(path)
    path.write_text("two\n")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert read.refresh() and read.find(padded("two"))


def test_a_pipe_is_read_once() -> None:
    """As a shell gives one for <(…)."""
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    os.close(writing)
    read = AuthorizedKeys(Path(f"/dev/fd/{reading}"))
    assert not read.refresh() and not read.reload() and read.find(padded("one"))
    os.close(reading)


# ---- the start ----


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nobody\n", "has no secret in it"),
        (f"one expires={PAST}\ntwo expires=2002-02-02T00:00Z\n", "have expired, the last on 2002-02-02T00:00:00Z"),
        ("one colour=red\n", "Line 1 of TF_AUTHORIZED_KEY_PATH"),
        ("one devices=0\ntwo devices=0,2\n", "names device 2; this worker has 2, counted from 0"),
    ],
)
def test_a_file_that_cannot_be_enforced_ends_the_start(keys: Callable[[str], Path], text: str, words: str) -> None:
    code, errors = fails("--gpu", "sim", "-p", "0", "--host", "127.0.0.1", **variables(keys(text)))
    assert code == 2
    assert words in errors.replace("\n", " ").replace("  ", " ")


# ---- who is refused ----


def test_an_expired_secret_is_told_to_who_has_it(keys: Callable[[str], Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = keys(f"old name=alice expires={PAST}\nnew\n")
    with Worker(**variables(path, log)) as worker:
        for role in (Role.CONTROL, Role.PROBE):
            refused = worker.refuse(Greeting.build(SCHEMA, secret="old", role=role))
            assert refused.status == Status.SECRET_REFUSED
            assert "The secret expired on 2001-01-01T00:00:00Z" in refused.sentence
            wrong = worker.refuse(Greeting.build(SCHEMA, secret="old2", role=role))
            assert "was refused" in wrong.sentence and "expired" not in wrong.sentence
        worker.client(secret="new").close()


def test_a_session_goes_on_when_its_secret_expires(keys: Callable[[str], Path]) -> None:
    with Worker(**variables(keys("soon\n"))) as worker:
        client = worker.client(secret="soon")
        ends = time.time() + 2
        keys(f"soon expires={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(ends))}\n")
        greeting = Greeting.build(SCHEMA, secret="soon")
        assert eventually(lambda: worker.exchange(greeting)[1].status == Status.SECRET_REFUSED, 10)
        assert time.time() >= int(ends)
        assert "The secret expired on" in worker.refuse(greeting).sentence
        assert int(client.ask("pid"))


def test_guesses_are_throttled_and_expired_secrets_are_none(keys: Callable[[str], Path]) -> None:
    path = keys(f"old expires={PAST}\nnew\n")
    with Worker(**variables(path)) as worker:
        for _ in range(30):
            assert "expired" in worker.refuse(Greeting.build(SCHEMA, secret="old", role=Role.PROBE)).sentence
        for number in range(20):
            worker.refuse(Greeting.build(SCHEMA, secret=f"guess{number}", role=Role.PROBE))
        began = time.monotonic()
        worker.refuse(Greeting.build(SCHEMA, secret="guess", role=Role.PROBE))
        assert time.monotonic() - began > 0.1


def let_in(worker: Worker, greeting: bytes) -> bool:
    return worker.exchange(greeting)[1].status == Status.ACCEPTED


def test_clients_of_a_secret(keys: Callable[[str], Path]) -> None:
    """Its own number counts in place of the worker's."""
    path = keys("few clients=1\nmany clients=3\nothers\n")
    with Worker("--max-clients-per-secret", "2", **variables(path)) as worker:
        for secret, most in (("few", 1), ("many", 3), ("others", 2)):
            clients = [worker.client(secret=secret) for _ in range(most)]
            refused = worker.refuse(Greeting.build(SCHEMA, secret=secret))
            assert refused.status == Status.NO_SESSION
            assert f"serves {most} clients with this secret already" in refused.sentence
            assert ("clients=" in refused.sentence) == (secret != "others")
            clients[0].close()
            assert eventually(partial(let_in, worker, Greeting.build(SCHEMA, secret=secret)))


# ---- SIGHUP ----


def test_sighup_reads_the_file_and_drops_nobody(keys: Callable[[str], Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(**variables(keys("first name=alice\nsecond\n"), log)) as worker:
        stays = worker.client(secret="first")
        keys("second\nthird name=carol\n")
        worker.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "SIGHUP" in log.read_text() and ": 2 secrets" in log.read_text())
        assert worker.refuse(Greeting.build(SCHEMA, secret="first")).status == Status.SECRET_REFUSED
        worker.client(secret="third").close()
        assert int(stays.ask("pid"))
        keys("second\nthird colour=red\n")
        worker.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "the secrets stay as they were: Line 2 of" in log.read_text())
        worker.client(secret="third").close()
        keys("second devices=5\n")
        worker.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "names device 5; this worker has 2" in log.read_text())
        worker.client(secret="third").close()
        assert int(stays.ask("pid"))


# ---- where a secret is not, and its name is ----


def test_the_name_is_told_and_the_secret_is_not(keys: Callable[[str], Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = keys("hush-hush name=alice\nsilence\n")
    runtime = tmp_path / "run"
    runtime.mkdir(0o700)
    options = {**variables(path, log), "TF_LOG_LEVEL": "trace", "TF_RUNTIME_PATH": str(runtime)}
    with Worker("--metrics", "127.0.0.1:0", **options) as worker:
        assert worker.process.stdout
        lines = [worker.process.stdout.readline() for _ in range(2)]
        at = next(line.split()[1] for line in lines if line.startswith("metrics "))
        named, unnamed = worker.client("one", secret="hush-hush"), worker.client("two", secret="silence")
        assert "alice" not in named.ask("text"), "the process list of the host is not the tenant's"
        with urllib.request.urlopen(at, timeout=20) as answer:
            said = answer.read().decode()
        assert re.search(r'tensor_fusion_session_calls_total\{[^}]*program="one"[^}]*tenant="alice"\}', said)
        assert re.search(r'tensor_fusion_session_calls_total\{[^}]*program="two"[^}]*"\}', said)
        assert said.count('tenant="') == said.count('tenant="alice"')
        command = [sys.executable, "-m", "tensor_fusion", "top", "--once"]
        env = clean_environment(TF_RUNTIME_PATH=str(runtime), COLUMNS="140")
        listed = subprocess.run([*command, "--json"], env=env, capture_output=True, text=True, timeout=30, check=True)
        told = json.loads(listed.stdout)
        assert [one["tenant"] for one in told["workers"][0]["sessions"]] == ["alice", ""]
        drawn = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True).stdout
        assert "TENANT" in drawn and "alice" in drawn
        for process in [worker.process.pid, *(child.pid for child in worker.children())]:
            for name in ("cmdline", "environ"):
                text = Path(f"/proc/{process}/{name}").read_bytes()
                assert b"hush-hush" not in text and b"silence" not in text
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        found = re.search(r"Max core file size\s+(\d+)\s+(\d+)", limits)
        assert found and max(map(int, found.groups())) <= 1, "nothing of this process may become a core file"
        named.close()
        unnamed.close()
        assert eventually(lambda: len(worker.children()) == 1)
        worker.stop()
        for place in (said, drawn, json.dumps(told), log.read_text(), worker.output, worker.errors):
            assert "hush" not in place and "silence" not in place
    assert re.search(r"served by session \d+ of one@127.0.0.1 \(alice\)", log.read_text())


def test_top_of_a_worker_without_names_has_no_column(tmp_path: Path) -> None:
    with Worker(TF_RUNTIME_PATH=str(tmp_path)) as worker:
        client = worker.client("one")
        command = [sys.executable, "-m", "tensor_fusion", "top", "--once"]
        env = clean_environment(TF_RUNTIME_PATH=str(tmp_path), COLUMNS="140")
        drawn = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True).stdout
        assert "PROGRAM" in drawn and "TENANT" not in drawn
        client.close()


def test_devices_are_named_as_the_worker_names_them() -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,MIG-c"}, (2, 0)) == {
        "CUDA_VISIBLE_DEVICES": "MIG-c,GPU-a"
    }
    assert visible_devices({}, (1,)) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "3,4"}, ()) == {}


# ---- limits, as clients meet them ----


class Peer(Program):
    """A client that makes the calls it is told."""

    def __init__(self, stack: Stack, secret: str, device: int = 0) -> None:
        env = connected_elsewhere(f"{stack.connection}+{secret}")
        super().__init__([sys.executable, ROOT / "tests/stack/apart/share.py"], env)
        assert self.call("prepare", device) == 0

    def __enter__(self) -> Peer:
        return self

    def call(self, name: str, *arguments: object) -> Any:
        return json.loads(self.ask(json.dumps([name, *arguments])))

    def alloc(self, size: int) -> int:
        return int(self.call("alloc", size)[0])


stacked = [*whole_stack, pytest.mark.parametrize("transport", ["native", "shmem"])]
OUT_OF_MEMORY = 2


def all_of(*marks: pytest.MarkDecorator) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def marked(test: Callable[..., None]) -> Callable[..., None]:
        for mark in marks:
            test = mark(test)
        return test

    return marked


@all_of(*stacked)
def test_memory_of_a_secret(keys: Callable[[str], Path], transport: str) -> None:
    path = keys("a name=alice memory=64\nb\n")
    with (
        Stack(transport=transport, TF_GPU_MEMORY_LIMIT="128", **variables(path)) as stack,
        Peer(stack, "a") as one,
        Peer(stack, "a") as two,
        Peer(stack, "b") as other,
    ):
        assert one.call("info") == [0, 64 * MIB, 64 * MIB] and other.call("info") == [0, 128 * MIB, 128 * MIB]
        assert one.alloc(32 * MIB) == 0 and two.alloc(16 * MIB) == 0
        assert one.call("info") == two.call("info") == [0, 16 * MIB, 64 * MIB]
        assert other.call("info") == [0, 80 * MIB, 128 * MIB]
        assert two.alloc(32 * MIB) == OUT_OF_MEMORY and two.alloc(16 * MIB) == 0 and one.alloc(2 * MIB) == OUT_OF_MEMORY
        assert dict(one.call("processes", 0)) == {one.process.pid: 32 * MIB, two.process.pid: 32 * MIB}
        keys("a name=alice memory=96\nb\n")
        stack.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: one.call("info") == [0, 32 * MIB, 96 * MIB]), one.call("info")
        assert other.alloc(64 * MIB) == 0
        assert one.alloc(2 * MIB) == OUT_OF_MEMORY, "the worker's own limit holds"
        two.kill()
        assert eventually(lambda: one.call("info") == [0, 32 * MIB, 96 * MIB]), one.call("info")
        assert one.alloc(32 * MIB) == 0


@all_of(*stacked)
def test_devices_of_a_secret(keys: Callable[[str], Path], transport: str) -> None:
    path = keys("a memory=64 devices=2\nb devices=1,2\nc\n")
    options = ("--warm", "1")
    with (
        Stack(*options, transport=transport, TF_SIM_DEVICES="3", TF_GPU_MEMORY_LIMIT="128", **variables(path)) as stack,
        Peer(stack, "a") as one,
        Peer(stack, "b", 1) as two,
        Peer(stack, "c", 2) as whole,
    ):
        # The simulated GPU names its devices by their last byte, from 1.
        assert [peer.call("devices") for peer in (one, two, whole)] == [[3], [2, 3], [1, 2, 3]]
        # And so does NVML, which knows nothing of CUDA_VISIBLE_DEVICES.
        assert [peer.call("boards") for peer in (one, two, whole)] == [[3], [2, 3], [1, 2, 3]]
        assert one.alloc(64 * MIB) == 0 and two.alloc(32 * MIB) == 0
        assert [peer.call("info")[1] for peer in (one, two, whole)] == [0, 32 * MIB, 32 * MIB], "it is one device"
        assert dict(one.call("processes", 0)) == {one.process.pid: 64 * MIB}
        assert dict(two.call("processes", 1)) == {two.process.pid: 32 * MIB} and two.call("processes", 0) == []
        assert whole.alloc(64 * MIB) == OUT_OF_MEMORY


def test_a_client_with_few_devices_leaves_the_warm_session(keys: Callable[[str], Path]) -> None:
    with Worker(CUDA_VISIBLE_DEVICES="7,5", **variables(keys("a devices=1\nb\n"))) as worker:
        warm = {child.pid for child in worker.children()}
        few, other = worker.client(secret="a"), worker.client(secret="b")
        assert few.ask("env CUDA_VISIBLE_DEVICES") == "5" and int(few.ask("pid")) not in warm
        assert other.ask("env CUDA_VISIBLE_DEVICES") == "7,5" and int(other.ask("pid")) in warm
