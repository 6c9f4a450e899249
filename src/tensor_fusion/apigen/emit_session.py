"""The session: table of driver functions, decoding and dispatch, prototypes of what is written by hand."""

from __future__ import annotations

import re

from .emit_wire import NOTE
from .fields import Field
from .model import Api, Model, Op
from .snapshot import Prototype, declare, parameter_list

ENTER = {"cuda": "tpw_enter(s, frame)", "nvml": "tpw_nvml_enter(s)"}


def driver_header(model: Model) -> str:
    """tpg_driver.h: every function of the driver as a typed pointer; a missing one answers not-supported."""
    lines = [NOTE, "#ifndef TPG_DRIVER_H", "#define TPG_DRIVER_H", '#include "tpg_cuda.h"', '#include "tpg_nvml.h"']
    for api in model.apis:
        lines.append(f"struct tpg_{api.name}_driver {{")
        for name in api.exports:
            prototype = api.prototype(name)
            if prototype:
                lines.append(f"    {prototype.returns} (*{name})({parameter_list(prototype)});")
        lines.append("};")
        lines.append("/* Fills the table from an open library; returns how many names it has. */")
        lines.append(f"int tpg_load_{api.name}(struct tpg_{api.name}_driver *driver, void *library);")
    return "\n".join([*lines, "#endif", ""])


def driver_source(model: Model) -> str:
    """tpg_driver.c."""
    lines = [NOTE, '#include "tpg_driver.h"', "#include <dlfcn.h>", "#include <string.h>"]
    lines += ["static int missing_cuda(void) { return CUDA_ERROR_NOT_SUPPORTED; }"]
    lines += ["static int missing_nvml(void) { return NVML_ERROR_FUNCTION_NOT_FOUND; }"]
    for api in model.apis:
        names = [n for n in api.exports if api.prototype(n)]
        lines.append(f"static const char *const {api.name}_names[] = {{")
        lines += [f'    "{n}",' for n in names]
        lines += ["};"]
        lines += [
            f"int tpg_load_{api.name}(struct tpg_{api.name}_driver *driver, void *library) {{",
            "    int found = 0;",
            f'    _Static_assert(sizeof *driver == {len(names)} * sizeof(void *), "one pointer a name");',
            f"    for (size_t i = 0; i < {len(names)}; i++) {{",
            f"        void *symbol = library ? dlsym(library, {api.name}_names[i]) : NULL;",
            f"        int (*missing)(void) = missing_{api.name};",
            "        found += symbol != NULL;",
            "        if (!symbol) { memcpy(&symbol, &missing, sizeof symbol); }",
            "        memcpy((char *)driver + i * sizeof symbol, &symbol, sizeof symbol);",
            "    }",
            "    return found;",
            "}",
        ]
    return "\n".join([*lines, ""])


def session_header(model: Model) -> str:
    """tpg_session.h: the functions that are written by hand in native/session."""
    lines = [NOTE, "#ifndef TPG_SESSION_H", "#define TPG_SESSION_H", '#include "tpg_ops.h"']
    lines += ["struct tpw_session;", "struct tpw_stream;", "struct tpw_question;", "struct tpw_packet;"]
    lines.append("void tpg_dispatch(struct tpw_session *s, const struct tp_frame *frame);")
    lines.append("/* What api/ says of the answers to an operation. */")
    lines.append("enum tpg_word { TPG_COMPLETES = 1, TPG_REPORTS = 2 };")
    lines.append("extern const unsigned char tpg_words[TPG_OP_LIMIT];")
    lines.append(
        "/* Whether the driver may wait for the GPU in that operation: what api/ says, or who was asked by name. */"
    )
    lines.append("bool tpg_waits(struct tpw_session *s, const struct tp_frame *frame);")
    for op in model.ops:
        if op.line.session == "hand" and not op.line.like and not op.line.asks.startswith("import "):
            lines.append(f"{_hand_signature(model, op)};")
        if op.line.asks:
            lines.append(f"{_told_signature(op)};")
        if op.line.asks.startswith("import"):
            lines.append(f"{_granted_signature(op)};")
        if op.line.waits == "asked":
            lines.append(f"{_waits_signature(op)};")
    return "\n".join([*lines, "#endif", ""])


