// Modules and libraries: loading, handles of functions and kernels, global variables.
//
// A library holds the parsed image and makes a module of it in each context that uses it; a module holds one function
// object per kernel and device memory for the globals. Handles live as long as their module or library. All under
// sim.lock.
#include "sim.h"
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

void sim_module_delete(sim_module_t *module) {
    *module->link = module->next;
    if (module->next)
        module->next->link = module->link;
    sim_handle_remove(module);
    for (unsigned i = 0; module->functions && i < module->image->nentries; i++) {
        sim_handle_remove(&module->functions[i]);
        free(module->functions[i].parts);
    }
    sim_references_delete(module);
    pthread_rwlock_wrlock(&sim.map_lock);
    for (unsigned i = 0; module->globals && i < module->image->nglobals; i++) {
        sim_range_t *range = module->globals[i] ? sim_map_find(module->globals[i]) : NULL;
        if (range)
            sim_range_release(range);
    }
    pthread_rwlock_unlock(&sim.map_lock);
    sim_image_release(module->image);
    free(module->functions);
    free(module->globals);
    free(module);
}

static CUresult place_globals(sim_module_t *module) {
    CUresult result = CUDA_SUCCESS;
    pthread_rwlock_wrlock(&sim.map_lock);
    for (unsigned i = 0; i < module->image->nglobals && result == CUDA_SUCCESS; i++) {
        const sim_global_t *global = &module->image->globals[i];
        sim_range_t *range;
        result = sim_device_allocate(module->context, global->size, &range);
        if (result != CUDA_SUCCESS)
            break;
        range->internal = true;
        module->globals[i] = range->base;
        result = global->managed ? sim_managed_begin(range) : CUDA_SUCCESS;
        if (global->init)
            memcpy(range->host, global->init, global->size);
        else
            memset(range->host, 0, global->size);
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult sim_module_new(sim_context_t *context, sim_image_t *image, sim_library_t *library, sim_module_t **out) {
    context = sim_home(context);
    if (!context->active)
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    sim_module_t *module = calloc(1, sizeof *module);
    if (!module)
        return CUDA_ERROR_OUT_OF_MEMORY;
    module->context = context;
    module->library = library;
    module->image = image;
    image->refs++;
    module->next = context->modules;
    module->link = &context->modules;
    if (module->next)
        module->next->link = &module->next;
    context->modules = module;
    module->functions = calloc(image->nentries + 1, sizeof *module->functions);
    module->globals = calloc(image->nglobals + 1, sizeof *module->globals);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    bool ok = module->functions && module->globals && sim_handle_add(module, SIM_MODULE);
    for (unsigned i = 0; ok && i < image->nentries; i++) {
        sim_function_t *function = &module->functions[i];
        *function = (sim_function_t){.module = module, .entry = &image->entries[i]};
        memcpy(function->attributes, image->entries[i].attributes, sizeof function->attributes);
        ok = sim_handle_add(function, SIM_FUNCTION);
    }
    if (ok)
        result = place_globals(module);
    if (result != CUDA_SUCCESS)
        sim_module_delete(module);
    else
        *out = module;
    return result;
}

static sim_module_t *made_of(const sim_library_t *library, const sim_context_t *context) {
    sim_module_t *module = context->modules;
    while (module && module->library != library)
        module = module->next;
    return module;
}

CUresult sim_library_module(sim_library_t *library, sim_context_t *context, sim_module_t **out) {
    *out = made_of(library, sim_home(context));
    if (*out)
        return CUDA_SUCCESS;
    sim_context_drain(context); // as cuModuleLoadData does; other threads go on meanwhile
    if (!sim_handle_is(library, SIM_LIBRARY))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!context->active)
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    *out = made_of(library, context);
    return *out ? CUDA_SUCCESS : sim_module_new(context, library->image, library, out);
}

// ---- JIT options -------------------------------------------------------------------------------------------------

typedef struct {
    char *buffer;
    size_t size;
    unsigned size_index; // where the filled size is written back
    bool has_size;
} log_buffer_t;

static CUresult read_options(unsigned count, CUjit_option *options, void **values, log_buffer_t *info,
                             log_buffer_t *error, float **wall) {
    if (count && (!options || !values))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        switch (options[i]) {
        case CU_JIT_INFO_LOG_BUFFER:
            info->buffer = values[i];
            break;
        case CU_JIT_ERROR_LOG_BUFFER:
            error->buffer = values[i];
            break;
        case CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES:
        case CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: {
            log_buffer_t *which = options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES ? info : error;
            which->size = (unsigned)(uintptr_t)values[i];
            which->size_index = i;
            which->has_size = true;
            break;
        }
        case CU_JIT_WALL_TIME:
            *wall = (float *)(void *)&values[i];
            break;
        default:
            if ((unsigned)options[i] >= CU_JIT_NUM_OPTIONS)
                return CUDA_ERROR_INVALID_VALUE; // others change code that is not compiled here
        }
    }
    return CUDA_SUCCESS;
}

