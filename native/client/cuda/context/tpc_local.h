/*
 * What the files that answer without the worker share: devices, contexts, private tables.
 *
 * Included by device.c, context*.c, limits.c, export_table*.c and procaddress.c only; other files use tpc.h. Memory read here
 * is written by this process alone, except for the device descriptions, which device.c bounds when they arrive.
 */
#ifndef TPC_LOCAL_H
#define TPC_LOCAL_H

#include "tpc.h"

/* Highest CUDA version that the tables of this library cover (api/procaddress.json). */
#define TPC_TABLE_VERSION 13000

/* ---- state.c ---- */
/* Connects and runs the `start` operation once, which fills in tpc_driver_version and the devices. */
CUresult tpc_start(void);

/* ---- device.c ---- */
/* A device ordinal of the program, or the error to return. */
static inline bool tpc_device_valid(int device) { return device >= 0 && device < tpc_device_count; }

/* ---- context.c ---- */
/* A record behind a handle of ours; never freed, because any thread's stack may still name it after its destruction. */
struct tpc_context_record {
    struct tpc_context base; /* first: tables and the rest of the client see only this */
    _Atomic bool info_known; /* the fields below and base.limits; released after them */
    int32_t limit_results[TP_DEVICE_LIMITS];
    int priority_low, priority_high;
};
/* Mints the handles of the primary contexts. Called once, when the devices are known. */
CUresult tpc_contexts_start(void);
/* The primary context of a device of the program; made by tpc_contexts_start. */
struct tpc_context_record *tpc_primary(int device);
/* The current context; CUDA_ERROR_INVALID_CONTEXT without one, CUDA_ERROR_CONTEXT_IS_DESTROYED when it is gone. */
CUresult tpc_current_living(struct tpc_context **out);
/* The same for a context argument, where NULL means the current one. */
CUresult tpc_context_argument(CUcontext handle, struct tpc_context **out);

/* ---- limits.c ---- */
/* Limits and priorities as a fresh context of that device has them, if the device description told. */
void tpc_limits_fresh(struct tpc_context_record *record);

/* ---- export_table_storage.c ---- */
struct tpc_storage_entry;
/* Takes the context's entries out of the storage; tpc_storage_end runs their destructors, which may call the driver API. */
struct tpc_storage_entry *tpc_storage_detach(uint64_t context);
void tpc_storage_end(struct tpc_storage_entry *entries);
CUresult tpc_storage_put(CUcontext ctx, void *key, void *value, void (*destructor)(CUcontext, void *, void *));
CUresult tpc_storage_delete(CUcontext ctx, void *key);
CUresult tpc_storage_get(void **value, CUcontext ctx, void *key);

/* ---- export_table_integrity.c ---- */
CUresult tpc_integrity_check(uint32_t version, uint64_t unix_seconds, uint64_t result[2]);

/* ---- export_table.c: addresses that the integrity check signs ---- */
const void *tpc_runtime_table(void);
const void *tpc_integrity_table(void);
extern const void *const tpc_compile_cache_table[7];

/* ---- md2.c ---- */
/* HMAC (RFC 2104) over MD2 (RFC 1319) of the concatenated message. */
void tpc_hmac_md2(const void *key, size_t key_size, const void *message, size_t size, unsigned char digest[16]);
void tpc_md2(const void *message, size_t size, unsigned char digest[16]);

/* ---- device.c, for its test ---- */
/* Which of `count` devices CUDA_VISIBLE_DEVICES names, in that order; returns how many. */
int tpc_visible(const char *variable, const struct tp_device_description *devices, int count, int *order);

#endif
