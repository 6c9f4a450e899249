// Checks of texture and surface references, which compilers before CUDA 12 made. For the simulated GPU itself and, remote,
// through the whole stack.
//
// Every check makes and ends what it uses. Errors and defaults are those of driver 580.159 on an H200, but for what says
// "not asked".
#ifndef REFERENCE_CHECKS_H
#define REFERENCE_CHECKS_H

#include "simgpu_check.h"

static const char reference_image[] = ".version 7.0\n.target sm_75\n.address_size 64\n"
                                      ".global .texref picture;\n.global .surfref canvas;\n.global .u32 count;\n"
                                      ".visible .entry nothing()\n{\nret;\n}\n";

static inline CUarray reference_array(CUarray_format format, unsigned channels) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = {
        .Width = 64, .Height = 16, .Format = format, .NumChannels = channels, .Flags = CUDA_ARRAY3D_SURFACE_LDST};
    CUarray array;
    OK(cuArray3DCreate_v2(&array, &shape));
    return array;
}

static inline void check_reference_settings(void) {
    CUtexref t;
    unsigned flags = 9;
    CUarray_format format;
    CUfilter_mode filter;
    CUaddress_mode mode;
    int channels, anisotropy = 9;
    float color[4] = {9, 9, 9, 9}, red[4] = {1, 0, .5f, 1}, low = 9, high = 9, bias = 9;
    OK(cuTexRefCreate(&t));
    OK(cuTexRefGetFlags(&flags, t));
    CHECK(flags == 0);
    OK(cuTexRefSetFlags(t, 0x3f));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetFlags(t, 0x40));
    OK(cuTexRefGetFlags(&flags, t));
    CHECK(flags == 0x3f);
    OK(cuTexRefGetFormat(&format, &channels, t));
    CHECK(format == CU_AD_FORMAT_FLOAT && channels == 1);
    OK(cuTexRefSetFormat(t, CU_AD_FORMAT_HALF, 2));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetFormat(t, CU_AD_FORMAT_FLOAT, 3));
    OK(cuTexRefGetFormat(&format, &channels, t));
    CHECK(format == CU_AD_FORMAT_HALF && channels == 2);
    OK(cuTexRefSetFormat(t, (CUarray_format)77, 1)); // nobody looks
    OK(cuTexRefGetFilterMode(&filter, t));
    CHECK(filter == CU_TR_FILTER_MODE_POINT);
    OK(cuTexRefSetFilterMode(t, (CUfilter_mode)7));
    OK(cuTexRefSetFilterMode(t, CU_TR_FILTER_MODE_LINEAR));
    OK(cuTexRefGetFilterMode(&filter, t));
    CHECK(filter == CU_TR_FILTER_MODE_LINEAR);
    OK(cuTexRefGetMipmapFilterMode(&filter, t));
    CHECK(filter == CU_TR_FILTER_MODE_POINT);
    OK(cuTexRefSetMipmapFilterMode(t, CU_TR_FILTER_MODE_LINEAR));
    OK(cuTexRefGetMipmapFilterMode(&filter, t));
    CHECK(filter == CU_TR_FILTER_MODE_LINEAR);
    OK(cuTexRefGetAddressMode(&mode, t, 2));
    CHECK(mode == CU_TR_ADDRESS_MODE_CLAMP);
    OK(cuTexRefSetAddressMode(t, 2, CU_TR_ADDRESS_MODE_BORDER));
    OK(cuTexRefSetAddressMode(t, 0, (CUaddress_mode)9));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddressMode(t, 3, CU_TR_ADDRESS_MODE_BORDER));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddressMode(t, -1, CU_TR_ADDRESS_MODE_BORDER));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetAddressMode(&mode, t, 3));
    OK(cuTexRefGetAddressMode(&mode, t, 2));
    CHECK(mode == CU_TR_ADDRESS_MODE_BORDER);
    OK(cuTexRefGetMaxAnisotropy(&anisotropy, t));
    CHECK(anisotropy == 0);
    OK(cuTexRefSetMaxAnisotropy(t, 17));
    OK(cuTexRefGetMaxAnisotropy(&anisotropy, t));
    CHECK(anisotropy == 17);
    OK(cuTexRefGetBorderColor(color, t));
    CHECK(color[0] == 0 && color[3] == 0);
    OK(cuTexRefSetBorderColor(t, red));
    OK(cuTexRefGetBorderColor(color, t));
    CHECK(memcmp(color, red, sizeof red) == 0);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetBorderColor(t, NULL));
    OK(cuTexRefGetMipmapLevelClamp(&low, &high, t));
    CHECK(low == 0 && high == 0);
    OK(cuTexRefSetMipmapLevelClamp(t, 1, 2));
    OK(cuTexRefGetMipmapLevelClamp(&low, &high, t));
    CHECK(low == 1 && high == 2);
    OK(cuTexRefGetMipmapLevelBias(&bias, t));
    CHECK(bias == 0);
    OK(cuTexRefSetMipmapLevelBias(t, .5f));
    OK(cuTexRefGetMipmapLevelBias(&bias, t));
    CHECK(bias == .5f);
    OK(cuTexRefDestroy(t));
}

