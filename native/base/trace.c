/*
 * How the values of a call are shown: arguments and result as one text, by the tables of tp_trace.h.
 *
 * Any thread, also in a child after fork: there is no lock, the text is the caller's. Pointers are the program's and may lead
 * anywhere: what they lead to is copied by the kernel, which answers with an error where nothing is. Every value and the whole
 * text are bounded.
 */
#include "tp_trace.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define TEXT_MOST 64u   /* characters of a string */
#define ARRAY_MOST 4u   /* elements of an array in a struct */
#define COPY_MOST 2048u /* bytes of a struct */
#define PAGE 4096u      /* or a multiple, where pages are larger: it only cuts a copy in two */

/* ---- memory of the program ---- */

/* Copies up to `size` bytes; how many there are. */
static size_t peek(uint64_t from, void *to, size_t size) {
    size_t done = 0;
    while (done < size) { /* page by page: of a string at the end of its page the rest may not be there */
        size_t piece = PAGE - (size_t)((from + done) % PAGE);
        piece = piece < size - done ? piece : size - done;
        struct iovec into = {(char *)to + done, piece}, at = {(void *)(uintptr_t)(from + done), piece};
        if (process_vm_readv(getpid(), &into, 1, &at, 1, 0) != (ssize_t)piece) {
            break;
        }
        done += piece;
    }
    return done;
}

/* ---- the line ---- */

static void __attribute__((format(printf, 2, 3))) add(struct tp_trace_text *t, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(t->at + t->used, sizeof t->at - t->used, format, arguments);
    va_end(arguments);
    size_t room = sizeof t->at - 1 - t->used;
    t->used += n < 0 ? 0 : (size_t)n < room ? (size_t)n : room;
}

static bool is_full(const struct tp_trace_text *t) { return t->used >= sizeof t->at - 1; }

/* Bytes of the program as a string that is one whatever they are. */
static void add_quoted(struct tp_trace_text *t, const char *bytes, size_t size, bool whole) {
    add(t, "\"");
    for (size_t i = 0; i < size && bytes[i]; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        const char *before = byte == '"' || byte == '\\' ? "\\" : "";
        add(t, "%s%c", before, byte < 0x20 || byte >= 0x7f ? '?' : byte);
    }
    add(t, whole ? "\"" : "\"...");
}

static void add_string(struct tp_trace_text *t, uint64_t address) {
    char bytes[TEXT_MOST];
    size_t size = peek(address, bytes, sizeof bytes);
    if (size) {
        add_quoted(t, bytes, size, memchr(bytes, 0, size) != NULL);
    } else {
        add(t, "%#llx", (unsigned long long)address);
    }
}

static long long signed_of(const void *value, size_t size) {
    signed char one;
    short two;
    int four;
    long long eight;
    switch (size) {
    case 1:
        memcpy(&one, value, sizeof one);
        return one;
    case 2:
        memcpy(&two, value, sizeof two);
        return two;
    case 4:
        memcpy(&four, value, sizeof four);
        return four;
    default:
        memcpy(&eight, value, sizeof eight);
        return eight;
    }
}

static unsigned long long unsigned_of(const void *value, size_t size) {
    unsigned long long bits = (unsigned long long)signed_of(value, size);
    return size < 8 ? bits & ((1ull << (8 * size)) - 1) : bits;
}

static double real_of(const void *value, size_t size) {
    float single;
    double whole;
    if (size == sizeof single) {
        memcpy(&single, value, sizeof single);
        return (double)single;
    }
    memcpy(&whole, value, sizeof whole);
    return whole;
}

