"""Ask a worker what it answers, step by step, as the client libraries would."""

from __future__ import annotations

import os
import socket

from tensor_fusion.config import NativeAddress, UserError
from tensor_fusion.worker.hello import build
from tensor_fusion.worker.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    WELCOME_BYTES,
    Greeting,
    Role,
    Welcome,
    apart,
    printable,
)

TIMEOUT = 5.0


def connect(address: NativeAddress) -> socket.socket:
    """A TCP connection to the worker. Raises UserError that says what is in the way."""
    place = f"{address.host} port {address.port}"
    try:
        return socket.create_connection((address.host, address.port), timeout=TIMEOUT)
    except socket.gaierror as error:
        raise UserError(f"The name {address.host} cannot be resolved ({error.strerror}); use an IP address.") from error
    except UnicodeError as error:  # a name with an empty part, or one of more than 63 characters
        raise UserError(f"The name {address.host} is no host name; use an IP address.") from error
    except TimeoutError as error:
        raise UserError(
            f"Nobody answered at {place} within {TIMEOUT:.0f} s; check the address and the firewalls between."
        ) from error
    except ConnectionRefusedError as error:
        raise UserError(
            f"Nothing listens at {place}; start it there: tensor-fusion-worker -n native -p {address.port}."
        ) from error
    except OSError as error:
        raise UserError(f"{place} cannot be reached: {error.strerror}; check the network.") from error


def greet(connection: socket.socket, address: NativeAddress, schema: bytes) -> Welcome:
    """The worker's answer to a greeting. Raises UserError when it is none of a worker that this client can talk to.

    With a secret it only asks whether it would be let in: the first message of TLS proves the secret, and needs no
    library.
    """
    greeting = Greeting.build(
        schema,
        role=Role.PROBE if address.secret else Role.CONTROL,
        client_pid=os.getpid(),
        connection_version=address.version,
        program="tensor-fusion doctor",
    )
    place = f"{address.host} port {address.port}"
    raw = b""
    try:
        connection.sendall(build(address.secret.encode(), greeting) if address.secret else greeting)
        while len(raw) < WELCOME_BYTES and raw[: len(MAGIC)] == MAGIC[: len(raw)]:
            part = connection.recv(WELCOME_BYTES - len(raw))
            if not part:
                break
            raw += part
    except TimeoutError as error:
        if not raw:
            raise UserError(
                f"What listens at {place} takes connections and says nothing within {TIMEOUT:.0f} s: it is no worker, "
                "or one that is stopped."
            ) from error
    except OSError as error:
        if not raw and not isinstance(error, ConnectionError):
            raise UserError(f"The connection broke during the greeting: {error}.") from error
    if not raw:
        raise UserError(f"What listens at {place} ended the connection without a word; check the port number.")
    welcome = Welcome.parse(raw)
    if welcome is None:
        said = printable(raw.splitlines()[0][:60])
        raise UserError(f"What listens at {place} is no Tensor Fusion worker, it says '{said}'; check the port number.")
    if welcome.version != PROTOCOL_VERSION:
        raise UserError(apart(f"The worker at {place}", welcome.version, welcome.release, us="client", them="worker"))
    return welcome
