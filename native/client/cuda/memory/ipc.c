/*
 * Memory of other processes of this worker: cuIpcGetMemHandle and its kin.
 *
 * Any thread. A handle is 64 bytes that the worker made; they name the memory to any client of the same tenant, and nothing to
 * anybody else. What is open is counted here: a handle that is opened again is answered with the same address, and the worker
 * hears of the first opening and of the last closing. `lock` is held across these round trips, which keeps them in order.
 */
#include "tpc_memory.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* The `detail` of its range. */
struct opened {
    struct opened *next;
    CUipcMemHandle handle;
    uint64_t address;
    const struct tpc_context
        *context; /* the one that has it: others get no second address, and not this one (580.159.04) */
    unsigned int count;
};

static struct tp_lock lock;
static struct opened *all;

CUresult tpc_do_cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr) {
    struct tpc_range range;
    /* What else can be shared has functions of its own: cuMemExportToShareableHandle, cuMemPoolExportPointer. */
    if (!pHandle || !tpc_range_at(dptr, &range) || (range.flags & TPC_MADE_MASK) != TPC_MADE_ALLOC) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpg_ipc_memory_export_out out;
    TPC_TRY(tpc_call_ipc_memory_export("cuIpcGetMemHandle", range.start, &out));
    *pHandle = out.handle;
    return CUDA_SUCCESS;
}

/* Asks the worker. Under lock. */
static CUresult ask(struct tpc_context *context, struct opened *opened) {
    struct tpg_ipc_memory_open_in in = {.handle = opened->handle};
    struct tpg_ipc_memory_open_out out;
    TPC_TRY(tpc_call_ipc_memory_open("cuIpcOpenMemHandle", &in, &out));
    struct tpc_range range = {.start = out.address,
                              .size = out.size,
                              .context = context,
                              .device = tpc_device_of((int)out.device),
                              .flags = TPC_MADE_IPC | TPC_SYNC_MEMOPS,
                              .detail = opened};
    if (!tpc_range_insert(&range)) {
        (void)tpc_post_memory_free("cuIpcOpenMemHandle", out.address);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    opened->address = out.address;
    opened->context = context->home;
    opened->count = 1;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags) {
    struct tpc_context *context = tpc_current();
    (void)Flags;
    CUresult result = CUDA_SUCCESS;
    tp_lock_take(&lock);
    struct opened *opened = TP_FIND(all, memcmp(&it->handle, &handle, sizeof handle) == 0);
    if (opened && opened->context != context->home) {
        result = CUDA_ERROR_INVALID_HANDLE;
        opened = NULL;
    } else if (opened) {
        opened->count++;
    } else {
        opened = calloc(1, sizeof *opened);
        result = CUDA_ERROR_OUT_OF_MEMORY;
        if (opened) {
            opened->handle = handle;
            result = ask(context, opened);
        }
        if (result == CUDA_SUCCESS) {
            TP_PUSH(all, opened);
        } else {
            free(opened);
            opened = NULL;
        }
    }
    if (opened) {
        *pdptr = opened->address;
    }
    tp_lock_drop(&lock);
    return result;
}

/* Under lock. */
static void forget(struct opened *opened) {
    TP_UNLINK(all, opened);
    free(opened);
}

CUresult tpc_do_cuIpcCloseMemHandle(CUdeviceptr dptr) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    tp_lock_take(&lock);
    struct opened *opened = TP_FIND(all, it->address == dptr);
    if (opened && --opened->count) {
        result = CUDA_SUCCESS;
    } else if (opened) {
        tpc_range_remove(dptr, NULL);
        forget(opened);
        result = tpc_post_memory_free("cuIpcCloseMemHandle", dptr);
    }
    tp_lock_drop(&lock);
    return result;
}

CUresult tpc_descriptor_give(const CUipcMemHandle *handle, int *out, int *end) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    if (send(pair[0], handle, sizeof *handle, MSG_NOSIGNAL) != sizeof *handle) {
        close(pair[0]);
        close(pair[1]);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    *end = pair[0];
    *out = pair[1];
    return CUDA_SUCCESS;
}

bool tpc_descriptor_read(int fd, CUipcMemHandle *handle) {
    return recv(fd, handle, sizeof *handle, MSG_PEEK | MSG_DONTWAIT) == sizeof *handle;
}

/* What it has opened is closed with it, in the session by itself. */
static void context_gone(const struct tpc_context *context) {
    struct tpc_range range;
    tp_lock_take(&lock);
    for (uint64_t at = 0; tpc_range_next(at, &range); at = range.start + 1) {
        if (range.context == context && (range.flags & TPC_MADE_MASK) == TPC_MADE_IPC) {
            tpc_range_remove(range.start, NULL);
            forget(range.detail);
        }
    }
    tp_lock_drop(&lock);
}
TP_REGISTER(tpc_context_gone, context_gone);
