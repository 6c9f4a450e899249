/*
 * A program of driver calls as data: what the parser, the oracle and the interpreter share.
 *
 * A program is a list of operations, one a line (docs: README.md beside this file). The parser fills `struct program`; the
 * oracle runs it on ordinary memory in the order of the lines and notes what each check must find; the interpreter makes
 * the calls. Programs come from generate.py, which sees to it that the order of the lines is one of the orders that CUDA
 * allows and that all of them give the same bytes. They are trusted; what is wrong in one ends the process with a sentence.
 */
#ifndef RANDOM_PROGRAM_H
#define RANDOM_PROGRAM_H

#include "tpg_cuda.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    MOST_REGIONS = 96,
    MOST_STREAMS = 32,
    MOST_EVENTS = 48,
    MOST_GRAPHS = 48,
    MOST_EXECS = 32,
    MOST_POOLS = 8,
    MOST_NODES = 48,
    MOST_THREADS = 4,
    MOST_CONTEXTS = 2,
    MOST_OPERATIONS = 2048,
    MOST_ARGUMENTS = 12,
    FIRST_STREAM = 3, /* 0: NULL, 1: CU_STREAM_LEGACY, 2: CU_STREAM_PER_THREAD */
};

/* Name and number of arguments. What touches memory as work of a stream comes first: those may stand in nodes, too. */
/* clang-format off */
#define EFFECTS(F) \
    F(copy, 10) F(set, 8) F(fill, 5) F(iota, 4) F(mix, 7) F(spin, 2) F(host, 8) F(stamp, 5) F(empty, 1) \
    F(child, 1)
#define OTHERS(F) \
    F(barrier, 0) F(alloc, 2) F(vmm, 2) F(managed, 2) F(pageable, 2) F(pinned, 3) F(registered, 3) F(pool_alloc, 3) \
    F(pool_from, 4) F(free, 1) F(pool_free, 2) F(pool, 1) F(pool_destroy, 1) F(stream, 3) F(stream_destroy, 1) \
    F(stream_sync, 1) F(stream_poll, 1) F(stream_done, 1) F(ctx_sync, 0) F(context, 1) F(event, 2) \
    F(event_destroy, 1) F(record, 2) F(wait, 2) F(event_sync, 1) F(event_poll, 1) F(event_ask, 1) \
    F(event_done, 1) F(elapsed, 2) F(put, 4) F(check, 3) F(peek, 3) F(host_mix, 6) F(graph, 1) F(node, 3) \
    F(setnode, 3) F(inst, 3) F(launch, 2) F(upload, 2) F(clone, 2) F(update, 2) F(graph_destroy, 1) \
    F(exec_destroy, 1) F(capture, 2) F(end_capture, 2)
/* clang-format on */

#define NAME_OF(name, count) OP_##name,
enum code { EFFECTS(NAME_OF) OTHERS(NAME_OF) CODES };
#undef NAME_OF
enum { EFFECT_CODES = OP_child + 1 };

enum copy_how {
    COPY_TYPED,
    COPY_UVA,
    COPY_TYPED_ASYNC,
    COPY_UVA_ASYNC,
    COPY_2D,
    COPY_2D_UNALIGNED,
    COPY_2D_ASYNC,
    COPY_3D,
    COPY_3D_ASYNC
};
enum host_what { HOST_PUT, HOST_MIX, HOST_COPY };

/* The bytes that an operation reads and writes. Rows of `width` elements of `element` bytes. */
struct effect {
    enum code code;
    int how, stream;
    int to, from; /* regions */
    size_t to_offset, to_pitch, from_offset, from_pitch, width, height;
    unsigned element;
    uint64_t value;
    int graph; /* of a child */
};

struct operation {
    int line, thread;
    enum code code;
    long long a[MOST_ARGUMENTS];
    struct effect effect;      /* of effects, `node` and `setnode` */
    uint8_t *expected, *known; /* of checks, by the oracle */
};

struct program {
    char name[64];
    int count, threads;
    struct operation operations[MOST_OPERATIONS];
};

extern const char *const code_names[CODES];

/* The next program of `file` into `program`; false at its end. Releases what the one before held. */
bool program_read(FILE *file, struct program *program);
void program_print(FILE *file, const struct operation *operation);

/* What an effect does to memory, given where its regions lie; used for host functions and by the oracle. */
void host_apply(enum host_what what, uint8_t *to, const uint8_t *from, uint64_t value, size_t bytes);

/* Fills `expected` and `known` of every check. */
void oracle_run(struct program *program);

/* Makes the calls. Returns only if every call gave what it must and every check found its bytes. */
void interpreter_start(const char *library, const char *kernels_folder);
void interpreter_run(struct program *program);
/* Where each thread is, for a program that hangs. */
void interpreter_tell_places(void);
/* Which streams have work left, as far as the driver tells it; may not return where the driver itself hangs. */
void interpreter_tell_streams(void);

_Noreturn void stop(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The sentence about an operation that went wrong, and the end of the process. */
_Noreturn void fail(const struct operation *operation, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
