/*
 * Context-local storage: values that each copy of the CUDA runtime keeps by context and key.
 *
 * The hottest private table: the runtime looks here in almost every call, so looking takes no lock. Entries hang in fixed
 * chains, are never unlinked and keep their (context, key) for good; putting and deleting, under the lock, change only what
 * an entry holds. `held` releases value and destructor. Keys and values are addresses of the program, never followed.
 */
#include "tpc_runtime.h"

#include <stdlib.h>

#define BUCKETS 256u

typedef void destructor_function(CUcontext, void *, void *);

struct tpc_storage_entry {
    struct tpc_storage_entry *next; /* written before the entry becomes reachable */
    uint64_t context;
    void *key;
    _Atomic bool held;
    void *_Atomic value;
    destructor_function *destructor;    /* under the lock */
    struct tpc_storage_entry *detached; /* list of copies whose destructors are due */
};

static struct tpc_storage_entry *_Atomic buckets[BUCKETS];
static struct tp_lock changes;
static struct tpc_storage_entry *detached; /* of contexts that are gone and not over yet; under the lock */

static unsigned bucket_of(uint64_t context, const void *key) {
    uint64_t mixed = (context >> 4 ^ (uint64_t)(uintptr_t)key >> 3) * 0x9e3779b97f4a7c15ull;
    return (unsigned)(mixed >> 56) % BUCKETS;
}

static struct tpc_storage_entry *find(uint64_t context, const void *key) {
    return TP_FIND(atomic_load_explicit(&buckets[bucket_of(context, key)], memory_order_acquire),
                   it->context == context && it->key == key);
}

/* NULL and -1 mean the current context. */
static CUresult resolve(CUcontext ctx, uint64_t *context) {
    *context = (uint64_t)(uintptr_t)ctx;
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_state, memory_order_relaxed) == TPC_BEFORE_INIT)) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    if (*context == 0 || *context == UINT64_MAX) {
        const struct tpc_context *current = tpc_current();
        if (!current) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        *context = current->handle;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_storage_get(void **value, CUcontext ctx, void *key) {
    uint64_t context;
    TPC_TRY(resolve(ctx, &context));
    if (!value) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const struct tpc_storage_entry *entry = find(context, key);
    if (!entry || !atomic_load_explicit(&entry->held, memory_order_acquire)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *value = atomic_load_explicit(&entry->value, memory_order_relaxed);
    return CUDA_SUCCESS;
}

CUresult tpc_storage_put(CUcontext ctx, void *key, void *value, destructor_function *destructor) {
    uint64_t context;
    CUresult result = resolve(ctx, &context);
    TPC_TRY(result);
    if (!tpc_handle_alive(TPG_CONTEXT, context)) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    tp_lock_take(&changes);
    struct tpc_storage_entry *entry = find(context, key);
    if (!entry) {
        entry = calloc(1, sizeof *entry);
        if (!entry) {
            result = CUDA_ERROR_OUT_OF_MEMORY;
            goto out;
        }
        struct tpc_storage_entry *_Atomic *bucket = &buckets[bucket_of(context, key)];
        entry->context = context;
        entry->key = key;
        entry->next = atomic_load_explicit(bucket, memory_order_relaxed);
        atomic_store_explicit(bucket, entry, memory_order_release); /* pairs with the acquire in find */
    }
    entry->destructor = destructor;
    atomic_store_explicit(&entry->value, value, memory_order_relaxed);
    atomic_store_explicit(&entry->held, true, memory_order_release); /* pairs with the acquire in get */
out:
    tp_lock_drop(&changes);
    return result;
}

/* The destructor is for contexts that go; deleting is the runtime's own doing. */
CUresult tpc_storage_delete(CUcontext ctx, void *key) {
    uint64_t context;
    CUresult result = resolve(ctx, &context);
    TPC_TRY(result);
    tp_lock_take(&changes);
    struct tpc_storage_entry *entry = find(context, key);
    if (!entry || !atomic_exchange_explicit(&entry->held, false, memory_order_relaxed)) {
        result = CUDA_ERROR_INVALID_HANDLE;
    }
    tp_lock_drop(&changes);
    return result;
}

/* Takes the values out: the next life of the context begins without them. */
static void detach(const struct tpc_context *gone) {
    const uint64_t context = gone->handle;
    tp_lock_take(&changes);
    for (unsigned i = 0; i < BUCKETS; i++) {
        struct tpc_storage_entry *entry = atomic_load_explicit(&buckets[i], memory_order_relaxed);
        for (; entry; entry = entry->next) {
            if (entry->context != context || !atomic_exchange_explicit(&entry->held, false, memory_order_relaxed) ||
                !entry->destructor) {
                continue;
            }
            struct tpc_storage_entry *copy = calloc(1, sizeof *copy);
            if (!copy) {
                tp_log(TP_ERROR, "No memory to end a value of context-local storage; its destructor is not called");
                continue;
            }
            copy->context = context;
            copy->key = entry->key;
            copy->destructor = entry->destructor;
            atomic_store_explicit(&copy->value, atomic_load_explicit(&entry->value, memory_order_relaxed),
                                  memory_order_relaxed);
            copy->detached = detached;
            detached = copy;
        }
    }
    tp_lock_drop(&changes);
}
TP_REGISTER(tpc_context_gone, detach);

static struct tpc_storage_entry *next_detached(uint64_t context) {
    tp_lock_take(&changes);
    struct tpc_storage_entry **at = &detached;
    while (*at && (*at)->context != context) {
        at = &(*at)->detached;
    }
    struct tpc_storage_entry *entry = *at;
    if (entry) {
        *at = entry->detached;
    }
    tp_lock_drop(&changes);
    return entry;
}

/* Runs the destructors, which may call the driver API. */
static void end(const struct tpc_context *over) {
    struct tpc_storage_entry *entry;
    while ((entry = next_detached(over->handle)) != NULL) {
        entry->destructor((CUcontext)(uintptr_t)entry->context, entry->key,
                          atomic_load_explicit(&entry->value, memory_order_relaxed));
        free(entry);
    }
}
TP_REGISTER(tpc_context_over, end);
