// Pools that other processes may have: descriptors of pools, and what is passed on of their pointers.
//
// A pool gets a file when it is first exported, as large as the device's space; a pointer that is exported has its bytes moved into
// it, to where they lie in that space. Importers map that part of the file into places of their own. So memory that the pool
// gives out again while somebody still has it open is seen there, as with the driver; and all of it lives as long as
// anybody has the pool, whoever has died. A pool that was imported gives no memory, has no attributes, is not passed on and is not
// destroyed while memory of it is open; a pointer that is imported twice is open once, and stays so when a context ends
// (580.159.04, measured). Any thread; files and ranges are under the map lock.
#include "sim_graph.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((uint64_t)SIM_SHARE_PAGE)
#define MAGIC 0x6c6f6f706d697331ull // "1simpool"

// What is exported of a pointer.
struct pointer {
    uint64_t magic, number, offset, size, check, zero[3];
};
_Static_assert(sizeof(struct pointer) == sizeof(CUmemPoolPtrExportData), "cuda.h");

static uint64_t check_of(const struct pointer *pointer) {
    const uint64_t fields[] = {pointer->magic, pointer->number, pointer->offset, pointer->size};
    uint64_t sum = 14695981039346656037ull;
    for (size_t i = 0; i < sizeof fields; i++)
        sum = (sum ^ ((const unsigned char *)fields)[i]) * 1099511628211ull;
    return sum;
}

void sim_pool_unmove(sim_range_t *range) {
    const sim_device_t *device = &sim.devices[range->device];
    const uint64_t offset = range->base - device->arena;
    if (range->moved && !sim_share_place(range->device, offset, range->extent, device->backing_fd, offset))
        sim_complain("%llu bytes of a device's addresses are lost", (unsigned long long)range->extent);
}

void sim_pool_unshare(sim_pool_t *pool) {
    if (pool->shared)
        close(pool->descriptor);
}

// ---- Out ---------------------------------------------------------------------------------------------------------

// Under the map lock.
static CUresult share(sim_pool_t *pool) {
    const sim_share_page_t page = {.magic = SIM_SHARED_POOL,
                                   .size = sim_device_size(pool->device),
                                   .pool = pool->props,
                                   .number = sim_now_ns() * 4096 + (uint64_t)getpid()};
    int fd = page.size ? sim_share_file(&page) : -1;
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    pool->shared = true;
    pool->descriptor = fd;
    pool->number = page.number;
    return CUDA_SUCCESS;
}

CUresult cuMemPoolExportToShareableHandle(void *handle_out, CUmemoryPool pool, CUmemAllocationHandleType handleType,
                                          unsigned long long flags) {
    SIM_ENTER();
    SIM_UNSAFE();
    sim_pool_t *found = sim_pool_find(pool);
    if (!handle_out || flags || handleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !found || found->imported ||
        !(found->props.handleTypes & handleType))
        return CUDA_ERROR_INVALID_VALUE;
    if (found->props.handleTypes & CU_MEM_HANDLE_TYPE_FABRIC)
        return CUDA_ERROR_NOT_PERMITTED; // without a fabric
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = found->shared ? CUDA_SUCCESS : share(found);
    int copy = result == CUDA_SUCCESS ? fcntl(found->descriptor, F_DUPFD_CLOEXEC, 0) : -1;
    pthread_rwlock_unlock(&sim.map_lock);
    if (copy >= 0)
        memcpy(handle_out, &copy, sizeof copy);
    else if (result == CUDA_SUCCESS)
        result = CUDA_ERROR_OPERATING_SYSTEM;
    return result;
}

