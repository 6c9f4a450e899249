// Memory that other processes map: shareable handles of cuMemCreate.
//
// A device's memory is one file, of which no part could be handed out alone. So an allocation moves into a file of its own when
// it is first exported: the file is mapped over the place that the memory has in the backing, with what was in it, while
// nobody may look (the map lock). Importers map the same file into a place of their own spaces. The file ends with the last
// descriptor and mapping anywhere, whoever made it, as the driver's physical memory does. Behind the memory is a page that
// says what it is; the size is sealed, so that no holder of a descriptor can make others fault. Any thread.
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE ((uint64_t)SIM_SHARE_PAGE)
// Old headers do not have these.
#define FILE_CLOSES 1u // MFD_CLOEXEC
#define FILE_SEALS 2u  // MFD_ALLOW_SEALING
#define ADD_SEALS 1033 // F_ADD_SEALS
#define SEALS 7        // against more seals, shrinking and growing
#define GET_SEALS 1034 // F_GET_SEALS

bool sim_share_place(int device, uint64_t offset, uint64_t size, int fd, uint64_t at) {
    unsigned char *where = sim.devices[device].backing + offset;
    if (mmap(where, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, (off_t)at) == MAP_FAILED)
        return false;
    madvise(where, size, MADV_DONTFORK);
    madvise(where, size, MADV_DONTDUMP);
    return true;
}

// Puts the file's first bytes where the memory lies in the backing.
static bool place(const sim_phys_t *phys, int fd, uint64_t at) {
    return sim_share_place(phys->device, phys->offset, phys->size, fd, at);
}

static bool write_all(int fd, const void *from, uint64_t bytes, uint64_t at) {
    for (uint64_t done = 0; done < bytes;) {
        ssize_t got = pwrite(fd, (const unsigned char *)from + done, bytes - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (uint64_t)got;
    }
    return true;
}

// What was ever written there; the rest are holes, and stays that.
bool sim_share_copy(int ordinal, uint64_t offset, uint64_t size, int fd, uint64_t to) {
    const sim_device_t *device = &sim.devices[ordinal];
    off_t end = (off_t)(offset + size);
    for (off_t at = (off_t)offset; at < end;) {
        off_t data = lseek(device->backing_fd, at, SEEK_DATA);
        if (data < 0)
            return errno == ENXIO; // nothing but holes up to the file's end
        if (data >= end)
            return true;
        off_t hole = lseek(device->backing_fd, data, SEEK_HOLE);
        if (hole < 0)
            return false;
        hole = hole < end ? hole : end;
        if (!write_all(fd, device->backing + data, (uint64_t)(hole - data), (uint64_t)data - offset + to))
            return false;
        at = hole;
    }
    return true;
}

int sim_share_file(const sim_share_page_t *page) {
    int fd = (int)syscall(SYS_memfd_create, "tf-simgpu-shared", FILE_CLOSES | FILE_SEALS);
    if (fd >= 0 && (ftruncate(fd, (off_t)(page->size + PAGE)) != 0 || !write_all(fd, page, sizeof *page, page->size) ||
                    fcntl(fd, ADD_SEALS, SEALS) != 0)) {
        close(fd);
        fd = -1;
    }
    if (fd < 0)
        sim_complain("no file for memory that other processes may have: %s", strerror(errno));
    return fd;
}

// Under the map lock for writing.
static CUresult share(sim_phys_t *phys) {
    const sim_share_page_t page = {.magic = SIM_SHARED_MEMORY, .size = phys->size, .prop = phys->prop};
    int fd = sim_share_file(&page);
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    if (!sim_share_copy(phys->device, phys->offset, phys->size, fd, 0) || !place(phys, fd, 0)) {
        sim_complain("memory of %llu bytes cannot be moved into a file of its own: %s", (unsigned long long)phys->size,
                     strerror(errno));
        close(fd);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    (void)!fallocate(sim.devices[phys->device].backing_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)phys->offset, (off_t)phys->size);
    phys->shared = true;
    phys->descriptor = fd;
    return CUDA_SUCCESS;
}

bool sim_share_end(sim_phys_t *phys) {
    if (!phys->shared)
        return true;
    close(phys->descriptor);
    if (place(phys, sim.devices[phys->device].backing_fd, phys->offset))
        return true;
    sim_complain("%llu bytes of a device's addresses are lost: %s", (unsigned long long)phys->size, strerror(errno));
    return false;
}

CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType handleType, unsigned long long flags) {
    SIM_ENTER();
    if (!shareableHandle || flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_phys_t *phys = sim_phys_find(handle);
    // A type that the allocation was not made for cannot be had later.
    if (phys && handleType == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR &&
        (phys->prop.requestedHandleTypes & (unsigned)handleType)) {
        result = phys->shared ? CUDA_SUCCESS : share(phys);
        int copy = result == CUDA_SUCCESS ? fcntl(phys->descriptor, F_DUPFD_CLOEXEC, 0) : -1;
        if (copy >= 0)
            memcpy(shareableHandle, &copy, sizeof copy);
        else if (result == CUDA_SUCCESS)
            result = CUDA_ERROR_OPERATING_SYSTEM;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// Whether the descriptor is of a file that some process's simulated GPU has made.
bool sim_share_look(int fd, sim_share_page_t *page) {
    struct stat about;
    int seals = fcntl(fd, GET_SEALS);
    return seals >= 0 && (seals & SEALS) == SEALS && fstat(fd, &about) == 0 && about.st_size > (off_t)PAGE &&
           pread(fd, page, sizeof *page, about.st_size - (off_t)PAGE) == (ssize_t)sizeof *page &&
           (page->magic == SIM_SHARED_MEMORY || page->magic == SIM_SHARED_POOL) &&
           page->size == (uint64_t)about.st_size - PAGE && page->size % SIM_GRANULE == 0;
}

// Any descriptor may come here; one that is not the driver's is error 999, one of a pool 801 (580.159.04, measured).
CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle,
                                        CUmemAllocationHandleType shHandleType) {
    SIM_ENTER();
    if (!handle || shHandleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return CUDA_ERROR_INVALID_VALUE;
    sim_share_page_t page = {.magic = 0};
    int fd = fcntl((int)(intptr_t)osHandle, F_DUPFD_CLOEXEC, 0);
    bool known = fd >= 0 && sim_share_look(fd, &page);
    if (!known || page.magic != SIM_SHARED_MEMORY) {
        if (fd >= 0)
            close(fd);
        return known ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_UNKNOWN;
    }
    sim_phys_t *phys = sim_device_ok(page.prop.location.id) ? calloc(1, sizeof *phys) : NULL;
    if (!phys) {
        close(fd);
        return sim_device_ok(page.prop.location.id) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_INVALID_DEVICE;
    }
    *phys = (sim_phys_t){.device = page.prop.location.id,
                         .size = page.size,
                         .refs = 1,
                         .handles = 1,
                         .prop = page.prop,
                         .shared = true,
                         .imported = true,
                         .descriptor = fd};
    pthread_mutex_lock(&sim.lock);
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = sim_device_space(phys->device, phys->size, &phys->offset);
    if (result == CUDA_SUCCESS && (!place(phys, fd, 0) || !sim_handle_add(phys, SIM_PHYS))) {
        if (place(phys, sim.devices[phys->device].backing_fd, phys->offset))
            sim_device_space_give(phys->device, phys->offset, phys->size);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS) {
        close(fd);
        free(phys);
        return result;
    }
    *handle = (CUmemGenericAllocationHandle)(uintptr_t)phys;
    return CUDA_SUCCESS;
}
