/*
 * The program's threads as callers: their numbers, and what is kept for each while it waits for a reply.
 *
 * Owns the table of callers, which grows by blocks and is never freed, because a reply may be on its way to one whose thread is
 * gone. Entered by every thread of the program, and by the key's destructor when a thread ends. Only this process writes it;
 * thread numbers that arrive from the worker go through tpc_caller_find, which bounds them.
 */
#include "conn_internal.h"

#include <stdlib.h>

#define BLOCK 256u
#define BLOCKS 1024u

static struct tpc_caller *_Atomic blocks[BLOCKS];
static struct {
    struct tp_lock lock;
    _Atomic uint32_t count;
    struct tpc_caller *free;
} table;
static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static bool key_valid;
static _Thread_local struct tpc_caller *self;

/* Handed out when there is no memory for a caller: number 0, whose frames tp_reserve refuses. */
static struct tpc_caller nobody;

static void thread_ends(void *caller_pointer) {
    struct tpc_caller *caller = caller_pointer;
    self = NULL;
    tp_lock_take(&table.lock);
    caller->next_free = table.free;
    table.free = caller;
    tp_lock_drop(&table.lock);
}

static void make_key(void) { key_valid = pthread_key_create(&key, thread_ends) == 0; }

static struct tpc_caller *new_caller(void) {
    struct tpc_caller *caller = table.free;
    if (caller) {
        table.free = caller->next_free;
        return caller;
    }
    uint32_t index = atomic_load_explicit(&table.count, memory_order_relaxed);
    if (index >= BLOCK * BLOCKS) {
        return NULL;
    }
    struct tpc_caller *block = atomic_load_explicit(&blocks[index / BLOCK], memory_order_relaxed);
    if (!block) {
        block = calloc(BLOCK, sizeof *block);
        if (!block) {
            return NULL;
        }
        atomic_store_explicit(&blocks[index / BLOCK], block, memory_order_release);
    }
    caller = &block[index % BLOCK];
    caller->thread.number = index + 1;
    atomic_store_explicit(&table.count, index + 1, memory_order_release);
    return caller;
}

static __attribute__((noinline)) struct tpc_caller *first_use(void) {
    pthread_once(&key_once, make_key);
    tp_lock_take(&table.lock);
    struct tpc_caller *caller = new_caller();
    tp_lock_drop(&table.lock);
    if (!caller) {
        tp_log(TP_ERROR, "No memory for the state of another thread; its CUDA calls fail");
        return &nobody;
    }
    caller->thread.context = 0;
    self = caller;
    if (key_valid) {
        pthread_setspecific(key, caller);
    }
    return caller;
}

struct tpc_caller *tpc_caller_self(void) {
    struct tpc_caller *caller = self;
    return TP_LIKELY(caller != NULL) ? caller : first_use();
}

struct tp_thread *tp_thread_self(void) { return &tpc_caller_self()->thread; }

uint32_t tpc_caller_count(void) { return atomic_load_explicit(&table.count, memory_order_acquire); }

struct tpc_caller *tpc_caller_find(uint32_t number) {
    if (number < 1 || number > tpc_caller_count()) {
        return NULL;
    }
    struct tpc_caller *block = atomic_load_explicit(&blocks[(number - 1) / BLOCK], memory_order_acquire);
    return &block[(number - 1) % BLOCK];
}

/* A child must find the table whole, whatever other threads were doing: it may still open a connection of its own. */
void tpc_threads_fork_prepare(void) { tp_lock_take(&table.lock); }
void tpc_threads_fork_done(void) { tp_lock_drop(&table.lock); }
void tpc_threads_fork_child(void) {
    tp_lock_drop(&table.lock);
    if (self) {
        self->thread.context = 0; /* the parent's contexts are not the child's */
    }
}
