/*
 * Code: kernels and functions, what is known of them, and the parameters of a launch.
 *
 * Any thread. What the worker said was bounded when it arrived; afterwards only this process writes.
 */
#ifndef TPC_CODE_H
#define TPC_CODE_H

#include "tpc.h"

/* ---- kernels (module.c) ---- */
struct tpc_parameter {
    uint16_t offset, size;
};
struct tpc_image; /* module.c */
/* On one device; most programs use a kernel on one, whose attributes come first in the list. */
struct tpc_attributes {
    _Atomic(struct tpc_attributes *) next;
    _Atomic int place;  /* the worker's number of the device, plus one; 0 until the first device asks */
    _Atomic bool known; /* released after the values */
    _Atomic int values[CU_FUNC_ATTRIBUTE_MAX];
};
/* What a library or a kernel is in one context, for as long as that context lives: a module, a function. */
struct tpc_instance {
    struct tpc_instance *next;
    const struct tpc_context *context;
    unsigned int life;
    uint64_t handle;
};
struct tpc_kernel {
    uint64_t handle; /* of a function or a kernel */
    struct tpc_image *image;
    uint32_t index;              /* in the image's list */
    int device;                  /* of a function, the worker's number; -1 for a kernel, which is on all of them */
    struct tpc_context *context; /* of the function of a library's kernel */
    /* NULL until the kernel is described, see tpc_kernel_describe; it is stored behind the two numbers. */
    _Atomic(const struct tpc_parameter *) layout;
    uint32_t parameters; /* count */
    uint32_t parameter_bytes;
    _Atomic(const char *) name;        /* once it was asked for; see tpc_kernel_name */
    struct tpc_attributes *attributes; /* shared by a kernel and the functions that are the same code */
    struct tpc_instance *instances;    /* of a kernel: its functions; guarded by its image's lock */
    _Atomic bool launched;             /* while a stream might stand at a word */
    struct tpc_parts *parts;           /* once it is launched by parts (parts.c); guarded by the same */
};
/* The kernel behind a CUfunction or CUkernel, NULL if it is neither. */
struct tpc_kernel *tpc_kernel_of(uint64_t handle);
/* Makes sure that parameters, parameter_bytes and layout are known. A library that was loaded without a context has no layouts
 * yet: they are asked for, which needs a current context. */
CUresult tpc_kernel_ask(struct tpc_kernel *kernel);
static inline CUresult tpc_kernel_describe(struct tpc_kernel *kernel) {
    return TP_LIKELY(atomic_load_explicit(&kernel->layout, memory_order_acquire) != NULL) ? CUDA_SUCCESS
                                                                                          : tpc_kernel_ask(kernel);
}
/* The function that a library's kernel is in a context, made at the first question; NULL with *result set. */
struct tpc_kernel *tpc_kernel_in(struct tpc_kernel *kernel, struct tpc_context *context, CUresult *result);
/* The module that a library is in a context. */
CUresult tpc_image_module(struct tpc_image *image, struct tpc_context *context, CUmodule *module);
/* Adds to a list of instances, under the lock that guards it; false without memory. */
bool tpc_instance_add(struct tpc_instance **list, const struct tpc_context *context, uint64_t handle);
struct tp_lock *tpc_image_lock(struct tpc_image *image);
/* Whether it is a module whose context has ended. */
bool tpc_image_gone(const struct tpc_image *image);
/* Handle of the module or library that the kernel is in. */
uint64_t tpc_image_handle(const struct tpc_image *image);
/* function.c: the attributes of a function on its device or of a kernel on the current one, as far as they are known; NULL
 * without memory. */
struct tpc_attributes *tpc_attributes_of(struct tpc_kernel *kernel);
/* Their values, asked for once; NULL with *result set on failure. */
const _Atomic int *tpc_attributes(struct tpc_kernel *kernel, const char *name, CUresult *result);

/* Loads bytes as a module or a library; of one its kernels and functions: what the functions about those are made by (api/, "by" and
 * "finds"). */
CUresult tpc_image_load(const void *code, bool library, unsigned int count, const CUjit_option *options, void **values,
                        uint64_t *handle);
CUresult tpc_kernel_by_name(uint32_t kind, uint64_t owner, const char *name, uint64_t *handle);
CUresult tpc_kernel_count(uint32_t kind, uint64_t owner, unsigned int *count);
CUresult tpc_kernel_list(uint32_t kind, uint64_t owner, uint64_t *out, unsigned int room);
/* What the functions about a function, or about a kernel on the worker's `device`, are made by (api/, "by"). A negative device: the
 * one that a function stands for. */
CUresult tpc_function_attribute(const char *name, int *value, CUfunction_attribute attribute, uint64_t handle,
                                int device);
CUresult tpc_function_attribute_set(const char *name, uint64_t handle, int device, CUfunction_attribute attribute,
                                    int value);
CUresult tpc_function_config(const char *name, uint64_t handle, int device, unsigned int what, int value);
CUresult tpc_function_name(const char **name, uint64_t handle, int device);
CUresult tpc_function_is(CUfunction function); /* and not the kernel that one stands for */
CUresult tpc_function_parameter(CUfunction function, size_t index, size_t *offset, size_t *size);
CUresult tpc_kernel_parameter(CUkernel kernel, size_t index, size_t *offset, size_t *size);
/* A variable of a module, in its context, or of a library, in the current one. */
CUresult tpc_global(const char *what, uint32_t kind, uint64_t owner, bool managed, const char *name,
                    CUdeviceptr *address, size_t *bytes);

/* name.c: the one text for a name of that many bytes, which is never freed; NULL without memory. */
const char *tpc_kernel_name(const char *text, size_t size);

/* ---- launch.c ---- */
struct tpg_shape;
CUresult tpc_launch(const char *name, CUfunction f, const struct tpg_shape *shape, CUstream stream, void **params,
                    void **extra, unsigned int cooperative);
/* Checks the shape of a node; finds its parameter block, `block` or the caller's own. */
#define TPC_BLOCK_LIMIT 32764u /* bytes of parameters that a kernel can take */
CUresult tpc_kernel_shape(const struct tpc_context *context, struct tpc_kernel *kernel,
                          const CUDA_KERNEL_NODE_PARAMS *params);
CUresult tpc_kernel_block(struct tpc_kernel *kernel, const CUDA_KERNEL_NODE_PARAMS *params, unsigned char *block,
                          const void **source);

#endif
