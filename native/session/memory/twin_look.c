/*
 * Which pieces of a twin differ from its shadow: nobody tells what kernels wrote, so all of it is compared, by several threads.
 *
 * The executor is one of them, and goes on when all parts of its job are done. The others sleep between jobs; a part belongs to who
 * has counted it down, so one that wakes late finds none left. They read twins and shadows and write one byte for each piece, and
 * touch nothing else.
 */
#include "tpw_memory.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <tp_net.h>

#define PART (4 * (uint64_t)TP_TWIN_PIECE)
#define ALONE (8 * PART) /* bytes that are not worth waking anybody */
#define HELPERS_MOST 7
#define STACK (128u << 10)

static struct {
    const unsigned char *now, *shadow;
    unsigned char *changed;
    uint64_t size;
} job; /* stays as it is until all parts are done */
static _Atomic uint32_t left, done;
static _Atomic uint32_t jobs; /* futex */
static long helpers = -1;     /* the executor's */

static void look_at(uint64_t begin, uint64_t end) {
    for (uint64_t at = begin; at < end; at += TP_TWIN_PIECE) {
        const uint64_t size = end - at < TP_TWIN_PIECE ? end - at : TP_TWIN_PIECE;
        job.changed[at / TP_TWIN_PIECE] = memcmp(job.now + at, job.shadow + at, size) != 0;
    }
}

/* Until no part is left that nobody has. */
static void help(void) {
    uint32_t part = atomic_load(&left);
    while (part) {
        if (atomic_compare_exchange_weak(&left, &part, part - 1)) {
            const uint64_t begin = (part - 1) * PART, end = job.size - begin < PART ? job.size : begin + PART;
            look_at(begin, end);
            atomic_fetch_add(&done, 1);
            part = atomic_load(&left);
        }
    }
}

static void *helper(void *unused) {
    (void)unused;
    for (;;) {
        const uint32_t seen = atomic_load(&jobs);
        help();
        tp_futex_wait(&jobs, seen, 0);
    }
    return NULL;
}

/* Half of the processors that this process may use, at most. */
static void start(void) {
    cpu_set_t processors;
    long wanted = sched_getaffinity(0, sizeof processors, &processors) == 0 ? CPU_COUNT(&processors) / 2 : 0;
    wanted = wanted < HELPERS_MOST ? wanted : HELPERS_MOST;
    for (helpers = 0; helpers < wanted; helpers++) {
        if (tp_thread_start(NULL, "tf-look", STACK, helper, NULL) != TP_OK) {
            return;
        }
    }
}

void tpw_twin_look(const void *now, const void *shadow, uint64_t size, unsigned char *changed) {
    const uint32_t parts = (uint32_t)((size + PART - 1) / PART);
    job.now = now;
    job.shadow = shadow;
    job.size = size;
    job.changed = changed;
    if (size <= ALONE) {
        look_at(0, size);
        return;
    }
    if (helpers < 0) {
        start();
    }
    atomic_store(&done, 0);
    atomic_store(&left, parts);
    atomic_fetch_add(&jobs, 1);
    tp_futex_wake(&jobs, (int)helpers);
    help();
    while (atomic_load(&done) < parts) {
        sched_yield(); /* others have the last parts */
    }
}
