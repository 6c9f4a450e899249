"""Structs as C: the client's checks and flattening, the session's decoding and rebuilding, and the way back.

A struct travels as its image and the elements of its lists. The image has the struct's layout, zeroed, with only the
fields that count: handles are the client's, pointers are 0. No pointer of the other side is ever believed: the session
writes each one itself.
"""

from __future__ import annotations

from .emit_wire import NOTE
from .model import Model
from .structs import Group, Member, Struct


def client_structs(model: Model) -> str:
    """tpg_client_structs.h: for each struct its checks and its flattening."""
    lines = [NOTE, "#ifndef TPG_CLIENT_STRUCTS_H", "#define TPG_CLIENT_STRUCTS_H"]
    lines += ['#include "tpc_memory.h"', '#include "tpg_cuda.h"', "#include <stdlib.h>", "#include <tp_extent.h>"]
    for struct in _of(model, "cuda"):
        for field in _by_hand(struct):
            lines.append(f"CUresult tpc_size_{field}(const {struct.name} *from, size_t *size);")
            lines.append(f"void tpc_put_{field}(const {struct.name} *from, struct tp_cursor *c);")
        lines += _image(struct)
        lines += _tails(model, struct, "check", "size_t *size")
        lines += _tails(model, struct, "put", "struct tp_cursor *c")
        lines += _flatten(struct)
        lines += _store(struct)
        lines += _keep(struct)
    return "\n".join([*lines, "#endif", ""])


def told_structs(model: Model) -> str:
    """tpg_nvml_structs.h: the client's structs of NVML, which are only told."""
    lines = [
        NOTE,
        "#ifndef TPG_NVML_STRUCTS_H",
        "#define TPG_NVML_STRUCTS_H",
        '#include "tpg_nvml.h"',
        "#include <string.h>",
    ]
    for struct in _of(model, "nvml"):
        lines += _store(struct)
    return "\n".join([*lines, "#endif", ""])


def _of(model: Model, api: str) -> list[Struct]:
    """The structs that the header of that API declares."""
    known = {str(entry["name"]) for x in model.apis if x.name == api for entry in x.snapshot.types}
    return [struct for struct in model.structs.values() if struct.name in known]


def session_structs(model: Model) -> str:
    """tpg_session_structs.h: for each struct its rebuilding and the way back."""
    lines = [NOTE, "#ifndef TPG_SESSION_STRUCTS_H", "#define TPG_SESSION_STRUCTS_H"]
    lines += ['#include "tpg_cuda.h"', '#include "tpw_graph.h"', '#include "tpw_memory.h"', "#include <tp_extent.h>"]
    for struct in model.structs.values():
        for field in _by_hand(struct):
            head = f"void tpw_take_{field}(struct tpw_session *s, const struct tp_frame *frame, struct tp_cursor *c,"
            lines.append(f"{head} uint64_t by, const {struct.name} *from, {struct.name} *to, int32_t *error);")
        lines += _take(struct)
        lines += _take_list(struct)
        lines += _give(struct)
        lines += _tell(struct)
    return "\n".join([*lines, "#endif", ""])


def has_tails(model: Model, struct: Struct) -> bool:
    """Whether it has lists, itself or in a struct that is inside it."""
    return any(
        m.role in ("structs", "hand") or (m.role == "struct" and has_tails(model, model.structs[m.kind]))
        for m in struct.flat()
    )


def _by_hand(struct: Struct) -> list[str]:
    """Names of the fields whose functions are written by hand, as those functions have them."""
    return [f"{struct.name}_{m.path.replace('.', '_')}" for m in struct.flat() if m.role == "hand"]


def _walk(struct: Struct, side: _Side) -> list[str]:
    """Statements for all members; those of a group inside a switch over its tag."""
    lines: list[str] = []
    for member in struct.members:
        if isinstance(member, Group):
            lines += _switch(member, side)
        else:
            lines += side.statements(member)
    return lines


