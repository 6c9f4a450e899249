/*
 * Reads programs: a line `program NAME`, a line for each operation (thread, name, numbers), a line `end`.
 *
 * A number may have letters in front, for the reader: `m3`, `s0`. Main thread only. See program.h for who writes the text.
 */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NAME_OF(name, count) #name,
const char *const code_names[CODES] = {EFFECTS(NAME_OF) OTHERS(NAME_OF)};
#undef NAME_OF
#define COUNT_OF(name, count) count,
static const int counts[CODES] = {EFFECTS(COUNT_OF) OTHERS(COUNT_OF)};
#undef COUNT_OF

static int line_number;

static long long number(const char *word) {
    const char *digits = word;
    char *end;
    while ((*digits >= 'a' && *digits <= 'z') || *digits == '_')
        digits++;
    errno = 0;
    long long value = strtoll(digits, &end, 0);
    if (errno || end == digits || *end)
        stop("line %d: %s is not a number", line_number, word);
    return value;
}

static char *next_word(char **rest) {
    char *word = strtok_r(NULL, " \n", rest);
    if (!word)
        stop("line %d ends too early", line_number);
    return word;
}

static enum code code_of(const char *word) {
    for (int i = 0; i < CODES; i++)
        if (!strcmp(word, code_names[i]))
            return (enum code)i;
    stop("line %d: there is no operation %s", line_number, word);
}

static void bound(long long value, long long end, const char *what) {
    if (value < 0 || value >= end)
        stop("line %d: there is no %s %lld", line_number, what, value);
}

static struct effect effect_of(enum code code, const long long *a) {
    struct effect e = {.code = code, .height = 1, .element = 1, .from = -1, .to = -1};
    if (code != OP_empty && code != OP_child)
        e.stream = (int)a[code == OP_copy || code == OP_set || code == OP_host ? 1 : 0];
    bound(e.stream, MOST_STREAMS, "stream");
    switch (code) {
    case OP_copy: /* how stream to offset pitch from offset pitch width height */
        e.how = (int)a[0], e.to = (int)a[2], e.to_offset = (size_t)a[3], e.to_pitch = (size_t)a[4], e.from = (int)a[5];
        e.from_offset = (size_t)a[6], e.from_pitch = (size_t)a[7], e.width = (size_t)a[8], e.height = (size_t)a[9];
        break;
    case OP_set: /* how stream to offset pitch element*value width height: element in the upper bits of the how */
        e.how = (int)(a[0] & 1), e.element = 1u << (a[0] >> 1), e.to = (int)a[2], e.to_offset = (size_t)a[3];
        e.to_pitch = (size_t)a[4], e.value = (uint64_t)a[5], e.width = (size_t)a[6], e.height = (size_t)a[7];
        break;
    case OP_fill: /* stream to offset value count */
        e.to = (int)a[1], e.to_offset = (size_t)a[2], e.value = (uint64_t)a[3], e.width = (size_t)a[4], e.element = 4;
        break;
    case OP_iota: /* stream to offset count */
        e.to = (int)a[1], e.to_offset = (size_t)a[2], e.width = (size_t)a[3], e.element = 4;
        break;
    case OP_mix: /* stream to offset from offset factor count */
        e.to = (int)a[1], e.to_offset = (size_t)a[2], e.from = (int)a[3], e.from_offset = (size_t)a[4];
        e.value = (uint64_t)a[5], e.width = (size_t)a[6], e.element = 4;
        break;
    case OP_spin: /* stream microseconds */
        e.value = (uint64_t)a[1];
        break;
    case OP_host: /* what stream to offset from offset value bytes */
        e.how = (int)a[0], e.to = (int)a[2], e.to_offset = (size_t)a[3], e.from = (int)a[4];
        e.from_offset = (size_t)a[5], e.value = (uint64_t)a[6], e.width = (size_t)a[7];
        break;
    case OP_stamp: /* stream to offset value bytes */
        e.to = (int)a[1], e.to_offset = (size_t)a[2], e.value = (uint64_t)a[3], e.element = (unsigned)a[4], e.width = 1;
        break;
    case OP_child:
        e.graph = (int)a[0];
        bound(e.graph, MOST_GRAPHS, "graph");
        break;
    default:
        break;
    }
    if (e.to >= 0 || e.from >= 0) {
        bound(e.to, MOST_REGIONS, "region");
        bound(e.from < 0 ? 0 : e.from, MOST_REGIONS, "region");
    }
    return e;
}

static void read_operation(char *line, struct operation *op) {
    char *rest = NULL, *word = strtok_r(line, " \n", &rest);
    *op = (struct operation){.line = line_number};
    op->thread = (int)number(word);
    bound(op->thread, MOST_THREADS, "thread");
    op->code = code_of(next_word(&rest));
    for (int i = 0; i < counts[op->code]; i++)
        op->a[i] = number(next_word(&rest));
    if (op->code == OP_node || op->code == OP_setnode) {
        long long a[MOST_ARGUMENTS] = {0};
        enum code inner = code_of(next_word(&rest));
        bound(inner, EFFECT_CODES, "effect");
        for (int i = 0; i < counts[inner]; i++)
            a[i] = number(next_word(&rest));
        op->effect = effect_of(inner, a);
    } else if ((int)op->code < (int)EFFECT_CODES) {
        op->effect = effect_of(op->code, op->a);
    }
}

bool program_read(FILE *file, struct program *program) {
    char line[512];
    bool inside = false;
    for (int i = 0; i < program->count; i++) {
        free(program->operations[i].expected);
        free(program->operations[i].known);
    }
    program->count = 0;
    program->threads = 1;
    while (fgets(line, sizeof line, file)) {
        line_number++;
        if (!strchr(line, '\n') && strlen(line) == sizeof line - 1)
            stop("line %d is too long", line_number);
        if (line[0] == '#' || line[0] == '\n')
            continue;
        if (!inside) {
            if (sscanf(line, "program %63s", program->name) != 1)
                stop("line %d: a program begins with `program NAME`", line_number);
            inside = true;
        } else if (!strncmp(line, "end", 3)) {
            return true;
        } else {
            if (program->count == MOST_OPERATIONS)
                stop("line %d: the program has more than %d operations", line_number, MOST_OPERATIONS);
            struct operation *op = &program->operations[program->count++];
            read_operation(line, op);
            if (op->thread >= program->threads)
                program->threads = op->thread + 1;
        }
    }
    if (inside)
        stop("the last program has no `end`");
    return false;
}

void program_print(FILE *file, const struct operation *op) {
    fprintf(file, "line %d, thread %d: %s", op->line, op->thread, code_names[op->code]);
    for (int i = 0; i < counts[op->code]; i++)
        fprintf(file, " %lld", op->a[i]);
    if (op->code == OP_node || op->code == OP_setnode)
        fprintf(file, " %s", code_names[op->effect.code]);
}
