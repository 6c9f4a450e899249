/*
 * Context-local storage: values that each copy of the CUDA runtime keeps by context and key.
 *
 * The hottest private table: the runtime looks here in almost every call, so looking takes no lock. Entries hang in fixed
 * chains, are never unlinked and keep their (context, key) for good; putting and deleting, under the lock, change only what
 * an entry holds. `held` releases value and destructor. Keys and values are addresses of the program, never followed.
 */
#include "tpc_local.h"

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
    struct tpc_storage_entry *detached; /* list of copies for tpc_storage_end */
};

static struct tpc_storage_entry *_Atomic buckets[BUCKETS];
static struct tp_lock changes;

static unsigned bucket_of(uint64_t context, const void *key) {
    uint64_t mixed = (context >> 4 ^ (uint64_t)(uintptr_t)key >> 3) * 0x9e3779b97f4a7c15ull;
    return (unsigned)(mixed >> 56) % BUCKETS;
}

static struct tpc_storage_entry *find(uint64_t context, const void *key) {
    struct tpc_storage_entry *entry = atomic_load_explicit(&buckets[bucket_of(context, key)], memory_order_acquire);
    while (entry && (entry->context != context || entry->key != key)) {
        entry = entry->next;
    }
    return entry;
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
    CUresult result = resolve(ctx, &context);
    if (result != CUDA_SUCCESS) {
        return result;
    }
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
    if (result != CUDA_SUCCESS) {
        return result;
    }
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
    if (result != CUDA_SUCCESS) {
        return result;
    }
    tp_lock_take(&changes);
    struct tpc_storage_entry *entry = find(context, key);
    if (!entry || !atomic_exchange_explicit(&entry->held, false, memory_order_relaxed)) {
        result = CUDA_ERROR_INVALID_HANDLE;
    }
    tp_lock_drop(&changes);
    return result;
}

struct tpc_storage_entry *tpc_storage_detach(uint64_t context) {
    struct tpc_storage_entry *list = NULL;
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
            copy->detached = list;
            list = copy;
        }
    }
    tp_lock_drop(&changes);
    return list;
}

void tpc_storage_end(struct tpc_storage_entry *list) {
    while (list) {
        struct tpc_storage_entry *next = list->detached;
        list->destructor((CUcontext)(uintptr_t)list->context, list->key,
                         atomic_load_explicit(&list->value, memory_order_relaxed));
        free(list);
        list = next;
    }
}
