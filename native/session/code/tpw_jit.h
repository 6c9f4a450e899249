/*
 * What loading an image and linking at run time share in the session: options of the driver's compiler, and bodies.
 */
#ifndef TPW_JIT_H
#define TPW_JIT_H

#include "tpw_code.h"

#define TPW_JIT_OPTIONS 32u

/* Options as the driver takes them. The log buffers belong to this structure. */
struct tpw_jit {
    CUjit_option options[TPW_JIT_OPTIONS];
    void *values[TPW_JIT_OPTIONS];
    unsigned count;
    char *info, *errors; /* NULL when not asked for */
    size_t info_size, errors_size;
    const unsigned char *image; /* of a linker that has linked: the driver's memory until the linker ends */
    size_t image_size;
};
/* From pairs of option and value; the size of a log buffer stands for a buffer of ours. Addresses are refused. */
int32_t tpw_jit_read(struct tpw_jit *jit, const uint64_t *pairs, size_t count);
void tpw_jit_free(struct tpw_jit *jit);
/* The bytes that came in the frame or as a transfer, in memory of their own that the caller frees; NULL when none did. */
unsigned char *tpw_take_body(struct tpw_session *s, uint64_t transfer, uint64_t size, const void *data,
                             size_t data_size, int32_t *error);

#endif