static inline void check_reference_addresses(void) {
    const CUDA_ARRAY_DESCRIPTOR shape = {.Width = 64, .Height = 16, .Format = CU_AD_FORMAT_HALF, .NumChannels = 1};
    const CUDA_ARRAY_DESCRIPTOR three = {.Width = 64, .Height = 16, .Format = CU_AD_FORMAT_HALF, .NumChannels = 3};
    const CUDA_ARRAY_DESCRIPTOR_v1 narrow = {.Width = 64, .Height = 16, .Format = CU_AD_FORMAT_HALF, .NumChannels = 1};
    CUtexref t;
    CUdeviceptr memory, told;
    CUdeviceptr_v1 low;
    CUarray array;
    CUmipmappedArray mipmap;
    CUarray_format format;
    int channels;
    size_t offset = 9;
    unsigned small = 9;
    OK(cuTexRefCreate(&t));
    OK(cuMemAlloc_v2(&memory, 1 << 16));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetAddress_v2(&told, t));
    OK(cuTexRefSetAddress_v2(&offset, t, memory, 4096));
    CHECK(offset == 0);
    OK(cuTexRefGetAddress_v2(&told, t));
    CHECK(told == memory);
    OK(cuTexRefSetAddress_v2(&offset, t, memory + 16, 4096));
    CHECK(offset == 16);
    OK(cuTexRefGetAddress_v2(&told, t));
    CHECK(told == memory); // without it
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress_v2(NULL, t, memory + 16, 4096));
    OK(cuTexRefSetAddress_v2(NULL, t, memory, 4096)); // nothing is to be told
    OK(cuTexRefSetAddress_v2(&offset, t, 0x1000, 64));
    CHECK(offset == 0);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetArray(&array, t));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetMipmappedArray(&mipmap, t));
    OK(cuTexRefSetAddress(&small, t, 0x1010, 64)); // the old form, of 32 bits; not asked: as the new one
    CHECK(small == 16);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress(NULL, t, 0x1010, 64));
    OK(cuTexRefSetAddress(NULL, t, 0x1200, 64));
    OK(cuTexRefGetAddress(&low, t));
    CHECK(low == 0x1200);
    OK(cuTexRefSetAddress2D_v3(t, &shape, memory, 256));
    OK(cuTexRefGetAddress_v2(&told, t));
    OK(cuTexRefGetFormat(&format, &channels, t));
    CHECK(told == memory && format == CU_AD_FORMAT_HALF && channels == 1);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D_v3(t, &shape, memory, 255));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D_v3(t, NULL, memory, 256));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D_v3(t, &shape, memory + 16, 256));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D_v3(t, &shape, memory, 96)); // a row has 128 bytes
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D_v3(t, &shape, memory, 0));
    OK(cuTexRefSetAddress2D_v3(t, &three, memory, 512));
    OK(cuTexRefSetAddress2D_v2(t, &shape, memory, 128));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D_v2(t, NULL, memory, 256));
    OK(cuTexRefSetAddress2D(t, &narrow, 0x1000, 128));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetAddress2D(t, NULL, 0x1000, 256));
    OK(cuTexRefSetAddress_v2(&offset, t, 0, 0));
    OK(cuTexRefGetAddress_v2(&told, t));
    CHECK(told == 0);
    OK(cuMemFree_v2(memory));
    OK(cuTexRefDestroy(t));
}

static inline void check_reference_arrays(void) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 16, .Height = 16, .Format = CU_AD_FORMAT_HALF, .NumChannels = 2};
    CUarray array = reference_array(CU_AD_FORMAT_UNSIGNED_INT8, 4), told = NULL;
    CUmipmappedArray mipmap, mipmap_told = NULL;
    CUdeviceptr address;
    CUarray_format format;
    int channels;
    CUtexref t;
    OK(cuMipmappedArrayCreate(&mipmap, &shape, 2));
    OK(cuTexRefCreate(&t));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetArray(&told, t));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetArray(t, NULL, CU_TRSA_OVERRIDE_FORMAT));
    OK(cuTexRefSetArray(t, array, 0)); // the flag is not asked for
    OK(cuTexRefSetArray(t, array, CU_TRSA_OVERRIDE_FORMAT));
    OK(cuTexRefGetArray(&told, t));
    CHECK(told == array);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefSetArray(t, array, 2));
    OK(cuTexRefGetFormat(&format, &channels, t));
    OK(cuTexRefGetFormat(NULL, &channels, t));
    OK(cuTexRefGetFormat(&format, NULL, t));
    CHECK(format == CU_AD_FORMAT_UNSIGNED_INT8 && channels == 4);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetAddress_v2(&address, t));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetMipmappedArray(t, NULL, 1)); // not asked, what follows
    OK(cuTexRefSetMipmappedArray(t, mipmap, CU_TRSA_OVERRIDE_FORMAT));
    OK(cuTexRefGetMipmappedArray(&mipmap_told, t));
    CHECK(mipmap_told == mipmap);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetArray(&told, t));
    OK(cuTexRefSetArray(t, array, 0));
    OK(cuArrayDestroy(array)); // bound as it is
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetArray(&told, t));
    OK(cuTexRefSetMipmappedArray(t, mipmap, 0));
    OK(cuMipmappedArrayDestroy(mipmap));
    OK(cuTexRefDestroy(t));
}

