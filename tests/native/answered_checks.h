// Checks of what a driver was asked on 2026-11-30 (580.159.04 on an H200): buffers of parameters, what belongs into
// captures, events of contexts that are gone, memory that was registered read only.
// For the simulated GPU itself and, remote, through the whole stack.
//
// Every check makes and ends what it uses.
#ifndef ANSWERED_CHECKS_H
#define ANSWERED_CHECKS_H

#include "simgpu_check.h"

// What a buffer lacks is as 0, what it has too much is too many resources.
static inline void check_buffers_of_parameters(CUmodule module) {
    static const struct {
        size_t size;
        CUresult gives;
        unsigned words; // that are set
    } asked[] = {{24, 0, 3}, {23, 0, 3}, {20, 0, 3},   {16, 0, 0},   {12, 0, 0},   {8, 0, 0},
                 {4, 0, 0},  {0, 1, 0},  {25, 701, 0}, {28, 701, 0}, {32, 701, 0}, {64, 701, 0}};
    struct {
        CUdeviceptr at;
        uint32_t value, unused;
        uint64_t words, more[5];
    } buffer = {.value = 7, .words = 3};
    uint32_t found[4];
    CUfunction fill = kernel(module, "fill_u32");
    OK(cuMemAlloc_v2(&buffer.at, sizeof found));
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        size_t size = asked[i].size;
        void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, &buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &size,
                         CU_LAUNCH_PARAM_END};
        const CUlaunchConfig config = {1, 1, 1, 32, 1, 1, 0, NULL, NULL, 0};
        for (int form = 0; form < 2; form++) {
            OK(cuMemsetD8_v2(buffer.at, 0, sizeof found));
            GIVES(asked[i].gives, form ? cuLaunchKernelEx(&config, fill, NULL, extra)
                                       : cuLaunchKernel(fill, 1, 1, 1, 32, 1, 1, 0, NULL, NULL, extra));
            OK(cuMemcpyDtoH_v2(found, buffer.at, sizeof found));
            for (unsigned word = 0; word < 4; word++)
                CHECK(found[word] == (word < asked[i].words ? 7 : 0));
        }
    }
    OK(cuMemFree_v2(buffer.at));
}

// A node that waits for an event has a place in a capture only, whatever became of the event.
static inline void check_external_waits(void) {
    CUstream stream;
    CUevent event;
    CUgraph graph;
    size_t nodes;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    for (int recorded = 0; recorded < 2; recorded++) {
        GIVES(401, cuStreamWaitEvent(stream, event, CU_EVENT_WAIT_EXTERNAL));
        GIVES(401, cuStreamWaitEvent(NULL, event, CU_EVENT_WAIT_EXTERNAL));
        GIVES(401, cuEventRecordWithFlags(event, stream, CU_EVENT_RECORD_EXTERNAL));
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(cuStreamWaitEvent(stream, event, CU_EVENT_WAIT_EXTERNAL));
        OK(cuStreamEndCapture(stream, &graph));
        OK(cuGraphGetNodes(graph, NULL, &nodes));
        CHECK(nodes == 1);
        OK(cuGraphDestroy(graph));
        OK(cuEventRecord(event, stream));
    }
    OK(cuStreamSynchronize(stream));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
}