def _switch(group: Group, side: _Side) -> list[str]:
    cases: list[str] = []
    for value, members in group.cases:
        inside = [f"        {line}" for m in members for line in side.statements(m)]
        cases += [f"    case {value}:", *inside, "        break;"]
    for value in group.refused:
        cases += [f"    case {value}:", f"        {side.unserved(group.tag, value)}"]
    return [f"switch (from->{group.tag}) {{", *cases, "    default:", f"        {side.refuse(side.invalid)}", "}"]


class _Side:
    """How one side treats a member."""

    invalid = "CUDA_ERROR_INVALID_VALUE"

    def refuse(self, error: str) -> str:
        """Leaves the function, or the case, with an error."""
        raise NotImplementedError

    def unserved(self, tag: str, value: str) -> str:
        """The same for a value that is not served."""
        return self.refuse("CUDA_ERROR_NOT_SUPPORTED")

    def role(self, member: Member) -> list[str]:
        """Statements for a member whose role is none of those below."""
        raise NotImplementedError

    def statements(self, member: Member) -> list[str]:
        """Statements for one member, under its condition."""
        path = member.path
        if member.role == "value":
            return [f"to->{path} = from->{path};"]
        if member.role == "array":
            return [f"memcpy(&to->{path}, &from->{path}, sizeof to->{path});"]
        lines = self.role(member)
        if member.when and lines:
            field, value = member.when
            inside = [f"    {line}" for line in lines]
            if member.role == "token":
                return [f"if (from->{field} == {value}) {{", *inside, "}"]
            return [f"if (from->{field} == {value}) {{", *inside, "} else {", f"    to->{path} = from->{path};", "}"]
        return lines


class _ClientSide(_Side):
    def refuse(self, error: str) -> str:
        return f"return {error};"

    def unserved(self, tag: str, value: str) -> str:
        return f'{{ static _Atomic bool said; return tpc_unserved(&said, "{tag}", "{value}"); }}'

    def role(self, member: Member) -> list[str]:
        path, role = member.path, member.role
        copied = f"to->{path} = from->{path};"
        if role == "zero":
            return [f"if (!tp_is_zero(&from->{path}, sizeof from->{path})) {{ return CUDA_ERROR_INVALID_VALUE; }}"]
        if role == "null":
            return [f"if (from->{path}) {{ return CUDA_ERROR_NOT_SUPPORTED; }}"]
        if role == "device":
            return [copied, f"TPC_DEVICE(to->{path});"]
        if role in ("handle", "known", "context"):
            optional = "true" if member.optional or role == "context" else "false"
            if member.refused:
                alive = f"tpc_handle_alive(TPG_{member.kind.upper()}, (uint64_t)(uintptr_t)from->{path})"
                return [f"if (!{alive}) {{ return {member.refused}; }}", copied]
            return [f"TPC_CHECK_HANDLE({(member.kind or 'context').upper()}, from->{path}, {optional});", copied]
        if role in ("number", "placed"):
            return [copied]
        if role == "token":
            return [f"memcpy(&to->{path}, &from->{path}, sizeof to->{path});"]
        if role == "word":
            return [copied, f"TPC_TRY(tpc_range_word(from->{path}, {member.length}));"]
        if role == "dev":
            covered = f"tpc_range_covers((uint64_t)(uintptr_t)from->{path}, {member.length.replace('@', 'from->')})"
            return [copied, f"if (!{covered}) {{ return CUDA_ERROR_INVALID_VALUE; }}"]
        if role == "struct":
            return [f"TPC_TRY(tpg_image_{member.kind}(&from->{path}, &to->{path}));"]
        return []  # none; the lists are behind the image


