// cuIpcGetMemHandle and its kin: memory of cuMemAlloc in other processes.
//
// A handle names the process, its descriptor of the device's file, and the place in there; an importer opens that file through
// /proc and maps those pages into its own space. As with the driver, pages of neighbours come with them, a handle cannot be
// opened by the process that made it, and opening it again counts, in the context that has it (580.159.04, measured: so is that
// a driver knows of a handle whose memory was freed, error 800; here only of one whose process has ended). What happens to memory that is freed while it is open is not
// defined: here it reads as zeros. Any thread; the map of memory is written under its lock.
#include "sim.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x6370696d69733163ull // "c1simipc"
#define PAGE 4096u

struct handle {
    uint64_t magic, space, offset, size, serial;
    int32_t process, descriptor, device;
    uint32_t check;
    uint64_t zero;
};
_Static_assert(sizeof(struct handle) == sizeof(CUipcMemHandle), "cuda.h");

static uint32_t check_of(struct handle handle) {
    uint32_t sum = 2166136261u;
    handle.check = 0;
    for (size_t i = 0; i < sizeof handle; i++)
        sum = (sum ^ ((const unsigned char *)&handle)[i]) * 16777619u;
    return sum;
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!pHandle)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_range_t *range = sim_map_find(dptr);
    if (range && sim_ipc_capable(range)) {
        const sim_device_t *device = &sim.devices[range->device];
        struct handle handle = {.magic = MAGIC,
                                .space = device->space,
                                .offset = range->base - device->arena,
                                .size = range->size,
                                .serial = range->buffer_id,
                                .process = getpid(),
                                .descriptor = device->backing_fd,
                                .device = range->device};
        handle.check = check_of(handle);
        memcpy(pHandle, &handle, sizeof handle);
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

bool sim_ipc_capable(const sim_range_t *range) {
    return range->kind == SIM_RANGE_DEVICE && !range->pool && !range->of_graph && !range->managed && !range->internal;
}

// The file that the handle names; -1 if there is none any more.
static int open_file(const struct handle *handle) {
    char path[64];
    struct stat about;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle->process, handle->descriptor);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && (fstat(fd, &about) != 0 || (uint64_t)about.st_size != handle->space)) {
        close(fd);
        return -1;
    }
    return fd;
}

// Maps the pages that hold the memory. Under the map lock.
static CUresult map_in(sim_context_t *context, const struct handle *handle, int fd, sim_range_t *range) {
    uint64_t from = handle->offset & ~(uint64_t)(PAGE - 1);
    uint64_t bytes = (handle->offset + handle->size - from + PAGE - 1) & ~(uint64_t)(PAGE - 1), place;
    uint64_t taken = bytes < SIM_GRANULE / 2 ? SIM_GRANULE / 2 : bytes; // smaller places need not begin with a page
    CUresult result = sim_device_space(handle->device, taken, &place);
    if (result != CUDA_SUCCESS)
        return result;
    sim_device_t *device = &sim.devices[handle->device];
    unsigned char *where = device->backing + place;
    *range = (sim_range_t){.base = device->arena + place + (handle->offset - from),
                           .size = handle->size,
                           .kind = SIM_RANGE_IPC,
                           .device = handle->device,
                           .context = sim_home(context),
                           .host = where + (handle->offset - from),
                           .charged = taken};
    memcpy(&range->ipc.handle, handle, sizeof *handle);
    range->ipc.opened = 1;
    if (mmap(where, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)from) ==
        MAP_FAILED) {
        sim_device_space_give(handle->device, place, taken);
        return CUDA_ERROR_MAP_FAILED;
    }
    madvise(where, bytes, MADV_DONTFORK);
    if (sim_map_add(range))
        return CUDA_SUCCESS;
    sim_ipc_unmap(range);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

void sim_ipc_unmap(const sim_range_t *range) {
    sim_device_t *device = &sim.devices[range->device];
    uint64_t place = (range->base - device->arena) & ~(uint64_t)(PAGE - 1);
    if (mmap(device->backing + place, range->charged, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
             device->backing_fd, (off_t)place) == MAP_FAILED) {
        sim_complain("%llu bytes of a device's addresses are lost", (unsigned long long)range->charged);
        return;
    }
    madvise(device->backing + place, range->charged, MADV_DONTFORK);
    sim_device_space_give(range->device, place, range->charged);
}

static sim_range_t *opened(const struct handle *handle) {
    for (size_t i = 0; i < sim.nranges; i++)
        if (sim.ranges[i]->kind == SIM_RANGE_IPC && !memcmp(&sim.ranges[i]->ipc.handle, handle, sizeof *handle))
            return sim.ranges[i];
    return NULL;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags) {
    SIM_ENTER_CONTEXT(context);
    struct handle named;
    memcpy(&named, &handle, sizeof named);
    if (!pdptr || Flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        return CUDA_ERROR_INVALID_VALUE;
    if (named.magic != MAGIC || named.check != check_of(named) || !sim_device_ok(named.device))
        return CUDA_ERROR_INVALID_VALUE;
    if (named.process == getpid())
        return CUDA_ERROR_INVALID_CONTEXT;
    CUresult result = CUDA_SUCCESS;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = opened(&named);
    if (range && range->context != sim_home(context)) {
        result = CUDA_ERROR_INVALID_HANDLE; // one context of a process has it
    } else if (range) {
        range->ipc.opened++;
    } else {
        int fd = open_file(&named);
        range = fd < 0 ? NULL : calloc(1, sizeof *range);
        result = fd < 0                                               ? CUDA_ERROR_NOT_PERMITTED
                 : !range                                             ? CUDA_ERROR_OUT_OF_MEMORY
                 : !context->active                                   ? CUDA_ERROR_CONTEXT_IS_DESTROYED
                 : !sim_device_reaches(context->device, named.device) ? CUDA_ERROR_PEER_ACCESS_UNSUPPORTED
                                                                      : map_in(context, &named, fd, range);
        if (fd >= 0)
            close(fd);
        if (result != CUDA_SUCCESS)
            free(range);
    }
    if (result == CUDA_SUCCESS)
        *pdptr = range->base;
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags) {
    return cuIpcOpenMemHandle_v2(pdptr, handle, Flags);
}

// Waits for the context's work first, as freeing does.
CUresult cuIpcCloseMemHandle(CUdeviceptr dptr) {
    SIM_ENTER_CONTEXT(context);
    pthread_mutex_lock(&sim.lock);
    if (context->active)
        sim_context_drain(context);
    pthread_mutex_unlock(&sim.lock);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = sim_map_find(dptr);
    if (range && range->kind == SIM_RANGE_IPC && !range->pool && range->base == dptr) {
        if (--range->ipc.opened == 0)
            sim_range_release(range);
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}