static inline void check_references_of_a_module(void) {
    CUmodule module;
    CUtexref picture, again;
    CUsurfref canvas;
    CUfunction nothing;
    CUarray array = reference_array(CU_AD_FORMAT_FLOAT, 1), told = NULL;
    CUdeviceptr count;
    unsigned flags;
    OK(cuModuleLoadData(&module, reference_image));
    OK(cuModuleGetTexRef(&picture, module, "picture"));
    OK(cuModuleGetTexRef(&again, module, "picture"));
    CHECK(picture == again);
    OK(cuModuleGetSurfRef(&canvas, module, "canvas"));
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetTexRef(&again, module, "nope"));
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetTexRef(&again, module, "canvas"));
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetSurfRef(&canvas, module, "picture"));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuModuleGetTexRef(&again, module, NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuModuleGetTexRef(NULL, module, "picture"));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuModuleGetTexRef(&again, NULL, "picture"));
    OK(cuModuleGetGlobal_v2(&count, NULL, module, "count"));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuModuleGetGlobal_v2(&count, NULL, module, "picture"));
    OK(cuModuleGetFunction(&nothing, module, "nothing"));
    OK(cuParamSetTexRef(nothing, CU_PARAM_TR_DEFAULT, picture));
    OK(cuParamSetTexRef(nothing, 5, picture));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuParamSetTexRef(nothing, CU_PARAM_TR_DEFAULT, NULL));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuParamSetTexRef(NULL, CU_PARAM_TR_DEFAULT, picture));
    OK(cuSurfRefSetArray(canvas, array, 0)); // not asked, and what follows of surfaces
    OK(cuSurfRefGetArray(&told, canvas));
    CHECK(told == array);
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuSurfRefSetArray(canvas, NULL, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuSurfRefSetArray(canvas, array, 1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuSurfRefSetArray((CUsurfref)picture, array, 0));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetArray((CUtexref)canvas, array, 0));
    OK(cuArrayDestroy(array));
    OK(cuTexRefDestroy(picture));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetFlags(picture, 1));
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetTexRef(&picture, module, "picture"));
    OK(cuModuleUnload(module));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefGetFlags(&flags, picture));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefDestroy(picture));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuSurfRefGetArray(&told, canvas));
}

static inline void check_references_of_a_library(void) {
    CUlibrary library;
    CUmodule module;
    CUtexref picture;
    unsigned flags;
    OK(cuLibraryLoadData(&library, reference_image, NULL, NULL, 0, NULL, NULL, 0));
    OK(cuLibraryGetModule(&module, library));
    OK(cuModuleGetTexRef(&picture, module, "picture"));
    OK(cuTexRefSetFlags(picture, 1));
    OK(cuLibraryUnload(library));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefGetFlags(&flags, picture));
}

static inline void check_reference_arguments(void) {
    CUtexref t, other;
    CUcontext own, before;
    unsigned flags;
    CUmodule module;
    CUtexref picture;
    OK(cuTexRefCreate(&t));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefCreate(NULL));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTexRefGetFlags(NULL, t));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetFlags(NULL, 1));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetFlags(NULL, 0x40)); // the handle comes first
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefSetFormat(NULL, CU_AD_FORMAT_FLOAT, 3));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefDestroy(NULL));
    OK(cuCtxPopCurrent_v2(&before));
    GIVES(CUDA_ERROR_INVALID_CONTEXT, cuTexRefCreate(&other));
    OK(cuTexRefGetFlags(&flags, t));
    OK(cuCtxPushCurrent_v2(before));
    OK(cuCtxCreate_v2(&own, 0, 0));
    OK(cuTexRefSetFlags(t, 1)); // of another context
    OK(cuTexRefCreate(&other));
    OK(cuModuleLoadData(&module, reference_image));
    OK(cuCtxPopCurrent_v2(&own));
    OK(cuModuleGetTexRef(&picture, module, "picture")); // of its module's context, whichever is current
    OK(cuTexRefSetFlags(picture, 1));
    OK(cuCtxDestroy_v2(own));
    CHECK(cuTexRefSetFlags(other, 1) != CUDA_SUCCESS);
    CHECK(cuTexRefSetFlags(picture, 1) != CUDA_SUCCESS);
    OK(cuTexRefGetFlags(&flags, t));
    CHECK(flags == 1);
    OK(cuTexRefDestroy(t));
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuTexRefDestroy(t));
}

static inline void check_references(void) {
    check_reference_settings();
    check_reference_addresses();
    check_reference_arrays();
    check_references_of_a_module();
    check_references_of_a_library();
    check_reference_arguments();
}

#endif