static void write_log(const log_buffer_t *to, const char *text, void **values) {
    size_t length = 0;
    if (to->buffer && to->has_size && to->size) {
        length = strlen(text);
        if (length >= to->size)
            length = to->size - 1;
        memcpy(to->buffer, text, length);
        to->buffer[length] = 0;
    }
    if (to->has_size)
        values[to->size_index] = (void *)(uintptr_t)length;
}

static CUresult parse(const void *code, unsigned count, CUjit_option *options, void **values, sim_image_t **image) {
    log_buffer_t info = {0}, error = {0};
    float *wall = NULL;
    CUresult result = read_options(count, options, values, &info, &error, &wall);
    if (result != CUDA_SUCCESS)
        return result;
    char log[512] = "";
    uint64_t begin = sim_now_ns();
    result = sim_image_parse(code, image, log, sizeof log);
    write_log(&info, "", values);
    write_log(&error, result == CUDA_SUCCESS ? "" : log, values);
    if (wall)
        *wall = (float)((double)(sim_now_ns() - begin) / 1e6);
    return result;
}

// ---- Modules -----------------------------------------------------------------------------------------------------

static CUresult load(sim_context_t *context, CUmodule *module, const void *image, unsigned count, CUjit_option *options,
                     void **values) {
    if (!module || !image)
        return CUDA_ERROR_INVALID_VALUE;
    sim_image_t *parsed;
    CUresult result = parse(image, count, options, values, &parsed);
    if (result != CUDA_SUCCESS)
        return result;
    sim_module_t *fresh;
    pthread_mutex_lock(&sim.lock);
    sim_context_drain(context); // the driver waits for all work before it loads code
    result = context->active ? sim_module_new(context, parsed, NULL, &fresh) : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    sim_image_release(parsed); // the module holds its own reference
    if (result == CUDA_SUCCESS)
        *module = (CUmodule)(void *)fresh;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    SIM_ENTER_CONTEXT(context);
    return load(context, module, image, 0, NULL, NULL);
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned numOptions, CUjit_option *options,
                            void **optionValues) {
    SIM_ENTER_CONTEXT(context);
    return load(context, module, image, numOptions, options, optionValues);
}

CUresult cuModuleLoadFatBinary(CUmodule *module, const void *fatCubin) {
    SIM_ENTER_CONTEXT(context);
    return load(context, module, fatCubin, 0, NULL, NULL);
}

static sim_module_t *module_of(CUmodule handle) { // under sim.lock
    return sim_handle_known(handle, SIM_MODULE) ? (sim_module_t *)(void *)handle : NULL;
}

