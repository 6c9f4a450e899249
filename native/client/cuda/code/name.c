/*
 * Names of kernels: one text for each name, whichever image has it, because programs compare the pointers that
 * cuFuncGetName and cuKernelGetName give (580.159.04: two modules of one image have one text for a name).
 *
 * Any thread. A text stays as long as the process, as what is told of a kernel does.
 */
#include "tpc_code.h"

#include <stdlib.h>

#define ROWS 1024u

struct name {
    struct name *next;
    size_t size;
    char text[];
};

static struct tp_lock lock;
static struct name *rows[ROWS];

static struct name **row_of(const char *text, size_t size) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    }
    return &rows[hash % ROWS];
}

const char *tpc_kernel_name(const char *text, size_t size) {
    struct name **row = row_of(text, size);
    tp_lock_take(&lock);
    struct name *at = TP_FIND(*row, it->size == size && memcmp(it->text, text, size) == 0);
    if (!at && (at = malloc(sizeof *at + size + 1))) {
        at->next = *row;
        at->size = size;
        memcpy(at->text, text, size);
        at->text[size] = 0;
        *row = at;
    }
    tp_lock_drop(&lock);
    return at ? at->text : NULL;
}
