"""A connection with a secret, with all that is real: a program, the client, the worker, and somebody in between."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from service import service
from stack.harness import (
    COMPILER,
    SECRET,
    WITH_MEMORY,
    Program,
    Worker,
    clean_environment,
    connected_elsewhere,
    whole_stack,
)
from test_connection_url import certificate
from test_dump import pcap, read
from test_transport import build, core_sources
from worker_harness import eventually, read_welcome

from tensor_fusion.abi import Teleport
from tensor_fusion.client.files import client_environment
from tensor_fusion.worker import hello
from tensor_fusion.worker.protocol import MAGIC, WELCOME_BYTES, Greeting, Role, Status, Welcome

pytestmark = whole_stack
pytest_plugins = ["stack.fixtures"]
ROOT = Path(__file__).parent.parent
MARK = b"a marked line of what the program computes with"
TRANSFER = 1 << 20
# Sends a mark to the GPU, in a frame and on a data connection, and reads it back; again for each line that it gets.
USES_IT = f"""{WITH_MEMORY}
mark = {MARK!r}
print("there", flush=True)
for _ in sys.stdin:
    for count in (1, {TRANSFER} // len(mark)):
        sent = ctypes.create_string_buffer(mark * count, len(mark) * count)
        came = ctypes.create_string_buffer(len(sent))
        must(cuda.cuMemcpyHtoD_v2(address, sent, size(len(sent))))
        must(cuda.cuMemcpyDtoH_v2(came, address, size(len(sent))))
        if came.raw != sent.raw:
            print("other bytes came back", flush=True)
            sys.exit(4)
    print("same", flush=True)
"""
Change = Callable[[int, bool, bytes], bytes]  # number of the connection, whether the client sent it, the bytes


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(transport="tls") as running:
        yield running


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both ends in one program, whose keys last for 50 records."""
    sources = [*core_sources(), ROOT / "tests/native/test_secure.c"]
    flags = ["-Werror", "-DTP_RECORDS_OF_A_KEY=50", "-ldl"]
    return build(tmp_path_factory.mktemp("secure") / "test_secure", sources, *flags)


class Between:
    """A relay that keeps what it passes on, and may change it."""

    def __init__(self, port: int, change: Change = lambda number, of_client, data: data) -> None:
        self._port = port
        self._change = change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._workers: list[socket.socket] = []
        self.passed: list[tuple[float, int, bool, bytes]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._listener.close()

    def all(self) -> bytes:
        return b"".join(data for _, _, _, data in self.passed)

    def cut(self) -> None:
        for worker in self._workers:
            with suppress(OSError):  # the first took the others with it
                worker.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        for number in range(100):
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            worker = socket.create_connection(("127.0.0.1", self._port))
            self._workers.append(worker)
            for source, target, of_client in ((client, worker, True), (worker, client, False)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(number, source, target, of_client), daemon=True).start()

    def _pass(self, number: int, source: socket.socket, target: socket.socket, of_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.passed.append((time.time(), number, of_client, data))
                target.sendall(self._change(number, of_client, data))
            target.shutdown(socket.SHUT_WR)


def using(port: int, secret: str = SECRET, **variables: str) -> Program:
    clean = clean_environment(**variables)
    env = {**clean, **client_environment(f"native+127.0.0.1+{port}+0" + (f"+{secret}" if secret else ""), clean)}
    return Program([sys.executable, "-c", USES_IT], env)


def works(program: Program) -> None:
    assert program.line() == "there"
    assert program.ask("again") == "same"


def sentence(program: Program, gave: str) -> str:
    """The one that a program says that got no GPU, or lost it."""
    assert program.line() == gave
    assert program.process.wait(20) == 3
    said = re.findall(r"ERROR.*|tensor-fusion: .*", errors := program.errors())
    assert len(said) == 1, errors
    assert SECRET not in errors
    return str(said[0])


def initialise(connection: str, **variables: str) -> str:
    """What a program that asks for a GPU says on its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"],
        env=connected_elsewhere(connection, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout != "0\n"
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# What it is for


def test_nothing_is_to_be_read_on_the_way(worker: Worker) -> None:
    with Between(worker.port) as between, using(between.port) as program:
        works(program)
        assert program.end() == 0
        seen = between.all()
    assert len(seen) > 2 * TRANSFER
    assert SECRET.encode() not in seen and MARK not in seen
    starts: dict[tuple[int, bool], bytes] = {}
    for _, number, of_client, data in between.passed:
        starts.setdefault((number, of_client), data)
    assert len(starts) > 2 and {start[:2] for start in starts.values()} == {b"\x16\x03"}
    # In plain, the same program shows both.
    with Worker(transport="native") as plain, Between(plain.port) as between, using(between.port, "") as program:
        works(program)
        assert MARK in between.all() and program.end() == 0


def test_the_session_knows_no_secret(worker: Worker) -> None:
    with using(worker.port) as program:
        works(program)
        (session,) = worker.sessions()
        assert SECRET not in " ".join([*session.environ().values(), *session.cmdline()])
        assert SECRET.encode() not in memory_of(session)
        assert program.process.pid and SECRET.encode() in memory_of(
            psutil.Process(program.process.pid)
        )  # it looks well
        assert program.end() == 0


def memory_of(process: psutil.Process) -> bytes:
    found = b""
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    with Path(f"/proc/{process.pid}/mem").open("rb", buffering=0) as memory:
        for words in (line.split() for line in maps):
            start, end = (int(word, 16) for word in words[0].split("-"))
            if words[1].startswith("rw") and end - start < 1 << 28:
                with suppress(OSError):
                    memory.seek(start)
                    found += memory.read(end - start)
    return found


def test_the_key_of_one_connection_opens_no_other(worker: Worker) -> None:
    """A data connection has a key of its own; the worker does not take one that another hello had."""
    first: dict[int, bytes] = {}  # of each connection what its client sent first: what follows may begin with any byte

    def keep(number: int, of_client: bool, data: bytes) -> bytes:
        if of_client:
            first.setdefault(number, data)
        return data

    with Between(worker.port, keep) as between, using(between.port) as program:
        works(program)
        hellos = list(first.values())
        found = [hello.parse(raw) for raw in hellos]
        assert len(found) > 1 and len({one.nonce for one in found}) == len(found)
        assert {one.key_id for one in found} == {hello.key_id(SECRET.encode())}
        assert all(one.is_by(SECRET.encode()) for one in found)
        for raw in hellos:
            with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as again:
                again.sendall(raw)
                welcome = read_welcome(again)
                assert (welcome.status, "used before" in welcome.sentence) == (Status.SECRET_REFUSED, True)
        assert program.ask("again") == "same" and program.end() == 0


def test_a_capture_says_that_it_is_encrypted(worker: Worker, tmp_path: Path) -> None:
    with Between(worker.port) as between, using(between.port) as program:
        works(program)
        assert program.end() == 0
        capture = tmp_path / "capture"
        from test_dump import network

        capture.write_bytes(pcap(network([(at, n + 1, who, data) for at, n, who, data in between.passed])))
    lines, damage = read(capture)
    assert not damage
    assert any("greeting: control connection" in line and "in TLS: what follows" in line for line in lines)
    assert any("greeting: data connection 0" in line and "secret masked, in TLS" in line for line in lines)
    assert len(lines) == len({number for _, number, _, _ in between.passed})


# Somebody in between


@pytest.mark.parametrize("of_client", [True, False], ids=["from the client", "from the worker"])
@pytest.mark.parametrize("data", [False, True], ids=["control", "data"])
def test_a_changed_byte_ends_it(tmp_path: Path, of_client: bool, data: bool) -> None:
    """A byte in the middle of a copy. Nothing of the record is taken, and whoever meets it says so."""
    armed = threading.Event()

    def change(number: int, by_client: bool, raw: bytes) -> bytes:
        if armed.is_set() and by_client is of_client and (number > 0) is data:
            armed.clear()
            return raw[:-1] + bytes([raw[-1] ^ 1])
        return raw

    log = tmp_path / "log"
    with (
        Worker(transport="tls", TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker,
        Between(worker.port, change) as between,
    ):
        with using(between.port) as program:
            works(program)
            armed.set()
            program.begin("again")
            said = sentence(program, "gave 46")
        assert "is lost" in said
        where = log.read_text() if of_client else said
        assert "what came is not what the other side sent: it was changed on the way" in where
        assert eventually(lambda: not worker.sessions())


def test_a_changed_hello_is_refused(worker: Worker) -> None:
    def change(number: int, of_client: bool, raw: bytes) -> bytes:
        return raw[:20] + bytes([raw[20] ^ 1]) + raw[21:] if of_client and raw[:1] == b"\x16" else raw

    with Between(worker.port, change) as between:
        said = initialise(f"native+127.0.0.1+{between.port}+0+{SECRET}")
    assert "The secret was refused" in said and "(A refusal is not encrypted" in said


@pytest.mark.parametrize("at", [8, 60, 140])
def test_a_changed_answer_ends_the_handshake(worker: Worker, at: int) -> None:
    def change(number: int, of_client: bool, raw: bytes) -> bytes:
        return raw if of_client else raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :]

    with Between(worker.port, change) as between:
        said = initialise(f"native+127.0.0.1+{between.port}+0+{SECRET}")
    assert "does not know the secret of the connection string, or somebody changes what is sent" in said
    assert eventually(lambda: not worker.sessions())


def test_a_cut_connection_is_lost(worker: Worker) -> None:
    """Between two records, as nobody who speaks TLS would; what came before it was whole."""
    with Between(worker.port) as between:
        with using(between.port) as program:
            works(program)
            (session,) = worker.sessions()
            between.cut()
            program.begin("again")
            assert "is lost" in sentence(program, "gave 46")
        assert eventually(lambda: not session.is_running() or session.status() == psutil.STATUS_ZOMBIE)


# Who answers, and is no worker that knows the secret


def impostor(answer: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)
        with suppress(OSError):
            impostor_got.append(connection.recv(4096))

    return serve


impostor_got: list[bytes] = []


def test_an_impostor_that_welcomes_in_plain_gets_nothing() -> None:
    impostor_got.clear()
    with service(impostor(Welcome.build(Status.ACCEPTED, Teleport().schema, session_id=1, data_connections=8))) as port:
        said = initialise(f"native+127.0.0.1+{port}+0+{SECRET}")
    assert "goes on without TLS, as no worker does that knows the secret" in said
    assert eventually(lambda: impostor_got == [b""])


def test_an_impostor_s_refusal_is_shown_as_one_that_anybody_could_write() -> None:
    with service(impostor(Welcome.build(Status.SECRET_REFUSED, bytes(16), "Send \x1b[31mmoney."))) as port:
        said = initialise(f"native+127.0.0.1+{port}+0+{SECRET}")
    assert "Send ?[31mmoney. (A refusal is not encrypted: somebody on the way could have written it.)" in said


def test_an_impostor_with_a_certificate_is_not_trusted() -> None:
    """It speaks TLS 1.3 as well as anybody, and knows no secret."""
    with service(impostor(b"hello"), tls=certificate("here")) as port:
        said = initialise(f"native+127.0.0.1+{port}+0+{SECRET}")
    assert "does not know the secret of the connection string" in said


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is no tensor-fusion-worker: it says 'SSH-2.0-OpenSSH_9.2'"),
        (MAGIC + bytes(WELCOME_BYTES - len(MAGIC)), "goes on without TLS"),
        (b"\x16\x03\x03\x00\x05hello", "does not know the secret"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "does not know the secret"),
        (b"", "takes connections but gave no answer in TLS ("),
    ],
)
def test_something_else_answers(answer: bytes, says: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)
        connection.close()

    with service(serve) as port:
        assert says in initialise(f"native+127.0.0.1+{port}+0+{SECRET}")


# Secrets and what is missing


def test_a_wrong_secret_and_none(worker: Worker) -> None:
    said = initialise(f"native+127.0.0.1+{worker.port}+0+wrong")
    assert "The secret was refused; put the one from" in said and "wrong" not in said.replace("wrong secret", "")
    said = initialise(f"native+127.0.0.1+{worker.port}+0")
    assert "This worker wants a secret, and with it TLS" in said and "not encrypted" not in said
    with Worker(transport="native") as plain:
        assert "This worker has no secrets" in initialise(f"{plain.connection}+{SECRET}")


def preloaded(folder: Path, source: str) -> str:
    assert COMPILER
    code, library = folder / "preload.c", folder / "preload.so"
    code.write_text(source)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(library), str(code), "-ldl"], check=True)
    return str(library)


WITHOUT = """
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <string.h>
    #include <unistd.h>
    void *dlopen(const char *name, int flags) {
        void *(*real)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
        return real(name && strstr(name, "libssl") ? "/nothing/libssl.so" : name, flags);
    }
"""


def test_a_client_without_openssl(worker: Worker, tmp_path: Path) -> None:
    hook = preloaded(tmp_path, WITHOUT)
    said = initialise(worker.connection, LD_PRELOAD=hook)
    assert "A secret in the connection string needs OpenSSL 1.1.1 or 3 (libssl.so.3) on this machine" in said
    with Worker(transport="native") as plain:  # what needs none does not ask for it
        assert connected(plain.connection, LD_PRELOAD=hook) == "0\n"


def connected(connection: str, **variables: str) -> str:
    program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
    env = connected_elsewhere(connection, **variables)
    return subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_a_client_with_a_tls_library_of_its_own(worker: Worker, tmp_path: Path) -> None:
    hook = preloaded(tmp_path, "void *SSL_new(void *context) { (void)context; __builtin_trap(); }\n")
    said = initialise(worker.connection, LD_PRELOAD=hook)
    assert "brings a TLS library of its own (it exports SSL_new)" in said


def test_a_client_that_has_openssl_in_use(worker: Worker) -> None:
    """Python's own, in the same process: before, beside and after ours, with errors in its queue."""
    program = f"""
import ctypes, ssl
tls = ssl.create_default_context()
def fails():
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    a.write(b"no TLS at all")
    try:
        tls.wrap_bio(a, b, server_hostname="x").do_handshake()
    except ssl.SSLError:
        return
    raise SystemExit("no error")
fails()
{USES_IT.replace("for count in", "fails()" + chr(10) + "    for count in")}
"""
    clean = clean_environment()
    with Program([sys.executable, "-c", program], {**clean, **client_environment(worker.connection, clean)}) as running:
        works(running)
        assert running.ask("again") == "same" and running.end() == 0


def test_a_worker_without_openssl(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    secrets = {"TF_ENABLE_URL_AUTH": "1", "TF_AUTHORIZED_KEY_PATH": str(keys)}
    env = clean_environment(LD_PRELOAD=preloaded(tmp_path, WITHOUT), **secrets)
    command = [sys.executable, "-m", "tensor_fusion.worker", "--gpu", "sim", "-p", "0", "--host", "127.0.0.1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "A worker with secrets needs OpenSSL 1.1.1 or 3 (libssl.so.3) on this machine" in done.stderr


def test_a_worker_whose_openssl_goes_away(tmp_path: Path) -> None:
    gone, log = tmp_path / "gone", tmp_path / "log"
    hook = preloaded(tmp_path, WITHOUT.replace("return real(name &&", f'return real(!access("{gone}", 0) && name &&'))
    with Worker(transport="tls", LD_PRELOAD=hook, TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        assert connected(worker.connection) == "0\n"
        gone.touch()
        said = initialise(worker.connection)
        assert "refused the connection: A client with a secret needs OpenSSL 1.1.1 or 3" in said
        assert "a client with a secret cannot be served: A client with a secret needs OpenSSL" in log.read_text()


@pytest.mark.parametrize("jail", ["basic", "full"])
def test_in_a_jail(jail: str) -> None:
    with Worker("--jail", jail, transport="tls") as worker, using(worker.port) as program:
        works(program)
        assert program.end() == 0


def test_a_client_that_never_ends_its_handshake(tmp_path: Path) -> None:
    """It knows the secret, and holds its place for as long as one that says nothing; others are served meanwhile."""
    log = tmp_path / "log"
    with Worker(transport="tls", TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        greeting = Greeting.build(Teleport().schema, role=Role.CONTROL, program="slow")
        with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as slow:
            began = time.monotonic()
            slow.sendall(hello.build(SECRET.encode(), greeting))
            assert slow.recv(1) == b"\x16"  # the session's part of it
            with using(worker.port) as program:
                works(program)
                assert program.end() == 0
            with suppress(ConnectionResetError):
                while slow.recv(4096):
                    pass
            assert 9 < time.monotonic() - began < 13
        assert "it has asked for nothing in 10 s" in log.read_text()


def test_what_follows_a_hello_is_nothing_but_tls(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker(transport="tls", TF_ENABLE_LOG="1", TF_LOG_PATH=str(log)) as worker:
        greeting = Greeting.build(Teleport().schema, program="odd")
        with socket.create_connection(("127.0.0.1", worker.port), timeout=20) as odd:
            odd.sendall(hello.build(SECRET.encode(), greeting) + b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                while odd.recv(4096):
                    pass
        assert eventually(lambda: "The client's connection ends: receiving failed: " in log.read_text())
        assert eventually(lambda: not worker.sessions())


# The two ends alone


def test_both_ways_at_once_through_changes_of_keys(ends: Path) -> None:
    done = subprocess.run([ends, "pair", "30000000"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_ends_with_other_keys_say_so(ends: Path) -> None:
    done = subprocess.run([ends, "wrong"], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"client: \S.*\nserver: \S.*\n", done.stdout)
    assert subprocess.run([ends, "stranger"], capture_output=True, text=True, timeout=60, check=False).returncode == 0


def test_records_are_those_of_the_standard(ends: Path) -> None:
    done = subprocess.run([ends, "records"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_another_client_is_understood(ends: Path) -> None:
    """OpenSSL's own, with changes of keys that it makes (k) and that it asks for (K), and its farewell (Q)."""
    with subprocess.Popen([ends, "echo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stderr
        port = server.stdout.readline().strip()
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-psk", "07" * 32]
        command += ["-ciphersuites", "TLS_AES_128_GCM_SHA256"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as client:
            assert client.stdin and client.stdout
            for number, line in enumerate(["one", "k", "two", "K", "three", "K", "k", "four"]):
                client.stdin.write(f"{line}{number}\n" if len(line) > 1 else f"{line}\n")
                client.stdin.flush()
                time.sleep(0.3)
            client.stdin.write("Q\n")
            client.stdin.flush()
            said = client.stdout.read()
        assert server.wait(20) == 0, server.stderr.read()
    assert re.findall(r"(?:one|two|three|four)\d", said) == ["one0", "two2", "three4", "four7"], said
    assert said.count("KEYUPDATE") >= 2 and "welcome" in said  # letters that come with a line are part of it


# What the process's end takes down

# The program ends by abort() if OpenSSL is taken down when it exits.
TAKEN_DOWN = """
import ctypes, sys
if sys.argv[1] == "first":
    ctypes.CDLL("libcrypto.so.3").OPENSSL_init_crypto(ctypes.c_uint64(2), None)
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
crypto = ctypes.CDLL("libcrypto.so.3")
assert crypto.OPENSSL_atexit(ctypes.CDLL(None).abort) == 1
"""


@pytest.mark.parametrize(("who", "code"), [("later", 0), ("first", -signal.SIGABRT)])
def test_openssl_stays_while_threads_use_it(worker: Worker, who: str, code: int) -> None:
    """At exit OpenSSL would free what belongs to threads that end at that moment, as ours do when a session is lost.

    A program that began with it before us has it taken down as always.
    """
    done = subprocess.run([sys.executable, "-c", TAKEN_DOWN, who], env=worker.env, timeout=60, check=False)
    assert done.returncode == code
