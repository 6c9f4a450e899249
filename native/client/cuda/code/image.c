/*
 * Loaded images: the list of kernels that came with one, their records, and what a library or a kernel is in each context.
 *
 * Any thread. The list comes from the worker and is bounded here; afterwards only this process writes. Handles of kernels are
 * minted on first use under the image's lock; readers look at them without it.
 */
#include "tpc_image.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <tp_image.h>

static void place(struct tpc_image *image, uint32_t index) {
    uint32_t at = (uint32_t)image->entries[index].hash & image->mask;
    while (image->places[at]) {
        at = (at + 1) & image->mask;
    }
    image->places[at] = index + 1;
}

/* A list as it came: entries with hash and layout. */
struct listed {
    uint32_t count;
    bool layouts_told;
    struct tpc_entry *entries;
    struct tpc_parameter *layouts;
};

static bool read_list(struct listed *to, const unsigned char *list, size_t size) {
    struct tp_cursor c = tp_cursor_make((unsigned char *)(uintptr_t)list, size);
    *to = (struct listed){.count = tp_get_u32(&c)};
    to->layouts_told = tp_get_u32(&c) != 0;
    if (c.bad || to->count > size / sizeof(struct tp_kernel_entry)) {
        return false;
    }
    to->entries = calloc(to->count + 1, sizeof *to->entries);
    to->layouts = malloc(size + 1);
    struct tpc_parameter *layout = to->layouts;
    if (!to->entries || !layout) {
        goto failed;
    }
    for (uint32_t i = 0; i < to->count; i++) {
        struct tp_kernel_entry entry;
        tp_get(&c, &entry, sizeof entry);
        size_t bytes = (size_t)entry.parameters * sizeof *layout;
        const void *parameters = tp_take(&c, tp_padded(bytes));
        if (c.bad || (!to->layouts_told && (entry.parameters || entry.parameter_bytes))) {
            goto failed;
        }
        memcpy(layout, parameters, bytes);
        to->entries[i].hash = entry.name_hash;
        to->entries[i].parameters = entry.parameters;
        to->entries[i].parameter_bytes = entry.parameter_bytes;
        to->entries[i].layout = to->layouts_told ? layout : NULL;
        for (uint32_t p = 0; p < entry.parameters; p++) {
            if (layout[p].offset + (uint32_t)layout[p].size > entry.parameter_bytes) {
                goto failed;
            }
        }
        layout += entry.parameters;
    }
    return true;

failed:
    free(to->entries);
    free(to->layouts);
    return false;
}

bool tpc_image_fill(struct tpc_image *image, const unsigned char *list, size_t size) {
    struct listed listed;
    if (!read_list(&listed, list, size)) {
        return false;
    }
    image->count = listed.count;
    image->entries = listed.entries;
    image->layouts = listed.layouts;
    image->mask = 7;
    while (image->mask < 2 * image->count) {
        image->mask = 2 * image->mask + 1;
    }
    image->places = calloc(image->mask + 1, sizeof *image->places);
    if (!image->places || (!listed.layouts_told && !image->library)) {
        free(image->places);
        free(image->entries);
        free(image->layouts);
        return false;
    }
    for (uint32_t i = 0; i < image->count; i++) {
        place(image, i);
    }
    atomic_store_explicit(&image->described, listed.layouts_told, memory_order_release);
    return true;
}

/* Takes over the layouts of a second list, which must speak of the same kernels. */
static bool add_layouts(struct tpc_image *image, const unsigned char *list, size_t size) {
    struct listed listed;
    if (!read_list(&listed, list, size)) {
        return false;
    }
    bool same = listed.layouts_told && listed.count == image->count;
    for (uint32_t i = 0; same && i < image->count; i++) {
        same = listed.entries[i].hash == image->entries[i].hash;
    }
    tp_lock_take(&image->lock);
    bool first = same && !atomic_load_explicit(&image->described, memory_order_relaxed);
    for (uint32_t i = 0; first && i < image->count; i++) {
        image->entries[i].parameters = listed.entries[i].parameters;
        image->entries[i].parameter_bytes = listed.entries[i].parameter_bytes;
        image->entries[i].layout = listed.entries[i].layout;
    }
    if (first) {
        free(image->layouts); /* empty: nothing points there */
        image->layouts = listed.layouts;
        atomic_store_explicit(&image->described, true, memory_order_release);
    }
    tp_lock_drop(&image->lock);
    free(listed.entries);
    if (!first) {
        free(listed.layouts);
    }
    return same;
}

