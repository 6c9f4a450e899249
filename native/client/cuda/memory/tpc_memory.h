/*
 * Memory: ranges by address, pinned memory and its twins, what an address means.
 *
 * Any thread. What is read here was written by this process, or was bounded when it came from the worker.
 */
#ifndef TPC_MEMORY_H
#define TPC_MEMORY_H

#include "tpc_stream.h"
#include "tpg_ops.h"

/* One row of device memory. */
static inline struct tpg_area tpc_line(uint64_t address, uint64_t size) {
    return (struct tpg_area){.address = address, .pitch = size, .width = size, .height = 1};
}

/* ---- range.c, memory.c ---- */
/* Kinds of address, by the interval map of everything that was allocated. */
enum tpc_where { TPC_DEVICE_MEMORY, TPC_PINNED };
struct tpc_range {
    uint64_t start, size;
    enum tpc_where where;
    struct tpc_context *context;
    int device; /* of a pool, whose memory may lie elsewhere than the context: ordinal of the program */
    unsigned long long buffer_id;
    unsigned int flags;      /* host memory: flags of the allocation; VMM: 1 */
    uint64_t device_address; /* host memory: where kernels reach it (a twin, or the shared segment), 0 = nowhere */
    void *detail;
};
/* Copies the range that holds `address`; false when none does. */
bool tpc_range_at(uint64_t address, struct tpc_range *out);
void tpc_range_add(const struct tpc_range *range);
/* CUDA_ERROR_INVALID_CONTEXT where memory has to lend its own (`lender` in api/; 580.159.04, asked), or what is wrong with the current one. */
CUresult tpc_own_context(uint64_t address);
bool tpc_lend_memory(uint64_t address); /* as tpc_lend */
/* True when the device reaches [address, address+size): memory of one allocation, or of mappings side by side. */
bool tpc_range_covers(uint64_t address, uint64_t size);
/* The same for a word that a stream writes or waits for: aligned to its size, and not in memory of a pool, which the driver
 * refuses (580.159.04). Pinned memory that the GPU does not reach at its address here is refused with a sentence. */
CUresult tpc_range_word(uint64_t address, uint64_t size);
bool tpc_range_remove(uint64_t start, struct tpc_range *out);
/* Before work of the GPU: kernels and copies on the worker see a twin of mapped host memory, which must hold what the program wrote. */
void tpc_twins_push_all(void);
static inline void tpc_twins_push(void) {
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_twins, memory_order_relaxed))) {
        tpc_twins_push_all();
    }
}

/* In tpc_range.flags, above the flags that CUDA defines: what made the range. A range without any belongs to another
 * family (a module's global) and cannot be freed. */
enum tpc_range_made {
    TPC_MADE_ALLOC = 1 << 16, /* cuMemAlloc */
    TPC_MADE_POOL = 2 << 16, /* cuMemAllocAsync; detail: handle of the pool, 0 = the device's current one at the time */
    TPC_MADE_MAP = 3 << 16,  /* cuMemMap; detail: its struct tpc_mapping */
    TPC_MADE_HOST = 4 << 16, /* cuMemHostAlloc; detail: struct tpc_host */
    TPC_MADE_REGISTER = 5 << 16, /* cuMemHostRegister; detail: struct tpc_host */
    TPC_MADE_TWIN = 6 << 16,     /* device side of mapped host memory; detail: struct tpc_host */
    TPC_MADE_ARENA = 7 << 16,    /* cuMemHostAlloc inside the shared segment; detail: struct tpc_host */
    TPC_MADE_MANAGED = 8
        << 16,                /* cuMemAllocManaged; detail: struct tpc_managed; device_address: the stream that a touch
                                  * waits for, 0 = all */
    TPC_MADE_GRAPH = 9 << 16, /* addresses of nodes of graphs, whatever is allocated there */
    TPC_MADE_IPC = 10 << 16,  /* cuIpcOpenMemHandle; detail: its handle, and how often it is open */
    TPC_MADE_MASK = 15 << 16,
    TPC_SYNC_MEMOPS = 1 << 20,
};
#define TPC_FLAGS_CUDA 0xffffu

/* ---- range.c ---- */
/* False when it overlaps what is there, or without memory. Gives it a buffer id if it has none. */
bool tpc_range_insert(const struct tpc_range *range);
/* Changes a range in place; `change` runs under the lock. False if none begins at `start`. */
bool tpc_range_change(uint64_t start, void (*change)(struct tpc_range *range, uint64_t value), uint64_t value);
/* The first range that begins at `address` or later; false when there is none. */
bool tpc_range_next(uint64_t address, struct tpc_range *out);
bool tpc_range_touches(uint64_t start, uint64_t size);
/* The context that device memory belongs to: of a mapping, its device's primary one. */
const struct tpc_context *tpc_range_context(const struct tpc_range *range);

/* ---- memory.c ---- */
/* True for an address that only device memory can have. */
bool tpc_is_device_address(uint64_t address);

