/*
 * What loading an image and linking at run time share in the client: options, log buffers, bodies, files.
 *
 * Any thread; keeps nothing. Files are the program's own machine's and as trusted as the program.
 */
#include "tpc_jit.h"

#include "tpg_cuda_send.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <tp_system.h>
#include <unistd.h>

CUresult tpc_jit_gather(unsigned int count, const CUjit_option *options, void **values, uint64_t *pairs, size_t *used,
                        struct tpc_log *info, struct tpc_log *errors) {
    if (count > TPC_JIT_OPTIONS || (count && (!options || !values))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *used = 0;
    for (unsigned int i = 0; i < count; i++) {
        struct tpc_log *log = options[i] == CU_JIT_INFO_LOG_BUFFER ? info : errors;
        switch (options[i]) {
        case CU_JIT_INFO_LOG_BUFFER:
        case CU_JIT_ERROR_LOG_BUFFER:
            log->memory = values[i];
            continue;
        case CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES:
        case CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES:
            log = options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES ? info : errors;
            log->size = (uint32_t)(uintptr_t)values[i];
            log->filled = &values[i];
            break;
        case CU_JIT_WALL_TIME:
            continue; /* an output that nobody is known to read */
        default:
            break;
        }
        pairs[(*used)++] = (uint64_t)options[i];
        /* Scalars are 32 bits wide; an option whose value is an address is refused by the worker, which must not see one. */
        pairs[(*used)++] =
            (uint64_t)(uintptr_t)values[i] & (options[i] == CU_JIT_GLOBAL_SYMBOL_ADDRESSES ? 0 : 0xffffffffu);
    }
    return CUDA_SUCCESS;
}

void tpc_log_fill(const struct tpc_log *log, const void *text, size_t size) {
    if (log->memory && log->size) {
        size = size < log->size - 1 ? size : log->size - 1;
        if (size) {
            memcpy(log->memory, text, size);
        }
        log->memory[size] = 0;
        *log->filled = (void *)(uintptr_t)size;
    }
}

CUresult tpc_body_send(const void *bytes, size_t size, const void **data, size_t *data_size, uint64_t *transfer) {
    if (size <= TP_INLINE_MAX) {
        *data = bytes;
        *data_size = size;
        return CUDA_SUCCESS;
    }
    if (tp_data_ready(tpc_conn) != TP_OK) {
        return tpc_lost();
    }
    /* The upload is a post of its own, so that its bytes are queued before the call that uses them waits for its answer. */
    struct tpg_image_upload_in upload = {.size = size};
    CUresult result = tpc_post_image_upload("the bytes of an image", &upload, bytes, size);
    *transfer = upload.transfer;
    return result;
}

CUresult tpc_read_file(const char *path, char **bytes, size_t *size) {
    CUresult result = CUDA_ERROR_FILE_NOT_FOUND;
    struct stat about;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    *bytes = NULL;
    if (file < 0 || tp_about(file, &about) != 0 || !S_ISREG(about.st_mode)) {
        goto done;
    }
    *size = (size_t)about.st_size;
    *bytes = malloc(*size + 1);
    result = *bytes ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    for (size_t at = 0; *bytes && at < *size;) {
        ssize_t got = read(file, *bytes + at, *size - at);
        if (got == 0 || (got < 0 && errno != EINTR)) {
            result = CUDA_ERROR_INVALID_IMAGE;
            break;
        }
        at += got > 0 ? (size_t)got : 0;
    }
    if (*bytes) {
        (*bytes)[*size] = 0;
    }
done:
    if (file >= 0) {
        close(file);
    }
    return result;
}