// What a stream that joined a capture has to leave joined.
static inline void check_streams_that_joined(void) {
    enum { GONE, CAPTURED_AND_GONE, TAKEN_OUT, BY_HAND, BEHIND_BY_HAND, WAYS };
    static const CUresult ends[WAYS] = {0, 904, 0, 0, 904};
    CUstream stream, other;
    CUevent event, own;
    CUdeviceptr memory;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    OK(cuEventCreate(&own, CU_EVENT_DISABLE_TIMING));
    OK(cuMemAlloc_v2(&memory, 64));
    for (int way = 0; way < WAYS; way++) {
        CUstreamCaptureStatus status;
        CUgraph graph = NULL, captured;
        CUgraphNode node;
        OK(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
        OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
        OK(cuEventRecord(event, stream));
        OK(cuStreamWaitEvent(other, event, 0));
        if (way == CAPTURED_AND_GONE || way == TAKEN_OUT)
            OK(cuMemsetD8Async(memory, 1, 64, other));
        if (way == TAKEN_OUT)
            OK(cuStreamUpdateCaptureDependencies(other, NULL, 0, CU_STREAM_SET_CAPTURE_DEPENDENCIES));
        if (way == BY_HAND || way == BEHIND_BY_HAND) {
            OK(cuStreamGetCaptureInfo_v2(other, &status, NULL, &captured, NULL, NULL));
            OK(cuGraphAddEventRecordNode(&node, captured, NULL, 0, own));
            OK(cuStreamUpdateCaptureDependencies(other, &node, 1, CU_STREAM_SET_CAPTURE_DEPENDENCIES));
        }
        if (way == BEHIND_BY_HAND)
            OK(cuMemsetD8Async(memory, 1, 64, other));
        if (way == GONE || way == CAPTURED_AND_GONE)
            OK(cuStreamDestroy_v2(other));
        GIVES(ends[way], cuStreamEndCapture(stream, &graph));
        CHECK(!graph == (ends[way] != 0));
        if (graph)
            OK(cuGraphDestroy(graph));
        if (way != GONE && way != CAPTURED_AND_GONE)
            OK(cuStreamDestroy_v2(other));
    }
    OK(cuMemFree_v2(memory));
    OK(cuEventDestroy_v2(own));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(stream));
}

// Whoever uses an event of a context that is gone is told so, whichever is current.
static inline void check_events_of_a_context_that_is_gone(void) {
    CUcontext gone, current;
    CUstream stream, own;
    CUevent events[2];
    float ms = 0;
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    OK(cuCtxCreate_v2(&gone, 0, 0));
    OK(cuStreamCreate(&own, CU_STREAM_NON_BLOCKING));
    for (int recorded = 0; recorded < 2; recorded++)
        OK(cuEventCreate(&events[recorded], 0));
    OK(cuEventRecord(events[1], own));
    OK(cuCtxPopCurrent_v2(&current));
    OK(cuCtxDestroy_v2(gone));
    for (int recorded = 0; recorded < 2; recorded++) {
        GIVES(709, cuEventQuery(events[recorded]));
        GIVES(709, cuEventSynchronize(events[recorded]));
        GIVES(709, cuEventElapsedTime(&ms, events[recorded], events[recorded]));
        GIVES(709, cuStreamWaitEvent(stream, events[recorded], 0));
        GIVES(709, cuEventRecord(events[recorded], stream));
        GIVES(709, cuEventDestroy_v2(events[recorded]));
        GIVES(709, cuEventDestroy_v2(events[recorded]));
    }
    OK(cuStreamQuery(stream));
    OK(cuStreamDestroy_v2(stream));
}

// Memory that was registered read only is no place for what a copy brings.
static inline void check_downloads_into_read_only_memory(void) {
    enum { BYTES = 1 << 16 };
    unsigned char *memory = aligned_alloc(4096, BYTES);
    CUdeviceptr device;
    CHECK(memory != NULL);
    memset(memory, 7, BYTES);
    OK(cuMemAlloc_v2(&device, BYTES));
    OK(cuMemsetD8_v2(device, 1, BYTES));
    OK(cuMemHostRegister_v2(memory, BYTES, CU_MEMHOSTREGISTER_READ_ONLY));
    GIVES(1, cuMemcpyDtoH_v2(memory + 64, device, 64));
    OK(cuMemcpyDtoH_v2(memory, device, 0));
    OK(cuMemcpyHtoD_v2(device, memory, 64));
    OK(cuMemHostUnregister(memory));
    CHECK(memory[64] == 7);
    OK(cuMemcpyDtoH_v2(memory + 64, device, 128));
    CHECK(memory[64] == 7 && memory[128] == 1);
    OK(cuMemFree_v2(device));
    free(memory);
}

static inline void check_answered(CUmodule module) {
    check_buffers_of_parameters(module);
    check_external_waits();
    check_streams_that_joined();
    check_events_of_a_context_that_is_gone();
    check_downloads_into_read_only_memory();
}

#endif
