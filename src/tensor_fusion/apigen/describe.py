"""The vocabulary of api/: what may be said about a function, and nothing else.

A line of api/ names a function and one of these kinds:

``call``        runs in the session; the client thread waits for the reply
``post``        runs in the session in stream order; the client goes on at once, a failure is reported later
``pure``        a ``call`` whose answer depends on its arguments and the current device alone; the client remembers it
``local``       answered in the client by hand-written code, nothing is sent
``custom``      hand-written code in the client that sends the operations named in ``ops``
``alias``       another name with the same arguments; ``per_thread`` is the per-thread-default-stream form
``older``       another form of a function: it calls that one with its own arguments, by their names, and the others as
                the line gives them, in C; a struct of an earlier version is widened field by field. With
                ``first=True`` it works in no context but one that was made by a first form, too
``unsupported`` returns not-supported, with the reason; unless ``advertised``, the look-up by name does not find what
                first came with CUDA 12.0 or later (see emit_client.py)
``refused``     returns for good the code that a real driver gives to programs that have not what it needs, after the
                driver's checks: the state unless ``anytime``, a current context unless ``contextless``, captures if
                ``unsafe``, and, unless ``unseen``, each parameter by its type or its role (see refusals.py). The
                look-up by name finds it

A ``post`` or a ``call`` with ``check=True`` is first shown to a hand-written ``tpc_check_<name>`` of the same
arguments, which refuses what the driver would refuse at once, or answers ``TPC_DONE`` when the call was made in
another way. ``check=`` the call of a function that is written by hand, as C over the parameters, does that for several.
With ``wrapped=True`` the generated function is ``tpc_sent_<name>``, for a hand-written ``tpc_<name>`` of the same
arguments that has something to do before or behind it.
One with ``unsafe=True``, and any other function, is refused, and ends the capture, where a capture's mode forbids what
it does; with ``unsafe="last"`` only if what the line says of its arguments is right, where it is no refused one.
One with ``noted=True`` tells a hand-written ``tpc_noted_<name>`` of the same arguments when it is in the stream, and a
``call`` does so when it has succeeded; ``noted=`` a call, as with ``check``.

A ``local`` or ``custom`` function whose line has roles is looked at first, in the line's order, and made by a
hand-written ``tpc_do_<name>``: a parameter is ``"there"``, or gets the error for a NULL or the one behind the word; a
``"handle"`` or ``"handle?"`` by its type, or ``"handle or E"`` with the error E for NULL; a ``"device"`` of the
program; of no bits but ``"bits M"``; ``"most N"`` or ``"below N"``, unsigned; what ``"is N"``; a struct of ``"version
N"`` of NVML; a stream that is ``"uncaptured"``, or refuses it and ends its capture. ``current=True``: there is a
current context that can be used; C of the line may call it ``context``. With ``gives`` nothing is written by hand: what
the parameters point at gets these values, as C; ``"p.f"`` is a field, and ``"p?"`` may be NULL. With ``by``, which is
the call of a function that is written by hand, as C over the parameters, one function makes several names; a family's
header declares it. Before either, ``finds`` declares what is looked for (``""`` for nothing), each with its C: a call
that stores it, whose error is the answer, or, as ``"C or E"``, what must not be 0.

What happens to each parameter follows from its C type (see model.py) unless the line says otherwise, with one of
the roles:

``"value"``            sent as it is                        ``"skip"``            not sent
``"in"``/``"in?"``     struct read through the pointer (``?``: may be NULL)
``"out"``/``"out?"``   written through the pointer          ``"string"``          NUL-terminated text
``"bytes N"``          N bytes read                         ``"outbytes N"``      up to N bytes written
``"array N"``          N elements read                      ``"outarray N"``      N elements written
``"handle K"``/``"handle? K"``  existing object of kind K   ``"new K"``           object of kind K made by this call
``"handle K or E"``    the same, with the error E for NULL
``"gone K"``/``"gone? K"``  object of kind K ended by this call  ``"dev E"``           address of E bytes, E = N or N*4
``"word N"``           address of N bytes, aligned to N    ``"bits M"``           value with no bits but those of M
``"device"``           device ordinal, renumbered by CUDA_VISIBLE_DEVICES; ``"most N"``  value, unsigned, of at most N
``"outstring N"``      text of up to N bytes with its NUL   ``"wanted"``          out, and NULL is the driver's to judge
``"struct"``/``"struct?"``, ``"structs N"``, ``"outstruct"``  struct with a declaration read, N of them, one written
``"context"``          context, NULL is the current one    ``"known K"``           object of kind K that is told
``"kept of P"``        struct written whose lists stay as long as the object that the parameter P names
``"new K of P"``       the same as new, which ends with the object that the parameter P names
``"fresh K of P"``     object of kind K in P that the driver tells: its handle, which it gets when it is first told
``"handles K N"``      N objects of kind K read
``"R by P"``           what the handle, context or structs of role R point at stays in the driver for as long as P, a
                       graph, a node of one or an executable graph, may follow it
``"both"``             struct read and written through the pointer
``"changed N"``        N elements read and written
``"versioned"``        the same of one whose first word holds its size in the low 24 bits
``"room"``, ``"filled P"``  how many elements there is room for, and then how many there are; an array of as many as the
                       parameter P, which is that, says. Of functions of NVML, whose number is told of success and of
                       too small room. ``"room?"``: what it says without an array does not count

``session="hand"`` on a call or a post says that a hand-written ``tpw_<name>`` does what the session has to do, as it
does for any operation of our own. ``session=`` a call, as C, says it in one of these: of a function that is written by
hand for several, or ``s->cuda.NAME(…)`` of the driver. The name of a field is what came, of a handle what it stands
for, ``in.NAME`` the handle itself.

``op`` declares an operation of our own, for hand-written code on one or both sides; its fields are
``name="ctype: role"``, where no role means a value. Of the roles above they have ``in``, ``string``, ``bytes``,
``array``, ``new K``, ``gone K`` and ``device``, and two for existing objects:

``"handle K"``/``"handle? K"``  translated: the hand-written function is called when all are good, and gets the natives
``"name K"``/``"name? K"``      the handle itself: of that kind, or refused; what it stands for is looked up by hand

A ``new K`` is the client's handle, 0 where it has no more: the generated sender refuses that, and ends the handle when
it fails. ``new? K``: the handle stays, whatever becomes of the object. ``names K`` is an array of
those, and ``handles K`` one of which the hand-written function gets the natives.
``"up"`` and ``"down"`` are the number of a transfer that travels beside the frame:
the generated sender numbers it when the frame has its place, and queues the bytes given to it, or expects bytes there.

``message`` declares what the session sends without being asked, with fields like those of an ``op``: the session sends
it with a generated ``tpg_send_<name>``, the client takes it with a hand-written ``tpc_on_<name>``.

``completes=True`` on a call, an op or a message says that it may tell the client that work of the GPU is complete.
Then the session looks first for what else is complete and has not left yet, and the client holds the frame until the
transfers that it counts have landed. All other frames are news, which nothing holds.

``waits=True`` on a call, a post or an op says that the driver may make the session wait for the GPU in it. While a
stream stands at a host function such a frame is held, with all behind it, until the function has run: the session's one
thread would else wait for a function whose end it has to tell. ``waits="asked"``: a hand-written tpw_waits_<name> looks
at the frame and its arguments. Else it is C over what the operation carries, which says when.

``stands=True`` on a call or a post says that a stream may stand behind it, at a word that somebody writes later: that
of its arguments, or one in which its node is launched. While one does, of the frames that wait a call is held alone.

``turns=True`` on a call or an op that is one says that of the client's threads one asks at a time, and the others wait
for its answer: the second gets what the session keeps for the first.

``settled=True`` on a call or a post says that what the driver does depends on work that the session has seen to be
complete: it looks for that before the call.

``asks="share"`` on an op, or a call that is by hand in the session, says that the supervisor answers it, with a handle
for what the session shares, which is the first result: the generated ``tpg_told_<name>`` takes that answer.
``asks="import"``: its answer is what another session shares under the handle that was shown, or why it is not given: a
hand-written ``tpw_granted_<name>`` takes what is given, and the refusal is answered by ``says_why``.
``asks="import K"``: the field ``handle`` is shown as one of kind K, and nothing looks at it before; what is new is the
question's value.

Two builds use an operation between them if it has the same layout on both sides (layouts.py): else the client refuses
it by name. Five words say what the fields cannot. ``edition=N`` counts what the same bytes have meant: raise it when
they mean something else. ``carries="S"``: the struct S of native/wire lies in its bytes. ``brings="M N"``: the messages
M and N come of the operation, or they ask for the operation N; what they are is part of what it is. ``needed=True``:
without it nothing works, so that sides which have not the same refuse each other. ``optional=True`` of a message: a
client that does not know it loses nothing by it. Any other message that no operation brings is needed.

``record`` declares a struct of our own, ``struct tpg_NAME``, which frames carry as it is: an ``op`` has it as a value.

``like`` declares an ``op`` that is another one under a name of its own: the same fields, and the same function in the
session.

``struct`` declares what the fields of a struct are, once; a field without a role is a plain value:

``"zero"``           must be 0                              ``"none"``            of other systems: sent as 0
``"word N"``         address of N bytes, aligned to N       ``"number"``          a pointer that nobody follows
``"null"``           a pointer that must be NULL            ``"device"``          device ordinal
``"handle K"``/``"handle? K"``  existing object of kind K   ``"known K"``         the same in a result, 0 when gone
``"handle K or E"``  the same, with the error E for none    ``"dev E"``           address of E bytes
``"context"``        a context, NULL is the current one     ``"placed E"``        dev that the client looks at by hand
``"token or E"``     bytes of the driver's own that the client never gets: they stay in the session, and the program
                     has a token in their place. E is for what is none
``"struct"``         a struct with a declaration            ``"structs S N"``     pointer to N structs S
``"hand"``           written by hand: of a field F of S, tpc_size_S_F and tpc_put_S_F in the client, which may look at
                     all of S and put bytes behind it, and tpw_take_S_F in the session, which takes them
``tagged(F, {V: {member: role}}, refuse=…)``  the members that count where field F has value V

``R if F == V`` has the role R only then, and else is a value. E is made of fields, numbers, ``+``, ``*`` and the
extents of native/wire/tp_extent.h.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Line:
    """One declaration of api/."""

    name: str
    kind: str
    roles: dict[str, str] = field(default_factory=dict)
    target: str = ""
    reason: str = ""
    advertised: bool = False  # unsupported, but found by name whatever its version
    code: str = ""  # refused: the error
    unseen: bool = False  # refused: whatever its arguments are
    ops: str = ""
    session: str = "driver"  # "driver": the generated code calls it; "hand": tpw_<name> is written by hand; or a call
    anytime: bool = False  # may be called before initialisation
    implicit: bool = False  # is given the default stream first, and its own stream parameters as they were passed
    reports: bool = False  # may report a deferred error of earlier posts
    completes: bool = False  # its reply, or the message itself, may say that work of the GPU is complete
    waits: bool | str = False  # the driver may wait for the GPU in it: True, or "asked"
    stands: bool = False  # a stream may stand at a word of memory behind it
    settled: bool = False  # the session looks for what is complete before it calls the driver
    contextless: bool = False  # does not care about the current context
    after_loss: str = ""  # what a lost connection answers: "" = the lost-worker error, "ok" = success
    check: bool | str = (
        False  # a hand-written tpc_check_<name> of the same arguments may refuse the call, or what is called
    )
    unsafe: bool | str = False  # is refused while a capture whose mode forbids it goes on: True, or "last"
    says_why: bool = False  # op: the session may refuse it with a code and a sentence that the client logs
    turns: bool = False  # one thread of the client asks at a time
    asks: str = ""  # the supervisor answers it: "share", "import" or "import K"
    shows: bool = False  # what kernels have printed is in the program's output before it returns
    noted: bool | str = False  # the same: a hand-written tpc_noted_<name> hears of it once it is in the stream
    wrapped: bool = False  # the client's function is written by hand, around a generated tpc_sent_<name>
    params: dict[str, str] = field(default_factory=dict)  # name → type, for an exported name that no header declares
    current: bool = False  # local, custom: needs a current context
    gives: dict[str, str] | None = None  # local, custom: what is written, by a parameter or a field of it
    finds: dict[str, str] = field(default_factory=dict)  # before `gives` and `by`: declarations, and how each is found
    by: str = ""  # local, custom: the call of a hand-written function that makes this name among others, as C
    lender: str = ""  # custom: a parameter that is memory, which lends its context to a thread that has none
    like: str = ""  # op: the one whose fields and whose function in the session it has
    first: bool = False  # older: needs a current context that a first form made
    edition: int = 1  # of what the same bytes mean
    needed: bool = False  # op: without it nothing works
    optional: bool = False  # message: a client that does not know it misses nothing that it was promised
    brings: str = ""  # op: messages that come of it, and operations that they ask for (separated by blanks)
    carries: str = ""  # op, message: structs of native/wire that lie in its bytes (separated by blanks)
    place: str = ""  # file:line of the declaration, for whoever has to mend it

    @property
    def looked_at(self) -> bool:
        """A local or custom function whose checks are generated."""
        looked = bool(self.roles) or self.current or bool(self.unsafe) or self.gives is not None or bool(self.by)
        return self.kind in ("local", "custom") and looked

    @property
    def maker(self) -> str:
        """The hand-written function that makes a name by a call that is given as C."""
        return self.by.partition("(")[0]


def _place() -> str:
    """Where the vocabulary was used: two frames above this one."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@dataclass(frozen=True)
