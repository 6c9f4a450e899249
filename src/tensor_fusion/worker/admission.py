"""Who is let in: the same questions for every client, whatever transport it came over.

Entered by the event loop's thread only. What a client wrote is 256 bytes, parsed once; whoever is refused gets a
sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tensor_fusion.worker.hello import HANDSHAKE, BadHello, Hello, Nonces, derive_psk
from tensor_fusion.worker.hello import parse as parse_hello
from tensor_fusion.worker.keys import AuthorizedKeys, Key
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.options import Settings
from tensor_fusion.worker.protocol import PROTOCOL_VERSION, Greeting, Role, Status, apart
from tensor_fusion.worker.sessions import Caller, Session, Sessions
from tensor_fusion.worker.throttle import Throttle

# Of one address. A session that was never asked for anything ends by itself (native/session), so this bounds how many
# places can be held by saying nothing; programs that start together wait for each other, and notice nothing.
MAX_SILENT = 16
STARTS, STARTS_A_SECOND = 128, 30
GUESSES, GUESSES_A_SECOND = 20, 2
WRONG_SECRET = (
    "The secret was refused; put the one from the worker's TF_AUTHORIZED_KEY_PATH file into the fifth field of the "
    "connection string."
)


class Refused(Exception):
    """The answer to a greeting that is not accepted."""

    def __init__(self, status: Status, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


class NotYet(Exception):
    """Others of the same address are before it: to be asked again in a moment, or refused with this sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class Admission:
    """`group` is everywhere the address of who comes, as far as it is told apart; "" where nobody else can come."""

    def __init__(self, settings: Settings, schema: bytes, sessions: Sessions) -> None:
        self._settings = settings
        self.schema = schema
        self.sessions = sessions
        self._guesses = Throttle(GUESSES, GUESSES_A_SECOND)
        self._starts = Throttle(STARTS, STARTS_A_SECOND)
        self._nonces = Nonces()

    @staticmethod
    def hello(raw: bytes) -> Hello | None:
        """The first message of TLS, if it is one. Raises Refused."""
        if raw[:1] != HANDSHAKE:
            return None
        try:
            return parse_hello(raw)
        except BadHello as error:
            raise Refused(
                Status.NOT_A_GREETING, f"What came begins as TLS does, and is no Tensor Fusion client's: {error}."
            ) from error

    def check(self, raw: bytes, group: str = "", *, network: bool = False, hello: Hello | None = None) -> Greeting:
        """The greeting of a client that speaks as this worker does. Raises Refused or NotYet.

        Over a `network` a secret is proven by the first message of TLS, and never shown.
        """
        greeting = Greeting.parse(hello.identity if hello else raw)
        if greeting is None:
            raise Refused(
                Status.NOT_A_GREETING, f"What came is not the greeting of a Tensor Fusion client ({len(raw)} bytes)."
            )
        if greeting.version != PROTOCOL_VERSION:
            raise Refused(
                Status.PROTOCOL_DIFFERS,
                apart("The client", greeting.version, greeting.release, us="worker", them="client"),
            )
        if hello:
            greeting = self._proven(greeting, hello, group)
        elif network and self._settings.keys is not None:
            raise self._in_plain(greeting)
        if greeting.role == Role.PROBE:
            self._check_secret(greeting, group)
            raise Refused(Status.PROBED, "This worker would let the client in.")
        if greeting.role == Role.LOOK:
            raise self._look(greeting)
        return greeting

    def _look(self, greeting: Greeting) -> Refused:
        """The answer to a client that waits for its session and has heard nothing for some seconds."""
        session = self.sessions.find(greeting.session_id, greeting.session_key)
        if session is None:
            return Refused(Status.NO_SUCH_SESSION, "The session that was asked for has ended.")
        if session.is_stopped():
            LOGGER.warning("%s is stopped, and its client waits", session.name)
            return Refused(Status.STOPPED, "The session is stopped.")
        return Refused(Status.PROBED, "The session is not stopped.")

    @staticmethod
    def unknown_role(greeting: Greeting) -> Refused:
        return Refused(Status.NOT_A_GREETING, f"The greeting asks for the unknown role {greeting.role}.")

    def session(self, greeting: Greeting, group: str = "") -> Session:
        """A session process for a new client, which `adopt` then gives it. Raises Refused or NotYet."""
        access = self._check_secret(greeting, group)
        if len(self.sessions.serving()) >= self._settings.max_clients:
            raise Refused(
                Status.NO_SESSION,
                f"This worker serves {self._settings.max_clients} clients already; "
                "end one, or start the worker with a larger --max-clients.",
            )
        self._check_quotas(greeting, group, access)
        if group:
            self._starts.spend(group)
        session = self.sessions.take(access.devices, access.sm) if access else self.sessions.take()
        if session is None:
            raise Refused(
                Status.NO_SESSION, "This worker could not start a session process; its log (TF_ENABLE_LOG=1) says why."
            )
        return session

    def adopt(self, session: Session, greeting: Greeting, caller: Caller) -> None:
        """Give the client to the session. Raises Refused when the session has just died."""
        access = self._settings.keys.find(greeting.secret) if self._settings.keys else None
        if not self.sessions.adopt(session, greeting, caller, access):
            raise Refused(Status.NO_SESSION, "The session process that was to serve this client died; try again.")

    def reload(self) -> None:
        """SIGHUP: whatever the file of secrets says now, also for the clients that are there."""
        if self._settings.keys and self._settings.keys.reload():
            self._apply(self._settings.keys.keys)

    def _apply(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.sessions.limit(key)

    def _check_quotas(self, greeting: Greeting, group: str, access: Key | None) -> None:
        serving = self.sessions.serving()
        own = access.clients if access else 0
        most = own or self._settings.max_clients_per_secret
        if most and sum(session.secret == greeting.secret for session in serving) >= most:
            raise Refused(
                Status.NO_SESSION,
                f"This worker serves {most} clients with this secret already; "
                "end one, or "
                + (
                    "give it a larger clients= in the worker's TF_AUTHORIZED_KEY_PATH file."
                    if own
                    else "start the worker with a larger --max-clients-per-secret."
                ),
            )
        if not group:
            return
        of_one = [session for session in serving if session.group == group]
        most = self._settings.max_clients_per_address
        if len(of_one) >= most:
            raise Refused(
                Status.NO_SESSION,
                f"This worker serves {most} clients of this address already; "
                "end one, or start the worker with a larger --max-clients-per-address.",
            )
        if sum(not session.spoken for session in of_one) >= MAX_SILENT:
            raise NotYet(f"{MAX_SILENT} clients of this address were let in and have asked for nothing; try again.")
        if not self._starts.allows(group):
            raise NotYet(f"This address starts more than {STARTS_A_SECOND} clients a second; try again.")

    def _proven(self, greeting: Greeting, hello: Hello, group: str) -> Greeting:
        """The greeting with the secret that was proven, and the key of its connection. Raises Refused or NotYet."""
        keys = self._settings.keys
        if keys is None:
            raise Refused(
                Status.SECRET_REFUSED,
                "This worker has no secrets, and so cannot speak TLS with a client that has one: take the fifth field "
                "off the connection string, or give the worker its TF_AUTHORIZED_KEY_PATH.",
            )
        secret = b""
        if greeting.role in (Role.DATA, Role.LOOK):
            # Whoever reads the network finds the session's key in its client's hello: what counts is the secret, also
            # when it has been taken out of the file since the session began. It is one secret, and who guesses it has
            # heard a hello, so no other of the same address keeps this client's data out.
            session = self.sessions.find(greeting.session_id, greeting.session_key)
            if session and session.secret and hello.is_by(session.secret):
                secret = session.secret
        if not secret:
            self._check_guesses(keys, group)
            if greeting.role not in (Role.DATA, Role.LOOK) and (key := keys.proven(hello)):
                secret = key.secret
        if not secret:
            self._guesses.spend(group)
            raise Refused(Status.SECRET_REFUSED, WRONG_SECRET)
        if not self._nonces.is_new(hello.nonce):
            raise Refused(
                Status.SECRET_REFUSED, "This greeting was used before: somebody has recorded it and sends it again."
            )
        return replace(greeting, secret=secret, psk=derive_psk(secret, hello.identity))

    @staticmethod
    def _in_plain(greeting: Greeting) -> Refused:
        shown = any(greeting.secret)
        return Refused(
            Status.SECRET_REFUSED,
            "The client sent its secret as plain text, which this worker does not take: install this version of Tensor "
            "Fusion there, and change the secret."
            if shown
            else "This worker wants a secret, and with it TLS: put one from its TF_AUTHORIZED_KEY_PATH file into the "
            "fifth field of the connection string.",
        )

    def _check_guesses(self, keys: AuthorizedKeys, group: str) -> None:
        """Before secrets are looked at: whether this address may still guess. Then they are as the file says."""
        if not self._guesses.allows(group):
            raise NotYet("This address has sent too many wrong secrets; try again in a few seconds.")
        if keys.refresh():
            self._apply(keys.keys)

    def _check_secret(self, greeting: Greeting, group: str) -> Key | None:
        """What the client may have; None where no secret is asked for."""
        keys = self._settings.keys
        if keys is None:
            return None
        self._check_guesses(keys, group)
        key = keys.find(greeting.secret)
        if key is None:
            self._guesses.spend(group)
            raise Refused(Status.SECRET_REFUSED, WRONG_SECRET)
        if key.expired():
            raise Refused(
                Status.SECRET_REFUSED,
                f"The secret expired on {key.expiry}; ask whoever runs the worker for another.",
            )
        return key