CUresult tpc_memory_take(const char *name, struct tpc_context *context, uint64_t size, CUdeviceptr *out);

/* The addresses that this process keeps free for the worker's; false when it could not. */
bool tpc_reserved(uint64_t *base, uint64_t *size);

/* ---- managed.c, managed_api.c ---- */
/* Managed allocations with pages that the program can touch, and that work of the GPU may use. */
extern _Atomic uint32_t tpc_managed_open;
/* Takes such pages from the program, before work is sent. */
CUresult tpc_managed_leave(void);
#define TPC_MANAGED_LEAVE()                                                                                            \
    (TP_LIKELY(!atomic_load_explicit(&tpc_managed_open, memory_order_relaxed)) ? CUDA_SUCCESS : tpc_managed_leave())
/* The same of one managed allocation: a copy or a memset is about to use it. */
CUresult tpc_managed_use(const struct tpc_range *range);
CUresult tpc_managed_free(uint64_t start);
/* The managed memory that a batch names. */
CUresult tpc_batch_check(const CUdeviceptr *addresses, const size_t *sizes, size_t count, unsigned long long flags,
                         CUstream stream);
/* A managed variable of an image, which the worker's driver has in that block: pages of this process are put there, or it is
 * refused with a sentence. On success *range is how to note it. And: it was noted, and has ended. */
CUresult tpc_managed_variable(struct tpc_range *range, uint64_t block, uint64_t block_size);
void tpc_managed_variable_gone(const struct tpc_range *range);

/* ---- pool.c ---- */
/* Of handles of pools: a device's, the program's, such as other processes may have, and such as another process has made. */
enum tpc_pool_kind { TPC_POOL_DEFAULT, TPC_POOL_OWN, TPC_POOL_SHAREABLE, TPC_POOL_IMPORTED, TPC_POOL_KINDS };
uint64_t tpc_pool_mint(CUdevice device, enum tpc_pool_kind kind); /* 0: no more, or no such device */
bool tpc_pool_is(uint64_t pool, enum tpc_pool_kind kind);
/* The pools of a device and of a place, and memory from one (`named`, or the current one of the stream's device): what the functions
 * about those are made by (api/, "by" and "finds"). */
CUresult tpc_pool_default(CUdevice device, uint64_t *out);
CUresult tpc_pool_current(CUdevice device, uint64_t *out);
CUresult tpc_pool_by_place(CUmemoryPool *out, const CUmemLocation *location, CUmemAllocationType type, bool current);
CUresult tpc_pool_attribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value, bool store);
CUresult tpc_pool_take(const char *name, CUdeviceptr *dptr, size_t size, uint64_t pool, bool named, CUstream stream);
/* Nodes of graphs have these addresses now: with others of theirs they are one block. False without memory for it. */
bool tpc_graph_block(uint64_t start, uint64_t size, int device);
/* Before a post that the driver may refuse at once because of memory of graphs: it is waited for while there is any. */
CUresult tpc_graph_memory_asks(void);

/* ---- ipc.c ---- */
/* A descriptor for the program that means what the handle means, and the other end, which hears of the end of its last copy. */
CUresult tpc_descriptor_give(const CUipcMemHandle *handle, int *out, int *end);
bool tpc_descriptor_read(int fd, CUipcMemHandle *handle); /* false: it is of something else */

/* ---- pool_local.c ---- */
/* A pool of managed or of pinned host memory; NULL: another. */
struct tpc_local_pool;
struct tpc_local_pool *tpc_pool_local(uint64_t handle);
/* The pool of a place for managed memory, or for pinned memory of the host: its own, or the current one; and setting that. */
CUresult tpc_pool_of_place(const CUmemLocation *at, bool managed, bool current, CUmemoryPool *out);
CUresult tpc_pool_for_place(const CUmemLocation *at, bool managed, uint64_t handle);
/* A pool is destroyed: places where it is current go back to their own. False for one that is a place's own. */
bool tpc_pool_leaves_places(uint64_t handle);
/* Whether there can be one, and of which device the worker's pool beside it is. */
CUresult tpc_pool_local_props(const CUmemPoolProps *props, CUdevice *device);
/* Access of devices and of the host; the second says whether the pool is one of these. */
CUresult tpc_pool_local_set_access(uint64_t handle, const CUmemAccessDesc *map, size_t count);
bool tpc_pool_local_get_access(uint64_t handle, const CUmemLocation *at, CUmemAccess_flags *flags);
bool tpc_pool_local_add(uint64_t handle, const CUmemPoolProps *props);
/* In a stream of that context. */
CUresult tpc_pool_local_alloc(struct tpc_local_pool *pool, size_t size, CUcontext owner, CUstream stream,
                              CUdeviceptr *out);