class Tagged:
    """Members of a struct of which the value of a field says which count."""

    field: str
    cases: dict[str, dict[str, str]]
    refuse: tuple[str, ...] = ()


@dataclass(frozen=True)
class StructLine:
    """One declaration of a struct."""

    name: str
    roles: dict[str, str | Tagged]
    place: str


@dataclass(frozen=True)
class Record:
    """A struct of our own."""

    name: str
    fields: dict[str, str]
    place: str


@dataclass(frozen=True)
class Attribute:
    """What the client answers for an attribute of a device."""

    name: str
    value: int
    bits: int
    place: str


def attribute(name: str, value: int = 0, /, *, bits: int = 0) -> Attribute:
    """The client's own answer for an attribute of every device, unless the worker's driver knows no such attribute.

    With `bits` it is these of the driver's answer.
    """
    return Attribute(name, value, bits, _place())


@dataclass(frozen=True)
class Choice:
    """What is handed on by the value of a field."""

    name: str
    struct: str
    field: str
    head: int
    cases: dict[str, str]
    place: str


def choice(name: str, struct: str, field: str, /, *, head: int, cases: dict[str, str]) -> Choice:
    """A function ``tpg_NAME`` of the client that calls one of several, by the value of a field of the struct.

    A case is ``"cuFoo(MEMBER, …)"``: `cuFoo` gets the first `head` parameters, which all of them have, and then these
    members. What has no case is left to the caller.
    """
    return Choice(name, struct, field, head, cases, _place())


