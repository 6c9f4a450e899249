"""Causes of trouble that doctor knows by name, each with the next command to type.

A cause is known by the sentence that our own code says about it, in Python or in C; tests/test_doctor.py makes the
fault of each. `{host}`, `{port}`, `{file}`, `{megabytes}` and `{url}` in a command are those of the connection.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    name: str
    pattern: str
    command: str


INSTALL_AGAIN = "python3 -m pip install --force-reinstall tensor_fusion-*.whl"
SAME_VERSION = "tensor-fusion --version    # here and there, with tensor-fusion-worker -v"
FORM = "tensor-fusion doctor --connect native+HOST+PORT+0"
SHMEM_FORM = "tensor-fusion doctor --connect shmem+FILE+MB+0"
START = "tensor-fusion-worker -n native -p {port}    # on {host}"
SERVE_SEGMENT = "tensor-fusion-worker -n shmem -m {file} -M {megabytes}    # on the host"
GET = "curl -v '{url}'"
NEIGHBOURS = 'ls -l "$(dirname {library})"    # libteleport.so belongs there, from the same package'
COPY = 'cp "$(tensor-fusion lib-path)"/*.so* "$(dirname {library})"'
LOG = "TF_ENABLE_LOG=1 tensor-fusion-worker -p {port}    # its log says why"
LOG_SHMEM = "TF_ENABLE_LOG=1 tensor-fusion-worker -n shmem -m {file}    # its log says why"
SET_UP = 'eval "$(tensor-fusion env --preload)"  # or: tensor-fusion run PROGRAM'

CAUSES = (
    # The files of the package
    Cause("files-missing", r"is missing: the native files are not installed", INSTALL_AGAIN),
    Cause("files-damaged", r"it is damaged; install", INSTALL_AGAIN),
    Cause("files-unloadable", r"libteleport\.so\.1 cannot be loaded", INSTALL_AGAIN),
    # What a program of this shell loads
    Cause("teleport-missing", r"beside it, and there is none", NEIGHBOURS),
    Cause("teleport-cut", r"is not whole; copy", NEIGHBOURS),
    Cause("teleport-other-version", r"is of another version; copy", COPY),
    Cause("teleport-foreign", r"under that name which is none of ours", COPY),
    Cause("library-unloadable", r"^libcuda\.so\.1 cannot be loaded here", "ldd {library}"),
    Cause("preload-missing", r"LD_PRELOAD names .* which is not there", 'eval "$(tensor-fusion env --preload)"'),
    Cause("foreign-libcuda", r"which is not ours: they would not use the worker", SET_UP),
    Cause("shell-not-set-up", r"nothing leads programs of this shell to the client files", SET_UP),
    # The URL
    Cause("url-malformed", r"GET_CONNECTION_URL is '.*no URL of the form", "env | grep CONNECTION_URL"),
    Cause("url-proxy-refuses", r"^The proxy .* answered|the proxy wants a user", "env | grep -i _proxy"),
    Cause("url-proxy-kind", r"names a proxy of the kind", "env | grep -i _proxy"),
    Cause("url-proxy-malformed", r"is no proxy of the form", "env | grep -i _proxy"),
    Cause("url-nobody", r"^Nobody answers at .*, which \S+ names", GET),
    Cause("url-not-ready", r"no worker is ready yet", GET),
    Cause("url-unknown-connection", r"there is no such connection", GET),
    Cause("url-unauthorised", r"this program may not use the connection", "cat \"$TENSOR_FUSION_OPERATOR_TOKEN_FILE\""),
    Cause("url-other-answer", r"this is not what an operator answers", GET),
    Cause("url-silent", r"^an answer of http|to answer as a TLS server does", GET),
    Cause("url-large", r"answers with more than \d+ KiB", GET),
    Cause("url-no-http", r"speaks no HTTP|breaks the rules of HTTP", GET),
    Cause("url-page", r"does not answer with a connection string|is too long for a connection string", GET),
    Cause("url-json", r'has no "connection_url"', GET),
    Cause("url-redirect", r"redirects \(\d+\)", "curl -vL '{url}'"),
    Cause("url-certificate", r"^The certificate of .* is not accepted", "export TF_CONNECTION_URL_CA_FILE=FILE.pem"),
    Cause("url-no-tls", r"not as a TLS server does", GET),
    Cause("url-authority-file", r"TF_CONNECTION_URL_CA_FILE names", "ls -l \"$TF_CONNECTION_URL_CA_FILE\""),
    Cause("url-token-file", r"TOKEN_FILE names", "ls -l \"$TENSOR_FUSION_OPERATOR_TOKEN_FILE\""),
    Cause("url-token-form", r"characters that no bearer token has", "cat -A \"$TENSOR_FUSION_OPERATOR_TOKEN_FILE\""),
    # The connection string
    Cause("no-worker-named", r"^No worker is named", FORM),
    Cause("string-empty", r"connection string is empty", FORM),
    Cause("string-length", r"connection string has \d+ characters", FORM),
    Cause("string-characters", r"holds a space or a character that is not plain ASCII", FORM),
    Cause("string-protocol", r"Unknown protocol", FORM),
    Cause("string-fields", r"fields instead of 4 or 5", FORM),
    Cause("string-host", r"is no host name or address", FORM),
    Cause("string-port", r"is no port; use", FORM),
    Cause("string-file", r"names no file of shared memory", SHMEM_FORM),
    Cause("string-size", r"is no size in MB", SHMEM_FORM),
    Cause("string-version", r"The version, fourth field", FORM),
    Cause("string-secret", r"The secret, fifth field", FORM),
    # The worker over TCP
    Cause("host-unknown", r"^The name .* cannot be resolved", "getent hosts {host}"),
    Cause("host-malformed", r"is no host name; use an IP address", FORM),
    Cause("port-closed", r"^Nothing listens at", START),
    Cause("port-unanswered", r"^Nobody answered at .* within", "nc -vz {host} {port}    # a firewall drops it"),
    Cause("network-unreachable", r" cannot be reached: .*; check the network", "ip route get {host}"),
    Cause("not-a-worker", r"is no Tensor Fusion worker", START),
    Cause("service-silent", r"takes connections and says nothing", START),
    Cause("service-hangs-up", r"ended the connection without a word", START),
    Cause("other-version", r"^The worker at .* is of release .*: upgrade the", SAME_VERSION),
    Cause("secret-refused", r"The secret was refused", "tensor-fusion doctor --connect native+{host}+{port}+0+SECRET"),
    Cause("secret-expired", r"The secret expired on", "tensor-fusion doctor --connect native+{host}+{port}+0+SECRET"),
    Cause("secret-wanted", r"This worker wants a", "tensor-fusion doctor --connect native+{host}+{port}+0+SECRET"),
    Cause("secret-not-wanted", r"This worker has no secrets", FORM),
    Cause("tls-library", r"connection string needs OpenSSL|The libssl of this machine", "ldconfig -p | grep libssl"),
    Cause("worker-full", r"This worker serves \d+ clients already", "tensor-fusion-worker --max-clients N"),
    Cause(
        "worker-full-for-one",
        r"This worker serves \d+ clients (?:of this address|with this secret) already",
        "tensor-fusion-worker --max-clients-per-address N --max-clients-per-secret N",
    ),
    Cause("too-many-at-once", r"(?:let in and have asked for nothing|a second|wrong secrets); try again", "sleep 10"),
    Cause("session-not-started", r"could not start a session process", LOG),
    # The worker's segment
    Cause("device-disabled", r"is not enabled and .* may not do it", "sudo tensor-fusion vm --check    # enables it"),
    Cause("segment-missing", r"does not exist; start tensor-fusion-worker -n shmem", SERVE_SEGMENT),
    Cause("segment-forbidden", r"cannot be (?:written|read) by user", "ls -l {file}; id"),
    Cause("segment-no-file", r"cannot be opened: ", "ls -ld {file}"),
    Cause("segment-other-size", r"that are asked for; use the size", "ls -l {file}"),
    Cause("segment-small", r"a segment has 16 MB at least", SERVE_SEGMENT),
    Cause("segment-disabled", r"reads as all ones", "echo 1 > $(dirname {file})/enable    # as root"),
    Cause("segment-empty", r"is empty: no worker has prepared it", SERVE_SEGMENT),
    Cause("segment-foreign", r"holds something else than a segment", SERVE_SEGMENT),
    Cause("segment-other-format", r"^The worker of .* is of release .*: upgrade the", SAME_VERSION),
    Cause("segment-published-size", r"The worker published a segment of", SERVE_SEGMENT),
    Cause("segment-ended", r"^The worker of .* has ended; start it again", SERVE_SEGMENT),
    Cause("segment-still", r"heart in .* stands still", "tensor-fusion vm --check    # in the guest"),
    Cause("memory-uncached", r"so it is mapped uncached", "dmesg | grep x86/PAT"),
    Cause("segment-full", r"^All places of .* are taken", "ps -C tensor-fusion-session    # on the host"),
    Cause("segment-unseen", r"does not see what this side writes", "tensor-fusion vm -M {megabytes}    # on the host"),
    Cause("segment-unanswered", r"saw the greeting but did not answer", LOG_SHMEM),
    # The devices
    Cause("devices-hidden", r"CUDA_VISIBLE_DEVICES=.* hides every device", "unset CUDA_VISIBLE_DEVICES"),
    Cause("devices-none", r"The worker has no device for this client", "nvidia-smi -L    # on the host"),
    Cause("limit-too-low", r"No memory for the connection to the GPU", "ulimit -v unlimited"),
    Cause("devices-refused", r"^The device list failed: ", "TF_ENABLE_LOG=1 tensor-fusion run -- nvidia-smi"),
    Cause("devices-late", r"^No device list came within", LOG),
    # Settings that are not used as they stand: nothing fails
    Cause("setting-switch", r"is neither 1 nor 0", "tensor-fusion config"),
    Cause("setting-level", r"is not one of trace, debug, info, warn, error", "tensor-fusion config"),
    Cause("setting-log-path", r"TF_LOG_PATH=.* cannot be written", "ls -ld \"$(dirname \"$TF_LOG_PATH\")\""),
    Cause("setting-count", r"is no number from 1 to 1000000", "tensor-fusion config"),
    Cause("setting-unknown", r"is no variable of Tensor Fusion", "tensor-fusion config"),
)  # fmt: skip


class _Known(dict[str, str]):
    """What is not known of a connection stays a word in capitals."""

    def __missing__(self, key: str) -> str:
        return key.upper()


def explain(sentence: str, known: dict[str, str]) -> tuple[str, str]:
    """Name and command of what a sentence is about; both empty when no cause fits."""
    for cause in CAUSES:
        if re.search(cause.pattern, sentence):
            return cause.name, cause.command.format_map(_Known(known))
    return "", ""