/* The pool that memory came from; 0: none of these. */
uint64_t tpc_pool_local_of(const struct tpc_range *range);
/* Memory that begins there and is of such a pool; else CUDA_ERROR_INVALID_VALUE. */
CUresult tpc_pool_local_free(uint64_t start, CUstream stream);
/* Memory of it has gone; 0 is no pool. */
void tpc_pool_local_freed(uint64_t handle, uint64_t size);
/* False for what the worker knows. */
bool tpc_pool_local_attribute(uint64_t handle, CUmemPool_attribute attribute, bool store, void *value,
                              CUresult *result);
/* For it, in managed_api.c and hostmem.c: the address is free at once, the pages when the stream gets here. */
CUresult tpc_managed_free_behind(uint64_t start, CUstream stream);
CUresult tpc_host_free_behind(uint64_t start, CUstream stream);

/* ---- mapped.c ---- */
struct tpc_host {
    struct tpc_host *next;
    unsigned char *memory;
    size_t size, mapped; /* mapped: bytes of our own mapping, 0 for registered memory */
    unsigned int flags;
    uint64_t twin;         /* address on the worker, 0 = none */
    unsigned char *shadow; /* what both sides last agreed on */
    bool tracked;          /* the kernel tells which pages were written */
    uint64_t pool;         /* that it came from, 0 = none */
};
/* Kernels do not write into it, and it may be read only for this process, too. */
static inline bool tpc_is_read_only(const struct tpc_host *host) {
    return !host->mapped && (host->flags & CU_MEMHOSTREGISTER_READ_ONLY);
}
/* The device address of a byte of pinned memory, making the twin if there is none. */
CUresult tpc_host_device_address(uint64_t address, CUdeviceptr *out);
/* A twin is to be made of the memory: who cannot have that sets *refused, and says why. */
typedef void tpc_twin_wanted(const struct tpc_range *range, bool *refused);
TP_LIST(tpc_twin_wanted);
/* Pinned memory that is in no range any more: its twin ends, and the record with it. */
void tpc_host_end(struct tpc_host *host);

/* ---- written.c ---- */
struct tpc_written {
    uint64_t start, end;
};
/* The pages that lie in [start, start+size) as a whole: what can be tracked of it. */
struct tpc_written tpc_written_pages(uint64_t start, uint64_t size);
/* From now on the kernel notes which of these pages are written; false where it cannot. `ours`: nobody else has the memory. */
bool tpc_written_begin(uint64_t start, uint64_t size, bool ours);
void tpc_written_over(uint64_t start, uint64_t size);
/* Stretches of whole pages from *at on, before `end`, that were written since they were told last; moves *at behind what was looked at.
 * What is not known counts as written. */
size_t tpc_written_next(uint64_t *at, uint64_t end, struct tpc_written *out, size_t most);

/* ---- hostmem.c ---- */
/* Where [memory, memory+size) begins in the shared segment; 0 unless all of it lies in one pinned allocation there. */
uint64_t tpc_host_offset(const void *memory, uint64_t size);
/* Whether every page of it is mapped in this process. */
bool tpc_pages_there(const void *p, size_t size);
/* True for an address that the device reaches and whose bytes lie on the host. */
bool tpc_is_mapped_host(uint64_t address);
/* Whether it lies where its twin may have the same address. */
bool tpc_has_place(const struct tpc_range *range);

/* ---- reach.c ---- */
/* Pinned memory whose host address is not the device's was made; or it has ended, or has become the device's. */
void tpc_unreached_add(const struct tpc_range *range);
void tpc_unreached_remove(const struct tpc_range *range);
/* How many pieces there are. Where there are any, a launch has its parameters looked at. */
extern _Atomic unsigned int tpc_unreached;
/* What a kernel is to get for a parameter that may be an address: 0 in *there for the value itself, or the device address of
 * pinned memory; memory that it cannot reach is refused. */
CUresult tpc_reach(const char *name, unsigned int parameter, uint64_t value, CUdeviceptr *there);
/* Bytes that go to the device and may hold addresses: of memory that the program means kernels to reach, and that can have one
 * address on both sides, there is a twin then. */
CUresult tpc_reach_hidden(const void *bytes, size_t size);

/* ---- place.c ---- */
bool tpc_at_device(uint64_t address); /* whether unified addressing takes it for one of a device */
/* Where a copy or a memset finds [address, address+size): at an address of the device, or in host memory of this process. */
struct tpc_place {
    bool device;
    bool read_only; /* host memory that was registered so */
    uint64_t address;
};
/* Of one that is to be memory of the device, which pinned memory by its host address is, too; 1 if neither holds all of it. */
CUresult tpc_place_device(uint64_t address, uint64_t size, struct tpc_place *out);
/* Of one that is to be host memory, which memory of the device is, too: cuBLAS downloads a result of PennyLane's there. */
CUresult tpc_place_host(uint64_t address, uint64_t size, struct tpc_place *out);
/* Of one that the address decides about. */
CUresult tpc_place_either(uint64_t address, uint64_t size, struct tpc_place *out);

#endif
