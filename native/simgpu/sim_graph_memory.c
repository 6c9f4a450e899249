// Memory of graphs: nodes that allocate and free it, and how much of it is there.
//
// An allocation node has addresses from its making on, which take nothing of the device's budget and stay as long as a graph, a
// program or memory that was not freed has them. An allocation that follows the free of one no smaller in its graph gets that
// one's addresses again. What is allocated is known when a launch is called, in the order of calls; a launch takes
// bytes for the most that is allocated at once, and they stay with the device until they are trimmed. Ranges are found by address and
// looked at under the map lock; nodes and programs under sim.lock.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK (32ull << 20) // what the driver takes at once (580.159.04 on an H200, measured)

static sim_range_t *range_of(uint64_t address) {
    sim_range_t *range = sim_map_find(address);
    return range && range->of_graph && range->base == address ? range : NULL;
}

static bool live(const sim_range_t *range) { return !range->free_queued; }

static void leave(sim_range_t *range) {
    sim.devices[range->device].graph.used -= range->size;
    range->free_queued = true;
}

void sim_graph_range_release(sim_range_t *range) {
    sim.devices[range->device].used += range->charged; // its addresses took nothing, and are about to be given back
    if (live(range))
        leave(range);
}

static void drop(uint64_t address) {
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = range_of(address);
    if (range && --range->graph.holders == 0 && !live(range))
        sim_range_release(range);
    pthread_rwlock_unlock(&sim.map_lock);
}

static bool hold(uint64_t address) {
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = range_of(address);
    if (range)
        range->graph.holders++;
    pthread_rwlock_unlock(&sim.map_lock);
    return range != NULL;
}

bool sim_graph_op_copied(const sim_op_t *op) { return op->kind != SIM_OP_GRAPH_ALLOC || hold(op->u.memory.address); }

void sim_graph_op_discarded(sim_op_t *op) {
    if ((op->kind == SIM_OP_GRAPH_ALLOC || (op->kind == SIM_OP_GRAPH_FREE && op->u.memory.holds)) &&
        op->u.memory.address) {
        drop(op->u.memory.address);
        op->u.memory.address = 0;
    }
}

// ---- Addresses ---------------------------------------------------------------------------------------------------

static bool before(const sim_node_list_t *front, const sim_node_t *node) {
    for (size_t i = 0; i < front->count; i++)
        if (front->items[i] == node || before(&front->items[i]->dependencies, node))
            return true;
    return false;
}

typedef struct {
    size_t allocated, freed; // nodes of the graph for that address
    bool over;               // all of them come before
} uses_t;

static uses_t uses_of(const sim_graph_t *graph, uint64_t address, const sim_node_list_t *front) {
    uses_t uses = {.over = true};
    for (size_t i = 0; i < graph->nodes.count; i++) {
        const sim_node_t *node = graph->nodes.items[i];
        bool allocates = node->op.kind == SIM_OP_GRAPH_ALLOC, frees = node->op.kind == SIM_OP_GRAPH_FREE;
        if ((!allocates && !frees) || node->op.u.memory.address != address)
            continue;
        uses.allocated += allocates;
        uses.freed += frees;
        uses.over = uses.over && front && before(front, node);
    }
    return uses;
}

// The addresses of an allocation of the graph, no smaller, that is over before; 0 if there is none.
static uint64_t used_again(const sim_graph_t *graph, const sim_node_list_t *front, const sim_op_t *op) {
    for (size_t i = 0; i < graph->nodes.count; i++) {
        const sim_op_t *other = &graph->nodes.items[i]->op;
        if (other->kind != SIM_OP_GRAPH_ALLOC || other->u.memory.size < op->u.memory.size ||
            other->u.memory.device != op->u.memory.device)
            continue;
        uses_t uses = uses_of(graph, other->u.memory.address, front);
        if (uses.over && uses.allocated == uses.freed)
            return other->u.memory.address;
    }
    return 0;
}

