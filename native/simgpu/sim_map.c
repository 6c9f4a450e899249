// The memory map: which unified addresses exist, where this process can touch them, and who may.
//
// One sorted array of ranges that never overlap (device allocations, VMM mappings, pinned and registered host memory)
// and one of VMM reservations, both guarded by sim.map_lock: stream threads hold it for reading while they touch
// memory, so that nothing is unmapped under them; whoever allocates, frees, maps or unmaps holds it for writing.
// Device addresses are reserved without access rights in this process: only the translation made here leads to the
// bytes.
#include "sim.h"

#include <stdlib.h>
#include <string.h>

size_t sim_map_index(uint64_t address) {
    size_t low = 0, high = sim.nranges;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (sim.ranges[middle]->base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

sim_range_t *sim_map_find(uint64_t address) {
    size_t index = sim_map_index(address);
    if (!index)
        return NULL;
    sim_range_t *range = sim.ranges[index - 1];
    return address - range->base < range->size ? range : NULL;
}

bool sim_map_add(sim_range_t *range) {
    if (!sim_grow(&sim.ranges, &sim.ranges_capacity, sim.nranges + 1, sizeof *sim.ranges))
        return false;
    size_t index = sim_map_index(range->base);
    memmove(&sim.ranges[index + 1], &sim.ranges[index], (sim.nranges - index) * sizeof *sim.ranges);
    sim.ranges[index] = range;
    sim.nranges++;
    range->buffer_id = sim.next_buffer_id++;
    return true;
}

void sim_map_remove(sim_range_t *range) {
    size_t index = sim_map_index(range->base);
    if (!index || sim.ranges[index - 1] != range)
        return;
    memmove(&sim.ranges[index - 1], &sim.ranges[index], (sim.nranges - index) * sizeof *sim.ranges);
    sim.nranges--;
}

static size_t reservation_index(uint64_t address) {
    size_t low = 0, high = sim.nreservations;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (sim.reservations[middle].base <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

sim_reservation_t *sim_reservation_find(uint64_t address) {
    size_t index = reservation_index(address);
    if (!index)
        return NULL;
    sim_reservation_t *found = &sim.reservations[index - 1];
    return address - found->base < found->size ? found : NULL;
}

bool sim_map_reserved(uint64_t address) { return sim_reservation_find(address) != NULL; }

CUresult sim_reservation_add(uint64_t base, uint64_t size) {
    if (!sim_grow(&sim.reservations, &sim.reservations_capacity, sim.nreservations + 1, sizeof *sim.reservations))
        return CUDA_ERROR_OUT_OF_MEMORY;
    size_t index = reservation_index(base);
    memmove(&sim.reservations[index + 1], &sim.reservations[index],
            (sim.nreservations - index) * sizeof *sim.reservations);
    sim.reservations[index] = (sim_reservation_t){base, size};
    sim.nreservations++;
    return CUDA_SUCCESS;
}

bool sim_reservation_remove(uint64_t base, uint64_t size) {
    size_t index = reservation_index(base);
    if (!index || sim.reservations[index - 1].base != base || sim.reservations[index - 1].size != size)
        return false;
    memmove(&sim.reservations[index - 1], &sim.reservations[index],
            (sim.nreservations - index) * sizeof *sim.reservations);
    sim.nreservations--;
    return true;
}

static bool may_access(const sim_range_t *range, int device, unsigned peers, bool write) {
    switch (range->kind) {
    case SIM_RANGE_DEVICE:
        if (range->pool && !range->managed)
            return (range->pool->access[device] & (write ? 2 : 1)) != 0;
        return range->device == device || (peers >> range->device & 1);
    case SIM_RANGE_IPC: // opening it lets the context's device in
        if (range->pool)
            return (range->pool->access[device] & (write ? 2 : 1)) != 0;
        return range->device == device || range->context->device == device || (peers >> range->device & 1);
    case SIM_RANGE_VMM:
        return (range->access[device] & (write ? 2 : 1)) != 0;
    case SIM_RANGE_HOST:
        return true;
    case SIM_RANGE_REGISTERED:
        return !write || !(range->flags & CU_MEMHOSTREGISTER_READ_ONLY);
    }
    return false;
}

static CUresult span_of(uint64_t address, int device, unsigned peers, bool write, sim_span_t *span) {
    const sim_range_t *range = sim_map_find(address);
    if (!range) // reserved or not (580.159.04, measured)
        return CUDA_ERROR_INVALID_VALUE;
    if (!may_access(range, device, peers, write))
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    span->host = range->host + (address - range->base);
    span->bytes = range->size - (address - range->base);
    return CUDA_SUCCESS;
}

CUresult sim_map_span(uint64_t address, int device, unsigned peers, bool write, sim_span_t *span) {
    const sim_range_t *range = sim_map_find(address);
    if (range && range->of_graph && !range->graph.present)
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    return span_of(address, device, peers, write, span);
}

// Memory of a graph may be named at any time; whether it is there is seen when it is used.
// Whether a device that has no access to a mapping stands beside one that has; anything else has no such rights.
static bool others_reach(const sim_range_t *range, int device) {
    bool others = range->kind != SIM_RANGE_VMM;
    for (int i = 0; i < SIM_MAX_DEVICES && !others; i++)
        others = i != device && range->access[i] && !range->access[device];
    return others;
}

CUresult sim_map_check(uint64_t address, uint64_t bytes, int device, unsigned peers, bool write) {
    if (bytes > UINT64_MAX - address)
        return CUDA_ERROR_INVALID_VALUE;
    while (bytes) {
        sim_span_t span;
        CUresult result = span_of(address, device, peers, write, &span);
        if (result == CUDA_ERROR_ILLEGAL_ADDRESS && !others_reach(sim_map_find(address), device))
            return CUDA_ERROR_INVALID_VALUE; // a mapping that nobody may use so (580.159.04, measured)
        if (result != CUDA_SUCCESS)
            return result;
        sim_range_t *range = sim_map_find(address);
        if (range->free_queued && !range->of_graph)
            return CUDA_ERROR_INVALID_VALUE;
        if (span.bytes >= bytes)
            return CUDA_SUCCESS;
        // Only neighbouring VMM mappings make one buffer; anything else that follows is somebody else's allocation.
        if (range->kind != SIM_RANGE_VMM)
            return CUDA_ERROR_INVALID_VALUE;
        address += span.bytes;
        bytes -= span.bytes;
    }
    return CUDA_SUCCESS;
}

bool sim_map_pinned(uint64_t address, uint64_t bytes) {
    sim_range_t *range = sim_map_find(address);
    return range && (range->kind == SIM_RANGE_HOST || range->kind == SIM_RANGE_REGISTERED) &&
           bytes <= range->size - (address - range->base);
}
