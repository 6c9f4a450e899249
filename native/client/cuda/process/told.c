/*
 * What the program was told of an object by an address: it stays there for as long as it is right, and the object's handle lives.
 *
 * Any thread; owns the copies, whose list is guarded by a lock.
 */
#include "tpc.h"

#include <stdlib.h>

struct told {
    struct told *next;
    uint64_t handle;
    const void *form;
    size_t size;
    unsigned char bytes[] __attribute__((aligned(16)));
};

static struct tp_lock lock;
static struct told *list;

void *tpc_told(uint64_t handle, const void *form, const void *bytes, size_t size, size_t more) {
    struct told *made = calloc(1, sizeof *made + size + more + 1);
    if (!made) {
        return NULL;
    }
    *made = (struct told){.handle = handle, .form = form, .size = size};
    if (size) {
        memcpy(made->bytes, bytes, size);
    }
    tp_lock_take(&lock);
    struct told *stays = TP_TAKE(list, it->handle == handle), *gone = made;
    if (!stays || stays->form != form || stays->size != size || memcmp(stays->bytes, made->bytes, size) != 0) {
        gone = stays;
        stays = made;
    }
    TP_PUSH(list, stays);
    tp_lock_drop(&lock);
    free(gone);
    return stays->bytes;
}

void tpc_told_end(uint64_t handle) {
    tp_lock_take(&lock);
    struct told *gone = TP_TAKE(list, it->handle == handle);
    tp_lock_drop(&lock);
    free(gone);
}
