"""Operations as C: numbers, argument structs, encoders and decoders, and the test that runs all of them."""

from __future__ import annotations

from .fields import Field
from .layouts import layouts
from .model import Model, Op, padding

NOTE = "/* Generated from api/ by tensor_fusion.apigen; do not edit. */"


def _member(item: Field) -> list[str]:
    """Members of the argument struct for one field."""
    if item.is_handle:
        return [f"uint64_t {item.name};"]
    if not item.variable:
        return [f"{item.ctype} {item.name};"]
    if item.role == "in":
        return [f"const {item.ctype} *{item.name};"]
    if item.role == "string":
        return [f"const char *{item.name};"]
    if item.is_bytes:
        return [f"const void *{item.name};", f"size_t {item.name}_size;"]
    if item.role in ("handles", "names"):
        return [f"const uint64_t *{item.name};", f"size_t {item.name}_count;"]
    return [f"const {item.ctype} *{item.name};", f"size_t {item.name}_count;"]


def _element(item: Field) -> str:
    return "uint64_t" if item.role in ("handles", "names") else item.ctype


def _size(item: Field) -> str:
    """Wire size of one variable field of `a`."""
    name = f"a->{item.name}"
    if item.role == "in":
        return f"8 + ({name} ? tp_padded(sizeof(*{name})) : 0)"
    if item.role == "string":
        return f"8 + ({name} ? tp_padded(strlen({name}) + 1) : 0)"
    if item.is_bytes:
        return f"tp_array_size({name}_size, 1)"
    return f"tp_array_size({name}_count, sizeof({_element(item)}))"


def _put(item: Field) -> str:
    name = f"a->{item.name}"
    if not item.variable:
        return f"tp_put(c, &{name}, {item.size});"
    if item.role == "in":
        return f"tp_put_bytes(c, {name}, {name} ? sizeof(*{name}) : 0);"
    if item.role == "string":
        return f"tp_put_string(c, {name});"
    if item.is_bytes:
        return f"tp_put_bytes(c, {name}, {name}_size);"
    return f"tp_put_bytes(c, {name}, {name}_count * sizeof({_element(item)}));"


def _get(item: Field) -> list[str]:
    name = f"a->{item.name}"
    if not item.variable:
        return [f"tp_get(c, &{name}, {item.size});"]
    if item.role == "in":
        allowed = " && size != 0" if item.optional else ""
        return [
            f"{name} = tp_get_bytes(c, &size);",
            f"if (size != sizeof(*{name}){allowed}) {{ c->bad = true; }}",
            f"if (!size) {{ {name} = NULL; }}",
        ]
    if item.role == "string":
        lines = [f"{name} = tp_get_string(c);"]
        return lines if item.optional else [*lines, f"if (!{name}) {{ c->bad = true; }}"]
    if item.is_bytes:
        return [f"{name} = tp_get_bytes(c, &{name}_size);"]
    element = _element(item)
    return [
        f"{name} = tp_get_bytes(c, &size);",
        f"if (size % sizeof({element})) {{ c->bad = true; }}",
        f"{name}_count = size / sizeof({element});",
    ]


