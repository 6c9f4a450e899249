/*
 * What the session remembers of a function or kernel: enough to refuse a launch whose parameters are not the ones it takes.
 */
#ifndef TPW_KERNEL_H
#define TPW_KERNEL_H

#include <stdint.h>

struct tpw_kernel {
    uint32_t parameter_bytes;
};

#endif