@dataclass(frozen=True)
class Beginning:
    """What outputs of functions hold from the beginning on."""

    names: tuple[str, ...]
    values: dict[str, str]
    place: str


def begins(*names: str, **values: str) -> Beginning:
    """Outputs of these functions, and of their per-thread forms, that a driver sets before it looks at anything.

    They hold that after an error, too. A NULL is left alone. ``"VALUE if C"``: only then.
    """
    return Beginning(names, values, _place())


def record(name: str, /, **fields: str) -> Record:
    """A struct of our own, by its fields and their types, of which none needs room before it."""
    return Record(name, fields, _place())


def struct(name: str, paths: dict[str, str] | None = None, /, **roles: str | Tagged) -> StructLine:
    """What the fields of a struct are; `paths` are those inside structs without a name of their own."""
    return StructLine(name, {**(paths or {}), **roles}, _place())


def tagged(field: str, cases: dict[str, dict[str, str]], *, refuse: tuple[str, ...] = ()) -> Tagged:
    """Members that count by the value of `field`; those refused answer not-supported, ("*",) is all others."""
    return Tagged(field, cases, refuse)


def call(
    name: str,
    /,
    *,
    session: str = "driver",
    reports: bool = False,
    completes: bool = False,
    contextless: bool = False,
    waits: bool | str = False,
    stands: bool = False,
    settled: bool = False,
    after_loss: str = "",
    check: bool | str = False,
    unsafe: bool | str = False,
    noted: bool | str = False,
    wrapped: bool = False,
    asks: str = "",
    turns: bool = False,
    edition: int = 1,
    **roles: str,
) -> Line:
    """A function that runs in the session and whose answer the caller waits for."""
    return Line(
        name,
        "call",
        roles,
        asks=asks,
        turns=turns,
        edition=edition,
        session=session,
        reports=reports,
        completes=completes,
        contextless=contextless,
        waits=waits,
        stands=stands,
        settled=settled,
        after_loss=after_loss,
        check=check,
        unsafe=unsafe,
        noted=noted,
        wrapped=wrapped,
        place=_place(),
    )


