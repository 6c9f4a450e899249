/*
 * Settings of GPU core dumps: remembered and told back, for the process; a context has what the process has. A dump would be
 * written where the GPU is, so that one is wanted is said once. The codes are those of driver 580.159.04.
 *
 * Any thread; the settings of the process also before cuInit.
 */
#include "process_internal.h"

#define FILE_BYTES 1024u

static struct tp_lock lock;
/* By CUCoredumpSettings: switches are one byte, the flags are four, names are text. */
static struct {
    unsigned char bytes[FILE_BYTES];
} process[CU_COREDUMP_MAX] = {[CU_COREDUMP_TRIGGER_HOST] = {.bytes = {1}}};

static size_t size_of(CUcoredumpSettings attribute) {
    switch (attribute) {
    case CU_COREDUMP_ENABLE_ON_EXCEPTION:
    case CU_COREDUMP_TRIGGER_HOST:
    case CU_COREDUMP_LIGHTWEIGHT:
    case CU_COREDUMP_ENABLE_USER_TRIGGER:
        return 1;
    case CU_COREDUMP_FILE:
    case CU_COREDUMP_PIPE:
        return FILE_BYTES;
    case CU_COREDUMP_GENERATION_FLAGS:
        return sizeof(unsigned int);
    default:
        return 0;
    }
}

static bool is_text(CUcoredumpSettings attribute) {
    return attribute == CU_COREDUMP_FILE || attribute == CU_COREDUMP_PIPE;
}

CUresult tpc_cuCoredumpGetAttributeGlobal(CUcoredumpSettings attrib, void *value, size_t *size) {
    size_t wanted = size_of(attrib);
    if (!size || !wanted) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!value) {
        *size = wanted;
        return CUDA_SUCCESS;
    }
    if (is_text(attrib) ? !*size : *size != wanted) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tp_lock_take(&lock);
    size_t length = is_text(attrib) ? strlen((const char *)process[attrib].bytes) + 1 : wanted;
    memcpy(value, process[attrib].bytes, length < *size ? length : *size);
    tp_lock_drop(&lock);
    if (is_text(attrib) && length > *size) {
        ((char *)value)[*size - 1] = 0;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_cuCoredumpSetAttributeGlobal(CUcoredumpSettings attrib, void *value, size_t *size) {
    static _Atomic bool said;
    size_t wanted = size_of(attrib);
    if (!value) { /* then it tells the size, too (580.159.04, measured) */
        return tpc_cuCoredumpGetAttributeGlobal(attrib, value, size);
    }
    if (!size || !wanted || (is_text(attrib) ? !*size || *size > wanted : *size != wanted)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    tp_lock_take(&lock);
    memset(process[attrib].bytes, 0, sizeof process[attrib].bytes);
    memcpy(process[attrib].bytes, value, is_text(attrib) && *size == wanted ? wanted - 1 : *size);
    bool dumps = process[CU_COREDUMP_ENABLE_ON_EXCEPTION].bytes[0] || process[CU_COREDUMP_ENABLE_USER_TRIGGER].bytes[0];
    tp_lock_drop(&lock);
    if (dumps) {
        tp_say_once(&said, "core dumps of the GPU are not written: it is not in this machine");
    }
    return CUDA_SUCCESS;
}

/* Contexts share the settings, of which two are the process's alone. */
static bool of_a_context(CUcoredumpSettings attribute) {
    return size_of(attribute) && attribute != CU_COREDUMP_ENABLE_USER_TRIGGER && attribute != CU_COREDUMP_PIPE;
}

CUresult tpc_coredump_look(CUcoredumpSettings attribute, const size_t *size) {
    TPC_TRY(size && size_of(attribute) ? tpc_not_ready() : CUDA_ERROR_INVALID_VALUE);
    TPC_CONTEXT(context);
    return of_a_context(attribute) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