def _waits_signature(op: Op) -> str:
    """Whether the driver may wait for the GPU in an operation with these arguments."""
    params = f"struct tpw_session *s, const struct tp_frame *frame, const struct tpg_{op.name}_in *in"
    return f"bool tpw_waits_{op.name}({params})"


def _hand_signature(model: Model, op: Op) -> str:
    """A hand-written operation: its arguments, its results, and what the handles among the arguments stand for."""
    params = ["struct tpw_session *s", "const struct tp_frame *frame"]
    if op.inputs():
        params.append(f"const struct tpg_{op.name}_in *in")
    if op.outputs():
        params.append(f"struct tpg_{op.name}_out *out")
    for item in op.fields:
        if item.role == "handle":
            params.append(declare(_native_type(model, item), item.name))
        if item.role == "handles":
            params.append(f"{_native_type(model, item)} *{item.name}")
        if item.role in ("struct", "structs"):
            params.append(f"const {item.ctype} *{item.name}")
        if item.role == "structs":
            params.append(f"size_t {item.name}_count")
    return f"int32_t tpw_{op.name}({', '.join(params)})"


TOLD = "struct tpw_session *s, const struct tpw_question *question, const struct tpw_packet *packet, int fd"


def _told_signature(op: Op) -> str:
    return f"void tpg_told_{op.name}({TOLD})"


def _granted_signature(op: Op) -> str:
    """By hand: the supervisor has let us have it."""
    return f"int32_t tpw_granted_{op.name}({TOLD}, struct tpg_{op.name}_out *out)"


def _told(op: Op) -> list[str]:
    """What becomes of the supervisor's answer."""
    body = [f"{_told_signature(op)} {{", f"    struct tpg_{op.name}_out out;", "    memset(&out, 0, sizeof out);"]
    if op.line.asks == "share":
        body.append(f"    int32_t error = tpw_share_settle(s, question, packet, &out.{op.outputs()[0].name});")
        body.append("    (void)fd;")
    else:
        body.append(f"    int32_t error = packet->value ? tpw_granted_{op.name}(s, question, packet, fd, &out) : 0;")
        body.append("    if (!packet->value) { TPW_SAY_WHY(out, packet); }")
    return [*body, f"    tpg_answer_{op.name}(s, &question->frame, error, &out);", "}"]


def _native_type(model: Model, item: Field) -> str:
    """What a hand-written operation gets for a handle; of a stream the session's record, which has the native in it."""
    return "struct tpw_stream *" if item.kind == "stream" else model.types.kinds[item.kind].ctype


def answers(model: Model) -> str:
    """tpg_answer.h: what answers a call that has outputs (operations written by hand may do so later), and messages."""
    lines = [NOTE, "#ifndef TPG_ANSWER_H", "#define TPG_ANSWER_H", '#include "tpg_ops.h"', '#include "tpw_stream.h"']
    for op in model.ops:
        if op.outputs():
            lines += _answer(op)
    for api in model.apis:
        for op in api.messages:
            lines += _send(op)
    return "\n".join([*lines, "#endif", ""])


def dispatch(model: Model) -> str:
    """tpg_dispatch.c: one function for every operation, and the switch over all of them."""
    lines = [
        NOTE,
        '#include "tpg_answer.h"',
        '#include "tpw_code.h"',
        '#include "tpw_copy.h"',
        '#include "tpw_graph.h"',
        '#include "tpw_memory.h"',
    ]
    lines += ['#include "tpw_nvml.h"', '#include "tpg_session.h"', '#include "tpg_session_structs.h"']
    lines.append("const unsigned char tpg_words[TPG_OP_LIMIT] = {")
    for op in model.ops:
        if op.line.completes:
            lines.append(f"    [TPG_OP_{op.name}] = TPG_COMPLETES{' | TPG_REPORTS' if op.line.reports else ''},")
    lines.append("};")
    lines += _waits(model)
    for api in model.apis:
        for op in api.ops:
            lines += _told(op) if op.line.asks else []
            lines += _run(model, api, op)
    lines += ["void tpg_dispatch(struct tpw_session *s, const struct tp_frame *frame) {"]
    lines += [
        "    tpw_scratch_reset(s);",
        "    const struct tp_frame header = *frame; /* an operation may read on: the link's memory moves then */",
        "    unsigned char *body = (unsigned char *)(uintptr_t)(frame + 1);",
        "    struct tp_cursor c = tp_cursor_make(body, header.size - sizeof header);",
    ]
    lines += ["    switch (header.op) {"]
    lines += [f"    case TPG_OP_{o.name}: run_{o.name}(s, &header, &c); break;" for o in model.ops]
    lines += ['    default: tpw_violation(s, &header, "unknown operation"); break;', "    }", "}", ""]
    return "\n".join(lines)


