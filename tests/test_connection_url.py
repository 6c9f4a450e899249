"""The URL that hands out the connection string: https, redirects, answers of every size and pace, proxies.

Each of them works, or ends at once with a sentence.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from service import service
from stack.harness import clean_environment

from tensor_fusion.abi import native_folder
from tensor_fusion.client.files import client_environment
from tensor_fusion.config import CONNECTION_URL

TLS = Path(__file__).parent / "data/tls"
NATIVE = Path(__file__).parent.parent / "native"
STRING = "native+10.0.0.1+8000+pod-1"
OK, CONFIG = 0, 1
AT_ONCE = 5.0
COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")

Serve = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("TF_CONNECTION_URL_CA_FILE", "TENSOR_FUSION_OPERATOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


def fetch(url: str) -> tuple[int, str, str]:
    """Status, connection string, sentence."""
    library = ctypes.CDLL(str(native_folder() / "client/libteleport.so.1"))
    text, why = ctypes.create_string_buffer(1026), ctypes.create_string_buffer(2048)
    size = ctypes.c_size_t
    status = library.tp_fetch_connection(url.encode(), text, size(len(text)), why, size(len(why)))
    return status, text.value.decode().strip(), why.value.decode()


def refused(url: str) -> str:
    """The sentence of an answer that ends the wait at once."""
    begin = time.monotonic()
    status, _, why = fetch(url)
    assert status == CONFIG, why
    assert time.monotonic() - begin < AT_ONCE
    return why


def request(connection: socket.socket) -> str:
    """The head of a request."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(4096)
        assert part, head
        head += part
    return head.decode()


def answering(answer: bytes, heads: list[str] | None = None, stays_open: bool = False) -> Serve:
    def serve(connection: socket.socket) -> None:
        head = request(connection)
        if heads is not None:
            heads.append(head)
        connection.sendall(answer)
        if stays_open:
            time.sleep(20)
        if isinstance(connection, ssl.SSLSocket):
            connection.unwrap()
        connection.close()

    return serve