def _codec(op: Op, suffix: str, fields: list[Field]) -> list[str]:
    struct = f"struct tpg_{op.name}_{suffix}"
    fixed = sum(f.size for f in fields) + padding(fields)
    sizes = " + ".join([str(fixed), *(f"({_size(f)})" for f in fields if f.variable)])
    pad = padding(fields)
    scalars = [f for f in fields if not f.variable]
    variables = [f for f in fields if f.variable]
    used = "" if variables else "    (void)a;\n"
    needs_size = any(not f.is_bytes and f.role != "string" for f in variables)
    members = "".join(f"    {m}\n" for f in fields for m in _member(f))
    put = "".join(f"    {_put(f)}\n" for f in scalars)
    put += f"    tp_put(c, tpg_zeros, {pad});\n" if pad else ""
    put += "".join(f"    {_put(f)}\n" for f in variables)
    get = "    size_t size;\n" if needs_size else ""
    get += "".join(f"    {g}\n" for f in scalars for g in _get(f))
    get += f"    (void)tp_take(c, {pad});\n" if pad else ""
    get += "".join(f"    {g}\n" for f in variables for g in _get(f))
    return [
        f"{struct} {{\n{members}}};",
        f"static inline size_t tpg_size_{op.name}_{suffix}(const {struct} *a) {{\n{used}    return {sizes};\n}}",
        f"static inline void tpg_put_{op.name}_{suffix}(struct tp_cursor *c, const {struct} *a) {{\n{put}}}",
        f"static inline void tpg_get_{op.name}_{suffix}(struct tp_cursor *c, {struct} *a) {{\n{get}}}",
    ]


def schema_header(model: Model) -> str:
    """tpg_schema.h: numbers of operations and messages, kinds of handle."""
    lines = [NOTE, "#ifndef TPG_SCHEMA_H", "#define TPG_SCHEMA_H", "#include <stdint.h>", "#include <tp_layouts.h>"]
    lines += ["enum tpg_kind {", *(f"    TPG_{k.name.upper()} = {k.number}," for k in model.kinds), "};"]
    lines += [f"#define TPG_KIND_LIMIT {max(k.number for k in model.kinds) + 1}"]
    lines += ["enum tpg_opcode {", *(f"    TPG_OP_{o.name} = {o.number}," for o in model.frames), "};"]
    lines += [f"#define TPG_OP_LIMIT {max(o.number for o in model.frames) + 1}"]
    lines += [
        "extern const unsigned char tpg_schema_hash[16];",
        "/* What other builds compare with theirs, and the list that they are shown. */",
        f"#define TPG_LAYOUTS {len(layouts(model))}",
        f"#define TPG_OPERATIONS {len(model.ops)}u",
        "extern const struct tp_layout tpg_layouts[TPG_LAYOUTS];",
        "/* The functions that send an operation, for sentences. */",
        "const char *tpg_op_functions(uint16_t op);",
        "/* Name of an operation or a message for sentences; a fixed text for numbers that are none. */",
        "const char *tpg_op_name(uint16_t op);",
        "/* Name and text of an error, or NULL. */",
        *(f"const char *tpg_{api.name}_error_{what}(int error);" for api in model.apis for what in ("name", "text")),
        "#endif",
        "",
    ]
    return "\n".join(lines)


def ops_header(model: Model) -> str:
    """tpg_ops.h: argument structs with their sizes, encoders and decoders."""
    lines = [NOTE, "#ifndef TPG_OPS_H", "#define TPG_OPS_H"]
    lines += [
        "#include <tp_nvml.h>",
        "#include <tp_wire.h>",
        '#include "tpg_schema.h"',
        '#include "tpg_cuda.h"',
        '#include "tpg_nvml.h"',
    ]
    lines += ["static const unsigned char tpg_zeros[8] __attribute__((unused)) = {0};"]
    lines += ["/* What is answered to a handle of that kind that is none. */"]
    lines += ["static inline int32_t tpg_bad_handle(uint32_t kind) {", "    switch (kind) {"]
    lines += [f"    case TPG_{k.name.upper()}: return {k.refused};" for k in model.kinds]
    lines += ["    default: return CUDA_ERROR_INVALID_HANDLE;", "    }", "}"]
    bounded = [kind for kind in model.kinds if kind.most]
    lines += ["/* How many objects of that kind a client may hold. */"]
    lines += ["static inline uint32_t tpg_most(uint32_t kind) {", "    switch (kind) {"]
    lines += [f"    case TPG_{kind.name.upper()}: return {kind.most};" for kind in bounded]
    lines += ["    default: return UINT32_MAX;", "    }", "}"]
    lines += ["/* Kinds of what the driver tells of an object of that kind, which ends with it: a bit for each. */"]
    lines += ["static inline uint64_t tpg_ends_with(uint32_t kind) {", "    switch (kind) {"]
    for owner, kinds in sorted(model.ends_with.items()):
        bits = " | ".join(f"1ull << TPG_{kind.upper()}" for kind in sorted(kinds))
        lines += [f"    case TPG_{owner.upper()}: return {bits};"]
    lines += ["    default: return 0;", "    }", "}"]
    lines += ["/* The program may have been told of such an object by an address, which ends with its handle. */"]
    kept = " || ".join(f"kind == TPG_{kind.upper()}" for kind in sorted(model.kept_of)) or "false && kind"
    lines += [f"static inline bool tpg_is_told(uint32_t kind) {{ return {kept}; }}"]
    for record in model.records:
        struct = f"struct tpg_{record.name}"
        size = model.types.size(struct)
        lines += [f"{struct} {{", *(f"    {ctype} {name};" for name, ctype in record.fields.items()), "};"]
        lines += [f'_Static_assert(sizeof({struct}) == {size}, "as it travels");']
    for op in model.frames:
        for suffix, fields in (("in", op.inputs()), ("out", op.outputs())):
            if fields:
                lines += _codec(op, suffix, fields)
    return "\n".join([*lines, "#endif", ""])