def _waits(model: Model) -> list[str]:
    lines = ["bool tpg_waits(struct tpw_session *s, const struct tp_frame *frame) {"]
    lines += ["    struct tp_cursor c = tp_cursor_make((void *)(uintptr_t)(frame + 1), frame->size - sizeof *frame);"]
    lines += ["    (void)s;", "    (void)c;", "    switch (frame->op) {"]
    lines += [f"    case TPG_OP_{o.name}:" for o in model.ops if o.line.waits is True]
    lines += ["        return true;"] if any(o.line.waits is True for o in model.ops) else []
    for op in [o for o in model.ops if isinstance(o.line.waits, str)]:
        asked = f"tpw_waits_{op.name}(s, frame, &in)"
        if op.line.waits != "asked":
            asked = f"({_lengths(op, str(op.line.waits))})"
        lines += [
            f"    case TPG_OP_{op.name}: {{",
            f"        struct tpg_{op.name}_in in;",
            f"        tpg_get_{op.name}_in(&c, &in);",
            f"        return !c.bad && {asked};",
            "    }",
        ]
    return [*lines, "    default: return false;", "    }", "}"]


def _run(model: Model, api: Api, op: Op) -> list[str]:
    inputs, outputs = op.inputs(), op.outputs()
    body = [f"static void run_{op.name}(struct tpw_session *s, const struct tp_frame *frame, struct tp_cursor *c) {{"]
    by = op.line.like or op.name
    if inputs:
        body += [f"    struct tpg_{by}_in in;", f"    tpg_get_{by}_in(c, &in);"]
    for item in op.fields:
        if item.role in ("bytes", "array", "handles") and item.length:
            what = "size" if item.role == "bytes" else "count"
            expression = _lengths(op, item.length)
            # The driver will read by the length parameter, so the bytes that came must be exactly that many.
            if item.optional:
                body.append(f"    if (!in.{item.name}_{what}) {{ in.{item.name} = NULL; }} else")
            body.append(f"    if (in.{item.name}_{what} != (size_t)({expression})) {{ c->bad = true; }}")
        if item.role == "room":
            body.append(f"    if (in.{item.name} > TP_{api.name.upper()}_LIST_MAX) {{ c->bad = true; }}")
    body.append("    if (c->bad) {")
    body.append(f'        tpw_violation(s, frame, "{op.name}");')
    body.append("        return;")
    body.append("    }")
    if outputs:
        body += [f"    struct tpg_{op.name}_out out;", "    memset(&out, 0, sizeof out);"]
    enter = "0" if op.line.contextless else ENTER[api.name]
    body.append(f"    int32_t error = {enter};")
    if op.line.settled:
        body.append("    tpw_leave(s);")
    if op.line.session != "driver":
        arguments = ["s", "frame", *(["&in"] if inputs else []), *(["&out"] if outputs else [])]
        for item in op.fields:
            body += [f"    {text}" for text in _checked(model, op, item)]
            arguments += [f"n_{item.name}"] if item.role in ("handle", "handles", "struct", "structs") else []
            arguments += [f"count_{item.name}"] if item.role == "structs" else []
        made = [
            f"tpw_made(s, frame, TPG_{f.kind.upper()}, in.{f.name}, 0, error);" for f in op.fields if f.role == "new"
        ]
        failed = f" else {{ {' '.join(made)} }}" if made else ""
        call = f"tpw_{by}({', '.join(arguments)})" if op.line.session == "hand" else f"(int32_t){_made_by(op)}"
        if op.line.asks.startswith("import "):
            value = next((f"in.{f.name}" for f in op.fields if f.role == "new"), "0")
            body.append("    const struct tpw_question question = {")
            body.append(f"        .frame = *frame, .answered = tpg_told_{op.name}, .value = {value}}};")
            call = f"tpw_import_ask(s, &question, TPW_SHARES_{op.line.asks.removeprefix('import ')}, &in.handle)"
        body.append(f"    if (!error) {{ error = {call}; }}{failed}")
        body.append("    if (error == TPW_LATER) { return; }")
    else:
        assert op.prototype is not None
        if op.line.stands:
            streams = [f"in.{f.name}" for f in op.fields if f.role == "handle" and f.kind == "stream"]
            body.append(f"    tpw_stands(s, frame, {streams[0] if streams else 'TPW_IN_GRAPHS'}, &error);")
        body += _driver_call(api, op, op.prototype)
    if outputs:
        body += [
            "    if (frame->flags & TP_FRAME_CALL) {",
            f"        tpg_answer_{op.name}(s, frame, error, &out);",
            "    } else if (error) {",
            "        tpw_defer(s, frame, error);",
            "    }",
        ]
    else:
        body.append("    tpw_conclude(s, frame, error);")
    return [*body, "}"]