class _SessionSide(_Side):
    def __init__(self, struct: Struct) -> None:
        self.struct = struct

    def refuse(self, error: str) -> str:
        return f"tpw_set(error, {error}); break;"

    def role(self, member: Member) -> list[str]:
        path, role = member.path, member.role
        if role == "device":
            return [f"to->{path} = from->{path};", f"tpw_check_device(s, from->{path}, error);"]
        if role in ("handle", "known"):
            handle, kind = f"(uint64_t)(uintptr_t)from->{path}", member.kind.upper()
            optional = "true" if member.optional else "false"
            call = f"tpw_native(s, frame, TPG_{kind}, {handle}, {optional}, error)"
            keep = f"tpw_keep(s, frame, by, TPG_{kind}, {handle}, error);"
            return [f"to->{path} = ({member.ctype})(uintptr_t){call};", keep]
        if role == "number":
            return [f"to->{path} = from->{path};"]
        if role == "word":
            check = f"tpw_check_word(s, from->{path}, {member.length}, error);"
            return [f"to->{path} = from->{path};", check]
        if role == "context":
            return [f"to->{path} = tpw_context_of(s, frame, (uint64_t)(uintptr_t)from->{path}, by, error);"]
        if role in ("dev", "placed"):
            extent = member.length.replace("@", "from->")
            check = f"tpw_check_range(s, (uint64_t)(uintptr_t)from->{path}, {extent}, error);"
            return [f"to->{path} = from->{path};", check]
        if role == "struct":
            return [f"tpg_rebuild_{member.kind}(s, frame, c, by, &from->{path}, &to->{path}, error);"]
        if role == "structs":
            count = member.length.replace("@", "from->")
            return [f"to->{path} = tpg_take_some_{member.kind}(s, frame, c, by, {count}, error);"]
        if role == "token":
            kept = f'tpw_token_take("{self.struct.name}", from->{path}, sizeof from->{path}, to, sizeof *to)'
            return [f"if (!{kept}) {{ tpw_set(error, {member.refused}); }}"]
        if role == "hand":
            field = f"{self.struct.name}_{path.replace('.', '_')}"
            return [f"tpw_take_{field}(s, frame, c, by, from, to, error);"]
        return []  # zero, none and null stay 0


class _BackSide(_Side):
    """The session's image of what the driver has told."""

    def __init__(self, struct: Struct) -> None:
        self.struct = struct

    def refuse(self, error: str) -> str:
        return "break;"

    def role(self, member: Member) -> list[str]:
        path, role = member.path, member.role
        if role in ("device", "dev", "placed", "word", "number"):
            return [f"to->{path} = from->{path};"]
        if role == "token":
            return [f'tpw_token_give("{self.struct.name}", from, sizeof *from, to->{path}, sizeof to->{path}, error);']
        if role in ("handle", "known", "context"):
            kind = (member.kind or "context").upper()
            known = f"tpw_known(s, TPG_{kind}, (uint64_t)(uintptr_t)from->{path})"
            return [f"to->{path} = ({member.ctype})(uintptr_t){known};"]
        if role == "struct":
            return [f"tpg_give_{member.kind}(s, &from->{path}, &to->{path}, error);"]
        return []


class _StoreSide(_Side):
    """The client's struct from the session's image."""

    def refuse(self, error: str) -> str:
        return "break;"

    def role(self, member: Member) -> list[str]:
        path, role = member.path, member.role
        if role == "device":
            return [f"to->{path} = tpc_device_of(from->{path});"]
        if role in ("handle", "known", "context", "dev", "placed", "word", "number"):
            return [f"to->{path} = from->{path};"]
        if role == "token":
            return [f"memcpy(&to->{path}, &from->{path}, sizeof to->{path});"]
        if role == "struct":
            return [f"tpg_store_{member.kind}(&from->{path}, &to->{path});"]
        return []


def _function(head: str, body: list[str]) -> list[str]:
    return [f"static inline __attribute__((unused)) {head} {{", *(f"    {line}" for line in body), "}"]


def _image(struct: Struct) -> list[str]:
    body = ["memset(to, 0, sizeof *to);", *_walk(struct, _ClientSide()), "return CUDA_SUCCESS;"]
    return _function(f"CUresult tpg_image_{struct.name}(const {struct.name} *from, {struct.name} *to)", body)


