/*
 * Single calls of the driver API with good and bad arguments: what the runner and the maker of arguments share.
 *
 * Everything here runs in a child process that may crash: the parent never loads a driver.
 */
#ifndef CALLS_H
#define CALLS_H

#include "tpg_cuda.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MOST_ARGUMENTS = 16, MOST_OUTPUTS = 16 };

/* An argument that the call may write: what it was filled with, and how it is told afterwards. */
struct output {
    unsigned char *bytes;
    size_t size;
    char
        what; /* i: a number, q: one that the call reads, too, p: a handle or an address, v: a value that differs from run to run, b: other bytes */
};

struct arguments {
    uint64_t value[MOST_ARGUMENTS];
    int count;
    struct output outputs[MOST_OUTPUTS];
    int output_count;
};

void *find(const char *name); /* ends the process with a sentence if the driver does not have it */
void *find_or_null(const char *name);
_Noreturn void stop(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Makes the objects that the words of `line` may name, in the current context; again for each case, so that one does not see
 * another's. */
void objects_make(const char *kernels_ptx, const char *line);
void objects_end(void);
CUstream object_stream(void); /* the good one */
/* Before cuInit there are no objects: every handle is then this address of zeroed memory. */
void objects_none(void);

/* The value of a word. Grammar: see fuzz.py. */
uint64_t argument_of(const char *word, struct arguments *arguments);
void arguments_free(void);

#endif