def _made_by(op: Op) -> str:
    """The call that a line gives, over what the frame carries and what its handles stand for."""
    native = {f.name: f"n_{f.name}" for f in op.fields if f.role in ("handle", "handles", "struct", "structs")}
    given = {f.name: f"in.{f.name}" for f in op.fields if not f.is_out} | native
    words = re.compile(r"(?<![\w.>])(?:" + "|".join(given) + r")\b")
    return words.sub(lambda word: given[word[0]], op.line.session)


def _answer(op: Op) -> list[str]:
    return [
        f"static inline void tpg_answer_{op.name}(struct tpw_session *s, const struct tp_frame *frame, int32_t error,"
        f" const struct tpg_{op.name}_out *out) {{",
        "    int32_t result = tpw_result(s, frame->op, error);",
        f"    size_t size = result ? 0 : tpg_size_{op.name}_out(out);",
        "    unsigned char *body = tpw_answer_begin(s, frame->op, frame->thread, result, size);",
        "    if (body) {",
        "        struct tp_cursor r = tp_cursor_make(body, size);",
        "        r.lends = true;",
        f"        if (!result) {{ tpg_put_{op.name}_out(&r, out); }}",
        "        tpw_reply_commit_lent(s->link, result, size, &r);",
        "    }",
        "}",
    ]


def _send(op: Op) -> list[str]:
    flags = "TP_FRAME_COMPLETES" if op.line.completes else "0"
    return [
        f"static inline void tpg_send_{op.name}(struct tpw_session *s, const struct tpg_{op.name}_in *in) {{",
        *(["    tpw_leave(s);"] if op.line.completes else []),
        f"    size_t size = tpg_size_{op.name}_in(in);",
        f"    unsigned char *body = tpw_reply_begin(s->link, TPG_OP_{op.name}, {flags}, 0, size);",
        "    if (body) {",
        "        struct tp_cursor c = tp_cursor_make(body, size);",
        "        c.lends = true;",
        f"        tpg_put_{op.name}_in(&c, in);",
        "        tpw_reply_commit_lent(s->link, 0, size, &c);",
        "    }",
        "}",
    ]


def _lengths(op: Op, expression: str) -> str:
    """`expression` over parameters as C over the decoded arguments."""
    names = {f.name: f for f in op.fields}

    def replace(match: re.Match[str]) -> str:
        word = match.group(0)
        return f"in.{word}" if word in names and not names[word].is_out else word

    return re.sub(r"[A-Za-z_]\w*", replace, expression)


def _checked(model: Model, op: Op, item: Field) -> list[str]:
    """What is done with a field before a hand-written operation sees it."""
    optional = "true" if item.optional and item.role != "new" else "false"
    name, kind = item.name, item.kind.upper()
    if item.role == "handle" and item.kind == "stream":
        return [f"struct tpw_stream *n_{name} = tpw_stream_of(s, frame, in.{name}, &error);"]
    if item.role == "handle":
        ctype = _native_type(model, item)
        native = f"tpw_native(s, frame, TPG_{kind}, in.{name}, {optional}, &error)"
        return [f"{declare(ctype, f'n_{name}')} = ({ctype})(uintptr_t){native};"]
    if item.role == "handles":
        ctype = _native_type(model, item)
        natives = f"tpw_natives(s, frame, TPG_{kind}, in.{name}, in.{name}_count, &error)"
        return [f"{ctype} *n_{name} = ({ctype} *)(void *){natives};"]
    if item.role in ("name", "new", "gone"):
        return [f"tpw_check_name(TPG_{kind}, in.{name}, {optional}, &error);"]
    if item.role == "names":
        return [f"tpw_check_names(TPG_{kind}, in.{name}, in.{name}_count, &error);"]
    if item.role == "device":
        return [f"tpw_check_device(s, in.{name}, &error);"]
    if item.role in ("struct", "structs"):
        return _rebuilt(op, item)
    return []


