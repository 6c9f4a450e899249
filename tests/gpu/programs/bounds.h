/* What the parts of bounds.c share: the context they measure in, series of samples, the lines they print.
 *
 * Every part prints one JSON object a line, as soon as it has it, so that a run that is cut short leaves what it had:
 * {"row": …} for a series with all its samples, {"absent": …, "why": …} for what this driver or machine does not have,
 * {"info": …} for what is to be known of a measurement. One thread unless a part says otherwise.
 */
#ifndef TENSOR_FUSION_TESTS_BOUNDS_H
#define TENSOR_FUSION_TESTS_BOUNDS_H

#include "cu.h"

#include <stdatomic.h>
#include <stdbool.h>

enum { COLUMNS = 4, NAME_SIZE = 40, KIB = 1024, MIB = 1024 * 1024 };

struct bounds {
    CUcontext context;
    CUstream stream; /* of our own, not the default one */
    CUmodule kernels;
    CUfunction fill, spin; /* fill_u32 and spin_ns of kernels.ptx */
    unsigned turns;        /* samples wanted of each row */
    size_t most_bytes;     /* of the largest copy */
    uint64_t begun_ns, limit_ns;
};
extern struct bounds bounds;

/* Samples of one variant: nanoseconds in up to COLUMNS columns, 0 where a variant has no such call. */
struct series {
    const char *variant;
    uint32_t *values; /* [turns][COLUMNS] */
    unsigned count, wrong;
};

void series_open(struct series *series, const char *variant);
/* Adds a sample, ignored when there are enough; `right` says whether the value that came was the one sent. */
void series_add(struct series *series, const uint64_t columns[COLUMNS], bool right);
/* Prints {"row": {head…, "variant": …, "columns": …, "samples": …}} and frees the samples. `head` is JSON members. */
void series_print(struct series *series, const char *const columns[COLUMNS], const char *head);

/* {"absent": NAME, "why": WHY}. */
void say_absent(const char *part, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A new order of 0 … count-1 in each turn: what runs before a variant must not always be the same. */
void shuffle(unsigned *order, unsigned count);

/* Whether group `index` of `groups` may take another turn: each has an equal part of the time, and at least a few turns. */
bool time_left(unsigned index, unsigned groups, unsigned turn);

/* Waits until the GPU has written `value`; ends the program with a sentence when it does not come. */
void poll_word(const _Atomic uint64_t *word, uint64_t value, const char *who);

void launch_fill(CUdeviceptr to, uint32_t value, size_t words, CUstream stream);

/* Memory that the driver pins, by where it comes from. */
struct pinned {
    const char *name;
    unsigned char *memory; /* NULL: not there */
    CUdeviceptr device;
    size_t size;
    bool registered;
    int fd;
};
/* False after saying why where this machine has no such memory. */
bool pinned_alloc(struct pinned *pinned, const char *part, const char *name, size_t size);
void pinned_free(struct pinned *pinned);
/* Of what pages it consists, as the kernel says. */
void pinned_say(const struct pinned *pinned);

void bounds_readback(void);
void bounds_copies(void);
void bounds_calls(void);
void bounds_stack(void);

#endif
