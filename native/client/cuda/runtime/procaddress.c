/*
 * cuGetProcAddress: which entry point a name means for a CUDA version and a kind of default stream.
 *
 * The generated table was recorded from the driver for every name, version and flag (api/procaddress.json). Answered before
 * cuInit and without a connection, because the CUDA runtime resolves some 440 names before it does anything else. Any
 * thread; reads constant memory only.
 */
#include "tpc.h"

#include <tpl.h>

/* The worker's driver may be older than the table; then it decides. Before the start nobody has asked it yet. */
static int version_known(void) { return tpc_driver_version ? tpc_driver_version : TPC_TABLE_VERSION; }

static CUresult look_up(const char *symbol, void **pfn, int version, cuuint64_t flags,
                        CUdriverProcAddressQueryResult *status) {
    const cuuint64_t legacy = CU_GET_PROC_ADDRESS_LEGACY_STREAM, own = CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
    int driver = version_known();
    if (version > driver || (flags & ~(legacy | own))) {
        return CUDA_ERROR_INVALID_VALUE; /* with nothing written */
    }
    *status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    *pfn = NULL;
    int count = 0;
    const struct tpg_address *rows = tpl_address_rows(symbol, (int)(flags & own ? own : flags), &count);
    if (!rows || count < 1) {
        return CUDA_SUCCESS;
    }
    bool exists = false; /* in this driver, whatever the version that was asked for */
    const struct tpg_address *chosen = NULL;
    for (int i = 0; i < count && rows[i].version <= driver; i++) {
        exists |= rows[i].function != NULL;
        if ((unsigned)rows[i].version <= (unsigned)version) { /* the driver finds everything for -1 */
            chosen = &rows[i];
        }
    }
    /* What is refused here, and is new, is not found, so that programs take the way that they have for older drivers. */
    bool hidden = chosen && !chosen->function && chosen->status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (chosen && chosen->function) {
        *pfn = chosen->function;
        *status = CU_GET_PROC_ADDRESS_SUCCESS;
    } else if (exists && !hidden) {
        *status = CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                                    CUdriverProcAddressQueryResult *symbolStatus) {
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    CUresult result = look_up(symbol, pfn, cudaVersion, flags, &status);
    if (symbolStatus && result == CUDA_SUCCESS) {
        *symbolStatus = status;
    }
    return result;
}