def _rebuilt(op: Op, item: Field) -> list[str]:
    """The driver's struct, or list of structs, from the bytes of the client's."""
    name = item.name
    count = f"(uint64_t)({_lengths(op, item.length)})" if item.length else f"in.{name}_size / sizeof({item.ctype})"
    by = f"in.{item.by}" if item.by else "0"
    if item.role == "struct":
        count = f"in.{name}_size ? 1 : 0" if item.optional else "1"
    return [
        f"size_t count_{name} = {count};",
        f"struct tp_cursor at_{name} = tp_cursor_make((void *)(uintptr_t)in.{name}, in.{name}_size);",
        f"{item.ctype} *n_{name} = tpg_take_some_{item.ctype}(s, frame, &at_{name}, {by}, count_{name}, &error);",
        f'if (at_{name}.bad || at_{name}.left) {{ tpw_violation(s, frame, "{op.name}: {name}"); return; }}',
    ]


def _driver_call(api: Api, op: Op, prototype: Prototype) -> list[str]:
    fields = {f.name: f for f in op.fields}
    body: list[str] = []
    arguments = []
    for parameter in prototype.params:
        item = fields.get(parameter.name)
        if item is None:
            arguments.append("0")
            continue
        text, argument = _native(op, item, parameter.type)
        body += [f"    {t}" for t in text]
        arguments.append(argument)
    answered = "out.status" if any(f.role == "outstatus" for f in op.fields) else "error"
    body.append(f"    if (!error) {{ {answered} = (int32_t)s->{api.name}.{op.name}({', '.join(arguments)}); }}")
    for item in op.fields:
        if item.role == "outstring":
            size = f"out.{item.name}_size"
            body.append(f"    if (!error) {{ {size} = tpw_text_size(out.{item.name}, {size}); }}")
        if item.role == "new":
            made, owner = ("tpw_made_in", f" in.{item.owner},") if item.owner else ("tpw_made", "")
            body.append(
                f"    error = {made}(s, frame, TPG_{item.kind.upper()}, in.{item.name},"
                f" (uint64_t)(uintptr_t)n_{item.name},{owner} error);"
            )
        if item.role == "outfilled":
            size, count = f"out.{item.name}_count", f"out.{item.length}"
            body.append(f"    out.{item.name} = n_{item.name};")
            body.append(f"    if (!error && !out.status) {{ {size} = {count} < in.{item.length} ? {count} :")
            body.append(f"        in.{item.length}; }}")
        if item.role == "outknown":
            known = f"tpw_known(s, TPG_{item.kind.upper()}, (uint64_t)(uintptr_t)n_{item.name})"
            body.append(f"    if (!error) {{ out.{item.name} = {known}; }}")
        if item.role == "fresh":
            body.append(
                f"    error = tpw_told_in(s, frame, TPG_{item.kind.upper()}, in.{item.name},"
                f" (uint64_t)(uintptr_t)n_{item.name}, in.{item.owner}, error, &out.{item.name});"
            )
        if item.role == "outstruct":
            body.append(f"    if (!error) {{ tpg_give_{item.ctype}(s, &n_{item.name}, &out.{item.name}, &error); }}")
        if item.role == "outkept":
            tell = f"tpg_tell_{item.ctype}(s, &n_{item.name}, &out.{item.name}_size, &error)"
            body.append(f"    if (!error) {{ out.{item.name} = {tell}; }}")
        if item.role == "gone":
            body.append(f"    if (!error) {{ tpw_forget(s, TPG_{item.kind.upper()}, in.{item.name}); }}")
    return body


