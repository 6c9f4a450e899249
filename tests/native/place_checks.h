/*
 * Memory of the device in the place of host memory: under unified addressing a copy goes by what the address says, whatever the call
 * says of it. PennyLane has cuBLAS write results to the device while cuBLAS takes the place for host memory, and works with a driver.
 *
 * One thread; ends what it makes.
 */
#ifndef PLACE_CHECKS_H
#define PLACE_CHECKS_H

#include "simgpu_check.h"

#include <string.h>

enum { PLACE_BYTES = 4096 };

static void place_holds(CUdeviceptr memory, unsigned char value, size_t bytes) {
    unsigned char got[PLACE_BYTES];
    OK(cuMemcpyDtoH_v2(got, memory, PLACE_BYTES));
    for (size_t i = 0; i < PLACE_BYTES; i++) {
        CHECK(got[i] == (i < bytes ? value : 0));
    }
}

/* What a call writes at `to` is there, and nothing else; `from` has the value. */
static void place_check(CUdeviceptr to, CUdeviceptr from, CUstream stream, int way) {
    void *to_host = (void *)(uintptr_t)to;
    const void *from_host = (const void *)(uintptr_t)from;
    const unsigned char value = (unsigned char)(way + 1);
    CUDA_MEMCPY2D rows = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                          .srcHost = from_host,
                          .srcPitch = 64,
                          .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = to_host,
                          .dstPitch = 64,
                          .WidthInBytes = 64,
                          .Height = 4};
    CUDA_MEMCPY3D box = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                         .srcHost = from_host,
                         .dstMemoryType = CU_MEMORYTYPE_HOST,
                         .dstHost = to_host,
                         .WidthInBytes = 256,
                         .Height = 1,
                         .Depth = 1};
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    CUgraphNode node;
    CUcontext context;
    OK(cuMemsetD8_v2(to, 0, PLACE_BYTES));
    OK(cuMemsetD8_v2(from, value, PLACE_BYTES));
    OK(cuCtxSynchronize()); /* the stream does not wait for the legacy one */
    switch (way) {
    case 0:
        OK(cuMemcpyDtoH_v2(to_host, from, 256));
        break;
    case 1:
        OK(cuMemcpyDtoHAsync_v2(to_host, from, 256, stream));
        break;
    case 2:
        OK(cuMemcpyHtoD_v2(to, from_host, 256));
        break;
    case 3:
        OK(cuMemcpyHtoDAsync_v2(to, from_host, 256, stream));
        break;
    case 4:
        OK(cuMemcpy2DAsync_v2(&rows, stream));
        break;
    case 5:
        OK(cuMemcpy3D_v2(&box));
        break;
    case 6:
        OK(cuGraphCreate(&graph, 0));
        OK(cuCtxGetCurrent(&context));
        OK(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &box, context));
        break;
    default:
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
        OK(cuMemcpyDtoHAsync_v2(to_host, from, 256, stream));
        OK(cuStreamEndCapture(stream, &graph));
    }
    if (graph) {
        OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
        OK(cuGraphLaunch(exec, stream));
    }
    OK(cuCtxSynchronize());
    place_holds(to, value, 256);
    if (graph) {
        OK(cuGraphExecDestroy(exec));
        OK(cuGraphDestroy(graph));
    }
}

/* Where a device has nothing it is refused. */
static void check_places(void) {
    CUdeviceptr to, from, gone;
    CUstream stream;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuMemAlloc_v2(&to, PLACE_BYTES));
    OK(cuMemAlloc_v2(&from, PLACE_BYTES));
    for (int way = 0; way < 8; way++) {
        place_check(to, from, stream, way);
    }
    OK(cuMemAlloc_v2(&gone, 64 << 20));
    OK(cuMemFree_v2(gone));
    CHECK(cuMemcpyDtoH_v2((void *)(uintptr_t)gone, from, 256) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemcpyHtoD_v2(to, (const void *)(uintptr_t)gone, 256) == CUDA_ERROR_INVALID_VALUE);
    OK(cuMemFree_v2(to));
    OK(cuMemFree_v2(from));
    OK(cuStreamDestroy_v2(stream));
}

#endif
