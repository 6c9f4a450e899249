"""The client's frames that no exported function makes by itself: operations of our own, and messages that come."""

from __future__ import annotations

from .emit_client import PREFIX, SUCCESS
from .emit_wire import NOTE
from .fields import Field
from .model import RESULTS, Api, Model, Op
from .snapshot import declare


def operations(model: Model, api: Api) -> str:
    """tpg_<api>_send.h: for hand-written code, one function that sends each operation of our own.

    ``<prefix>_post_<op>(name, in)`` for posts; ``<prefix>_call_<op>(name, in, out)`` for calls and
    ``<prefix>_pure_<op>`` for answers that are remembered. Where results are of variable length, or the answer
    completes something, a ``reply`` follows: such results point into it until it is freed with tp_reply_free (also
    after an error).
    An operation that carries a few numbers and handles alone has them as arguments in the place of `in`, in the order
    of its line; one whose only result is a number stores that in the place of `out`, 0 without success.
    Where a transfer travels beside the frame, its number is set in `in`, and its bytes follow `in`: a post with an
    upload answers CUDA_SUCCESS once both are queued, and the bytes must stay as they are until they have been sent.
    """
    prefix = PREFIX[api.name]
    guard = f"TPG_{api.name.upper()}_SEND_H"
    lines = [NOTE, f"#ifndef {guard}", f"#define {guard}", f'#include "{prefix}.h"', '#include "tpg_ops.h"']
    result = "CUresult" if api.name == "cuda" else "nvmlReturn_t"
    for op in api.ops:
        if op.prototype is None:
            lines += _sender(api, prefix, result, op)
    return "\n".join([*lines, "#endif", ""])


FEW = 4  # arguments that are told apart without their names


def _arguments(op: Op) -> list[Field]:
    """The fields of an operation that is sent by its arguments; none for one that is sent by its struct."""
    fields = [f for f in op.fields if not f.is_out]
    return fields if len(fields) <= FEW and all(_is_number(f) and not f.travels for f in fields) else []


def _number(op: Op) -> Field | None:
    """The only result, where it is a number."""
    results = op.outputs()
    return results[0] if len(results) == 1 and _is_number(results[0]) else None


def _is_number(item: Field) -> bool:
    return 0 < item.size <= 8 and not item.ctype.startswith("struct ")


def _sender(api: Api, prefix: str, result: str, op: Op) -> list[str]:
    made = [f for f in op.fields if f.role == "new" and not f.optional]
    has_in, has_out = bool(op.inputs()), bool(op.outputs())
    moved = next((f for f in op.inputs() if f.travels), None)
    constant = "" if moved else "const "
    plain, number = _arguments(op), _number(op)
    params = ["const char *name"]
    if plain:
        params += [declare(f.ctype, f.name) for f in plain]
    elif has_in:
        params.append(f"{constant}struct tpg_{op.name}_in *in")
    if moved:
        params += [f"{'const ' if moved.travels == 'up' else ''}void *bytes", "size_t bytes_size"]
    pointed = [f.name for f in op.outputs() if f.variable and not (op.line.says_why and f.name == "why")]
    own = op.kind != "post" and not op.line.completes and not pointed
    if op.kind != "post":
        out = f"{number.ctype} *{number.name}" if number else f"struct tpg_{op.name}_out *out"
        params += [out] if has_out else []
        params += [] if own else ["struct tp_reply *reply"]
    kind = op.kind
    head = f"static inline {result} {prefix}_{kind}_{op.name}({', '.join(params)}) {{"
    body = [head.replace(f"{prefix}_{kind}_", f"{prefix}_try_") if made else head]
    if plain:
        given = ", ".join(f".{f.name} = {f.name}" for f in plain)
        body.append(f"    const struct tpg_{op.name}_in given = {{{given}}}, *in = &given;")
    body.append(f"    size_t wire_size = {f'tpg_size_{op.name}_in(in)' if has_in else '0'};")
    if own:
        body.append("    struct tp_reply own, *reply = &own;")
    if kind != "post":
        body.append("    memset(reply, 0, offsetof(struct tp_reply, inline_body));")
        if number:
            body += [f"    struct tpg_{op.name}_out told, *out = &told;", f"    *{number.name} = 0;"]
        elif has_out:
            body.append("    memset(out, 0, sizeof *out);")
    body.append(f"    {prefix.upper()}_FITS(wire_size);")
    if kind == "pure":
        body.append("    unsigned char body[512];")
        body.append(f"    if (wire_size > sizeof body) {{ return {prefix.upper()}_NULL; }}")
    else:
        body += ["    tp_lock_take(&tpc_turns);"] if op.line.turns else []
        body.append(f"    unsigned char *body = {prefix}_reserve(TPG_OP_{op.name}, wire_size);")
        undo = "tp_lock_drop(&tpc_turns); " if op.line.turns else ""
        body.append(f"    if (TP_UNLIKELY(!body)) {{ {undo}return {prefix}_lost(); }}")
    if moved:
        body.append(f"    in->{moved.name} = tp_transfer_next({prefix}_conn);")
    if has_in:
        body.append("    struct tp_cursor c = tp_cursor_make(body, wire_size);")
        body.append(f"    tpg_put_{op.name}_in(&c, in);")
    if moved and moved.travels == "up":
        body.append(f"    tp_commit_upload({prefix}_conn, in->{moved.name}, bytes, bytes_size);")
        return [*body, "    (void)name;", "    return 0;", "}"]
    if moved:
        body.append(f"    tp_expect_download({prefix}_conn, in->{moved.name}, bytes, bytes_size);")
    if kind == "post":
        waits = [f"    {prefix.upper()}_WAITS();"] if op.line.waits is True else []
        body += [*waits, f"    return {prefix}_post(name, NULL);", "}"]
        return [*body, *_ending(api, op, made, head, params)]
    if kind == "pure":
        body.append(f"    {result} result = {prefix}_pure(name, TPG_OP_{op.name}, body, wire_size, reply);")
    else:
        body.append(f"    {result} result = {prefix}_call(name, reply);")
        body += ["    tp_lock_drop(&tpc_turns);"] if op.line.turns else []
    if has_out:
        body.append("    if (result == 0) {")
        body.append("        struct tp_cursor r = tp_cursor_make(reply->body, reply->size);")
        body.append(f"        tpg_get_{op.name}_out(&r, out);")
        stored = f" else {{ *{number.name} = out->{number.name}; }}" if number else ""
        body.append(f"        if (r.bad) {{ result = {prefix}_bad_reply(reply); }}{stored}")
        body.append("    }")
    if op.line.says_why:
        body.append("    if (TP_UNLIKELY(result == 0 && out->refused)) {")
        body.append(f"        result = ({result})out->refused;")
        body.append('        tp_log(TP_WARN, "%s is refused: %.*s", name, (int)out->why_size, (const char *)out->why);')
        body.append("    }")
    if own:
        body.append("    tp_reply_free(reply);")
    return [*body, "    return result;", "}", *_ending(api, op, made, head, params)]