def _native(op: Op, item: Field, ctype: str) -> tuple[list[str], str]:
    """Statements that prepare a native argument, and the argument."""
    name = item.name
    if item.role in ("handle", "gone"):
        call = (
            f"tpw_native(s, frame, TPG_{item.kind.upper()}, in.{name}, {'true' if item.optional else 'false'}, &error)"
        )
        kept = f"tpw_keep(s, frame, in.{item.by}, TPG_{item.kind.upper()}, in.{name}, &error);"
        keep = [kept] if item.by else []
        return [f"{ctype} n_{name} = ({ctype})(uintptr_t){call};", *keep], f"n_{name}"
    if item.role in ("new", "outknown", "outfresh"):
        return [f"{item.ctype} n_{name} = 0;"], f"&n_{name}"
    if item.role in ("outstruct", "outkept"):
        return [f"{item.ctype} n_{name};", f"memset(&n_{name}, 0, sizeof n_{name});"], f"&n_{name}"
    if item.role in ("struct", "structs"):
        return _rebuilt(op, item), f"n_{name}"
    if item.role == "context":
        by = f"in.{item.by}" if item.by else "0"
        return [f"CUcontext n_{name} = tpw_context_of(s, frame, in.{name}, {by}, &error);"], f"n_{name}"
    if item.role == "device":
        return [f"tpw_check_device(s, in.{name}, &error);"], f"in.{name}"
    if item.role == "most":
        check = f"(unsigned int)in.{name} > {item.length}"
        return [f"if (!error && {check}) {{ error = CUDA_ERROR_INVALID_VALUE; }}"], f"in.{name}"
    if item.role == "word":
        return [f"tpw_check_word(s, in.{name}, {item.length}, &error);"], f"in.{name}"
    if item.role == "dev":
        return [f"tpw_check_range(s, in.{name}, (uint64_t)({_lengths(op, item.length)}), &error);"], f"in.{name}"
    if item.role == "outfilled":
        # The driver may write all that there are, whatever the number says.
        most = f"TP_{op.api.upper()}_LIST_MAX"
        scratch = f"tpw_scratch(s, {most}, sizeof({item.ctype}), &error)"
        return [f"{item.ctype} *n_{name} = {scratch};"], f"in.{item.length} ? n_{name} : NULL"
    if item.role == "outroom":
        return [f"out.{name} = in.{name};"], f"&out.{name}"
    if item.role == "out":
        return [], f"&out.{name}"
    if item.role == "outboth":
        return [f"if (!error) {{ memcpy(&out.{name}, in.{name}, sizeof out.{name}); }}"], f"&out.{name}"
    if item.role == "outchanged":
        return [
            f"{item.ctype} *n_{name} = tpw_scratch(s, in.{name}_count, sizeof *n_{name}, &error);",
            f"if (!error && in.{name}_count) {{ memcpy(n_{name}, in.{name}, in.{name}_count * sizeof *n_{name}); }}",
            f"out.{name} = n_{name};",
            f"out.{name}_count = in.{name}_count;",
        ], f"n_{name}"
    if item.role == "outwanted":
        return [], f"in.{name} ? &out.{name} : NULL"
    if item.role == "handles":
        kind = item.ctype
        made = f"tpw_natives(s, frame, TPG_{item.kind.upper()}, in.{name}, in.{name}_count, &error)"
        return [f"{kind} *n_{name} = ({kind} *){made};"], f"n_{name}"
    if item.role == "outversioned":
        return [
            f"out.{name} = tpw_versioned(s, in.{name}, in.{name}_size, sizeof({item.ctype}), &error);",
            f"out.{name}_size = in.{name}_size;",
        ], f"({ctype})(uintptr_t)out.{name}"
    if item.role in ("outbytes", "outarray", "outstring"):
        length = _lengths(op, item.length)
        unit = "1" if item.is_bytes else f"sizeof({item.ctype})"
        what = "size" if item.is_bytes else "count"
        return [
            f"out.{name} = tpw_scratch(s, (uint64_t)({length}), {unit}, &error);",
            f"out.{name}_{what} = (size_t)({length});",
        ], f"({ctype})(uintptr_t)out.{name}"
    if item.role == "in":
        return [], f"({ctype})(uintptr_t)in.{name}"
    return [], f"in.{name}" if item.role in ("value", "bits", "string") else f"({ctype})(uintptr_t)in.{name}"