def post(
    name: str,
    /,
    *,
    session: str = "driver",
    contextless: bool = False,
    waits: bool | str = False,
    stands: bool = False,
    settled: bool = False,
    after_loss: str = "",
    check: bool | str = False,
    unsafe: bool | str = False,
    noted: bool | str = False,
    wrapped: bool = False,
    edition: int = 1,
    **roles: str,
) -> Line:
    """A function that runs in the session in order while the caller goes on."""
    return Line(
        name,
        "post",
        roles,
        edition=edition,
        session=session,
        contextless=contextless,
        waits=waits,
        stands=stands,
        settled=settled,
        after_loss=after_loss,
        check=check,
        unsafe=unsafe,
        noted=noted,
        wrapped=wrapped,
        place=_place(),
    )


def pure(name: str, /, *, session: str = "driver", contextless: bool = False, edition: int = 1, **roles: str) -> Line:
    """A call whose answer the client remembers by its arguments."""
    return Line(name, "pure", roles, session=session, contextless=contextless, edition=edition, place=_place())


def local(
    name: str,
    /,
    *,
    anytime: bool = False,
    implicit: bool = False,
    params: dict[str, str] | None = None,
    current: bool = False,
    unsafe: bool | str = False,
    gives: dict[str, str] | None = None,
    finds: dict[str, str] | None = None,
    by: str = "",
    **roles: str,
) -> Line:
    """Answered in the client by hand-written code, unless by `gives`; `params` declares a name that no header does."""
    return Line(
        name,
        "local",
        roles,
        anytime=anytime,
        implicit=implicit,
        params=params or {},
        current=current,
        unsafe=unsafe,
        gives=gives,
        finds=finds or {},
        by=by,
        place=_place(),
    )