def ok(body: str = STRING) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def certificate(name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{name}.pem")
    return context


# https


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONNECTION_URL_CA_FILE", str(TLS / "ca.pem"))


@pytest.mark.usefixtures("authority")
def test_https(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc.def\n")
    monkeypatch.setenv("TENSOR_FUSION_OPERATOR_TOKEN_FILE", str(token))
    heads: list[str] = []
    with service(answering(ok(), heads), tls=certificate("here")) as port:
        assert fetch(f"https://127.0.0.1:{port}/api?name=a#part") == (OK, STRING, "")
    assert heads[0].startswith(f"GET /api?name=a HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n")
    assert "\r\nAuthorization: Bearer abc.def\r\n" in heads[0]


@pytest.mark.usefixtures("authority")
def test_https_answer_of_many_records() -> None:
    def serve(connection: socket.socket) -> None:
        request(connection)
        for byte in ok("\n" * 3000 + STRING):
            connection.sendall(bytes([byte]))
        connection.close()

    with service(serve, tls=certificate("here")) as port:
        assert fetch(f"https://127.0.0.1:{port}/")[0] == OK


def test_unknown_authority_is_refused() -> None:
    with service(answering(ok()), tls=certificate("here")) as port:
        why = refused(f"https://127.0.0.1:{port}/")
    assert why.startswith("The certificate of 127.0.0.1 is not accepted: ")
    assert "TF_CONNECTION_URL_CA_FILE" in why


@pytest.mark.usefixtures("authority")
def test_certificate_of_another_name_is_refused() -> None:
    with service(answering(ok()), tls=certificate("elsewhere")) as port:
        assert "mismatch" in refused(f"https://127.0.0.1:{port}/").lower()


@pytest.mark.parametrize(("content", "expected"), [(None, "cannot be read"), ("no certificate", "PEM format")])
def test_bad_file_of_the_authority(
    content: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    monkeypatch.setenv("TF_CONNECTION_URL_CA_FILE", str(file))
    with service(answering(ok()), tls=certificate("here")) as port:
        why = refused(f"https://127.0.0.1:{port}/")
    assert str(file) in why
    assert expected in why


def test_https_at_a_plain_server() -> None:
    with service(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "not as a TLS server does" in refused(f"https://127.0.0.1:{port}/")


@pytest.mark.usefixtures("authority")
def test_tls_that_is_cut_short_is_no_answer() -> None:
    """A string that ends where somebody cut the connection would lead to another port."""
    turns = iter([STRING[:15].encode(), ok()[len("HTTP/1.1 200 OK\r\n") :]])

    def serve(connection: socket.socket) -> None:
        request(connection)
        last = next(turns)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + (last if last.startswith(b"C") else b"\r\n" + last))
        connection.close()  # without TLS's farewell

    with service(serve, tls=certificate("here")) as port:
        assert fetch(f"https://127.0.0.1:{port}/")[:2] == (OK, STRING)
    assert next(turns, None) is None


def in_program(url: str, preload: str, folder: Path) -> str:
    """The client's sentence in a program that brings something."""
    if COMPILER is None:
        pytest.skip("no C compiler")
    source, library = folder / "preload.c", folder / "preload.so"
    source.write_text(preload)
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    clean = clean_environment(LD_PRELOAD=str(library))
    env = {**clean, **client_environment(None, clean), CONNECTION_URL: url}
    program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "100\n"
    return done.stderr


def test_without_openssl(tmp_path: Path) -> None:
    source = """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <string.h>
        void *dlopen(const char *name, int flags) {
            void *(*real)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
            return real(name && strstr(name, "libssl") ? "/nothing/libssl.so" : name, flags);
        }
    """
    with service(answering(ok()), tls=certificate("here")) as port:
        assert "needs OpenSSL 1.1.1 or 3" in in_program(f"https://127.0.0.1:{port}/", source, tmp_path)


def test_a_program_with_a_tls_library_of_its_own(tmp_path: Path) -> None:
    """As one that has BoringSSL in it: libssl would call its functions and crash."""
    source = "void *SSL_new(void *context) { (void)context; __builtin_trap(); }\n"
    with service(answering(ok()), tls=certificate("here")) as port:
        said = in_program(f"https://127.0.0.1:{port}/", source, tmp_path)
    assert "brings a TLS library of its own (it exports SSL_new)" in said


# Redirects


def redirecting(place: str, heads: list[str], code: int = 302) -> Serve:
    def serve(connection: socket.socket) -> None:
        head = request(connection)
        heads.append(head)
        here = head.split()[1] == place or (f"http://{connection.getsockname()[0]}" in place and "/end" in head)
        to = f"HTTP/1.1 {code} Elsewhere\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
        connection.sendall(ok() if here else to)
        connection.close()

    return serve


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_on_one_server(code: int) -> None:
    heads: list[str] = []
    with service(redirecting("/end?x=1", heads, code)) as port:
        assert fetch(f"http://127.0.0.1:{port}/begin")[:2] == (OK, STRING)
    assert [head.split()[1] for head in heads] == ["/begin", "/end?x=1"]


def test_redirect_beside_the_path() -> None:
    heads: list[str] = []

    def serve(connection: socket.socket) -> None:
        heads.append(request(connection))
        to = b"HTTP/1.1 302 Found\r\nLocation: end\r\n\r\n"
        connection.sendall(to if "begin" in heads[-1] else ok())
        connection.close()

    with service(serve) as port:
        assert fetch(f"http://127.0.0.1:{port}/a/b/begin?c/d")[:2] == (OK, STRING)
    assert heads[1].split()[1] == "/a/b/end"


def test_redirect_to_another_server_without_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    monkeypatch.setenv("TENSOR_FUSION_OPERATOR_TOKEN_FILE", str(token))
    first: list[str] = []
    second: list[str] = []
    with (
        service(answering(ok(), second)) as there,
        service(redirecting(f"http://127.0.0.1:{there}/x", first)) as here,
    ):
        assert fetch(f"http://127.0.0.1:{here}/begin")[:2] == (OK, STRING)
    assert "Bearer secret" in first[0]
    assert "Authorization" not in second[0]
    assert f"\r\nHost: 127.0.0.1:{there}\r\n" in second[0]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("Location: /again\r\n", "for the 6th time"),
        ("", "does not say where to"),
        ("Location: ftp://h/\r\n", "no URL of the form"),
        ("Location: http://h h/\r\n", "no URL of the form"),
        (f"Location: /{'x' * 5000}\r\n", "does not say where to"),
    ],
    ids=["loop", "nowhere", "ftp", "space", "long"],
)
def test_redirects_that_lead_nowhere(location: str, expected: str) -> None:
    with service(answering(f"HTTP/1.1 302 Found\r\n{location}Content-Length: 0\r\n\r\n".encode())) as port:
        why = refused(f"http://127.0.0.1:{port}/")
    assert "redirects (302): " in why
    assert expected in why


@pytest.mark.usefixtures("authority")
def test_redirect_from_https_to_http_is_refused() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with service(answering(answer), tls=certificate("here")) as port:
        assert "from https to http" in refused(f"https://127.0.0.1:{port}/")


# Answers


@pytest.mark.parametrize("form", ["announced", "endless", "chunked", "head"])
def test_large_answers_end_at_once(form: str) -> None:
    heads = {
        "announced": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
        "endless": b"HTTP/1.1 200 OK\r\n\r\n",
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n",
        "head": b"HTTP/1.1 200 OK\r\nX: ",
    }

    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(heads[form])
        while form != "announced":
            connection.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        time.sleep(20)

    with service(serve) as port:
        assert "more than 64 KiB, which is no connection string" in refused(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "answer",
    [
        ok(),
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{len(STRING):x}\r\n{STRING}\r\n0\r\n\r\n".encode(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + ok(),
    ],
    ids=["length", "chunked", "interim"],
)
def test_servers_that_do_not_hang_up(answer: bytes) -> None:
    begin = time.monotonic()
    with service(answering(answer, stays_open=True)) as port:
        assert fetch(f"http://127.0.0.1:{port}/")[:2] == (OK, STRING)
    assert time.monotonic() - begin < AT_ONCE


def test_answer_that_comes_byte_by_byte() -> None:
    def serve(connection: socket.socket) -> None:
        request(connection)
        for byte in f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1a\r\n{STRING}\r\n0\r\n\r\n".encode():
            connection.sendall(bytes([byte]))
            time.sleep(0.005)
        connection.close()

    with service(serve) as port:
        assert fetch(f"http://127.0.0.1:{port}/")[:2] == (OK, STRING)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    ],
)
def test_answers_that_break_the_rules(answer: bytes) -> None:
    with service(answering(answer, stays_open=True)) as port:
        assert "breaks the rules of HTTP" in refused(f"http://127.0.0.1:{port}/")


