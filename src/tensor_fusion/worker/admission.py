"""Who is let in: the same questions for every client, whatever transport it came over.

Entered by the event loop's thread only. What a client wrote is 256 bytes, parsed once; whoever is refused gets a
sentence.
"""

from __future__ import annotations

from tensor_fusion.config import UserError
from tensor_fusion.worker.log import LOGGER
from tensor_fusion.worker.options import Settings
from tensor_fusion.worker.protocol import PROTOCOL_VERSION, Greeting, Role, Status
from tensor_fusion.worker.sessions import Caller, Session, Sessions
from tensor_fusion.worker.throttle import Throttle

# Of one address. A session that was never asked for anything ends by itself (native/session), so this bounds how many
# places can be held by saying nothing; programs that start together wait for each other, and notice nothing.
MAX_SILENT = 16
STARTS, STARTS_A_SECOND = 128, 30
GUESSES, GUESSES_A_SECOND = 20, 2


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

    def check(self, raw: bytes, group: str = "") -> Greeting:
        """The greeting of a client that speaks as this worker does. Raises Refused or NotYet."""
        greeting = Greeting.parse(raw)
        if greeting is None:
            raise Refused(
                Status.NOT_A_GREETING, f"What came is not the greeting of a Tensor Fusion client ({len(raw)} bytes)."
            )
        if greeting.version != PROTOCOL_VERSION:
            raise Refused(
                Status.PROTOCOL_DIFFERS,
                f"The client speaks protocol version {greeting.version}, this worker {PROTOCOL_VERSION}; "
                "install the same version of Tensor Fusion on both sides.",
            )
        if greeting.schema != self.schema:
            raise Refused(
                Status.SCHEMA_DIFFERS,
                f"The client was built from another API description (schema {greeting.schema.hex()}) than this worker "
                f"({self.schema.hex()}); install the same version of Tensor Fusion on both sides.",
            )
        if greeting.role == Role.PROBE:
            self._check_secret(greeting, group)
            raise Refused(Status.PROBED, "This worker would let the client in.")
        return greeting

    @staticmethod
    def unknown_role(greeting: Greeting) -> Refused:
        return Refused(Status.NOT_A_GREETING, f"The greeting asks for the unknown role {greeting.role}.")

    def session(self, greeting: Greeting, group: str = "") -> Session:
        """A session process for a new client, which `adopt` then gives it. Raises Refused or NotYet."""
        self._check_secret(greeting, group)
        if len(self.sessions.serving()) >= self._settings.max_clients:
            raise Refused(
                Status.NO_SESSION,
                f"This worker serves {self._settings.max_clients} clients already; "
                "end one, or start the worker with a larger --max-clients.",
            )
        self._check_quotas(greeting, group)
        if group:
            self._starts.spend(group)
        session = self.sessions.take()
        if session is None:
            raise Refused(
                Status.NO_SESSION, "This worker could not start a session process; its log (TF_ENABLE_LOG=1) says why."
            )
        return session

    def adopt(self, session: Session, greeting: Greeting, caller: Caller) -> None:
        """Give the client to the session. Raises Refused when the session has just died."""
        session.tenant = greeting.secret if self._settings.keys else b""
        if not self.sessions.adopt(session, greeting, caller):
            raise Refused(Status.NO_SESSION, "The session process that was to serve this client died; try again.")

    def _check_quotas(self, greeting: Greeting, group: str) -> None:
        serving = self.sessions.serving()
        most = self._settings.max_clients_per_secret
        if most and sum(session.secret == greeting.secret for session in serving) >= most:
            raise Refused(
                Status.NO_SESSION,
                f"This worker serves {most} clients with this secret already; "
                "end one, or start the worker with a larger --max-clients-per-secret.",
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

    def _check_secret(self, greeting: Greeting, group: str) -> None:
        keys = self._settings.keys
        if keys is None:
            return
        if not self._guesses.allows(group):
            raise NotYet("This address has sent too many wrong secrets; try again in a few seconds.")
        try:
            accepted = keys.accept(greeting.secret)
        except UserError as error:
            LOGGER.error("nobody can be let in: %s", error.sentence)
            accepted = False
        if not accepted:
            self._guesses.spend(group)
            raise Refused(
                Status.SECRET_REFUSED,
                "The secret was refused; put the one from the worker's TF_AUTHORIZED_KEY_PATH file into the fifth "
                "field of the connection string.",
            )
