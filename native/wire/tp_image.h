/*
 * Module images: how long they are, and the list of kernels that a session answers with.
 *
 * The driver API passes images without a length; the container says it. The client asks with no limit, because the program
 * owns the memory; the session asks with the number of bytes that came, and refuses an image that would be read past its end.
 * Layouts: fatbin wrapper and container, ELF64, PTX text (research: formats observed in files made by nvcc).
 */
#ifndef TP_IMAGE_H
#define TP_IMAGE_H

#include <stddef.h>
#include <stdint.h>
#include <tp_base.h>

#define TP_FATBIN_WRAPPER 0x466243b1u /* host structure of pointers; only the client meets it */
#define TP_FATBIN 0xba55ed50u

/* Length of the image at `image`, of which at most `limit` bytes may be read; 0 when it is none that we know or does not
 * fit. A wrapper must have been followed before. */
TP_EXPORT size_t tp_image_size(const void *image, size_t limit);

/* Whether kernels of an image may print. Code that is compressed keeps it to itself. */
enum tp_image_prints {
    TP_PRINTS_NOT = 0,
    TP_PRINTS_MAYBE = 1,
    TP_PRINTS = 2,
};
TP_EXPORT enum tp_image_prints tp_image_prints(const void *image, size_t size);

/* What image_load's `missing` says when it was asked by hash. */
enum tp_image_missing {
    TP_IMAGE_FOUND = 0,
    TP_IMAGE_MISSING = 1,  /* send it */
    TP_IMAGE_NO_CACHE = 2, /* send it, and do not ask again: this worker keeps none */
};

/* The list: u32 count, u32 whether the layouts are told, then for each kernel: u64 name hash, u32 parameter count, u32 bytes of
 * the parameter block, then a u16 offset and a u16 size for each parameter, padded to 8. Without layouts both numbers are 0
 * and say nothing. */
struct tp_kernel_entry {
    uint64_t name_hash;
    uint32_t parameters, parameter_bytes;
};
TP_EXPORT uint64_t tp_name_hash(const char *name);

#endif
