// Functions and kernels: names, parameter layouts, attributes, loading state.
//
// A CUkernel may stand for a CUfunction where it is launched (the CUDA runtime does that) and where occupancy is asked for; it
// then means the function of the current context. The cuFunc* calls refuse one (580.159.04, measured). A function is its
// module's, and needs no current context. Attributes of a library's function and of its kernel on that device are one and the same.
// Under sim.lock.
#include "sim.h"

#include <string.h>

CUresult sim_function_resolve(sim_context_t *context, CUfunction handle, sim_function_t **out, int **attributes) {
    if (sim_handle_is(handle, SIM_FUNCTION)) {
        sim_function_t *function = (sim_function_t *)(void *)handle;
        *out = function;
        *attributes = function->attributes;
        sim_library_t *library = function->module->library;
        if (library)
            *attributes = library->kernels[function->entry - library->image->entries]
                              .attributes[function->module->context->device];
        return CUDA_SUCCESS;
    }
    if (!sim_handle_is(handle, SIM_KERNEL))
        return CUDA_ERROR_INVALID_HANDLE;
    sim_kernel_t *kernel = (sim_kernel_t *)(void *)handle;
    sim_module_t *module;
    CUresult result = sim_library_module(kernel->library, context, &module);
    if (result != CUDA_SUCCESS)
        return result;
    *out = &module->functions[kernel->index];
    *attributes = kernel->attributes[context->device];
    return CUDA_SUCCESS;
}

CUresult sim_attribute_set(int *attributes, CUfunction_attribute attribute, int value) {
    const int *device = sim_attributes_h200;
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: {
        int highest = device[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] -
                      attributes[CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES];
        if (value < 0 || value > highest)
            return CUDA_ERROR_INVALID_VALUE;
        break;
    }
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
        if (value < -1 || value > 100)
            return CUDA_ERROR_INVALID_VALUE;
        break;
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
        if (value < 0 || value > 16)
            return CUDA_ERROR_INVALID_VALUE;
        break;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
        if (value < 0)
            return CUDA_ERROR_INVALID_VALUE;
        value = value != 0; // any other is taken, and told as no such (580.159.04, asked)
        break;
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
        if (value < 0 || value > 2)
            return CUDA_ERROR_INVALID_VALUE;
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE; // read-only
    }
    attributes[attribute] = value;
    return CUDA_SUCCESS;
}

static CUresult only_function(sim_context_t *context, CUfunction handle, sim_function_t **function, int **attributes) {
    return sim_handle_is(handle, SIM_FUNCTION) ? sim_function_resolve(context, handle, function, attributes)
                                               : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuFuncGetAttribute(int *pi, CUfunction_attribute attrib, CUfunction hfunc) {
    SIM_ENTER_WITH_ANY(context);
    if (!pi || (unsigned)attrib >= SIM_FUNC_ATTRIBUTES)
        return CUDA_ERROR_INVALID_VALUE;
    sim_function_t *function;
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = only_function(context, hfunc, &function, &attributes);
    if (result == CUDA_SUCCESS)
        *pi = attributes[attrib];
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuFuncSetAttribute(CUfunction hfunc, CUfunction_attribute attrib, int value) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *function;
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = only_function(context, hfunc, &function, &attributes);
    if (result == CUDA_SUCCESS)
        result = sim_attribute_set(attributes, attrib, value);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult check_function(sim_context_t *context, CUfunction handle, sim_function_t **function) {
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = only_function(context, handle, function, &attributes);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuFuncSetCacheConfig(CUfunction hfunc, CUfunc_cache config) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *function;
    if ((unsigned)config > CU_FUNC_CACHE_PREFER_EQUAL)
        return CUDA_ERROR_INVALID_VALUE;
    return check_function(context, hfunc, &function); // a hint, and there is no cache
}

CUresult cuFuncSetSharedMemConfig(CUfunction hfunc, CUsharedconfig config) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *function;
    if ((unsigned)config > 2)
        return CUDA_ERROR_INVALID_VALUE;
    return check_function(context, hfunc, &function);
}

CUresult cuFuncGetName(const char **name, CUfunction hfunc) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *function;
    if (!name || !hfunc)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_function(context, hfunc, &function);
    if (result == CUDA_SUCCESS)
        *name = function->entry->name;
    return result;
}

CUresult cuFuncGetModule(CUmodule *hmod, CUfunction hfunc) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *function;
    if (!hmod || !hfunc)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_function(context, hfunc, &function);
    if (result == CUDA_SUCCESS)
        *hmod = (CUmodule)(void *)function->module;
    return result;
}