CUresult cuModuleUnload(CUmodule hmod) {
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    SIM_UNSAFE();
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim.lock);
    sim_module_t *module = module_of(hmod);
    if (module && module->library) {
        result = CUDA_ERROR_NOT_PERMITTED; // it ends with the library
    } else if (module) {
        sim_context_drain(module->context); // queued kernels may still use the globals
        module = module_of(hmod);
        if (module) {
            sim_module_delete(module);
            result = CUDA_SUCCESS;
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *mode) {
    SIM_ENTER();
    if (!mode)
        return CUDA_ERROR_INVALID_VALUE;
    *mode = CU_MODULE_LAZY_LOADING;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name) {
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    unsigned index;
    pthread_mutex_lock(&sim.lock);
    sim_module_t *module = module_of(hmod);
    if (module && (!hfunc || !name || !*name)) { // (580.159.04, on an H200: 1 for the empty name)
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (module) {
        result = sim_image_find(module->image, name, &index) ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
        if (result == CUDA_SUCCESS)
            *hfunc = (CUfunction)(void *)&module->functions[index];
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuModuleGetFunctionCount(unsigned int *count, CUmodule mod) {
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_module_t *module = module_of(mod);
    if (module)
        *count = module->image->nentries;
    pthread_mutex_unlock(&sim.lock);
    return module ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuModuleEnumerateFunctions(CUfunction *functions, unsigned int numFunctions, CUmodule mod) {
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    if (!functions)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_module_t *module = module_of(mod);
    for (unsigned i = 0; module && i < numFunctions && i < module->image->nentries; i++)
        functions[i] = (CUfunction)(void *)&module->functions[i];
    pthread_mutex_unlock(&sim.lock);
    return module ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult get_global(sim_module_t *module, const char *name, bool managed, CUdeviceptr *dptr, size_t *bytes) {
    for (unsigned i = 0; i < module->image->nglobals; i++) {
        if (strcmp(module->image->globals[i].name, name) || (managed && !module->image->globals[i].managed))
            continue;
        if (dptr)
            *dptr = module->globals[i];
        if (bytes)
            *bytes = module->image->globals[i].size;
        return CUDA_SUCCESS;
    }
    for (unsigned i = 0; i < module->image->nreferences; i++)
        if (!strcmp(module->image->references[i].name, name))
            return CUDA_ERROR_INVALID_VALUE; // there, and no memory (580.159.04, measured)
    return CUDA_ERROR_NOT_FOUND;
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name) {
    SIM_BEGINS(dptr, 0);
    SIM_BEGINS(bytes, 0);
    SIM_ENTER_WITH_ANY(context);
    (void)context;
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    pthread_mutex_lock(&sim.lock);
    sim_module_t *module = module_of(hmod);
    if (module)
        result =
            name && *name && (dptr || bytes) ? get_global(module, name, false, dptr, bytes) : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// ---- Libraries ---------------------------------------------------------------------------------------------------

static sim_library_t *library_of(CUlibrary handle) { // under sim.lock
    return sim_handle_is(handle, SIM_LIBRARY) ? (sim_library_t *)(void *)handle : NULL;
}

// Under sim.lock. What a use of it finds: CUDA_SUCCESS, no library, or one whose image is none.
static CUresult usable(const sim_library_t *library) { return library ? library->refused : CUDA_ERROR_INVALID_HANDLE; }

static bool is_about_the_image(CUresult result) {
    return result == CUDA_ERROR_INVALID_IMAGE || result == CUDA_ERROR_NO_BINARY_FOR_GPU ||
           result == CUDA_ERROR_INVALID_PTX || result == CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
}

static void library_delete(sim_library_t *library) {
    for (sim_context_t *context = sim.contexts; context; context = context->next) {
        for (sim_module_t *module = context->modules, *following; module; module = following) {
            following = module->next;
            if (module->library == library)
                sim_module_delete(module);
        }
    }
    sim_handle_remove(library);
    for (unsigned i = 0; library->kernels && i < library->image->nentries; i++)
        sim_handle_remove(&library->kernels[i]);
    sim_image_release(library->image);
    free(library->kernels);
    free(library);
}

CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jitOptions, void **jitOptionsValues,
                           unsigned numJitOptions, CUlibraryOption *libraryOptions, void **libraryOptionValues,
                           unsigned numLibraryOptions) {
    SIM_ENTER();
    if (!library || !code || (numLibraryOptions && !libraryOptions))
        return CUDA_ERROR_INVALID_VALUE;
    (void)libraryOptionValues;
    for (unsigned i = 0; i < numLibraryOptions; i++)
        if ((unsigned)libraryOptions[i] >= CU_LIBRARY_NUM_OPTIONS)
            return CUDA_ERROR_INVALID_VALUE;
    sim_image_t *image;
    CUresult result = parse(code, numJitOptions, jitOptions, jitOptionsValues, &image), refused = CUDA_SUCCESS;
    if (is_about_the_image(result)) {
        refused = result;
        image = calloc(1, sizeof *image);
        result = image ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        if (image)
            image->refs = 1;
    }
    if (result != CUDA_SUCCESS)
        return result;
    sim_library_t *fresh = calloc(1, sizeof *fresh);
    pthread_mutex_lock(&sim.lock);
    bool ok = fresh != NULL;
    if (ok) {
        fresh->image = image;
        fresh->refused = refused;
        fresh->kernels = calloc(image->nentries + 1, sizeof *fresh->kernels);
        ok = fresh->kernels && sim_handle_add(fresh, SIM_LIBRARY);
    }
    for (unsigned i = 0; ok && i < image->nentries; i++) {
        sim_kernel_t *kernel = &fresh->kernels[i];
        *kernel = (sim_kernel_t){.library = fresh, .entry = &image->entries[i], .index = i};
        for (int d = 0; d < SIM_MAX_DEVICES; d++)
            memcpy(kernel->attributes[d], image->entries[i].attributes, sizeof kernel->attributes[d]);
        ok = sim_handle_add(kernel, SIM_KERNEL);
    }
    if (ok)
        *library = (CUlibrary)(void *)fresh;
    else if (fresh)
        library_delete(fresh);
    else
        sim_image_release(image);
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuLibraryUnload(CUlibrary library) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_HANDLE;
    if (!library)
        return result;
    SIM_UNSAFE();
    pthread_mutex_lock(&sim.lock);
    if (library_of(library)) {
        for (sim_context_t *context = sim.contexts; context; context = context->next)
            if (context->active)
                sim_context_drain(context);
        sim_library_t *found = library_of(library);
        if (found) {
            library_delete(found);
            result = CUDA_SUCCESS;
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuLibraryGetKernel(CUkernel *pKernel, CUlibrary library, const char *name) {
    SIM_ENTER();
    if (!pKernel || !name)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result;
    unsigned index;
    pthread_mutex_lock(&sim.lock);
    sim_library_t *found = library_of(library);
    result = usable(found);
    if (result == CUDA_SUCCESS) {
        result = sim_image_find(found->image, name, &index) ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
        if (result == CUDA_SUCCESS)
            *pKernel = (CUkernel)(void *)&found->kernels[index];
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuLibraryGetKernelCount(unsigned int *count, CUlibrary lib) {
    SIM_ENTER();
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_library_t *found = library_of(lib); // of no image: without kernels
    if (found)
        *count = found->image->nentries;
    pthread_mutex_unlock(&sim.lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuLibraryEnumerateKernels(CUkernel *kernels, unsigned int numKernels, CUlibrary lib) {
    SIM_ENTER();
    if (!kernels)
        return CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_library_t *found = library_of(lib);
    for (unsigned i = 0; found && i < numKernels && i < found->image->nentries; i++)
        kernels[i] = (CUkernel)(void *)&found->kernels[i];
    pthread_mutex_unlock(&sim.lock);
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuLibraryGetModule(CUmodule *pMod, CUlibrary library) {
    SIM_ENTER_CONTEXT(context);
    if (!pMod)
        return CUDA_ERROR_INVALID_VALUE;
    sim_module_t *module;
    pthread_mutex_lock(&sim.lock);
    sim_library_t *found = library_of(library);
    CUresult result = usable(found);
    if (result == CUDA_SUCCESS)
        result = sim_library_module(found, context, &module);
    if (result == CUDA_SUCCESS)
        *pMod = (CUmodule)(void *)module;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuLibraryGetGlobal(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name) {
    SIM_ENTER_CONTEXT(context);
    if (!name || !*name || (!dptr && !bytes))
        return CUDA_ERROR_INVALID_VALUE;
    sim_module_t *module;
    pthread_mutex_lock(&sim.lock);
    sim_library_t *found = library_of(library);
    CUresult result = usable(found);
    if (result == CUDA_SUCCESS)
        result = sim_library_module(found, context, &module);
    if (result == CUDA_SUCCESS)
        result = get_global(module, name, false, dptr, bytes);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static bool has_managed(const sim_image_t *image, const char *name) {
    for (unsigned i = 0; i < image->nglobals; i++)
        if (image->globals[i].managed && !strcmp(image->globals[i].name, name))
            return true;
    return false;
}

CUresult cuLibraryGetManaged(CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name) {
    SIM_ENTER_WITH_ANY(context);
    if (!name || !*name || (!dptr && !bytes))
        return CUDA_ERROR_INVALID_VALUE;
    sim_module_t *module;
    pthread_mutex_lock(&sim.lock);
    sim_library_t *found = library_of(library);
    CUresult result = usable(found);
    if (result == CUDA_SUCCESS && !has_managed(found->image, name))
        result = CUDA_ERROR_NOT_FOUND; // for which nobody needs a context (580.159.04, measured)
    if (result == CUDA_SUCCESS && (!context || !context->active))
        result = context ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_CONTEXT;
    if (result == CUDA_SUCCESS)
        result = sim_library_module(found, context, &module);
    if (result == CUDA_SUCCESS)
        result = get_global(module, name, true, dptr, bytes);
    pthread_mutex_unlock(&sim.lock);
    return result;
}
