"""The client: exported symbols and the table behind them, bodies of remote functions, entry points by version, maps.

What a program links or opens (libcuda, libnvidia-ml) holds nothing but one jump for each name, through a table that
libteleport has: native/client/shim/tpl.h says why.
"""

from __future__ import annotations

import hashlib
import json
import re

from . import choices, older
from .describe import Line
from .emit_wire import NOTE
from .fields import Field
from .layout import DescriptionError
from .model import NOT_SERVED, RESULTS, TOO_SMALL, Api, Model, Op
from .refusals import Look, beginning, looks
from .snapshot import Prototype, declare, parameter_list

PREFIX = {"cuda": "tpc", "nvml": "tpn"}
REQUIRED = (
    "out", "outknown", "outstruct", "new", "fresh", "in", "struct", "string", "outbytes", "outarray", "outstring",
    "versioned", "outkept",
)  # fmt: skip
# Arguments that name a stream, which lends its context to a thread that has none.
LENDER = "CUstream"
LAUNCHER = "const CUlaunchConfig *"
MINTED = ("new", "fresh")  # the client makes a handle before
READY = {"cuda": "tpc_not_ready", "nvml": "tpn_ready"}
NOT_SUPPORTED = {"cuda": "CUDA_ERROR_NOT_SUPPORTED", "nvml": "NVML_ERROR_NOT_SUPPORTED"}
SUCCESS = {"cuda": "CUDA_SUCCESS", "nvml": "NVML_SUCCESS"}
HIDDEN_FROM = 12000  # refused names that are as new as this are not found by name
NOT_FOUND = "CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND"
LIBRARY = {"cuda": "libcuda", "nvml": "libnvidia-ml"}
# Where the hand-written functions are declared that make several names.
MAKERS = {"cuda": ("tpc_code.h", "tpc_copy.h", "tpc_graph.h", "tpc_memory.h", "tpc_stream.h"), "nvml": ()}
# What every function answers when there is no libteleport, and when the one that is there belongs to another build.
MISSING = {"cuda": "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "nvml": "NVML_ERROR_LIBRARY_NOT_FOUND"}
FOREIGN = {"cuda": "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "nvml": "NVML_ERROR_LIB_RM_VERSION_MISMATCH"}


def client_header(model: Model) -> str:
    """tpg_client.h: the function behind every export, generated or by hand."""
    lines = [NOTE, "#ifndef TPG_CLIENT_H", "#define TPG_CLIENT_H", "#include <stdbool.h>"]
    lines += ['#include "tpg_cuda.h"', '#include "tpg_nvml.h"']
    for api in model.apis:
        for line in api.lines.values():
            prototype = api.prototype(line.name)
            if line.kind in ("call", "post", "pure", "local", "custom", "older") and prototype:
                lines.append(f"{_signature(api, line, prototype)};")
            if line.check is True and prototype:
                lines.append(f"{_signature(api, line, prototype, 'check_')};")
            if line.looked_at and line.gives is None and not line.by and prototype:
                lines.append(f"{_signature(api, line, prototype, 'do_')};")
            if line.wrapped and prototype:
                lines.append(f"{_signature(api, line, prototype, 'sent_')};")
            if line.noted is True and prototype:
                lines.append(f"{_signature(api, line, prototype, 'noted_')};")
        lines += [f"{choices.signature(said, api, model.types)};" for said in api.choices]
    lines += ["/* What is answered for attributes of devices, whatever the worker's driver says. */"]
    lines += ["struct tpg_said {", "    int attribute, value, bits;", "};", "extern const struct tpg_said tpg_said[];"]
    lines += ["extern const size_t tpg_said_count;"]
    return "\n".join([*lines, "#endif", ""])


def _signature(api: Api, line: Line, prototype: Prototype, part: str = "") -> str:
    params = parameter_list(prototype)
    if line.implicit:
        params = "CUstream implicit" + ("" if params == "void" else f", {params}")
    returns = "void" if part == "noted_" else prototype.returns
    return f"{returns} {PREFIX[api.name]}_{part}{line.name}({params})"


def table_header(model: Model) -> str:
    """tpg_table.h: the functions of each API as a struct of pointers, which libteleport fills and the exports call."""
    lines = [NOTE, "#ifndef TPG_TABLE_H", "#define TPG_TABLE_H", '#include "tpg_cuda.h"', '#include "tpg_nvml.h"']
    for api in model.apis:
        members = [f"    {_pointer(api, name)};" for name in api.exports]
        layout = hashlib.sha256("\n".join(members).encode()).hexdigest()[:32]
        lines += [f"struct tpg_{api.name}_table {{", *members, "};"]
        lines.append(f"extern const struct tpg_{api.name}_table tpg_{api.name}_table;")
        lines.append("/* Both sides of the table must have it alike: a hash of the members above. */")
        lines.append(f'#define TPG_{api.name.upper()}_LAYOUT "{layout}"')
    lines += [
        "struct tpg_address { int version; int status; void *function; };",
        "/* Entry points of `name` by rising version for stream flag 0…2; NULL for a name that the driver has not. */",
        "const struct tpg_address *tpg_addresses(const char *name, int flag, int *count);",
    ]
    return "\n".join([*lines, "#endif", ""])


def _pointer(api: Api, name: str) -> str:
    prototype = api.head(name)
    if prototype is None:
        return f"{RESULTS[api.name]} (*{name})(void)"
    return f"{prototype.returns} (*{name})({parameter_list(prototype)})"


def exports(model: Model, api: Api) -> str:
    """tpg_<api>_exports.c: one exported function for every name, which jumps to the one in the table."""
    result = RESULTS[api.name]
    lines = [NOTE, '#include "tpl.h"', "#include <string.h>"]
    for name in api.exports:
        prototype = api.head(name)
        returns = prototype.returns if prototype else result
        absent = f"({result})tpl_absent()" if returns == result else "tpl_absent_text()"
        if returns != result and returns.replace(" ", "") != "constchar*":
            raise DescriptionError(f"{name}: nobody can say without libteleport what it returns ({returns})")
        parameters = parameter_list(prototype) if prototype else "void"
        arguments = ", ".join(p.name for p in prototype.params) if prototype else ""
        pointer = f"const struct tpg_{api.name}_table *tpl"
        jump = f"return tpl->{name}({arguments});"
        lines.append(
            f"TPL_FIRST {returns} first_{name}({parameters}) {{ {pointer} = tpl_load(); "
            f"if (!tpl) {{ return {absent}; }} {jump} }}"
        )
        head = f"TP_EXPORT {returns} {name}({parameters})"
        first = f"if (TP_UNLIKELY(!tpl)) {{ return first_{name}({arguments}); }}"
        lines += [f"{head};", f"{head} {{ {pointer} = tpl_loaded(); {first} {jump} }}"]
    if api.name == "cuda":
        lines += addresses(model)
    lines += [
        "const struct tpl_api tpl_api = {",
        f'    .name = "{api.name}", .library = "{LIBRARY[api.name]}", .layout = TPG_{api.name.upper()}_LAYOUT,',
        f"    .missing = {MISSING[api.name]}, .foreign = {FOREIGN[api.name]},",
        *(["    .addresses = tpg_addresses,"] if api.name == "cuda" else []),
        "};",
    ]
    return "\n".join([*lines, ""])


def entries(model: Model, api: Api) -> str:
    """tpg_<api>_entries.c: what is behind every name, hidden in libteleport under the same name, and their table."""
    own = ["tpc.h", "tpc_memory.h", "tpc_stream.h"] if api.name == "cuda" else [f"{PREFIX[api.name]}.h"]
    own += [header for header in MAKERS[api.name] if header not in own and any(x.by for x in api.lines.values())]
    lines = [NOTE, *(f'#include "{header}"' for header in own), '#include "tpg_client.h"', '#include "tpg_table.h"']
    lines.append(f'#include "tpg_{api.name}_trace.h"')
    for name in api.exports:
        lines.append(_entry(model, api, api.lines[name]))
    rows = [f"    .{name} = {name}," for name in api.exports]
    return "\n".join([*lines, f"const struct tpg_{api.name}_table tpg_{api.name}_table = {{", *rows, "};", ""])


def _entry(model: Model, api: Api, line: Line) -> str:
    prefix = PREFIX[api.name]
    upper = prefix.upper()
    target = api.resolve(line)
    declared = api.head(line.name)
    prototype = declared or Prototype(line.name, RESULTS[api.name], ())
    params, names = parameter_list(prototype), [p.name for p in prototype.params]
    head = f"{prototype.returns} {line.name}({params})"
    lines = [f"{head};"]
    if target.kind in NOT_SERVED:
        lines += _refusal(model, api, line.name, target, prototype)
        answer = f"refuse_{line.name}({', '.join(names)})"
        if target.kind == "refused":
            answer = f'{upper}_ANSWER("{line.name}", {answer})'
    else:
        answer = _answer_of(api, line, target, prototype)
    enter = "ANYTIME" if target.anytime else "ENTER"
    lines += _traced(api, line, prototype, answer, anytime=target.anytime)
    entered = f"{upper}_{enter}(traced_{line.name}({', '.join(names)}));"
    begin = " ".join([beginning(api.beginnings.get(line.name, {})), entered]).strip()
    return "\n".join([*lines, f"{head} {{ {begin} return {answer}; }}"])


def _refusal(model: Model, api: Api, name: str, line: Line, prototype: Prototype) -> list[str]:
    """What answers for a name that is not served: the checks of a driver first, if the code is a driver's."""
    prefix = PREFIX[api.name]
    upper = prefix.upper()
    body = [f"    (void){p.name};" for p in prototype.params]
    if line.kind == "refused" and api.name == "cuda" and not line.contextless:
        body.append(f"    {upper}_CONTEXT(context);")
    if line.kind == "refused" and line.unsafe:
        body.append(f'    {upper}_CAPTURE_UNSAFE("{name}");')
    codes = model.types.enumerators(RESULTS[api.name])
    for look in looks(line, prototype.params, model.types, codes) if line.kind == "refused" else ():
        body += [f"    {upper}_DEVICE({look.name});"] if look.how == "device" else _look(upper, look)
    code = line.code or NOT_SUPPORTED[api.name]
    return [
        f"static {RESULTS[api.name]} refuse_{name}({parameter_list(prototype)}) {{",
        *body,
        "    static _Atomic bool said;",
        f'    return {prefix}_unsupported("{name}", {_text(line.reason)}, {code}, &said);',
        "}",
    ]


def _answer_of(api: Api, line: Line, target: Line, prototype: Prototype) -> str:
    """The call of the function behind an export."""
    prefix = PREFIX[api.name]
    default = "CU_STREAM_PER_THREAD" if line.kind == "per_thread" else "CU_STREAM_LEGACY"
    if target.implicit:
        arguments = [default, *(p.name for p in prototype.params)]
    else:
        arguments = [f"{p.name} ? {p.name} : {default}" if p.type == "CUstream" else p.name for p in prototype.params]
    answer = f"{prefix}_{target.name}({', '.join(arguments)})"
    if target.by and not (target.roles or target.finds or target.current or target.unsafe):
        answer = _made_by(api, target, arguments)
    lenders = [p.name for p in prototype.params if p.type == LENDER]
    launchers = [p.name for p in prototype.params if p.type == LAUNCHER and target.implicit]
    lenders += [f"{name} ? {name}->hStream : NULL" for name in launchers]
    lends = [f"tpc_lend({lender})" for lender in lenders]
    lends += [f"tpc_lend_memory((uint64_t)(uintptr_t){target.lender})"] if target.lender else []
    if lends:
        answer = f"{prefix.upper()}_LENT({lends[0]}, {answer})"
    if target.shows:
        answer = f"{prefix.upper()}_SHOWN({answer})"
    if prototype.returns == RESULTS[api.name]:
        answer = f'{prefix.upper()}_ANSWER("{line.name}", {answer})'
    return answer


def _made_by(api: Api, line: Line, arguments: list[str]) -> str:
    """The call that a line gives, where nothing comes before it, with these arguments for its parameters."""
    prototype = api.prototype(line.name)
    assert prototype is not None
    names = ["implicit"] * line.implicit + [p.name for p in prototype.params]
    given = {name: a if a.isidentifier() else f"({a})" for name, a in zip(names, arguments, strict=True)}
    words = re.compile(r'"[^"]*"|\b(?:' + "|".join(names) + r")\b")
    return words.sub(lambda word: given.get(word[0], word[0]), line.by)


def _traced(api: Api, line: Line, prototype: Prototype, answer: str, *, anytime: bool) -> list[str]:
    """The same call with the trace around it; out of the way of calls that are not traced."""
    success = SUCCESS[api.name]
    values = ", ".join(f"&{p.name}" for p in prototype.params) or "NULL"
    is_result = prototype.returns == RESULTS[api.name]
    if is_result and not anytime:
        ready = [f"    {prototype.returns} tp_result = {READY[api.name]}();"]
        ready += [f"    if (tp_result == {success}) {{ tp_result = {answer}; }}"]
    else:
        ready = [f"    {prototype.returns} tp_result = {answer};"]
    succeeded = f"tp_result == {success}" if is_result else "true"
    return [
        f"static TP_COLD {prototype.returns} traced_{line.name}({parameter_list(prototype)}) {{",
        f"    const void *const tp_values[] = {{{values}}};",
        "    uint64_t tp_begin = tp_trace_begin();",
        *ready,
        f"    tp_trace_end(&trace_tables, &call_{line.name}, tp_values, &tp_result, {succeeded}, tp_begin);",
        "    return tp_result;",
        "}",
    ]


def _text(words: str) -> str:
    """A C string."""
    return json.dumps(words, ensure_ascii=True)


def _hidden(model: Model, version: int, symbol: str) -> bool:
    """Whether the look-up by name denies an entry point that the driver of the table has.

    Programs ask for what is new, and have another way where it is not found; few have one where it is found and then
    refused. What came before CUDA 12.0 stays: the runtime 11.8 does not start without all of its names, and programs
    that ask for old names take them for granted, PyTorch for one.
    """
    api = next(a for a in model.apis if a.name == "cuda")
    line = api.resolve(api.lines[symbol])
    return version >= HIDDEN_FROM and line.kind == "unsupported" and not line.advertised


def addresses(model: Model, *, hide: bool = True) -> list[str]:
    """tpg_addresses: what a name, version and flag mean in the look-up by name; `hide`: without what is refused."""
    lines: list[str] = []
    rows = []
    for number, (name, flags) in enumerate(sorted(model.procaddress.items())):
        for flag in "012":
            entries = []
            for version, symbol in flags[flag]:
                if symbol.startswith("!"):
                    entries.append(f"{{{version}, {symbol.partition('/')[2]}, NULL}}")
                elif hide and _hidden(model, version, symbol):
                    entries.append(f"{{{version}, {NOT_FOUND}, NULL}}")
                else:
                    entries.append(f"{{{version}, 0, (void *){symbol}}}")
            lines.append(f"static const struct tpg_address a{number}_{flag}[] = {{{', '.join(entries)}}};")
        cells = ", ".join(f"{{a{number}_{f}, {len(flags[f])}}}" for f in "012")
        rows.append(f'    {{"{name}", {{{cells}}}}},')
    lines += [
        "static const struct {",
        "    const char *name;",
        "    struct { const struct tpg_address *rows; int count; } flag[3];",
        "} names[] = {",
        *rows,
        "};",
        "const struct tpg_address *tpg_addresses(const char *name, int flag, int *count) {",
        "    size_t low = 0, high = sizeof names / sizeof *names;",
        "    while (low < high) {",
        "        size_t middle = (low + high) / 2;",
        "        int order = strcmp(name, names[middle].name);",
        "        if (order == 0) {",
        "            *count = names[middle].flag[flag].count;",
        "            return names[middle].flag[flag].rows;",
        "        }",
        "        if (order < 0) { high = middle; } else { low = middle + 1; }",
        "    }",
        "    return NULL;",
        "}",
    ]
    return lines


def stubs(model: Model, api: Api) -> str:
    """tpg_<api>_stubs.c: bodies of the functions that run in the session."""
    prefix = PREFIX[api.name]
    lines = [NOTE, f'#include "{prefix}.h"', '#include "tpg_client.h"', '#include "tpg_ops.h"']
    if any(line.unsafe for line in api.lines.values()):
        lines.append(f'#include "{prefix}_stream.h"')
    if any(isinstance(said, str) for line in api.lines.values() for said in (line.check, line.noted)):
        lines += [f'#include "{header}"' for header in MAKERS[api.name]]
    if any(f.role in ("struct", "structs", "outstruct", "outkept") for op in api.ops for f in op.fields):
        lines.append(f'#include "tpg_{"client" if api.name == "cuda" else api.name}_structs.h"')
    for op in api.ops:
        if op.prototype:
            lines += _stub(api, op, op.prototype)
    for line in api.lines.values():
        if line.kind == "older":
            lines += _older(model, api, line)
    return "\n".join([*lines, ""])


def looked_at(model: Model, api: Api) -> str:
    """tpg_<api>_looks.c: the checks before functions that are written by hand, and those that give what is known."""
    prefix = PREFIX[api.name]
    lines = [NOTE, f'#include "{prefix}.h"', '#include "tpg_client.h"']
    looked = [line for line in api.lines.values() if line.looked_at]
    makers = [header for header in MAKERS[api.name] if any(line.by for line in looked)]
    streams = [f"{prefix}_stream.h"] if any(line.unsafe for line in looked) else []
    lines += [f'#include "{header}"' for header in makers or streams]
    lines += [f'#include "tpg_{api.name}_send.h"'] if any(line.ops and line.finds for line in looked) else []
    for line in api.lines.values():
        lines += _looked_at(model, api, line) if line.looked_at else []
    for said in api.choices:
        lines += choices.body(said, api, model.types, prefix)
    if api.attributes:
        rows = [f"    {{{said.name}, {said.value}, {said.bits}}}," for said in api.attributes]
        lines += ["const struct tpg_said tpg_said[] = {", *rows, "};"]
        lines.append("const size_t tpg_said_count = sizeof tpg_said / sizeof *tpg_said;")
    return "\n".join([*lines, ""])


def _looked_at(model: Model, api: Api, line: Line) -> list[str]:
    """The checks of a function that is written by hand, or gives what is known."""
    prototype = api.prototype(line.name)
    assert prototype is not None
    upper = PREFIX[api.name].upper()
    body = [f"    {upper}_CONTEXT(context);"] if line.current else []
    unsafe = [f'    {upper}_CAPTURE_UNSAFE("{line.name}");'] if line.unsafe else []
    body += unsafe if line.unsafe is True else []
    codes = model.types.enumerators(RESULTS[api.name])
    for look in looks(line, prototype.params, model.types, codes):
        if look.how == "device":
            body.append(f"    if (!tpc_device_valid({look.name})) {{ return CUDA_ERROR_INVALID_DEVICE; }}")
        else:
            body += _look(upper, look, line.name)
    body += unsafe if line.unsafe == "last" else []
    for declared, found in line.finds.items():
        body += _found(upper, declared, found)
    said = " ".join([line.by, *line.finds.values(), *(line.gives or {}), *(line.gives or {}).values()])
    if line.by or line.gives is not None:
        body += [f"    (void){p.name};" for p in prototype.params if not re.search(rf"\b{p.name}\b", said)]
    if line.by:
        end = line.by
    elif line.gives is None:
        arguments = [*(["implicit"] if line.implicit else []), *(p.name for p in prototype.params)]
        end = f"{PREFIX[api.name]}_do_{line.name}({', '.join(arguments)})"
    else:
        for path, value in line.gives.items():
            name, _, member = path.partition(".")
            stored = f"{name}->{member} = {value};" if member else f"*{name.removesuffix('?')} = {value};"
            body.append(f"    if ({name.removesuffix('?')}) {{ {stored} }}" if name.endswith("?") else f"    {stored}")
        end = SUCCESS[api.name]
    return [f"{_signature(api, line, prototype)} {{", *body, f"    return {end};", "}"]


def _found(upper: str, declared: str, text: str) -> list[str]:
    """What is looked for before an answer is given: declared, and found, or the error is the answer."""
    call, _, error = text.partition(" or ")
    if error:
        name = re.findall(r"\w+", declared)[-1]
        return [f"    {declared} = {call};", f"    if (!{name}) {{ return {error}; }}"]
    return [*([f"    {declared};"] if declared else []), f"    {upper}_TRY({call});"]


def _look(upper: str, look: Look, name: str = "") -> list[str]:
    """The check of one parameter, but for that of a device."""
    null = look.code or f"{upper}_NULL"
    if look.how == "handle":
        optional = "true" if look.optional else "false"
        there = [f"    if (!{look.name}) {{ return {look.code}; }}"] if look.code else []
        return [*there, f"    {upper}_CHECK_HANDLE({look.kind.upper()}, {look.name}, {optional});"]
    if look.how == "uncaptured":
        refuse_it = f'{upper}_TRY({upper.lower()}_capture_refuse("{name}", {look.name}));'
        return [f"    {upper}_CHECK_HANDLE({look.kind.upper()}, {look.name}, true);", f"    {refuse_it}"]
    if look.how == "bits":
        return [f"    if ({look.name} & ~(uint64_t)({look.bound})) {{ return {null}; }}"]
    if look.how == "is":
        return [f"    if ({look.name} != {look.bound}) {{ return {null}; }}"]
    if look.how == "version":
        wrong = f"{look.name}->version != (sizeof *{look.name} | {look.bound}u << 24)"
        mismatch = f"if ({wrong}) {{ return NVML_ERROR_ARGUMENT_VERSION_MISMATCH; }}"
        return [f"    if (!{look.name}) {{ return {null}; }}", f"    {mismatch}"]
    if look.how == "below":
        return [f"    if ((unsigned int){look.name} >= (unsigned int)({look.bound})) {{ return {null}; }}"]
    if look.how == "most":
        return [f"    if ((unsigned int){look.name} > {look.bound}) {{ return {null}; }}"]
    return [f"    if (!{look.name}) {{ return {null}; }}"]


def _older(model: Model, api: Api, line: Line) -> list[str]:
    """An older form: its arguments widened, and the call of the function that it is a form of."""
    own, newer = api.prototype(line.name), api.resolve(api.lines[line.target])
    items = older.joined(line, own, newer, api.prototype(line.target), model.types)
    body, arguments = older.handed_on(line, items, model.types)
    if line.first:
        upper = PREFIX[api.name].upper()
        wrong = "if (!context->first_form) { return CUDA_ERROR_INVALID_CONTEXT; }"
        body = [f"    {upper}_CONTEXT(context);", f"    {wrong}", *body]
    assert own is not None
    call = f"{PREFIX[api.name]}_{newer.name}({', '.join([*['implicit'] * line.implicit, *arguments])})"
    return [f"{_signature(api, line, own)} {{", *body, f"    return {call};", "}"]


def _stub(api: Api, op: Op, prototype: Prototype) -> list[str]:
    prefix = PREFIX[api.name]
    upper = prefix.upper()
    has_in, has_out = bool(op.inputs()), bool(op.outputs())
    sent = {f.name for f in op.fields}
    body = [f"    (void){p.name};" for p in prototype.params if p.name not in sent]
    before = op.kind == "post" or op.line.unsafe or (op.kind == "pure" and api.name == "cuda")
    if before and not op.line.contextless:
        # A call learns from the driver that its context is gone or broken; a post has to know before it is on its
        # way, and an answer that is remembered asks nobody.
        body.append(f"    {upper}_CONTEXT(context);")
    unsafe = [f'    {upper}_CAPTURE_UNSAFE("{op.name}");'] if op.line.unsafe else []
    body += unsafe if op.line.unsafe is True else []
    for item in op.fields:
        required = item.role in REQUIRED and not item.optional
        if required:
            body.append(f"    if (!{item.name}) {{ return {upper}_NULL; }}")
        if item.role in ("bytes", "array", "handles", "structs") and not item.optional:
            there = "" if item.length.isdigit() else f" && {item.length}"
            body.append(f"    if (!{item.name}{there}) {{ return {upper}_NULL; }}")
        if item.role in ("struct", "structs"):
            count = item.length or (f"({item.name} ? 1 : 0)" if item.optional else "1")
            body.append(f"    struct {prefix}_flat flat_{item.name} {upper}_FLAT = {{.size = 0}};")
            body.append(f"    {upper}_TRY(tpg_flatten_{item.ctype}({item.name}, {count}, &flat_{item.name}));")
        if item.role == "word":
            body.append(f"    {upper}_TRY({prefix}_range_word({item.name}, {item.length}));")
        if item.role in ("bits", "most"):
            body += _look(upper, Look(item.name, item.role, bound=item.length))
        if item.role == "context":
            body.append(f"    {upper}_CHECK_HANDLE(CONTEXT, {item.name}, true);")
        if item.refused:
            body.append(f"    if (!{item.name}) {{ return {item.refused}; }}")
        if item.role in ("handle", "name", "gone"):
            body.append(
                f"    {upper}_CHECK_HANDLE({item.kind.upper()}, {item.name}, {'true' if item.optional else 'false'});"
            )
        if item.role == "room":
            body += [f"    {text}" for text in _room(api, op, item)]
        if item.role == "versioned":
            body.append(f"    size_t n_{item.name};")
            body.append(f"    {upper}_VERSIONED(n_{item.name}, {item.name});")
    body += unsafe if op.line.unsafe == "last" else []
    if op.line.check:
        body.append(f"    CUresult refused = {_hook(prefix, 'check', op.line.check, prototype)};")
        done = f"refused == {upper}_DONE ? CUDA_SUCCESS : refused"
        body.append(f"    if (TP_UNLIKELY(refused != CUDA_SUCCESS)) {{ return {done}; }}")
    for item in op.fields:
        if item.role in ("new", "fresh"):
            kind = f"TPG_{item.kind.upper()}"
            owned = f"{prefix}_mint_record({kind}, (void *)(uintptr_t){item.owner})"
            mint = owned if item.owner else f"{prefix}_mint({kind})"
            body.append(f"    uint64_t new_{item.name} = {mint};")
            body.append(f"    if (!new_{item.name}) {{ return {upper}_NO_HANDLES; }}")
    if has_in:
        body.append(f"    struct tpg_{op.name}_in a = {{")
        for item in op.inputs():
            body += [f"        {text}" for text in _argument(api, item)]
        body.append("    };")
        for item in op.inputs():
            if item.role == "device":
                body.append(f"    {upper}_DEVICE(a.{item.name});")
    size = f"tpg_size_{op.name}_in(&a)" if has_in else "0"
    put = f"tpg_put_{op.name}_in(&c, &a);" if has_in else "(void)c;"
    post = op.kind == "post"
    body.append(f"    size_t wire_size = {size};")
    body.append(f"    {upper}_FITS(wire_size);")
    if post and op.line.waits:
        body.append(f"    {upper}_WAITS();")
    body.append("    struct tp_reply reply;")
    result = prototype.returns
    if op.kind == "pure":
        body.append("    unsigned char key[512];")
        body.append("    if (wire_size > sizeof key) { " + f"return {upper}_NULL; }}")
        body.append("    struct tp_cursor c = tp_cursor_make(key, wire_size);")
        body.append(f"    {put}")
        body.append(
            f'    {result} result = ({result}){prefix}_pure("{op.name}", TPG_OP_{op.name}, key, wire_size, &reply);'
        )
    else:
        lost = f"{upper}_AFTER_LOSS_OK" if op.line.after_loss == "ok" else f"{prefix}_lost()"
        if op.line.stands:
            body.append(f"    {upper}_STANDS();")
        body += ["    tp_lock_take(&tpc_turns);"] if op.line.turns else []
        body.append(f"    unsigned char *frame = {prefix}_reserve(TPG_OP_{op.name}, wire_size);")
        undo = "".join(f"{prefix}_unmint(TPG_{f.kind.upper()}, new_{f.name}); " for f in op.fields if f.role in MINTED)
        undo += "tp_lock_drop(&tpc_turns); " if op.line.turns else ""
        body.append(f"    if (!frame) {{ {undo}return {lost}; }}")
        body.append("    struct tp_cursor c = tp_cursor_make(frame, wire_size);")
        body.append(f"    {put}")
        verb = "post" if post else "call"
        body.append(f'    {result} result = ({result}){prefix}_{verb}("{op.name}", &reply);')
        body += ["    tp_lock_drop(&tpc_turns);"] if op.line.turns else []
        if op.line.after_loss == "ok" and not post:
            body.append(f"    if (result == {upper}_LOST_ERROR) {{ result = {lost}; }}")
    if op.line.noted:
        noted = _hook(prefix, "noted", op.line.noted, prototype)
        body.append(f"    if (result == {SUCCESS[api.name]}) {{ {noted}; }}")
    for item in op.fields:
        if item.role in MINTED:
            body.append(f"    if (result) {{ {prefix}_unmint(TPG_{item.kind.upper()}, new_{item.name}); }}")
        if item.role == "new":
            body.append(f"    else {{ *{item.name} = ({item.ctype})(uintptr_t)new_{item.name}; }}")
        if item.role == "gone":
            kind, value = item.kind.upper(), f"(uint64_t)(uintptr_t){item.name}"
            body.append(f"    if (!result) {{ {prefix}_unmint(TPG_{kind}, {value}); }}")
    if has_out and not post:
        body.append(f"    if (result == {SUCCESS[api.name]}) {{")
        body.append(f"        struct tpg_{op.name}_out o;")
        body.append("        struct tp_cursor r = tp_cursor_make(reply.body, reply.size);")
        body.append(f"        tpg_get_{op.name}_out(&r, &o);")
        more = "".join(f" || o.{f.name}_count > room" for f in op.outputs() if f.role == "outfilled")
        body.append(f"        if (r.bad{more}) {{ result = ({result}){prefix}_bad_reply(&reply); }} else {{")
        stored = [text for item in op.outputs() for text in _store(prefix, item)]
        if any(f.role == "room" for f in op.inputs()):
            body.append(f"            result = ({result})o.status;")
            told = f"result == {SUCCESS[api.name]} || result == {TOO_SMALL[api.name]}"
            stored = [f"if ({told}) {{", *(f"    {text}" for text in stored), "}"]
        body += [f"            {text}" for text in stored]
        body.append("        }")
        body.append("    }")
    if not post:
        body.append("    tp_reply_free(&reply);")
    body.append("    return result;")
    return [f"{_signature(api, op.line, prototype, 'sent_' if op.line.wrapped else '')} {{", *body, "}"]


def _hook(prefix: str, part: str, said: bool | str, prototype: Prototype) -> str:
    """The call of what is written by hand before a function is sent, or behind that."""
    own = f"{prefix}_{part}_{prototype.name}({', '.join(p.name for p in prototype.params)})"
    return said if isinstance(said, str) else own


def _room(api: Api, op: Op, item: Field) -> list[str]:
    """How many elements the caller has room for: no list is longer than the most that is sent."""
    arrays = [f.name for f in op.fields if f.role == "outfilled"]
    most = f"TP_{api.name.upper()}_LIST_MAX"
    missing = f"if (!{item.name}) {{ return {PREFIX[api.name].upper()}_NULL; }}"
    lines = [missing, f"unsigned int room = *{item.name} < {most} ? *{item.name} : {most};"]
    if item.optional:
        return [*lines, *(f"room = {name} ? room : 0;" for name in arrays)]
    return [*lines, *(f"if (room && !{name}) {{ return {PREFIX[api.name].upper()}_NULL; }}" for name in arrays)]


def _argument(api: Api, item: Field) -> list[str]:
    name = item.name
    if item.role in MINTED:
        return [f".{name} = new_{name},"]
    if item.role in ("struct", "structs"):
        return [f".{name} = flat_{name}.bytes,", f".{name}_size = flat_{name}.size,"]
    if item.role in ("handle", "name", "gone", "context"):
        return [f".{name} = (uint64_t)(uintptr_t){name},"]
    if item.role == "wanted":
        return [f".{name} = {name} != NULL,"]
    if item.role == "room":
        return [f".{name} = room,"]
    if item.role == "bytes":
        return [f".{name} = {name},", f".{name}_size = {name} ? {item.length} : 0,"]
    if item.role == "versioned":
        return [f".{name} = {name},", f".{name}_size = n_{name},"]
    if item.role == "handles":
        return [f".{name} = (const uint64_t *)(const void *){name},", f".{name}_count = {name} ? {item.length} : 0,"]
    if item.role == "array":
        return [f".{name} = {name},", f".{name}_count = {name} ? {item.length} : 0,"]
    return [f".{name} = {name},"]


def _store(prefix: str, item: Field) -> list[str]:
    name = item.name
    if item.role == "outstatus":
        return []
    if item.role == "outfilled":
        return [f"if (o.{name}_count) {{ memcpy({name}, o.{name}, o.{name}_count * sizeof *{name}); }}"]
    if item.role in ("out", "outwanted", "outboth", "outroom"):
        return [f"if ({name}) {{ *{name} = o.{name}; }}"]
    if item.role == "outchanged":
        count = f"o.{name}_count < a.{name}_count ? o.{name}_count : a.{name}_count"
        return [f"if ({name}) {{ memcpy({name}, o.{name}, ({count}) * sizeof *{name}); }}"]
    if item.role == "outknown":
        return [f"*{name} = ({item.ctype})(uintptr_t)o.{name};"]
    if item.role == "outfresh":
        unused = f"if (o.{name} != new_{name}) {{ {prefix}_unmint(TPG_{item.kind.upper()}, new_{name}); }}"
        return [f"*{name} = ({item.ctype})(uintptr_t)o.{name};", unused]
    if item.role == "outstruct":
        return [f"if ({name}) {{ tpg_store_{item.ctype}(&o.{name}, {name}); }}"]
    if item.role == "outkept":
        owner = f"(uint64_t)(uintptr_t){item.owner}"
        return [f"result = tpg_keep_{item.ctype}({owner}, o.{name}, o.{name}_size, {name});"]
    if item.role == "outbytes":
        size = f"o.{name}_size < {item.length} ? o.{name}_size : {item.length}"
        return [f"if ({name}) {{ memcpy({name}, o.{name}, {size}); }}"]
    if item.role == "outversioned":
        return [f"memcpy({name}, o.{name}, o.{name}_size < n_{name} ? o.{name}_size : n_{name});"]
    if item.role == "outstring":
        return [
            f"size_t n_{name} = o.{name}_size < {item.length} ? o.{name}_size : {item.length};",
            f"if ({name} && n_{name}) {{ memcpy({name}, o.{name}, n_{name}); {name}[n_{name} - 1] = 0; }}",
        ]
    return [
        f"size_t n_{name} = o.{name}_count < {item.length} ? o.{name}_count : {item.length};",
        f"if ({name}) {{ memcpy({name}, o.{name}, n_{name} * sizeof *{name}); }}",
    ]


def version_script(api: Api) -> str:
    """Linker map: exactly the names of the real library. Without a version node, as the real one has none."""
    names = "".join(f"    {n};\n" for n in api.exports)
    return f"{{\n  global:\n{names}  local:\n    *;\n}};\n"


__all__ = [
    "addresses",
    "client_header",
    "declare",
    "entries",
    "exports",
    "looked_at",
    "stubs",
    "table_header",
    "version_script",
]
