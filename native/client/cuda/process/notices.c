/*
 * What a driver would tell a program by a callback: lines of its log, and events of a device. The log of the worker's driver
 * stays there (its lines are in the worker's own log), so the log here is empty and no callback is called. Registering works,
 * as natively, and a registration that there is not is refused where the driver would follow it.
 *
 * Any thread; the log also before cuInit.
 */
#include "process_internal.h"

#include <stdio.h>
#include <stdlib.h>

struct registration {
    int device; /* of the program, or TPC_THE_LOG */
    struct registration *next;
};
static struct tp_lock lock;
static struct registration *first;

void *tpc_registered(int device) {
    struct registration *made = malloc(sizeof *made);
    if (made) {
        tp_lock_take(&lock);
        *made = (struct registration){.device = device, .next = first};
        first = made;
        tp_lock_drop(&lock);
    }
    return made;
}

CUresult tpc_unregistered(int device, const void *handle) {
    tp_lock_take(&lock);
    struct registration *gone = TP_TAKE(first, it == handle && it->device == device);
    tp_lock_drop(&lock);
    free(gone);
    return gone ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- the log ---- */
CUresult tpc_do_cuLogsRegisterCallback(CUlogsCallback callbackFunc, void *userData,
                                       CUlogsCallbackHandle *callback_out) {
    (void)callbackFunc, (void)userData;
    if (callback_out) {
        *callback_out = (CUlogsCallbackHandle)tpc_registered(TPC_THE_LOG);
    }
    return callback_out && !*callback_out ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

CUresult tpc_cuLogsDumpToFile(CUlogIterator *iterator, const char *pathToFile, unsigned int flags) {
    (void)iterator;
    (void)flags;
    FILE *file = pathToFile ? fopen(pathToFile, "we") : NULL;
    return file && fclose(file) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The driver wants room for a line, at least. */
#define SHORTEST_LINE 80u

CUresult tpc_cuLogsDumpToMemory(CUlogIterator *iterator, char *buffer, size_t *size, unsigned int flags) {
    (void)flags;
    if (!buffer || !size || *size < SHORTEST_LINE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *size = 0; /* and the buffer stays as it is, here and where the log is empty natively (580.159.04, measured) */
    return iterator && *iterator ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