static CUresult param_info(const sim_entry_t *entry, size_t index, size_t *offset, size_t *size) {
    if (!offset || index >= entry->nparams)
        return CUDA_ERROR_INVALID_VALUE;
    *offset = entry->params[index].offset;
    if (size)
        *size = entry->params[index].size;
    return CUDA_SUCCESS;
}

CUresult cuFuncGetParamInfo(CUfunction func, size_t paramIndex, size_t *paramOffset, size_t *paramSize) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *function;
    if (!func)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_function(context, func, &function);
    return result == CUDA_SUCCESS ? param_info(function->entry, paramIndex, paramOffset, paramSize) : result;
}

CUresult cuFuncIsLoaded(CUfunctionLoadingState *state, CUfunction function) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *found;
    if (!state)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = check_function(context, function, &found);
    if (result == CUDA_SUCCESS)
        *state = found->loaded ? CU_FUNCTION_LOADING_STATE_LOADED : CU_FUNCTION_LOADING_STATE_UNLOADED;
    return result;
}

CUresult cuFuncLoad(CUfunction function) {
    SIM_ENTER_WITH_ANY(context);
    sim_function_t *found;
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = only_function(context, function, &found, &attributes);
    if (result == CUDA_SUCCESS)
        found->loaded = true;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// ---- Kernels -----------------------------------------------------------------------------------------------------

static sim_kernel_t *kernel_of(CUkernel handle) {
    pthread_mutex_lock(&sim.lock);
    bool live = sim_handle_is(handle, SIM_KERNEL);
    pthread_mutex_unlock(&sim.lock);
    return live ? (sim_kernel_t *)(void *)handle : NULL;
}

CUresult cuKernelGetFunction(CUfunction *pFunc, CUkernel kernel) {
    SIM_ENTER_CONTEXT(context);
    sim_function_t *function;
    if (!pFunc)
        return CUDA_ERROR_INVALID_VALUE;
    if (!kernel_of(kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    int *attributes;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_function_resolve(context, (CUfunction)(void *)kernel, &function, &attributes);
    pthread_mutex_unlock(&sim.lock);
    if (result == CUDA_SUCCESS)
        *pFunc = (CUfunction)(void *)function;
    return result;
}

CUresult cuKernelGetName(const char **name, CUkernel hfunc) {
    SIM_ENTER();
    if (!hfunc)
        return CUDA_ERROR_INVALID_VALUE;
    sim_kernel_t *kernel = kernel_of(hfunc);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!name)
        return CUDA_ERROR_INVALID_VALUE;
    *name = kernel->entry->name;
    return CUDA_SUCCESS;
}

CUresult cuKernelGetLibrary(CUlibrary *pLib, CUkernel handle) {
    SIM_ENTER();
    sim_kernel_t *kernel = kernel_of(handle);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!pLib)
        return CUDA_ERROR_INVALID_VALUE;
    *pLib = (CUlibrary)(void *)kernel->library;
    return CUDA_SUCCESS;
}

// No context: 201, although the header does not list it and cuKernelGetName works (580.159.04, measured).
CUresult cuKernelGetParamInfo(CUkernel handle, size_t paramIndex, size_t *paramOffset, size_t *paramSize) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    sim_kernel_t *kernel = kernel_of(handle);
    return kernel ? param_info(kernel->entry, paramIndex, paramOffset, paramSize) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuKernelGetAttribute(int *pi, CUfunction_attribute attrib, CUkernel handle, CUdevice dev) {
    SIM_ENTER();
    sim_kernel_t *kernel = kernel_of(handle);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!pi || (unsigned)attrib >= SIM_FUNC_ATTRIBUTES)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&sim.lock);
    *pi = kernel->attributes[dev][attrib];
    pthread_mutex_unlock(&sim.lock);
    return CUDA_SUCCESS;
}

CUresult cuKernelSetAttribute(CUfunction_attribute attrib, int val, CUkernel handle, CUdevice dev) {
    SIM_ENTER();
    sim_kernel_t *kernel = kernel_of(handle);
    if (!kernel)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_attribute_set(kernel->attributes[dev], attrib, val);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache config, CUdevice dev) {
    SIM_ENTER();
    if (!kernel_of(kernel))
        return CUDA_ERROR_INVALID_HANDLE;
    if ((unsigned)config > CU_FUNC_CACHE_PREFER_EQUAL)
        return CUDA_ERROR_INVALID_VALUE;
    return sim_device_ok(dev) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