class _TailSide(_Side):
    """Lists and structs with lists, for their check or their bytes."""

    def __init__(self, model: Model, struct: Struct, verb: str) -> None:
        self.model, self.struct, self.verb = model, struct, verb

    def refuse(self, error: str) -> str:
        return "break;"

    def statements(self, member: Member) -> list[str]:
        path, argument = member.path, "size" if self.verb == "check" else "c"
        wrap = "TPC_TRY({});" if self.verb == "check" else "{};"
        if member.role == "struct" and has_tails(self.model, self.model.structs[member.kind]):
            return [wrap.format(f"tpg_{self.verb}_tails_{member.kind}(&from->{path}, {argument})")]
        if member.role == "hand":
            verb = "size" if self.verb == "check" else "put"
            call = f"tpc_{verb}_{self.struct.name}_{path.replace('.', '_')}(from, {argument})"
            return [wrap.format(call)]
        if member.role != "structs":
            return []
        count = member.length.replace("@", "from->")
        null = [f"if (!from->{path} && {count}) {{ return CUDA_ERROR_INVALID_VALUE; }}"] if self.verb == "check" else []
        call = wrap.format(f"tpg_{self.verb}_{member.kind}(&from->{path}[i], {argument})")
        return [*null, f"for (uint64_t i = 0; i < {count}; i++) {{ {call} }}"]


def _tails(model: Model, struct: Struct, verb: str, argument: str) -> list[str]:
    """tpg_<verb>_S for the image and all that follows, tpg_<verb>_tails_S for what follows."""
    name, result = struct.name, "CUresult" if verb == "check" else "void"
    done = ["return CUDA_SUCCESS;"] if verb == "check" else []
    lines: list[str] = []
    tails: list[str] = []
    if has_tails(model, struct):
        body = _walk(struct, _TailSide(model, struct, verb))
        lines += _function(f"{result} tpg_{verb}_tails_{name}(const {name} *from, {argument})", [*body, *done])
        call = f"tpg_{verb}_tails_{name}(from, {argument.rpartition('*')[2]})"
        tails = [f"TPC_TRY({call});" if verb == "check" else f"{call};"]
    body = [f"{name} image;"]
    if verb == "check":
        body += ["TPC_TRY(tpg_image_" + name + "(from, &image));", "*size += sizeof image;"]
        body += ["if (*size > TP_FRAME_MAX) { return CUDA_ERROR_INVALID_VALUE; }"]
    else:
        body += [f"(void)tpg_image_{name}(from, &image); /* was checked; the session checks it again */"]
        body += ["tp_put(c, &image, sizeof image);"]
    return lines + _function(f"{result} tpg_{verb}_{name}(const {name} *from, {argument})", [*body, *tails, *done])


def _flatten(struct: Struct) -> list[str]:
    name = struct.name
    body = [
        "size_t size = 0;",
        f"for (size_t i = 0; i < count; i++) {{ TPC_TRY(tpg_check_{name}(&list[i], &size)); }}",
        "if (!tpc_flat_make(flat, size)) { return CUDA_ERROR_OUT_OF_MEMORY; }",
        "struct tp_cursor c = tp_cursor_make(flat->bytes, size);",
        f"for (size_t i = 0; i < count; i++) {{ tpg_put_{name}(&list[i], &c); }}",
        "return CUDA_SUCCESS;",
    ]
    head = f"CUresult tpg_flatten_{name}(const {name} *list, size_t count, struct tpc_flat *flat)"
    return _function(head, body)


def _take(struct: Struct) -> list[str]:
    name = struct.name
    forward = f"static inline __attribute__((unused)) {name} *tpg_take_some_{name}(struct tpw_session *s,"
    forward += " const struct tp_frame *frame, struct tp_cursor *c, uint64_t by, uint64_t count, int32_t *error);"
    head = f"void tpg_rebuild_{name}(struct tpw_session *s, const struct tp_frame *frame, struct tp_cursor *c,"
    head += f" uint64_t by, const {name} *from, {name} *to, int32_t *error)"
    body = ["(void)s, (void)frame, (void)c, (void)by, (void)error;", "memset(to, 0, sizeof *to);"]
    body += _walk(struct, _SessionSide(struct))
    return [forward, *_function(head, body)]


