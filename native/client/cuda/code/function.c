/*
 * Functions and kernels: attributes, names, parameter layouts. What the worker knows is asked for once and kept.
 *
 * Any thread. A function is its module's and needs no current context. A CUkernel is launched like a CUfunction, but the driver gives
 * 400 when cuFunc* calls get one (580.159.04, measured), and 1 for NULL where the function is all that is asked about. Attributes are stored one by one as atomics
 * and published by `known`; setting one here changes the copy, so that it agrees with the worker's in order.
 */
#include "tpc_code.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

static int current_device(void) {
    const struct tpc_context *context = tpc_current();
    return context ? tpc_devices[context->device].remote : 0;
}

static int device_of(const struct tpc_kernel *kernel) { return kernel->device < 0 ? current_device() : kernel->device; }

static struct tpc_attributes *attributes_on(const struct tpc_kernel *kernel, int device) {
    struct tpc_attributes *at = kernel->attributes;
    for (;;) {
        int place = atomic_load_explicit(&at->place, memory_order_relaxed);
        if (TP_LIKELY(place == device + 1)) {
            return at;
        }
        if (!place && (atomic_compare_exchange_strong(&at->place, &place, device + 1) || place == device + 1)) {
            return at;
        }
        struct tpc_attributes *next = atomic_load_explicit(&at->next, memory_order_acquire);
        if (!next) {
            struct tpc_attributes *made = calloc(1, sizeof *made);
            if (!made) {
                return NULL;
            }
            atomic_store_explicit(&made->place, device + 1, memory_order_relaxed);
            if (atomic_compare_exchange_strong(&at->next, &next, made)) {
                return made;
            }
            free(made);
        }
        at = next;
    }
}

struct tpc_attributes *tpc_attributes_of(struct tpc_kernel *kernel) { return attributes_on(kernel, device_of(kernel)); }

/* What is remembered of attributes has the worker's order: one is set and noted under `setting`, where the driver may wait, and an
 * answer that was asked for before another thread noted one is not kept. `noting` is not held across a call. */
static struct tp_lock setting, noting;
static _Atomic unsigned int settings;

static bool keep(struct tpc_attributes *attributes, const struct tpg_function_attributes_out *out,
                 unsigned int before) {
    tp_lock_take(&noting);
    bool still = before == atomic_load(&settings);
    for (size_t i = 0; still && i < out->values_count && i < CU_FUNC_ATTRIBUTE_MAX; i++) {
        atomic_store_explicit(&attributes->values[i], out->values[i], memory_order_relaxed);
    }
    if (still) {
        atomic_store_explicit(&attributes->known, true, memory_order_release);
    }
    tp_lock_drop(&noting);
    return still;
}

static const _Atomic int *values_on(struct tpc_kernel *kernel, int device, const char *name, CUresult *result) {
    struct tpc_attributes *attributes = attributes_on(kernel, device);
    *result = attributes ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!attributes || TP_LIKELY(atomic_load_explicit(&attributes->known, memory_order_acquire))) {
        return attributes ? attributes->values : NULL;
    }
    for (bool kept = false; !kept && *result == CUDA_SUCCESS;) {
        struct tpg_function_attributes_out out;
        struct tp_reply reply;
        unsigned int before = atomic_load(&settings);
        *result = tpc_call_function_attributes(name, kernel->handle, device, &out, &reply);
        kept = *result == CUDA_SUCCESS && keep(attributes, &out, before);
        tp_reply_free(&reply);
    }
    return *result ? NULL : attributes->values;
}

const _Atomic int *tpc_attributes(struct tpc_kernel *kernel, const char *name, CUresult *result) {
    return values_on(kernel, device_of(kernel), name, result);
}

/* One whose context is gone is none any more (580.159.04, measured). */
static struct tpc_kernel *function_of(uint64_t handle) {
    struct tpc_kernel *kernel = tpc_record(TPG_FUNCTION, handle);
    const bool gone =
        kernel && (kernel->context ? !atomic_load(&kernel->context->active) : tpc_image_gone(kernel->image));
    return gone ? NULL : kernel;
}

/* A kernel's device was named by the program; `device` negative: the one that a function stands for. */
static struct tpc_kernel *named(uint64_t handle, int device) {
    return device < 0 ? function_of(handle) : tpc_kernel_of(handle);
}

CUresult tpc_function_attribute(const char *name, int *value, CUfunction_attribute attribute, uint64_t handle,
                                int device) {
    struct tpc_kernel *kernel = named(handle, device);
    CUresult result;
    if (!value || (unsigned)attribute >= CU_FUNC_ATTRIBUTE_MAX) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const _Atomic int *values = values_on(kernel, device < 0 ? device_of(kernel) : device, name, &result);
    if (values) {
        *value = atomic_load_explicit(&values[attribute], memory_order_relaxed);
    }
    return result;
}

static const int *attributes_of_device(int remote) {
    int device = 0;
    while (device + 1 < tpc_device_count && tpc_devices[device].remote != remote) {
        device++;
    }
    return tpc_devices[device].what.attributes;
}

