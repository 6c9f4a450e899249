/*
 * Options of the driver's compiler, and the bodies of images.
 *
 * Executor thread only. Options come from a hostile client: only scalars are let through, and log buffers are ours.
 */
#include "tpw_copy.h"
#include "tpw_jit.h"

#include <stdlib.h>

#define LOG_LIMIT (64u << 10)

static bool plain_option(CUjit_option option) {
    switch (option) {
    case CU_JIT_MAX_REGISTERS:
    case CU_JIT_THREADS_PER_BLOCK:
    case CU_JIT_OPTIMIZATION_LEVEL:
    case CU_JIT_TARGET_FROM_CUCONTEXT:
    case CU_JIT_TARGET:
    case CU_JIT_FALLBACK_STRATEGY:
    case CU_JIT_GENERATE_DEBUG_INFO:
    case CU_JIT_LOG_VERBOSE:
    case CU_JIT_GENERATE_LINE_INFO:
    case CU_JIT_CACHE_MODE:
    case CU_JIT_FAST_COMPILE:
    case CU_JIT_POSITION_INDEPENDENT_CODE:
    case CU_JIT_MIN_CTA_PER_SM:
    case CU_JIT_MAX_THREADS_PER_BLOCK:
    case CU_JIT_OVERRIDE_DIRECTIVE_VALUES:
    case CU_JIT_SPLIT_COMPILE:
        return true;
    default:
        return false;
    }
}

static void put_option(struct tpw_jit *jit, CUjit_option option, uint64_t value) {
    jit->options[jit->count] = option;
    jit->values[jit->count++] = (void *)(uintptr_t)value;
}

/* Pairs of option and value; sizes of the log buffers stand for buffers of ours. */
int32_t tpw_jit_read(struct tpw_jit *jit, const uint64_t *pairs, size_t count) {
    if (count % 2 || count / 2 > TPW_JIT_OPTIONS - 4) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < count; i += 2) {
        CUjit_option option = (CUjit_option)pairs[i];
        uint64_t value = pairs[i + 1];
        bool info = option == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES;
        if (info || option == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) {
            char **buffer = info ? &jit->info : &jit->errors;
            size_t size = value < LOG_LIMIT ? (size_t)value : LOG_LIMIT;
            if (*buffer || !size) {
                continue;
            }
            *buffer = calloc(1, size + 1);
            if (!*buffer) {
                return CUDA_ERROR_OUT_OF_MEMORY;
            }
            *(info ? &jit->info_size : &jit->errors_size) = size;
            put_option(jit, info ? CU_JIT_INFO_LOG_BUFFER : CU_JIT_ERROR_LOG_BUFFER, (uint64_t)(uintptr_t)*buffer);
            put_option(jit, option, size);
        } else if (plain_option(option)) {
            put_option(jit, option, value);
        } else {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
    }
    return CUDA_SUCCESS;
}

void tpw_jit_free(struct tpw_jit *jit) {
    free(jit->info);
    free(jit->errors);
    jit->info = jit->errors = NULL;
}

unsigned char *tpw_take_body(struct tpw_session *s, uint64_t transfer, uint64_t size, const void *data,
                             size_t data_size, int32_t *error) {
    unsigned char *body = NULL;
    if (transfer) {
        return tpw_take_upload(s, transfer, (size_t)size, error);
    }
    if (data_size == size && size) {
        /* Of its own, so that memory checkers see a read past its end, and aligned as the driver may expect. */
        body = malloc(data_size);
        if (body) {
            memcpy(body, data, data_size);
        }
    }
    return body;
}
