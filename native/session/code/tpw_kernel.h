/*
 * What the session remembers of a function or kernel: enough to refuse a launch whose parameters are not the ones it takes.
 */
#ifndef TPW_KERNEL_H
#define TPW_KERNEL_H

#include "tpw_session.h"

struct tpw_kernel {
    bool
        described; /* the rest is known: the driver tells it in a context only, so not always when the kernel is made */
    uint32_t parameters, parameter_bytes;
    struct {
        uint32_t offset, size;
    } layout[];
};

/* What is known of a function or kernel, complete; asks the driver at the first use, with a context current. NULL with *error set. */
const struct tpw_kernel *tpw_kernel_described(struct tpw_session *s, struct tpw_object *object, int32_t *error);

#endif
