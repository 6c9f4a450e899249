// What is loaded from a file: the file is read, and its bytes are loaded.
//
// Any thread; nothing is kept. The file is the program's own, and no more of it is read than its size was when it was opened.
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>

enum { LARGEST = 1 << 28 };

// The bytes with a zero behind them, which ends a text, for the caller to free.
static CUresult read_file(const char *path, char **bytes, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return CUDA_ERROR_FILE_NOT_FOUND;
    long length = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    *size = length >= 0 && length < LARGEST ? (size_t)length : 0;
    *bytes = length >= 0 && length < LARGEST ? calloc(1, *size + 1) : NULL;
    bool whole = *bytes && !fseek(file, 0, SEEK_SET) && fread(*bytes, 1, *size, file) == *size;
    fclose(file);
    if (whole)
        return CUDA_SUCCESS;
    free(*bytes);
    return CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleLoad(CUmodule *module, const char *fname) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!module || !fname)
        return CUDA_ERROR_INVALID_VALUE;
    char *image;
    size_t size;
    CUresult result = read_file(fname, &image, &size);
    if (result != CUDA_SUCCESS)
        return result;
    result = cuModuleLoadData(module, image);
    free(image);
    return result;
}

CUresult cuLibraryLoadFromFile(CUlibrary *library, const char *fileName, CUjit_option *jitOptions,
                               void **jitOptionsValues, unsigned numJitOptions, CUlibraryOption *libraryOptions,
                               void **libraryOptionValues, unsigned numLibraryOptions) {
    SIM_ENTER();
    if (!library || !fileName)
        return CUDA_ERROR_INVALID_VALUE;
    char *code;
    size_t size;
    CUresult result = read_file(fileName, &code, &size);
    if (result != CUDA_SUCCESS)
        return result;
    result = cuLibraryLoadData(library, code, jitOptions, jitOptionsValues, numJitOptions, libraryOptions,
                               libraryOptionValues, numLibraryOptions);
    free(code);
    return result;
}

CUresult cuLinkAddFile_v2(CUlinkState state, CUjitInputType type, const char *path, unsigned int numOptions,
                          CUjit_option *options, void **optionValues) {
    SIM_ENTER_CONTEXT(context);
    (void)context;
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    char *data;
    size_t size;
    CUresult result = read_file(path, &data, &size);
    if (result != CUDA_SUCCESS)
        return result;
    result = cuLinkAddData_v2(state, type, data, size, path, numOptions, options, optionValues);
    free(data);
    return result;
}