def _take_list(struct: Struct) -> list[str]:
    name = struct.name
    head = f"{name} *tpg_take_some_{name}(struct tpw_session *s, const struct tp_frame *frame, struct tp_cursor *c,"
    head += " uint64_t by, uint64_t count, int32_t *error)"
    body = [
        f"{name} from;",
        "if (count > c->left / sizeof from) { c->bad = true; return NULL; }",
        f"{name} *list = count ? tpw_scratch(s, count, sizeof from, error) : NULL;",
        "for (uint64_t i = 0; list && i < count; i++) {",
        "    tp_get(c, &from, sizeof from);",
        f"    tpg_rebuild_{name}(s, frame, c, by, &from, &list[i], error);",
        "}",
        "return list;",
    ]
    return _function(head, body)


def _give(struct: Struct) -> list[str]:
    name = struct.name
    body = ["(void)s, (void)error;", "memset(to, 0, sizeof *to);", *_walk(struct, _BackSide(struct))]
    head = f"void tpg_give_{name}(struct tpw_session *s, const {name} *from, {name} *to, int32_t *error)"
    return _function(head, body)


def _store(struct: Struct) -> list[str]:
    name = struct.name
    body = ["memset(to, 0, sizeof *to);", *_walk(struct, _StoreSide())]
    return _function(f"void tpg_store_{name}(const {name} *from, {name} *to)", body)


def _lists(struct: Struct) -> list[Member]:
    """Lists of which nothing says whether they count."""
    return [m for m in struct.members if isinstance(m, Member) and m.role == "structs"]


def _tell(struct: Struct) -> list[str]:
    """The session's image of what the driver has told, with its lists behind it."""
    name, lists = struct.name, _lists(struct)
    if not lists:
        return []
    counts = [m.length.replace("@", "from->") for m in lists]
    room = " + ".join(f"{c} * sizeof *from->{m.path}" for m, c in zip(lists, counts, strict=True))
    body = [
        f"uint64_t room = sizeof *from + {room};",
        "unsigned char *bytes = tpw_scratch(s, room, 1, error), *at = bytes + sizeof *from;",
        "if (!bytes) { return NULL; }",
        "*size = room;",
        f"tpg_give_{name}(s, from, ({name} *)(void *)bytes, error);",
    ]
    for member, count in zip(lists, counts, strict=True):
        kind = member.kind
        give = f"tpg_give_{kind}(s, &from->{member.path}[i], ({kind} *)(void *)at, error);"
        body.append(f"for (uint64_t i = 0; i < {count}; i++, at += sizeof({kind})) {{ {give} }}")
    head = f"const void *tpg_tell_{name}(struct tpw_session *s, const {name} *from, size_t *size, int32_t *error)"
    return _function(head, [*body, "return bytes;"])


def _keep(struct: Struct) -> list[str]:
    """The client's struct from that, its lists kept for the object that has them."""
    name, lists = struct.name, _lists(struct)
    if not lists:
        return []
    body = [
        f"{name} image, *from = &image;",
        "const unsigned char *at = bytes;",
        "if (size < sizeof image) { return CUDA_ERROR_UNKNOWN; }",
        "memcpy(&image, at, sizeof image);",
        f"tpg_store_{name}(from, to);",
        "at += sizeof image;",
        "size -= sizeof image;",
    ]
    for member in lists:
        count, kind = member.length.replace("@", "from->"), member.kind
        body += [
            f"if ({count} > size / sizeof({kind})) {{ return CUDA_ERROR_UNKNOWN; }}",
            f"{kind} *{member.path} = calloc({count} + 1, sizeof({kind})), one;",
            f"for (uint64_t i = 0; {member.path} && i < {count}; i++) {{",
            "    memcpy(&one, at + i * sizeof one, sizeof one);",
            f"    tpg_store_{kind}(&one, &{member.path}[i]);",
            "}",
            f"to->{member.path} = {member.path} ? tpc_told(owner, NULL, {member.path}, {count} * sizeof one, 0)"
            " : NULL;",
            f"free({member.path});",
            f"if (!to->{member.path}) {{ return CUDA_ERROR_OUT_OF_MEMORY; }}",
            f"at += {count} * sizeof one;",
            f"size -= {count} * sizeof one;",
        ]
    head = f"CUresult tpg_keep_{name}(uint64_t owner, const void *bytes, size_t size, {name} *to)"
    return _function(head, [*body, "return CUDA_SUCCESS;"])