/* Makes sure that the layouts of an image are known; asks for those of a library with the current context. */
static CUresult describe(struct tpc_image *image) {
    if (atomic_load_explicit(&image->described, memory_order_acquire)) {
        return CUDA_SUCCESS;
    }
    TPC_CONTEXT(context);
    struct tpg_library_describe_out out;
    struct tp_reply reply TPC_REPLY;
    /* Without the lock: whoever waits for an answer may have to run a host function. Threads that ask at once hear the same. */
    TPC_TRY(tpc_call_library_describe("cuKernelGetParamInfo", image->handle, &out, &reply));
    return add_layouts(image, out.kernels, out.kernels_size) ? CUDA_SUCCESS : tpc_bad_reply(&reply);
}

CUresult tpc_kernel_ask(struct tpc_kernel *kernel) {
    TPC_TRY(describe(kernel->image));
    tp_lock_take(&kernel->image->lock);
    const struct tpc_entry *entry = &kernel->image->entries[kernel->index];
    if (!atomic_load_explicit(&kernel->layout, memory_order_relaxed)) { /* once: others read without the lock */
        kernel->parameters = entry->parameters;
        kernel->parameter_bytes = entry->parameter_bytes;
        atomic_store_explicit(&kernel->layout, entry->layout, memory_order_release);
    }
    tp_lock_drop(&kernel->image->lock);
    return CUDA_SUCCESS;
}

bool tpc_image_find(const struct tpc_image *image, const char *name, uint32_t *index) {
    image = image->of ? image->of : image;
    uint64_t hash = tp_name_hash(name);
    for (uint32_t at = (uint32_t)hash & image->mask; image->places[at]; at = (at + 1) & image->mask) {
        if (image->entries[image->places[at] - 1].hash == hash) {
            *index = image->places[at] - 1;
            return true;
        }
    }
    return false;
}

static struct tpc_attributes *attributes_of(struct tpc_entry *entry) {
    struct tpc_attributes *known = atomic_load_explicit(&entry->attributes, memory_order_acquire);
    if (!known) {
        struct tpc_attributes *made = calloc(1, sizeof *made);
        if (made && !atomic_compare_exchange_strong(&entry->attributes, &known, made)) {
            free(made);
        } else {
            known = made;
        }
    }
    return known;
}

static uint64_t instance_of(const struct tpc_instance *list, const struct tpc_context *context) {
    unsigned int life = atomic_load_explicit(&context->life, memory_order_relaxed);
    while (list && (list->context != context || list->life != life)) {
        list = list->next;
    }
    return list ? list->handle : 0;
}

bool tpc_instance_add(struct tpc_instance **list, const struct tpc_context *context, uint64_t handle) {
    struct tpc_instance *instance = malloc(sizeof *instance);
    if (!instance) {
        return false;
    }
    *instance =
        (struct tpc_instance){.next = *list, .context = context, .life = atomic_load(&context->life), .handle = handle};
    *list = instance;
    return true;
}

/* The context that the thread's next frames are for, whichever is current; returns the one before. */
static uint32_t send_for(uint32_t context) {
    uint32_t before = tp_thread_self()->context;
    tp_thread_self()->context = context;
    return before;
}

