// A device's memory: its budget, and the file that stands behind it.
//
// Each device owns a memfd that is mapped once, readable and writable, at an address that nobody is told (the
// backing), and an equally large range of addresses without access rights (the arena), out of which cuMemAlloc
// answers. An extent of `bytes` at `offset` is arena + offset for the program and backing + offset for us. Pages
// exist once touched, so a huge allocation costs nothing. The space is four times the budget: the GPU's page tables
// make fragmentation invisible there, and room does it here. Every function is called with sim.map_lock held for
// writing.
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILE_CLOSES 1u // MFD_CLOEXEC, which old headers do not have
#define UNIT 512u      // alignment that cuMemAlloc promises at least 256 of; the driver gives 512

static CUresult prepare(sim_device_t *device) {
    if (device->backing)
        return CUDA_SUCCESS;
    uint64_t space = (device->total * 4 + SIM_GRANULE - 1) & ~(uint64_t)(SIM_GRANULE - 1);
    int fd = (int)syscall(SYS_memfd_create, "tf-simgpu", FILE_CLOSES); // glibc 2.17 has no function for it
    if (fd < 0)
        goto failed;
    if (ftruncate(fd, (off_t)space) != 0)
        goto failed;
    void *backing = mmap(NULL, space, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (backing == MAP_FAILED)
        goto failed;
    madvise(backing, space, MADV_DONTFORK);
    madvise(backing, space, MADV_DONTDUMP);
    unsigned char *arena =
        mmap(NULL, space + SIM_GRANULE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED || !sim_grow(&device->extents, &device->extents_capacity, 1, sizeof *device->extents)) {
        munmap(backing, space);
        goto failed;
    }
    device->backing = backing;
    device->backing_fd = fd;
    device->space = space;
    device->arena = ((uint64_t)(uintptr_t)arena + SIM_GRANULE - 1) & ~(uint64_t)(SIM_GRANULE - 1);
    device->extents[0] = (sim_extent_t){0, space};
    device->nextents = 1;
    return CUDA_SUCCESS;

failed:
    sim_complain("no room for %llu bytes of address space behind a device: %s", (unsigned long long)space,
                 strerror(errno));
    if (fd >= 0)
        close(fd);
    return CUDA_ERROR_OPERATING_SYSTEM;
}

bool sim_device_address(uint64_t address) {
    for (int i = 0; i < sim.ndevices; i++)
        if (sim.devices[i].backing && address - sim.devices[i].arena < sim.devices[i].space)
            return true;
    return false;
}

uint64_t sim_device_size(int ordinal) {
    return prepare(&sim.devices[ordinal]) == CUDA_SUCCESS ? sim.devices[ordinal].space : 0;
}

CUresult sim_device_space(int ordinal, uint64_t bytes, uint64_t *offset) {
    sim_device_t *device = &sim.devices[ordinal];
    CUresult result = prepare(device);
    if (result != CUDA_SUCCESS)
        return result;
    // Large blocks start at a granule, as on the GPU; small ones lie side by side.
    uint64_t alignment = bytes >= SIM_GRANULE / 2 ? SIM_GRANULE : UNIT;
    for (size_t i = 0; i < device->nextents; i++) {
        sim_extent_t *extent = &device->extents[i];
        uint64_t start = (extent->offset + alignment - 1) & ~(alignment - 1);
        uint64_t gap = start - extent->offset;
        if (extent->size < gap || extent->size - gap < bytes)
            continue;
        uint64_t rest = extent->size - gap - bytes;
        if (gap && rest) {
            if (!sim_grow(&device->extents, &device->extents_capacity, device->nextents + 1, sizeof *extent))
                return CUDA_ERROR_OUT_OF_MEMORY;
            extent = &device->extents[i];
            memmove(extent + 1, extent, (device->nextents - i) * sizeof *extent);
            device->nextents++;
            extent[0].size = gap;
            extent[1] = (sim_extent_t){start + bytes, rest};
        } else if (gap) {
            extent->size = gap;
        } else if (rest) {
            *extent = (sim_extent_t){start + bytes, rest};
        } else {
            memmove(extent, extent + 1, (device->nextents - i - 1) * sizeof *extent);
            device->nextents--;
        }
        *offset = start;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult sim_device_take(int ordinal, uint64_t bytes, uint64_t *offset) {
    sim_device_t *device = &sim.devices[ordinal];
    if (bytes > device->total || bytes > device->total - device->used)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = sim_device_space(ordinal, bytes, offset);
    if (result == CUDA_SUCCESS)
        device->used += bytes;
    return result;
}

void sim_device_give(int ordinal, uint64_t offset, uint64_t bytes) {
    sim.devices[ordinal].used -= bytes;
    sim_device_space_give(ordinal, offset, bytes);
}

void sim_device_space_give(int ordinal, uint64_t offset, uint64_t bytes) {
    sim_device_t *device = &sim.devices[ordinal];
    uint64_t page = 4096, from = (offset + page - 1) & ~(page - 1), to = (offset + bytes) & ~(page - 1);
    // Gives the host's memory back; a failure leaves old bytes behind, which device memory may do too.
    if (to > from)
        (void)!fallocate(device->backing_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
                         (off_t)(to - from));
    size_t i = 0, high = device->nextents;
    while (i < high) {
        size_t middle = i + (high - i) / 2;
        if (device->extents[middle].offset < offset)
            i = middle + 1;
        else
            high = middle;
    }
    bool joins_left = i && device->extents[i - 1].offset + device->extents[i - 1].size == offset;
    bool joins_right = i < device->nextents && offset + bytes == device->extents[i].offset;
    if (joins_left && joins_right) {
        device->extents[i - 1].size += bytes + device->extents[i].size;
        memmove(&device->extents[i], &device->extents[i + 1], (device->nextents - i - 1) * sizeof *device->extents);
        device->nextents--;
    } else if (joins_left) {
        device->extents[i - 1].size += bytes;
    } else if (joins_right) {
        device->extents[i].offset = offset;
        device->extents[i].size += bytes;
    } else if (sim_grow(&device->extents, &device->extents_capacity, device->nextents + 1, sizeof *device->extents)) {
        memmove(&device->extents[i + 1], &device->extents[i], (device->nextents - i) * sizeof *device->extents);
        device->extents[i] = (sim_extent_t){offset, bytes};
        device->nextents++;
    } // else: out of host memory; that stretch of the fourfold space is lost, the budget is not
}

CUresult sim_device_allocate(sim_context_t *context, uint64_t bytes, sim_range_t **out) {
    if (!context->active) // asked under the map lock, which destroying takes too: nothing is left behind
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (bytes > sim.devices[context->device].total)
        return CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t charged = (bytes + UNIT - 1) & ~(uint64_t)(UNIT - 1), offset;
    sim_range_t *range = calloc(1, sizeof *range);
    if (!range)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = sim_device_take(context->device, charged, &offset);
    if (result != CUDA_SUCCESS) {
        free(range);
        return result;
    }
    sim_device_t *device = &sim.devices[context->device];
    range->base = device->arena + offset;
    range->size = bytes;
    range->kind = SIM_RANGE_DEVICE;
    range->device = context->device;
    range->context = sim_home(context);
    range->host = device->backing + offset;
    range->charged = charged;
    if (!sim_map_add(range)) {
        sim_device_give(context->device, offset, charged);
        free(range);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = range;
    return CUDA_SUCCESS;
}

void sim_phys_drop(sim_phys_t *phys) {
    if (--phys->refs)
        return;
    if (!phys->imported)
        sim.devices[phys->device].used -= phys->size;
    if (sim_share_end(phys))
        sim_device_space_give(phys->device, phys->offset, phys->size);
    free(phys);
}

void sim_range_release(sim_range_t *range) {
    sim_map_remove(range);
    switch (range->kind) {
    case SIM_RANGE_DEVICE:
        if (range->of_graph)
            sim_graph_range_release(range);
        if (range->pool)
            sim_pool_forget(range);
        sim_managed_drop(range);
        sim_pool_unmove(range);
        sim.devices[range->device].used -= range->charged;
        sim_device_space_give(range->device, range->base - sim.devices[range->device].arena,
                              range->extent ? range->extent : range->charged);
        break;
    case SIM_RANGE_VMM:
        sim_phys_drop(range->phys);
        break;
    case SIM_RANGE_HOST:
        if (range->pool)
            sim_pool_forget(range);
        munmap(range->host, range->charged);
        break;
    case SIM_RANGE_IPC:
        sim_ipc_unmap(range);
        break;
    case SIM_RANGE_REGISTERED:
        break;
    }
    free(range);
}