def custom(
    name: str,
    /,
    *,
    ops: str,
    anytime: bool = False,
    implicit: bool = False,
    shows: bool = False,
    current: bool = False,
    unsafe: bool | str = False,
    lender: str = "",
    gives: dict[str, str] | None = None,
    finds: dict[str, str] | None = None,
    by: str = "",
    **roles: str,
) -> Line:
    """Hand-written in the client, using the operations named in `ops` (separated by blanks)."""
    return Line(
        name,
        "custom",
        roles,
        ops=ops,
        anytime=anytime,
        implicit=implicit,
        shows=shows,
        current=current,
        unsafe=unsafe,
        lender=lender,
        gives=gives,
        finds=finds or {},
        by=by,
        place=_place(),
    )


def alias(name: str, target: str) -> Line:
    """The same function under another exported name; the arguments must be the same."""
    return Line(name, "alias", target=target, place=_place())


def older(name: str, target: str, /, *, first: bool = False, **given: str) -> Line:
    """`target` with fewer, narrower or renamed arguments; `given` are those of `target` that this form lacks."""
    return Line(name, "older", given, target=target, first=first, place=_place())


def per_thread(name: str, target: str) -> Line:
    """`target` with the per-thread default stream in the place of NULL or of the implied stream."""
    return Line(name, "per_thread", target=target, place=_place())


def unsupported(reason: str, *names: str, advertised: bool = False) -> list[Line]:
    """Names that answer not-supported, and why."""
    place = _place()
    return [Line(name, "unsupported", reason=reason, advertised=advertised, place=place) for name in names]


def refused(
    code: str,
    reason: str,
    *names: str,
    contextless: bool = False,
    anytime: bool = False,
    unseen: bool = False,
    unsafe: bool = False,
    **roles: str,
) -> list[Line]:
    """Names that answer `code` for good, and why; `roles` are of parameters that all of them have."""
    place = _place()
    return [
        Line(
            name,
            "refused",
            roles,
            code=code,
            reason=reason,
            contextless=contextless or anytime,
            anytime=anytime,
            unseen=unseen,
            unsafe=unsafe,
            place=place,
        )
        for name in names
    ]


def op(
    name: str,
    kind: str,
    /,
    *,
    reports: bool = False,
    completes: bool = False,
    contextless: bool = False,
    waits: bool | str = False,
    says_why: bool = False,
    asks: str = "",
    turns: bool = False,
    edition: int = 1,
    needed: bool = False,
    brings: str = "",
    carries: str = "",
    session: str = "hand",
    out: dict[str, str] | None = None,
    **fields: str,
) -> Line:
    """An operation of our own; `kind` is "call", "pure" or "post", `out` are the fields of its reply.

    The session side is by hand, or a call. With `says_why` it may fill `refused` and `why`: the generated sender logs
    the sentence and returns the code.
    """
    roles = dict(fields)
    says_why = says_why or asks.startswith("import")
    reasons = {"refused": "int", "why": "char: bytes"} if says_why else {}
    for key, value in {**(out or {}), **reasons}.items():
        roles["out " + key] = value
    return Line(
        name,
        "op-" + kind,
        roles,
        session=session,
        reports=reports,
        completes=completes,
        contextless=contextless,
        waits=waits,
        says_why=says_why,
        asks=asks,
        turns=turns,
        edition=edition,
        needed=needed,
        brings=brings,
        carries=carries,
        place=_place(),
    )


def like(name: str, target: str) -> Line:
    """The operation `target` under a name, and a number, of its own."""
    return Line(name, "op-like", like=target, place=_place())


def message(
    name: str,
    /,
    *,
    completes: bool = False,
    optional: bool = False,
    edition: int = 1,
    carries: str = "",
    **fields: str,
) -> Line:
    """What the session tells the client without being asked."""
    return Line(
        name,
        "message",
        fields,
        completes=completes,
        optional=optional,
        edition=edition,
        carries=carries,
        place=_place(),
    )