struct tpc_kernel *tpc_kernel_in(struct tpc_kernel *kernel, struct tpc_context *context, CUresult *result) {
    *result = tpc_kernel_describe(kernel);
    if (*result != CUDA_SUCCESS) {
        return NULL;
    }
    tp_lock_take(&kernel->image->lock);
    uint64_t handle = instance_of(kernel->instances, context);
    struct tpc_kernel *function = handle ? tpc_record(TPG_FUNCTION, handle) : calloc(1, sizeof *function);
    if (!handle) {
        handle = function ? tpc_mint_record(TPG_FUNCTION, function) : 0;
        if (handle && tpc_instance_add(&kernel->instances, context, handle)) {
            function->handle = handle;
            function->image = kernel->image;
            function->index = kernel->index;
            function->parameters = kernel->parameters;
            function->parameter_bytes = kernel->parameter_bytes;
            function->context = context;
            function->device = tpc_devices[context->device].remote;
            atomic_store_explicit(&function->layout, atomic_load(&kernel->layout), memory_order_relaxed);
            function->attributes = kernel->attributes;
            atomic_store(&function->name, atomic_load(&kernel->name));
            uint32_t before = send_for(tp_handle_id(context->handle));
            *result = tpc_post_kernel_function("cuKernelGetFunction", kernel->handle, handle);
            send_for(before);
        } else {
            tpc_unmint(TPG_FUNCTION, handle);
            free(function);
            *result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    tp_lock_drop(&kernel->image->lock);
    if (!function && *result == CUDA_SUCCESS) { /* another thread unloads the library */
        *result = CUDA_ERROR_INVALID_HANDLE;
    }
    return *result == CUDA_SUCCESS ? function : NULL;
}

CUresult tpc_image_module(struct tpc_image *image, struct tpc_context *context, CUmodule *module) {
    CUresult result = image->refused ? image->refused : (CUresult)atomic_load(&context->error);
    result = result ? result : describe(image); /* its functions take the layouts over */
    TPC_TRY(result);
    tp_lock_take(&image->lock);
    uint64_t handle = instance_of(image->modules, context);
    if (!handle) {
        struct tpc_image *made = malloc(sizeof *made);
        handle = made ? tpc_mint_record(TPG_MODULE, made) : 0;
        if (handle && tpc_instance_add(&image->modules, context, handle)) {
            *made = (struct tpc_image){.handle = handle,
                                       .of = image,
                                       .context = context,
                                       .life = atomic_load(&context->life),
                                       .count = image->count,
                                       .described = true};
            uint32_t before = send_for(tp_handle_id(context->handle));
            result = tpc_post_library_module("cuLibraryGetModule", image->handle, handle);
            send_for(before);
        } else {
            tpc_unmint(TPG_MODULE, handle);
            free(made);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    tp_lock_drop(&image->lock);
    if (result == CUDA_SUCCESS) {
        *module = (CUmodule)(uintptr_t)handle;
    }
    return result;
}

struct tpc_kernel *tpc_image_kernel(struct tpc_image *image, uint32_t index, const char *name, CUresult *result) {
    if (image->of) {
        struct tpc_kernel *of = tpc_image_kernel(image->of, index, name, result);
        bool ended = atomic_load(&image->context->life) != image->life;
        *result = ended ? CUDA_ERROR_CONTEXT_IS_DESTROYED : *result;
        return of && !ended ? tpc_kernel_in(of, image->context, result) : NULL;
    }
    struct tpc_entry *entry = &image->entries[index];
    struct tpc_kernel *kernel = atomic_load_explicit(&entry->kernel, memory_order_acquire);
    *result = CUDA_SUCCESS;
    if (kernel) {
        return kernel;
    }
    tp_lock_take(&image->lock);
    kernel = atomic_load_explicit(&entry->kernel, memory_order_relaxed);
    if (kernel) {
        tp_lock_drop(&image->lock);
        return kernel;
    }
    kernel = calloc(1, sizeof *kernel);
    uint32_t kind = image->library ? TPG_KERNEL : TPG_FUNCTION;
    struct tpc_attributes *attributes = attributes_of(entry);
    uint64_t handle = kernel && attributes ? tpc_mint_record(kind, kernel) : 0;
    if (!handle) {
        *result = CUDA_ERROR_OUT_OF_MEMORY;
        goto failed;
    }
    kernel->handle = handle;
    kernel->image = image;
    kernel->index = index;
    kernel->parameters = entry->parameters;
    kernel->parameter_bytes = entry->parameter_bytes;
    kernel->device = image->library ? -1 : tpc_devices[image->context->device].remote;
    atomic_store_explicit(&kernel->layout, entry->layout, memory_order_relaxed);
    kernel->attributes = attributes;
    atomic_store_explicit(&kernel->name, name ? tpc_kernel_name(name, strlen(name)) : NULL, memory_order_relaxed);
    if (image->library) {
        *result = tpc_post_kernel_get("cuLibraryGetKernel", image->handle, handle, index);
    } else {
        *result = tpc_post_function_get("cuModuleGetFunction", image->handle, handle, index);
    }
    if (*result) {
        goto failed;
    }
    atomic_store_explicit(&entry->kernel, kernel, memory_order_release);
    tp_lock_drop(&image->lock);
    return kernel;

failed:
    tp_lock_drop(&image->lock);
    free(kernel);
    return NULL;
}

struct tpc_kernel *tpc_kernel_of(uint64_t handle) {
    uint32_t kind = tp_handle_type(handle);
    return kind == TPG_KERNEL || kind == TPG_FUNCTION ? tpc_record(kind, handle) : NULL;
}

bool tpc_image_gone(const struct tpc_image *image) {
    return image->context && atomic_load(&image->context->life) != image->life;
}

uint64_t tpc_image_handle(const struct tpc_image *image) { return image->handle; }

struct tp_lock *tpc_image_lock(struct tpc_image *image) { return &image->lock; }