def _ending(api: Api, op: Op, made: list[Field], head: str, params: list[str]) -> list[str]:
    """The sender around that which makes objects: their handles end when it fails."""
    if not made:
        return []
    prefix = PREFIX[api.name]
    names = ", ".join(param.rpartition(" ")[2].lstrip("*") for param in params)
    at = "" if _arguments(op) else "in->"
    missing = " || ".join(f"!{at}{f.name}" for f in made)
    ends = " ".join(f"{prefix}_unmint(TPG_{f.kind.upper()}, {at}{f.name});" for f in made)
    replies = "    memset(reply, 0, offsetof(struct tp_reply, inline_body));"
    return [
        head,
        *([replies] if "struct tp_reply *reply" in params else []),
        f"    if ({missing}) {{ return {prefix.upper()}_NO_HANDLES; }}",
        f"    {RESULTS[api.name]} result = {prefix}_try_{op.name}({names});",
        f"    if (TP_UNLIKELY(result != {SUCCESS[api.name]})) {{ {ends} }}",
        "    return result;",
        "}",
    ]


def messages_header(api: Api) -> str:
    """tpg_<api>_messages.h: what takes each message of the session, by hand; false for one that cannot be."""
    prefix = PREFIX[api.name]
    guard = f"TPG_{api.name.upper()}_MESSAGES_H"
    lines = [NOTE, f"#ifndef {guard}", f"#define {guard}", "#include <tp_conn.h>", '#include "tpg_ops.h"']
    lines += [f"bool {prefix}_on_{op.name}(const struct tpg_{op.name}_in *in);" for op in api.messages]
    lines += ["/* Decodes a message and hands it to its function: for tp_on_message. */"]
    lines += [f"bool {prefix}_take_message(uint16_t op, const unsigned char *body, size_t size);", "#endif", ""]
    return "\n".join(lines)


def messages(api: Api) -> str:
    """tpg_<api>_messages.c: from the bytes of a message to the function that takes it."""
    prefix = PREFIX[api.name]
    lines = [NOTE, f'#include "tpg_{api.name}_messages.h"']
    lines += [f"bool {prefix}_take_message(uint16_t op, const unsigned char *body, size_t size) {{"]
    lines += ["    struct tp_cursor c = tp_cursor_make((unsigned char *)(uintptr_t)body, size);", "    switch (op) {"]
    for op in api.messages:
        lines += [
            f"    case TPG_OP_{op.name}: {{",
            f"        struct tpg_{op.name}_in in;",
            f"        tpg_get_{op.name}_in(&c, &in);",
            f"        return !c.bad && !c.left && {prefix}_on_{op.name}(&in);",
            "    }",
        ]
    return "\n".join([*lines, "    default: return false;", "    }", "}", ""])