def tables(model: Model) -> str:
    """tpg_tables.c: schema hash, layouts, names of operations, texts of errors."""
    rows = layouts(model)
    hash_bytes = ", ".join(f"0x{b:02x}" for b in model.schema)
    lines = [NOTE, '#include "tpg_schema.h"', "#include <stddef.h>"]
    lines += [f'__attribute__((visibility("default"))) const unsigned char tpg_schema_hash[16] = {{{hash_bytes}}};']
    lines += ["const struct tp_layout tpg_layouts[TPG_LAYOUTS] = {"]
    lines += [f"    {{0x{r.name_hash:016x}, 0x{r.hash:016x}, {r.number}, {r.flags}, 0}}, /* {r.name} */" for r in rows]
    lines += ["};"]
    lines += ["const char *tpg_op_functions(uint16_t op) {", "    switch (op) {"]
    lines += [f'    case TPG_OP_{o.name}: return "{_functions(model, o)}";' for o in model.ops if not o.prototype]
    lines += ["    default: return tpg_op_name(op);", "    }", "}"]
    lines += ['__attribute__((visibility("default"))) const char *tpg_op_name(uint16_t op) {', "    switch (op) {"]
    lines += [f'    case TPG_OP_{o.name}: return "{o.name}";' for o in model.frames]
    lines += ['    default: return "unknown operation";', "    }", "}"]
    lines += error_texts(model, '__attribute__((visibility("default"))) ')
    return "\n".join([*lines, ""])


def error_texts(model: Model, place: str) -> list[str]:
    """Names and texts of errors, as a driver has them, by functions."""
    lines = []
    for api in model.apis:
        for index, what in enumerate(("name", "text")):
            lines += [f"{place}const char *tpg_{api.name}_error_{what}(int error) {{", "    switch (error) {"]
            lines += [f'    case {code}: return "{pair[index]}";' for code, pair in sorted(api.errors.items())]
            lines += ["    default: return NULL;", "    }", "}"]
    return lines


SHOWN = 3  # functions that a sentence names


def _functions(model: Model, op: Op) -> str:
    """The functions whose lines say that they send an operation of our own; the plainest names."""
    lines = [line for api in model.apis for line in api.lines.values()]
    found = sorted((line.name for line in lines if op.name in line.ops.split()), key=len)
    more = f" and {len(found) - SHOWN} others" if len(found) > SHOWN else ""
    part = "A part of " if len(found) > 1 else ""
    return part + ", ".join(found[:SHOWN]) + more or "What the client itself asks"


