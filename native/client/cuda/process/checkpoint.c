/*
 * Checkpoints of processes: of this one the state is told, which is that it runs. It has no GPU here, so nothing can be saved,
 * and what would follow a checkpoint is refused as for a process that runs. Any other process that there is has no CUDA as far
 * as this one can know. The codes are those of driver 580.159.04.
 *
 * Any thread, also before cuInit.
 */
#include "process_internal.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

CUresult tpc_checkpoint_process(int pid) {
    if (pid == (int)getpid()) {
        return tpc_not_ready();
    }
    bool gone = pid <= 0 || (kill(pid, 0) && errno == ESRCH);
    return gone ? CUDA_ERROR_OPERATING_SYSTEM : CUDA_ERROR_NOT_INITIALIZED;
}

/* What is kept for later, which is the rest of all arguments from `from` on, must be 0; looked at before the process. */
static CUresult looked(int pid, const void *args, size_t from) {
    static const unsigned char none[64];
    bool used = args && memcmp((const unsigned char *)args + from, none, sizeof none - from);
    return used ? CUDA_ERROR_INVALID_VALUE : tpc_checkpoint_process(pid);
}

CUresult tpc_checkpoint_unlocked(int pid, const void *args, size_t from) {
    CUresult result = looked(pid, args, from);
    return result == CUDA_SUCCESS ? CUDA_ERROR_ILLEGAL_STATE : result;
}

CUresult tpc_cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args) {
    static _Atomic bool said;
    CUresult result = looked(pid, args, offsetof(CUcheckpointLockArgs, reserved0));
    return result == CUDA_SUCCESS ? tpc_unsupported("cuCheckpointProcessLock", "the GPU is not in this machine",
                                                    CUDA_ERROR_NOT_SUPPORTED, &said)
                                  : result;
}