/* What the driver would refuse at once is refused here, where that is known. */
static CUresult check_attribute(struct tpc_kernel *kernel, int device, CUfunction_attribute attribute, int value) {
    CUresult result;
    const int *attributes = attributes_of_device(device);
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: {
        const _Atomic int *values = values_on(kernel, device, "cuFuncSetAttribute", &result);
        if (!values) {
            return result;
        }
        int most = attributes[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] -
                   atomic_load(&values[CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES]);
        return value < 0 || value > most ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    }
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        return value < -1 || value > 100 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        return value < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE; /* the others can only be read */
    }
}

CUresult tpc_function_attribute_set(const char *name, uint64_t handle, int device, CUfunction_attribute attribute,
                                    int value) {
    struct tpc_kernel *kernel = named(handle, device);
    if (!kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    device = device < 0 ? device_of(kernel) : device;
    TPC_TRY(check_attribute(kernel, device, attribute, value));
    struct tpc_attributes *attributes = attributes_on(kernel, device);
    if (!attributes) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (atomic_load_explicit(&attributes->known, memory_order_acquire) &&
        atomic_load_explicit(&attributes->values[attribute], memory_order_relaxed) == value) {
        return CUDA_SUCCESS; /* libraries set the same value before every launch */
    }
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES &&
        attribute != CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
        tpc_wait_for_next_post(); /* the others depend on how the kernel was compiled; they are set once, if at all */
    }
    TPC_WAITS();
    tp_lock_take(&setting);
    CUresult result = tpc_post_function_attribute_set(name, handle, device, (int)attribute, value);
    tp_lock_take(&noting);
    if (result == CUDA_SUCCESS) {
        atomic_store_explicit(&attributes->values[attribute], value, memory_order_relaxed);
    }
    atomic_fetch_add(&settings, 1);
    tp_lock_drop(&noting);
    tp_lock_drop(&setting);
    tpc_pure_forget(); /* occupancy depends on attributes */
    return result;
}

CUresult tpc_function_config(const char *name, uint64_t handle, int device, unsigned int what, int value) {
    const struct tpc_kernel *kernel = named(handle, device);
    if (!kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    int most = what ? (int)CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE : (int)CU_FUNC_CACHE_PREFER_EQUAL;
    if (value < 0 || value > most) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    device = device < 0 ? device_of(kernel) : device;
    return tpc_post_function_config(name, handle, device, what, value);
}

/* Of a function, and not of the kernel that one stands for. */
CUresult tpc_function_is(CUfunction function) {
    return function_of((uint64_t)(uintptr_t)function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- identity ---- */

CUresult tpc_function_name(const char **name, uint64_t handle, int device) {
    struct tpc_kernel *kernel = named(handle, device);
    if (!kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const char *known = atomic_load_explicit(&kernel->name, memory_order_acquire);
    if (!known) {
        struct tpg_kernel_name_out out;
        struct tp_reply reply;
        CUresult result = tpc_call_kernel_name("cuFuncGetName", handle, &out, &reply);
        const char *told = result || !out.name ? "" : out.name;
        known = result ? NULL : tpc_kernel_name(told, strnlen(told, out.name_size));
        tp_reply_free(&reply);
        if (result || !known) {
            return result ? result : CUDA_ERROR_OUT_OF_MEMORY;
        }
        atomic_store_explicit(&kernel->name, known, memory_order_release);
    }
    *name = known;
    return CUDA_SUCCESS;
}

static CUresult parameter(struct tpc_kernel *kernel, size_t index, size_t *offset, size_t *size) {
    if (!kernel) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result = offset ? tpc_kernel_describe(kernel) : CUDA_ERROR_INVALID_VALUE;
    if (result != CUDA_SUCCESS || index >= kernel->parameters) {
        return result ? result : CUDA_ERROR_INVALID_VALUE;
    }
    const struct tpc_parameter *layout = atomic_load_explicit(&kernel->layout, memory_order_relaxed);
    *offset = layout[index].offset;
    if (size) {
        *size = layout[index].size;
    }
    return CUDA_SUCCESS;
}

CUresult tpc_function_parameter(CUfunction function, size_t index, size_t *offset, size_t *size) {
    return parameter(function_of((uint64_t)(uintptr_t)function), index, offset, size);
}

CUresult tpc_kernel_parameter(CUkernel kernel, size_t index, size_t *offset, size_t *size) {
    return parameter(tpc_kernel_of((uint64_t)(uintptr_t)kernel), index, offset, size);
}

CUresult tpc_do_cuFuncGetModule(CUmodule *hmod, CUfunction hfunc) {
    const struct tpc_kernel *record = function_of((uint64_t)(uintptr_t)hfunc);
    if (!record) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    if (record->context) {
        return tpc_image_module(record->image, record->context, hmod);
    }
    *hmod = (CUmodule)(uintptr_t)tpc_image_handle(record->image);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel) {
    struct tpc_kernel *record = tpc_record(TPG_KERNEL, (uint64_t)(uintptr_t)kernel);
    if (!record) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result;
    const struct tpc_kernel *function = tpc_kernel_in(record, tpc_current(), &result);
    if (function) {
        *pFunc = (CUfunction)(uintptr_t)function->handle;
    }
    return result;
}