static CUresult place(const sim_graph_t *graph, const sim_node_list_t *front, sim_op_t *op) {
    sim_device_t *device = &sim.devices[op->u.memory.device];
    sim_range_t *range = NULL;
    uint64_t again = used_again(graph, front, op);
    if (again && hold(again)) {
        op->u.memory.address = again;
        return CUDA_SUCCESS;
    }
    pthread_rwlock_wrlock(&sim.map_lock);
    const uint64_t used = device->used;
    device->used = 0;
    CUresult result = sim_device_allocate(&device->primary, op->u.memory.size, &range);
    device->used = used;
    if (result == CUDA_SUCCESS) {
        range->of_graph = range->free_queued = true;
        range->graph.holders = 1;
        op->u.memory.address = range->base;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static CUresult may_free(const sim_graph_t *graph, uint64_t address) {
    uses_t uses = uses_of(graph, address, NULL);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = range_of(address);
    // It is freed in its own graph or in others, in each once.
    bool own = uses.allocated != 0;
    if (range && (own ? uses.freed < uses.allocated && !range->graph.freed_elsewhere
                      : !uses.freed && !range->graph.freed_inside)) {
        range->graph.freed_inside = range->graph.freed_inside || own;
        range->graph.freed_elsewhere = range->graph.freed_elsewhere || !own;
        result = CUDA_SUCCESS;
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult sim_graph_memory_prepare(const sim_graph_t *graph, const sim_node_list_t *front, sim_op_t *op) {
    if (op->kind == SIM_OP_GRAPH_ALLOC)
        return place(graph, front, op);
    return op->kind == SIM_OP_GRAPH_FREE ? may_free(graph, op->u.memory.address) : CUDA_SUCCESS;
}

bool sim_graph_has_memory(const sim_graph_t *graph) {
    for (size_t i = 0; i < graph->nodes.count; i++) {
        const sim_node_t *node = graph->nodes.items[i];
        if (node->op.kind == SIM_OP_GRAPH_ALLOC || node->op.kind == SIM_OP_GRAPH_FREE ||
            (node->child && sim_graph_has_memory(node->child)))
            return true;
    }
    return false;
}

bool sim_graph_program_has_memory(const sim_program_t *program) {
    for (size_t i = 0; i < program->count; i++) {
        const sim_step_t *step = &program->steps[i];
        if (step->op.kind == SIM_OP_GRAPH_ALLOC || step->op.kind == SIM_OP_GRAPH_FREE ||
            (step->child && sim_graph_program_has_memory(step->child)))
            return true;
    }
    return false;
}

// ---- Launches ----------------------------------------------------------------------------------------------------

typedef struct {
    int64_t now[SIM_MAX_DEVICES], most[SIM_MAX_DEVICES]; // bytes beside those that are allocated already
} plan_t;

typedef CUresult step_t(sim_range_t *range, bool allocates, plan_t *plan);

static CUresult each(const sim_program_t *program, step_t *step, plan_t *plan) {
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < program->count && result == CUDA_SUCCESS; i++) {
        const sim_op_t *op = &program->steps[i].op;
        if (op->kind == SIM_OP_GRAPH_ALLOC || op->kind == SIM_OP_GRAPH_FREE) {
            sim_range_t *range = range_of(op->u.memory.address);
            result = range ? step(range, op->kind == SIM_OP_GRAPH_ALLOC, plan) : CUDA_ERROR_INVALID_VALUE;
        }
        if (program->steps[i].child && result == CUDA_SUCCESS)
            result = each(program->steps[i].child, step, plan);
    }
    return result;
}

static CUresult begin(sim_range_t *range, bool allocates, plan_t *plan) {
    (void)allocates, (void)plan;
    range->graph.planned = live(range);
    return CUDA_SUCCESS;
}

static CUresult begin_free(sim_range_t *range, bool allocates, plan_t *plan) {
    if (allocates && range->graph.planned) {
        range->graph.planned = false;
        plan->now[range->device] -= (int64_t)range->size;
    }
    return CUDA_SUCCESS;
}

static CUresult follow(sim_range_t *range, bool allocates, plan_t *plan) {
    if (range->graph.planned == allocates)
        return CUDA_ERROR_INVALID_VALUE; // it is allocated already, or is not
    range->graph.planned = allocates;
    int64_t *now = &plan->now[range->device], *most = &plan->most[range->device];
    *now += allocates ? (int64_t)range->size : -(int64_t)range->size;
    *most = *now > *most ? *now : *most;
    return CUDA_SUCCESS;
}

static CUresult settle(sim_range_t *range, bool allocates, plan_t *plan) {
    (void)allocates, (void)plan;
    range->free_queued = !range->graph.planned;
    return CUDA_SUCCESS;
}

static CUresult reserve(sim_device_t *device, int64_t most) {
    uint64_t wanted = device->graph.used + (most > 0 ? (uint64_t)most : 0);
    wanted = (wanted + CHUNK - 1) & ~(CHUNK - 1);
    uint64_t more = wanted > device->graph.reserved ? wanted - device->graph.reserved : 0;
    if (more > device->total - device->used)
        return CUDA_ERROR_OUT_OF_MEMORY;
    device->used += more;
    device->graph.reserved += more;
    uint64_t *highs[] = {&device->graph.used_high, &device->graph.reserved_high};
    for (int i = 0; i < 2; i++)
        *highs[i] = *highs[i] > device->graph.reserved ? *highs[i] : device->graph.reserved;
    return CUDA_SUCCESS;
}

CUresult sim_graph_memory_launch(const sim_program_t *program, bool frees_first) {
    plan_t plan = {0};
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = each(program, begin, &plan);
    if (result == CUDA_SUCCESS && frees_first)
        result = each(program, begin_free, &plan);
    if (result == CUDA_SUCCESS)
        result = each(program, follow, &plan);
    for (int i = 0; i < sim.ndevices && result == CUDA_SUCCESS; i++)
        result = reserve(&sim.devices[i], plan.most[i]);
    if (result == CUDA_SUCCESS)
        result = each(program, settle, &plan);
    for (int i = 0; i < sim.ndevices && result == CUDA_SUCCESS; i++)
        sim.devices[i].graph.used = (uint64_t)((int64_t)sim.devices[i].graph.used + plan.now[i]);
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

CUresult sim_graph_memory_upload(const sim_program_t *program) {
    plan_t plan = {0};
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = each(program, begin, &plan);
    if (result == CUDA_SUCCESS && each(program, follow, &plan) == CUDA_SUCCESS)
        for (int i = 0; i < sim.ndevices && result == CUDA_SUCCESS; i++)
            result = reserve(&sim.devices[i], plan.most[i]);
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

static CUresult claim(sim_range_t *range, bool allocates, plan_t *plan) {
    (void)plan;
    if (allocates && range->graph.instantiated)
        return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
}

static CUresult mark(sim_range_t *range, bool allocates, plan_t *plan) {
    (void)plan;
    range->graph.instantiated = range->graph.instantiated || allocates;
    return CUDA_SUCCESS;
}

static CUresult unmark(sim_range_t *range, bool allocates, plan_t *plan) {
    (void)plan;
    range->graph.instantiated = range->graph.instantiated && !allocates;
    return CUDA_SUCCESS;
}

CUresult sim_graph_memory_instantiate(const sim_program_t *program, bool begins) {
    pthread_rwlock_wrlock(&sim.map_lock);
    CUresult result = begins ? each(program, claim, NULL) : CUDA_SUCCESS;
    if (result == CUDA_SUCCESS)
        result = each(program, begins ? mark : unmark, NULL);
    pthread_rwlock_unlock(&sim.map_lock);
    return result;
}

// What a stream, or cuMemFree, does with memory of a graph: it is gone for whoever asks from now on, but stays for what
// is queued before the operation, even if no graph has it any more.
bool sim_graph_memory_free(uint64_t address, sim_op_t *op) {
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = range_of(address);
    bool is = range && live(range);
    if (is) {
        leave(range);
        range->graph.holders++;
        *op = (sim_op_t){.kind = SIM_OP_GRAPH_FREE, .u.memory = {.address = address, .holds = true}};
    }
    pthread_rwlock_unlock(&sim.map_lock);
    return is;
}

static bool missing(const sim_side_t *side) {
    const sim_range_t *range = side->mapped ? sim_map_find(side->address) : NULL;
    return range && range->of_graph && !live(range);
}

bool sim_graph_memory_missing(const sim_op_t *op) {
    if (op->kind != SIM_OP_COPY && op->kind != SIM_OP_SET)
        return false;
    pthread_rwlock_rdlock(&sim.map_lock);
    bool is = op->kind == SIM_OP_SET ? missing(&op->u.set.dst) : missing(&op->u.copy.dst) || missing(&op->u.copy.src);
    pthread_rwlock_unlock(&sim.map_lock);
    return is;
}

void sim_graph_memory_run(const sim_op_t *op) {
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_range_t *range = range_of(op->u.memory.address);
    if (range)
        range->graph.present = op->kind == SIM_OP_GRAPH_ALLOC;
    pthread_rwlock_unlock(&sim.map_lock);
}

// ---- Nodes -------------------------------------------------------------------------------------------------------

static CUresult access_ok(const CUmemAccessDesc *list, size_t count) {
    if (count && !list)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        if (list[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || list[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
            return CUDA_ERROR_NOT_SUPPORTED;
        if (!sim_device_ok(list[i].location.id))
            return CUDA_ERROR_INVALID_DEVICE;
    }
    return CUDA_SUCCESS;
}

static CUresult alloc_op(const CUDA_MEM_ALLOC_NODE_PARAMS *p, sim_op_t *op) {
    static const unsigned char none[sizeof p->poolProps.reserved];
    if (!p || !p->bytesize || p->poolProps.allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (p->poolProps.handleTypes != CU_MEM_HANDLE_TYPE_NONE ||
        p->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (!sim_device_ok(p->poolProps.location.id) || memcmp(p->poolProps.reserved, none, sizeof none) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *op = (sim_op_t){.kind = SIM_OP_GRAPH_ALLOC, .u.memory = {.size = p->bytesize, .device = p->poolProps.location.id}};
    return access_ok(p->accessDescs, p->accessDescCount);
}

static CUresult add(CUgraphNode *out, CUgraph handle, const CUgraphNode *dependencies, size_t count, sim_op_t *op,
                    CUgraphNodeType type, sim_node_t **node) {
    sim_graph_t *graph = sim_graph_of(handle);
    sim_node_list_t front = {.items = (sim_node_t **)(void *)(uintptr_t)dependencies, .count = count};
    for (size_t i = 0; i < count; i++)
        if (!dependencies || !sim_node_of(dependencies[i]))
            return CUDA_ERROR_INVALID_VALUE;
    CUresult result = graph && out ? sim_graph_memory_prepare(graph, &front, op) : CUDA_ERROR_INVALID_VALUE;
    return result == CUDA_SUCCESS ? sim_node_add(out, handle, dependencies, count, type, op, node) : result;
}

CUresult cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                size_t numDependencies, CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = alloc_op(nodeParams, &op);
    if (result == CUDA_SUCCESS)
        result = add(phGraphNode, hGraph, dependencies, numDependencies, &op, CU_GRAPH_NODE_TYPE_MEM_ALLOC, &node);
    if (result == CUDA_SUCCESS) {
        size_t bytes = nodeParams->accessDescCount * sizeof(CUmemAccessDesc);
        nodeParams->dptr = node->op.u.memory.address;
        node->params.alloc = *nodeParams;
        node->values = malloc(bytes + 1);
        if (node->values && bytes)
            memcpy(node->values, nodeParams->accessDescs, bytes);
        node->params.alloc.accessDescs = bytes ? (void *)node->values : NULL;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphAddMemFreeNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                               size_t numDependencies, CUdeviceptr dptr) {
    SIM_ENTER();
    sim_op_t op = {.kind = SIM_OP_GRAPH_FREE, .u.memory.address = dptr};
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = add(phGraphNode, hGraph, dependencies, numDependencies, &op, CU_GRAPH_NODE_TYPE_MEM_FREE, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphMemAllocNodeGetParams(CUgraphNode hNode, CUDA_MEM_ALLOC_NODE_PARAMS *params_out) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && params_out && node->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC;
    if (ok)
        *params_out = node->params.alloc;
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphMemFreeNodeGetParams(CUgraphNode hNode, CUdeviceptr *dptr_out) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && dptr_out && node->type == CU_GRAPH_NODE_TYPE_MEM_FREE;
    if (ok)
        *dptr_out = node->op.u.memory.address;
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- How much there is -------------------------------------------------------------------------------------------

CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value) {
    SIM_ENTER();
    if (!value || (unsigned)attr > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_rwlock_rdlock(&sim.map_lock);
    const sim_device_t *d = &sim.devices[device];
    // What is reserved is used until it is trimmed (580.159.04, measured).
    cuuint64_t values[] = {d->graph.reserved, d->graph.used_high, d->graph.reserved, d->graph.reserved_high};
    pthread_rwlock_unlock(&sim.map_lock);
    memcpy(value, &values[attr], sizeof values[attr]);
    return CUDA_SUCCESS;
}

CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value) {
    SIM_ENTER();
    cuuint64_t high = 0;
    if (!value || (attr != CU_GRAPH_MEM_ATTR_USED_MEM_HIGH && attr != CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH))
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    memcpy(&high, value, sizeof high);
    if (high) // a high mark can only be set back
        return CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_device_t *d = &sim.devices[device];
    if (attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH)
        d->graph.used_high = d->graph.reserved;
    else
        d->graph.reserved_high = d->graph.reserved;
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGraphMemTrim(CUdevice device) {
    SIM_ENTER();
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    pthread_rwlock_wrlock(&sim.map_lock);
    sim_device_t *d = &sim.devices[device];
    uint64_t kept = (d->graph.used + CHUNK - 1) & ~(CHUNK - 1);
    d->used -= d->graph.reserved - kept;
    d->graph.reserved = kept;
    pthread_rwlock_unlock(&sim.map_lock);
    return CUDA_SUCCESS;
}
