/*
 * What the files about images share: the record of a loaded module or library, and the kernels that came with it.
 *
 * Included by image.c and module.c only. A record is complete before its handle is given out; afterwards the lists that its
 * lock guards grow, and the handles of its kernels are minted once each. Records of unloaded images stay allocated: a kernel
 * handle that another thread still uses must not point into freed memory. Any thread; only this process writes it, from
 * answers that tpc_image_fill has bounded.
 */
#ifndef TPC_IMAGE_H
#define TPC_IMAGE_H

#include "tpc_code.h"

struct tpc_entry {
    uint64_t hash;
    uint32_t parameters, parameter_bytes; /* these and `layout` say nothing before the image is described */
    const struct tpc_parameter *layout;
    _Atomic(struct tpc_kernel *) kernel; /* minted on first use */
    _Atomic(struct tpc_attributes *) attributes;
};

struct tpc_image {
    uint64_t handle; /* of the module or library */
    bool library;
    bool local;       /* a library of something that is no image, which the worker need not know */
    CUresult refused; /* of a library: what its uses answer, since its image is none for this driver */
    struct tpc_image
        *of; /* of the module of a library, which nobody unloads: that library, which has all its kernels */
    struct tpc_context *context; /* of a module: where it was loaded, and in which of that context's lives */
    unsigned int life;
    struct tp_lock lock;
    struct tpc_instance *modules; /* of a library; under the lock */
    struct tpc_instance *globals; /* addresses that the program asked for; under the lock */
    uint32_t count;
    uint32_t mask;    /* of the table of places by name hash */
    uint32_t *places; /* index + 1, 0 = empty */
    struct tpc_entry *entries;
    struct tpc_parameter *layouts;
    _Atomic bool described; /* set once, under the lock, behind what the entries say of layouts */
};

/* Reads the list of kernels of an image_load's answer; false when it is no such list, or without memory. */
bool tpc_image_fill(struct tpc_image *image, const unsigned char *list, size_t size);
/* The place of a kernel by name. */
bool tpc_image_find(const struct tpc_image *image, const char *name, uint32_t *index);
/* The kernel at `index`, its handle minted and sent on first use; NULL with *result set. The name may be NULL. Of the module of a
 * library it is the function that the library's kernel is in the module's context. */
struct tpc_kernel *tpc_image_kernel(struct tpc_image *image, uint32_t index, const char *name, CUresult *result);

#endif
