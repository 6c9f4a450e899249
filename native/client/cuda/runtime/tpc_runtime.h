/*
 * What the files about private tables share.
 *
 * Any thread. Keys, values and addresses are the program's; nothing here comes from the worker.
 */
#ifndef TPC_RUNTIME_H
#define TPC_RUNTIME_H

#include "tpc.h"

/* ---- export_table_storage.c ---- */
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

#endif