static const char *name_of(const struct tp_tables *tables, const struct tp_type *type, long long value) {
    const struct tp_named *names = tables->named + type->list;
    size_t low = 0, high = type->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (names[middle].value == value) {
            return tables->names + names[middle].name;
        }
        if (names[middle].value < value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

static void add_value(struct tp_trace_text *t, const struct tp_type *type, const void *value, bool written);

/* `size` bytes of it are there. */
static void add_struct(struct tp_trace_text *t, const struct tp_type *type, const unsigned char *bytes, size_t size) {
    const struct tp_member *members = t->tables->members + type->list;
    add(t, "{");
    for (unsigned i = 0; i < type->count && !is_full(t); i++) {
        const struct tp_member *m = &members[i];
        const struct tp_type *of = &t->tables->types[m->type];
        size_t each = of->size;
        if (m->offset + each * m->count > size) {
            add(t, "%s...", i ? ", " : "");
            break;
        }
        add(t, "%s%s=", i ? ", " : "", t->tables->names + m->name);
        if (m->text) {
            add_quoted(t, (const char *)bytes + m->offset, m->count < TEXT_MOST ? m->count : TEXT_MOST, true);
            continue;
        }
        add(t, m->count > 1 ? "[" : "");
        for (unsigned k = 0; k < m->count && k < ARRAY_MOST; k++) {
            add(t, k ? ", " : "");
            add_value(t, of, bytes + m->offset + k * each, false);
        }
        add(t, m->count > ARRAY_MOST ? ", ...]" : m->count > 1 ? "]" : "");
    }
    add(t, "}");
}

/* What a pointer leads to. */
static void add_target(struct tp_trace_text *t, const struct tp_type *type, uint64_t address) {
    unsigned char bytes[COPY_MOST];
    size_t size = type->size < sizeof bytes ? type->size : sizeof bytes;
    size = peek(address, bytes, size);
    if (type->form == TP_STRUCT) {
        const struct tp_member *first = t->tables->members + type->list;
        if (size >= 4 && !first->offset && strcmp(t->tables->names + first->name, "version") == 0) {
            size_t says =
                (size_t)unsigned_of(bytes, 4) & 0xffffff; /* a struct that tells its size may be an older one */
            size = says < size ? says : size;
        }
        if (size) {
            add(t, "->");
            add_struct(t, type, bytes, size);
        }
    } else if (size && size == type->size) {
        add(t, "->");
        add_value(t, type, bytes, true);
    }
}

/* `written`: the call has succeeded, so pointers that it writes through lead to what it wrote. */
static void add_value(struct tp_trace_text *t, const struct tp_type *type, const void *value, bool written) {
    const char *name = NULL;
    uint64_t address;
    switch (type->form) {
    case TP_SIGNED:
        name = type->count ? name_of(t->tables, type, signed_of(value, type->size)) : NULL;
        if (name) {
            add(t, "%s", name);
        } else {
            add(t, "%lld", signed_of(value, type->size));
        }
        return;
    case TP_UNSIGNED:
        add(t, "%llu", unsigned_of(value, type->size));
        return;
    case TP_REAL:
        add(t, "%g", real_of(value, type->size));
        return;
    case TP_STRUCT:
        add_struct(t, type, value, type->size);
        return;
    case TP_UNKNOWN:
        add(t, "...");
        return;
    default:
        break;
    }
    memcpy(&address, value, sizeof address);
    name = type->form == TP_ADDRESS && type->count ? name_of(t->tables, type, (long long)address) : NULL;
    if (name || !address) {
        add(t, "%s", name ? name : "NULL");
        return;
    }
    bool follow = type->form != TP_ADDRESS && (written || !type->count);
    if (follow && type->form == TP_TEXT) {
        add_string(t, address);
        return;
    }
    add(t, "%#llx", (unsigned long long)address);
    if (follow) {
        add_target(t, &t->tables->types[type->to], address);
    }
}

static void add_result(struct tp_trace_text *t, const struct tp_type *type, const void *result) {
    add(t, ") = ");
    add_value(t, type, result, true);
    if (type->form == TP_SIGNED) {
        add(t, " (%lld)", signed_of(result, type->size));
    }
}

void tp_trace_show(struct tp_trace_text *t, const struct tp_tables *tables, const struct tp_call *call,
                   const void *const *values, const void *result, bool succeeded) {
    const struct tp_argument *arguments = tables->arguments + call->arguments;
    t->tables = tables;
    t->used = 0;
    add(t, "(%s", call->known ? "" : "...");
    for (unsigned i = 0; i < call->count && !is_full(t); i++) {
        const struct tp_argument *a = &arguments[i];
        add(t, "%s%s=%s", i ? ", " : "", tables->names + a->name, a->together > 1 ? "(" : "");
        for (unsigned last = i + a->together - 1;; i++) {
            add_value(t, &tables->types[arguments[i].type], values[i], succeeded);
            if (i == last) {
                break;
            }
            add(t, ",");
        }
        add(t, a->together > 1 ? ")" : "");
    }
    if (is_full(t)) {
        t->used -= 96; /* the result is shown all the same */
        add(t, "...");
    }
    add_result(t, &tables->types[call->returns], result);
}