def roundtrip_test(model: Model) -> str:
    """tpg_roundtrip_test.c: every encoder against its decoder, and every truncation."""
    lines = [
        NOTE,
        '#include "tpg_ops.h"',
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "static unsigned char payload[256];",
        "static int failures;",
        "static void check(int ok, const char *what, size_t at) {",
        '    if (!ok) { failures++; fprintf(stderr, "%s at %zu\\n", what, at); }',
        "}",
        "static void fill(void *memory, size_t size) {",
        "    for (size_t i = 0; i < size; i++) { ((unsigned char *)memory)[i] = (unsigned char)(rand() >> 7); }",
        "}",
    ]
    names = []
    for op in model.frames:
        for suffix, fields in (("in", op.inputs()), ("out", op.outputs())):
            if fields:
                names.append(f"test_{op.name}_{suffix}")
                lines += _test(op, suffix, fields)
    lines += ["int main(void) {", "    fill(payload, sizeof payload);"]
    lines += [f"    {n}();" for n in names]
    lines += [f'    printf("{len(names)} messages, %d failures\\n", failures);', "    return failures != 0;", "}", ""]
    return "\n".join(lines)


def _test(op: Op, suffix: str, fields: list[Field]) -> list[str]:
    name = f"{op.name}_{suffix}"
    body = [f"static void test_{name}(void) {{", f"    struct tpg_{name} a, b;"]
    body += ["    memset(&a, 0, sizeof a);", "    memset(&b, 0, sizeof b);"]
    compare = []
    for item in fields:
        member = f"a.{item.name}"
        if not item.variable:
            body.append(f"    fill(&{member}, sizeof {member});")
            compare.append(f"memcmp(&a.{item.name}, &b.{item.name}, sizeof {member}) == 0")
        elif item.role == "in":
            body.append(f"    static {item.ctype} v_{item.name};")
            body.append(f"    fill(&v_{item.name}, sizeof v_{item.name});")
            body.append(f"    {member} = &v_{item.name};")
            compare.append(f"memcmp(a.{item.name}, b.{item.name}, sizeof v_{item.name}) == 0")
        elif item.role == "string":
            body.append(f'    {member} = "a text";')
            compare.append(f"strcmp(a.{item.name}, b.{item.name}) == 0")
        elif item.is_bytes:
            body.append(f"    {member} = payload;")
            body.append(f"    {member}_size = 13;")
            compare.append(f"b.{item.name}_size == 13 && memcmp(a.{item.name}, b.{item.name}, 13) == 0")
        else:
            element = _element(item)
            body.append(f"    static {element} v_{item.name}[3];")
            body.append(f"    fill(v_{item.name}, sizeof v_{item.name});")
            body.append(f"    {member} = v_{item.name};")
            body.append(f"    {member}_count = 3;")
            compare.append(
                f"b.{item.name}_count == 3 && memcmp(a.{item.name}, b.{item.name}, sizeof v_{item.name}) == 0"
            )
    body += [
        f"    size_t size = tpg_size_{name}(&a);",
        "    unsigned char *memory = aligned_alloc(8, tp_padded(size + 8));",
        "    struct tp_cursor c = tp_cursor_make(memory, size);",
        f"    tpg_put_{name}(&c, &a);",
        f'    check(!c.bad && c.left == 0, "{name}: predicted size", size);',
        "    c = tp_cursor_make(memory, size);",
        f"    tpg_get_{name}(&c, &b);",
        f'    check(!c.bad && c.left == 0, "{name}: decoding", size);',
        f'    check(!c.bad && {" && ".join(compare)}, "{name}: values", size);',
        "    for (size_t cut = 0; cut < size; cut++) {",
        "        unsigned char *part = malloc(cut ? cut : 1);",
        "        memcpy(part, memory, cut);",
        "        c = tp_cursor_make(part, cut);",
        f"        tpg_get_{name}(&c, &b);",
        f'        check(c.bad, "{name}: truncation", cut);',
        "        free(part);",
        "    }",
        "    free(memory);",
        "}",
    ]
    return body