// Under the map lock: its bytes go into the pool's file.
static CUresult move(sim_range_t *range) {
    const uint64_t offset = range->base - sim.devices[range->device].arena;
    const int fd = range->pool->descriptor;
    if (range->moved)
        return CUDA_SUCCESS;
    if (!sim_share_copy(range->device, offset, range->extent, fd, offset) ||
        !sim_share_place(range->device, offset, range->extent, fd, offset)) {
        sim_complain("%llu bytes of a pool cannot be moved into its file", (unsigned long long)range->extent);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    range->moved = true;
    return CUDA_SUCCESS;
}

// Its pool must have been exported before (580.159.04, measured).
CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *shareData_out, CUdeviceptr ptr) {
    SIM_ENTER();
    SIM_UNSAFE();
    if (!shareData_out)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(ptr);
    bool ours = range && range->base == ptr && range->kind == SIM_RANGE_DEVICE && !range->free_queued && range->pool &&
                range->pool->shared;
    CUresult result = ours ? move(range) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) {
        struct pointer pointer = {.magic = MAGIC,
                                  .number = range->pool->number,
                                  .offset = range->base - sim.devices[range->device].arena,
                                  .size = range->size};
        pointer.check = check_of(&pointer);
        memcpy(shareData_out, &pointer, sizeof pointer);
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

// ---- In ----------------------------------------------------------------------------------------------------------

static CUresult import(CUmemoryPool *out, int fd, const sim_share_page_t *page) {
    const CUmemLocation *where = &page->pool.location;
    if (where->type != CU_MEM_LOCATION_TYPE_DEVICE || !sim_device_ok(where->id))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_pool_t *pool = calloc(1, sizeof *pool);
    if (!pool)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *pool = (sim_pool_t){.device = where->id,
                         .props = page->pool,
                         .shared = true,
                         .imported = true,
                         .descriptor = fd,
                         .number = page->number};
    pool->access[pool->device] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (!sim_pool_add(pool)) {
        free(pool);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = (CUmemoryPool)(void *)pool;
    return CUDA_SUCCESS;
}

// A pool that is imported again has the handle that it has (580.159.04, measured).
CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *pool_out, void *handle, CUmemAllocationHandleType handleType,
                                            unsigned long long flags) {
    SIM_BEGINS(pool_out, NULL);
    SIM_ENTER();
    SIM_UNSAFE();
    const unsigned known =
        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_WIN32 | CU_MEM_HANDLE_TYPE_FABRIC;
    if (!pool_out || !handle || flags || !(handleType & known))
        return CUDA_ERROR_INVALID_VALUE;
    if (handleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_NOT_SUPPORTED;
    sim_share_page_t page;
    int fd = fcntl((int)(intptr_t)handle, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return CUDA_ERROR_UNKNOWN;
    CUresult result = !sim_share_look(fd, &page)      ? CUDA_ERROR_UNKNOWN
                      : page.magic != SIM_SHARED_POOL ? CUDA_ERROR_NOT_SUPPORTED
                                                      : CUDA_SUCCESS;
    sim_pool_t *same = result == CUDA_SUCCESS ? sim_pool_imported(page.number) : NULL;
    if (same)
        *pool_out = (CUmemoryPool)(void *)same;
    else if (result == CUDA_SUCCESS)
        result = import(pool_out, fd, &page);
    if (same || result != CUDA_SUCCESS)
        close(fd);
    return result;
}

static sim_range_t *opened(const sim_pool_t *pool, const struct pointer *pointer) {
    for (size_t i = 0; i < sim.nranges; i++)
        if (sim.ranges[i]->kind == SIM_RANGE_IPC && sim.ranges[i]->pool == pool && !sim.ranges[i]->free_queued &&
            !memcmp(&sim.ranges[i]->ipc.handle, pointer, sizeof *pointer))
            return sim.ranges[i];
    return NULL;
}

// Under the map lock.
static CUresult map(sim_pool_t *pool, const struct pointer *pointer, CUdeviceptr *out) {
    const uint64_t bytes = (pointer->size + PAGE - 1) & ~(PAGE - 1);
    const uint64_t taken =
        bytes < SIM_GRANULE / 2 ? SIM_GRANULE / 2 : bytes; // smaller places need not begin with a page
    sim_range_t *range = calloc(1, sizeof *range);
    uint64_t place = 0;
    CUresult result = range ? sim_device_space(pool->device, taken, &place) : CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS) {
        free(range);
        return result;
    }
    sim_device_t *device = &sim.devices[pool->device];
    *range = (sim_range_t){.base = device->arena + place,
                           .size = pointer->size,
                           .kind = SIM_RANGE_IPC,
                           .device = pool->device,
                           .host = device->backing + place,
                           .charged = taken,
                           .pool = pool};
    memcpy(&range->ipc.handle, pointer, sizeof *pointer);
    if (!sim_share_place(pool->device, place, bytes, pool->descriptor, pointer->offset)) {
        sim_device_space_give(pool->device, place, taken);
        free(range);
        return CUDA_ERROR_MAP_FAILED;
    }
    if (!sim_map_add(range)) {
        sim_ipc_unmap(range);
        free(range);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = range->base;
    return CUDA_SUCCESS;
}

// The memory may have been freed: nobody has told (580.159.04, measured).
CUresult cuMemPoolImportPointer(CUdeviceptr *ptr_out, CUmemoryPool pool, CUmemPoolPtrExportData *shareData) {
    SIM_BEGINS(ptr_out, 0);
    SIM_ENTER();
    SIM_UNSAFE();
    struct pointer named;
    sim_pool_t *found = sim_pool_find(pool);
    if (!ptr_out || !shareData || !found || !found->imported)
        return CUDA_ERROR_INVALID_VALUE;
    memcpy(&named, shareData, sizeof named);
    const uint64_t space = sim_device_size(found->device);
    if (named.magic != MAGIC || named.check != check_of(&named) || named.number != found->number ||
        named.offset % PAGE || !named.size || named.offset > space || named.size > space - named.offset)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = opened(found, &named);
    CUresult result = range ? CUDA_SUCCESS : map(found, &named, ptr_out);
    if (range)
        *ptr_out = range->base;
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}