def test_another_service_at_the_url() -> None:
    with service(lambda connection: connection.sendall(b"SSH-2.0-x\r\n")) as port:
        assert "speaks no HTTP: it says 'SSH-2.0-x'" in refused(f"http://127.0.0.1:{port}/")


def test_page_instead_of_a_string() -> None:
    clean = clean_environment()
    with service(answering(ok("<html>Welcome</html>"))) as port:
        env = {**clean, **client_environment(None, clean), CONNECTION_URL: f"http://127.0.0.1:{port}/"}
        program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "100\n"
    assert f"http://127.0.0.1:{port}/ does not answer with a connection string. " in done.stderr


# Proxies


def test_proxy_for_http(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[str] = []
    with service(answering(ok(), heads)) as port:
        monkeypatch.setenv("http_proxy", f"http://us%65r:p%40ss@127.0.0.1:{port}/")
        assert fetch("http://operator.example:81/x?y")[:2] == (OK, STRING)
    assert heads[0].startswith("GET http://operator.example:81/x?y HTTP/1.1\r\nHost: operator.example:81\r\n")
    secret = base64.b64encode(b"user:p@ss").decode()
    assert f"\r\nProxy-Authorization: Basic {secret}\r\n" in heads[0]


def tunnel(heads: list[str], to: int) -> Serve:
    """A proxy that lets everything through to a port of this machine."""

    def serve(connection: socket.socket) -> None:
        heads.append(request(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
        with socket.create_connection(("127.0.0.1", to)) as server:

            def carry(source: socket.socket, target: socket.socket) -> None:
                with contextlib.suppress(OSError):  # the other direction has ended, and closed both
                    while part := source.recv(4096):
                        target.sendall(part)

            back = threading.Thread(target=carry, args=[server, connection], daemon=True)
            back.start()
            carry(connection, server)

    return serve


@pytest.mark.usefixtures("authority")
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_proxy_for_https(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees the name of the server and nothing else; the certificate is that of the server."""
    heads: list[str] = []
    inside: list[str] = []
    with (
        service(answering(ok(), inside), tls=certificate("elsewhere")) as server,
        service(tunnel(heads, server)) as port,
    ):
        monkeypatch.setenv(variable, f"127.0.0.1:{port}")
        assert fetch("https://elsewhere.example/x")[:2] == (OK, STRING)
    assert heads == ["CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example:443\r\n\r\n"]
    assert inside[0].startswith("GET /x HTTP/1.1\r\nHost: elsewhere.example\r\n")


@pytest.mark.parametrize(
    ("code", "expected"), [(407, "a user and a password"), (403, "does not let this through; a name in no_proxy")]
)
def test_proxy_that_refuses(code: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(answering(f"HTTP/1.1 {code} No\r\nContent-Length: 0\r\n\r\n".encode())) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        why = refused("https://operator.example/")
    assert f"The proxy 127.0.0.1 port {port}, which https_proxy names, answered {code}" in why
    assert expected in why


def test_proxies_of_other_kinds_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    assert "all_proxy names a proxy of the kind socks5" in refused("http://operator.example/")


def test_the_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:hidden@:x")
    why = refused("http://operator.example/")
    assert "http_proxy is no proxy of the form" in why
    assert "hidden" not in why


def test_this_machine_is_never_asked_for_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with service(answering(ok())) as port:
        assert fetch(f"http://127.0.0.1:{port}/")[:2] == (OK, STRING)


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bool]:
    """The client's own judgement of a URL, built alone: no test can reach the machines that it is about."""
    if COMPILER is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("url")
    (folder / "ask.c").write_text("""
        #include "url.h"
        int ask(const char *text) {
            static struct tpc_url url;
            struct tpc_proxy proxy;
            char why[1000];
            if (!tpc_url_parse("It", text, &url, why, sizeof why) || !tpc_url_proxy(&url, &proxy, why, sizeof why)) {
                return -1;
            }
            return proxy.variable != NULL;
        }
    """)
    folders = [f"-I{NATIVE / name}" for name in ("base", "client/core")]
    command = [COMPILER, "-std=gnu17", "-D_GNU_SOURCE", "-shared", "-fPIC", *folders, str(folder / "ask.c")]
    subprocess.run([*command, str(NATIVE / "client/core/url.c"), "-o", str(folder / "ask.so")], check=True)
    library = ctypes.CDLL(str(folder / "ask.so"))

    def ask(url: str) -> bool:
        # getenv of C sees what os.environ sets.
        answer = library.ask(url.encode())
        assert answer in (0, 1)
        return bool(answer)

    return ask


@pytest.mark.parametrize(
    ("no_proxy", "around"),
    [
        ("operator.example", True),
        ("example", True),
        (".example", True),
        ("*.example", True),
        ("other, operator.example:80", True),
        ("*", True),
        ("operator.example:81", False),
        ("rator.example", False),
        ("operator.example.org", False),
        (",, ,", False),
        ("", False),
    ],
)
def test_names_that_go_around_the_proxy(
    proxied: Callable[[str], bool], no_proxy: str, around: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert proxied("http://operator.example/x") is not around


@pytest.mark.parametrize(
    ("url", "no_proxy", "around"),
    [
        ("http://10.1.2.3/", "10.0.0.0/8", True),
        ("http://10.1.2.3/", "10.1.2.2/31", True),
        ("http://10.1.2.3/", "10.1.2.0/32", False),
        ("http://10.1.2.3/", "0.0.0.0/0", True),
        ("http://10.1.2.3/", "10.0.0.0/33", False),
        ("http://10.1.2.3/", "10.1.2.3", True),
        ("http://[fd00::1]:8080/", "fd00::/16", True),
        ("http://[fd00::1]:8080/", "fd01::/16", False),
        ("http://10.example/", "10.0.0.0/8", False),
    ],
)
def test_networks_that_go_around_the_proxy(
    proxied: Callable[[str], bool], url: str, no_proxy: str, around: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxied(url) is not around


def test_this_machine_by_name(proxied: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert not proxied("http://localhost/")
    assert not proxied("http://[::1]/")


def test_what_a_cgi_program_was_sent_is_no_proxy(
    proxied: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://evil.example:3128")
    assert not proxied("http://operator.example/")
