// Nodes that are added by name: kernel, copy, memset, host function, child graph, empty; and their parameters.
//
// Arguments are checked as for the same operation in a stream. The three forms of each function (a new node, a node's
// parameters, those of an executable graph) make the operation first and then put it in place. Under sim.lock.
#include "sim_copy.h"
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

CUresult sim_node_add(CUgraphNode *out, CUgraph handle, const CUgraphNode *dependencies, size_t count,
                      CUgraphNodeType type, sim_op_t *op, sim_node_t **made) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    sim_graph_t *graph = sim_graph_of(handle);
    sim_node_t *node = NULL;
    if (graph && out && (dependencies || !count))
        result = sim_node_new(graph, type, dependencies, count, op, &node);
    if (result != CUDA_SUCCESS) {
        sim_op_discard(op);
        return result;
    }
    *out = (CUgraphNode)(void *)node;
    *made = node;
    return result;
}

// What has several rows keeps their number, length and distance in an executable graph (580.159.04, measured).
static bool same_rows(const sim_op_t *now, const sim_op_t *next) {
    if (now->kind == SIM_OP_COPY) {
        const sim_copy_t *a = &now->u.copy, *b = &next->u.copy;
        const bool one = a->height * a->depth == 1 && b->height * b->depth == 1;
        return one || (a->width == b->width && a->height == b->height && a->depth == b->depth &&
                       a->src.pitch == b->src.pitch && a->dst.pitch == b->dst.pitch && a->src.slice == b->src.slice &&
                       a->dst.slice == b->dst.slice);
    }
    const sim_set_t *a = &now->u.set, *b = &next->u.set;
    return now->kind != SIM_OP_SET || (a->height == 1 && b->height == 1) ||
           (a->width == b->width && a->height == b->height && a->dst.pitch == b->dst.pitch);
}

bool sim_node_puts(CUgraphExec exec_handle, CUgraphNode handle, bool in_exec, CUgraphNodeType type) {
    const sim_node_t *node = sim_node_of(handle);
    const sim_exec_t *exec = in_exec ? sim_exec_of(exec_handle) : NULL;
    return node && node->type == type && (!in_exec || (exec && sim_program_step(exec->program, node)));
}

CUresult sim_node_put(CUgraphExec exec_handle, CUgraphNode handle, bool in_exec, CUgraphNodeType type, sim_op_t *op,
                      sim_node_t **out) {
    sim_node_t *node = sim_node_of(handle);
    sim_exec_t *exec = in_exec ? sim_exec_of(exec_handle) : NULL;
    sim_op_t *place = NULL;
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    const bool able = sim_node_puts(exec_handle, handle, in_exec, type);
    if (able && !in_exec)
        place = &node->op;
    if (able && in_exec) {
        sim_program_t *program = sim_exec_writable(exec);
        result = program ? result : CUDA_ERROR_OUT_OF_MEMORY;
        place = program ? &sim_program_step(program, node)->op : NULL;
        if (place && op->kind == SIM_OP_COPY && !sim_copy_may_become(&place->u.copy, &op->u.copy))
            place = NULL;
    }
    if (!place || (in_exec && !same_rows(place, op))) {
        sim_op_discard(op);
        return result;
    }
    sim_op_discard(place);
    *place = *op;
    if (op->kind == SIM_OP_LAUNCH && op->u.launch.params == op->u.launch.inline_params)
        place->u.launch.params = place->u.launch.inline_params;
    *out = node;
    return CUDA_SUCCESS;
}

// ---- Kernels -----------------------------------------------------------------------------------------------------

static void remember(sim_node_t *node, const CUDA_KERNEL_NODE_PARAMS *params) {
    node->params.kernel = node->op.u.launch.request;
    node->context = (sim_context_t *)(void *)node->params.kernel.ctx;
    node->params.kernel.extra = params->extra; // compared with NULL only
}

CUresult cuGraphAddKernelNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                 size_t numDependencies, const CUDA_KERNEL_NODE_PARAMS *nodeParams) {
    SIM_ENTER_WITH_ANY(context);
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = nodeParams ? sim_kernel_op(context, nodeParams, &op) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result =
            sim_node_add(phGraphNode, hGraph, dependencies, numDependencies, CU_GRAPH_NODE_TYPE_KERNEL, &op, &node);
    if (result == CUDA_SUCCESS)
        remember(node, nodeParams);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult put_kernel(sim_context_t *context, CUgraphExec exec, CUgraphNode hNode, bool in_exec,
                           const CUDA_KERNEL_NODE_PARAMS *params) {
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = params && sim_node_puts(exec, hNode, in_exec, CU_GRAPH_NODE_TYPE_KERNEL)
                          ? sim_kernel_op(context, params, &op)
                          : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = sim_node_put(exec, hNode, in_exec, CU_GRAPH_NODE_TYPE_KERNEL, &op, &node);
    if (result == CUDA_SUCCESS && !in_exec)
        remember(node, params);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode hNode, const CUDA_KERNEL_NODE_PARAMS *nodeParams) {
    SIM_ENTER_WITH_ANY(context);
    return put_kernel(context, NULL, hNode, false, nodeParams);
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec hGraphExec, CUgraphNode hNode,
                                           const CUDA_KERNEL_NODE_PARAMS *nodeParams) {
    SIM_ENTER_WITH_ANY(context);
    return put_kernel(context, hGraphExec, hNode, true, nodeParams);
}

enum { BUFFER_WORDS = 5 };

CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_node_t *node = sim_node_of(hNode);
    if (node && nodeParams && node->type == CU_GRAPH_NODE_TYPE_KERNEL) {
        sim_op_follow(&node->op, node->context);
        const sim_entry_t *entry = node->op.u.launch.entry;
        // Of a function that has ended the driver still tells the node (580.159.04, measured); its parameters are not known here.
        const unsigned count = sim_handle_is(node->op.u.launch.request.func, SIM_FUNCTION) ? entry->nparams : 0;
        bool buffer = node->params.kernel.extra != NULL; // told in the form in which it was given
        void **values = calloc(count + BUFFER_WORDS, sizeof *values);
        result = values ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        for (unsigned i = 0; values && !buffer && i < count; i++)
            values[i] = node->op.u.launch.params + entry->params[i].offset;
        if (values && buffer) {
            void *words[BUFFER_WORDS] = {CU_LAUNCH_PARAM_BUFFER_POINTER, node->op.u.launch.params,
                                         CU_LAUNCH_PARAM_BUFFER_SIZE, &node->op.u.launch.bytes, CU_LAUNCH_PARAM_END};
            memcpy(values, words, sizeof words);
        }
        if (values) {
            free(node->values);
            node->values = values;
            *nodeParams = node->params.kernel;
            nodeParams->kernelParams = buffer ? NULL : values;
            nodeParams->extra = buffer ? values : NULL;
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams) {
    SIM_ENTER_ANY();
    CUDA_KERNEL_NODE_PARAMS params;
    CUresult result = cuGraphKernelNodeGetParams_v2(hNode, nodeParams ? &params : NULL);
    if (result == CUDA_SUCCESS) {
        params.func = params.func ? params.func : (CUfunction)(void *)params.kern;
        memcpy(nodeParams, &params, sizeof *nodeParams); // the newer one begins as the older one
    }
    return result;
}

// What can be told; one more can be set (580.159.04, measured).
static bool attribute_ok(CUkernelNodeAttrID attr) {
    return attr == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW || attr == CU_LAUNCH_ATTRIBUTE_COOPERATIVE ||
           attr == CU_LAUNCH_ATTRIBUTE_PRIORITY || attr == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION ||
           attr == CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE ||
           attr == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN || attr == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP ||
           attr == CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE ||
           attr == CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
}

// The driver looks at the function, which its module or the end of the context may have taken (580.159.04, measured).
static bool function_lives(const sim_node_t *node) { return sim_handle_is(node->params.kernel.func, SIM_FUNCTION); }

static sim_node_t *kernel_node(CUgraphNode handle) {
    sim_node_t *node = sim_node_of(handle);
    return node && node->type == CU_GRAPH_NODE_TYPE_KERNEL ? node : NULL;
}

CUresult cuGraphKernelNodeSetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr, const CUkernelNodeAttrValue *value) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    sim_node_t *node = kernel_node(hNode);
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    if (node && value && (attribute_ok(attr) || attr == CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING))
        result = function_lives(node) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    if (result == CUDA_SUCCESS && attr == CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE &&
        value->deviceUpdatableKernelNode.deviceUpdatable)
        result = CUDA_ERROR_NOT_SUPPORTED; // no kernel here changes a graph
    if (result == CUDA_SUCCESS)
        node->attributes[attr] = *value;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphKernelNodeGetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr, CUkernelNodeAttrValue *value_out) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = kernel_node(hNode);
    bool ok = node && value_out && attribute_ok(attr);
    if (ok)
        *value_out = node->attributes[attr];
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode dst, CUgraphNode src) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    sim_node_t *to = kernel_node(dst);
    const sim_node_t *from = kernel_node(src);
    bool ok = to && from && function_lives(to) && function_lives(from);
    if (ok && to != from)
        memcpy(to->attributes, from->attributes, sizeof to->attributes);
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- Memsets -----------------------------------------------------------------------------------------------------

// The context of a node, which is looked at first. NULL is the current one, or where there is none that of the memory (580.159.04,
// measured); one that was destroyed is no memory's.
static CUresult context_of(CUcontext ctx, uint64_t address, sim_context_t **out) {
    sim_context_t *context = ctx ? (sim_context_t *)(void *)ctx : sim_current();
    if (ctx && !sim_handle_is(ctx, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!context) {
        pthread_rwlock_rdlock(&sim.map_lock);
        const sim_range_t *range = sim_map_find(address);
        context = range ? range->context : NULL;
        pthread_rwlock_unlock(&sim.map_lock);
    }
    if (!context || !context->active)
        return ctx ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_ERROR_INVALID_VALUE;
    *out = context;
    return CUDA_SUCCESS;
}

static CUresult set_op(const CUDA_MEMSET_NODE_PARAMS *p, CUcontext ctx, sim_op_t *op, sim_context_t **context) {
    CUresult found = context_of(ctx, p ? p->dst : 0, context);
    if (found != CUDA_SUCCESS || !p)
        return found != CUDA_SUCCESS ? found : CUDA_ERROR_INVALID_VALUE;
    if ((p->elementSize != 1 && p->elementSize != 2 && p->elementSize != 4) || !p->width || !p->height)
        return CUDA_ERROR_INVALID_VALUE;
    sim_set_t set = {.dst = {.address = p->dst, .pitch = p->pitch},
                     .height = p->height,
                     .value = p->value,
                     .element = p->elementSize};
    bool pinned;
    if (__builtin_mul_overflow((uint64_t)p->width, (uint64_t)p->elementSize, &set.width) || p->dst % p->elementSize ||
        (p->height > 1 && (p->pitch < set.width || p->pitch % p->elementSize)))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult result = sim_side_prepare(*context, &set.dst, SIM_PLACE_DEVICE, set.width, set.height, 1, true, &pinned);
    *op = (sim_op_t){.kind = SIM_OP_SET, .u.set = set};
    return result;
}

CUresult cuGraphAddMemsetNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                              size_t numDependencies, const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx) {
    SIM_ENTER();
    sim_op_t op;
    sim_node_t *node;
    sim_context_t *context = NULL;
    pthread_mutex_lock(&sim.lock);
    CUresult result = set_op(memsetParams, ctx, &op, &context);
    if (result == CUDA_SUCCESS)
        result =
            sim_node_add(phGraphNode, hGraph, dependencies, numDependencies, CU_GRAPH_NODE_TYPE_MEMSET, &op, &node);
    if (result == CUDA_SUCCESS) {
        node->params.set = *memsetParams;
        node->context = context;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

// A node keeps its context, whichever is current (580.159.04, measured).
static CUcontext context_at(CUgraphNode handle) { return (CUcontext)(void *)sim_node_of(handle)->context; }

static CUresult put_set(CUgraphExec exec, CUgraphNode hNode, bool in_exec, const CUDA_MEMSET_NODE_PARAMS *params,
                        CUcontext ctx) {
    sim_op_t op;
    sim_node_t *node;
    sim_context_t *context = NULL;
    pthread_mutex_lock(&sim.lock);
    CUresult result = CUDA_SUCCESS;
    if (!in_exec && !(params && sim_node_puts(exec, hNode, in_exec, CU_GRAPH_NODE_TYPE_MEMSET)))
        result = CUDA_ERROR_INVALID_VALUE;
    else
        result = set_op(params, in_exec ? ctx : context_at(hNode), &op, &context);
    if (result == CUDA_SUCCESS)
        result = sim_node_put(exec, hNode, in_exec, CU_GRAPH_NODE_TYPE_MEMSET, &op, &node);
    if (result == CUDA_SUCCESS && !in_exec)
        node->params.set = *params;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphMemsetNodeSetParams(CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    return put_set(NULL, hNode, false, nodeParams, NULL);
}

CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                        const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx) {
    SIM_ENTER();
    return put_set(hGraphExec, hNode, true, memsetParams, ctx);
}

CUresult cuGraphMemsetNodeGetParams(CUgraphNode hNode, CUDA_MEMSET_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && nodeParams && node->type == CU_GRAPH_NODE_TYPE_MEMSET;
    if (ok)
        *nodeParams = node->params.set;
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- Copies ------------------------------------------------------------------------------------------------------

static CUresult copy_op(const CUDA_MEMCPY3D *p, CUcontext ctx, sim_op_t *op, sim_context_t **context) {
    const bool in = p && p->dstMemoryType == CU_MEMORYTYPE_DEVICE;
    CUresult found = context_of(ctx, !p ? 0 : in ? p->dstDevice : p->srcDevice, context);
    if (found != CUDA_SUCCESS || !p)
        return found != CUDA_SUCCESS ? found : CUDA_ERROR_INVALID_VALUE;
    if ((p->srcMemoryType == CU_MEMORYTYPE_HOST && !p->srcHost) ||
        (p->dstMemoryType == CU_MEMORYTYPE_HOST && !p->dstHost))
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D copy = *p;
    copy.srcLOD = copy.dstLOD = 0; // nobody looks at them here (580.159.04, measured)
    *op = (sim_op_t){.kind = SIM_OP_COPY};
    return sim_copy_box_prepare(*context, &copy, &op->u.copy);
}

CUresult cuGraphAddMemcpyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                              size_t numDependencies, const CUDA_MEMCPY3D *copyParams, CUcontext ctx) {
    SIM_ENTER();
    sim_op_t op;
    sim_node_t *node;
    sim_context_t *context = NULL;
    pthread_mutex_lock(&sim.lock);
    CUresult result = copy_op(copyParams, ctx, &op, &context);
    if (result == CUDA_SUCCESS)
        result =
            sim_node_add(phGraphNode, hGraph, dependencies, numDependencies, CU_GRAPH_NODE_TYPE_MEMCPY, &op, &node);
    if (result == CUDA_SUCCESS) {
        node->params.copy = *copyParams;
        node->context = context;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult put_copy(CUgraphExec exec, CUgraphNode hNode, bool in_exec, const CUDA_MEMCPY3D *params,
                         CUcontext ctx) {
    sim_op_t op;
    sim_node_t *node;
    sim_context_t *context = NULL;
    pthread_mutex_lock(&sim.lock);
    CUresult result = CUDA_SUCCESS;
    if (!in_exec && !(params && sim_node_puts(exec, hNode, in_exec, CU_GRAPH_NODE_TYPE_MEMCPY)))
        result = CUDA_ERROR_INVALID_VALUE;
    else
        result = copy_op(params, in_exec ? ctx : context_at(hNode), &op, &context);
    if (result == CUDA_SUCCESS)
        result = sim_node_put(exec, hNode, in_exec, CU_GRAPH_NODE_TYPE_MEMCPY, &op, &node);
    if (result == CUDA_SUCCESS && !in_exec)
        node->params.copy = *params;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphMemcpyNodeSetParams(CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams) {
    SIM_ENTER();
    return put_copy(NULL, hNode, false, nodeParams, NULL);
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D *copyParams,
                                        CUcontext ctx) {
    SIM_ENTER();
    return put_copy(hGraphExec, hNode, true, copyParams, ctx);
}

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode hNode, CUDA_MEMCPY3D *nodeParams) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && nodeParams && node->type == CU_GRAPH_NODE_TYPE_MEMCPY;
    if (ok)
        *nodeParams = node->params.copy;
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- The others --------------------------------------------------------------------------------------------------

CUresult cuGraphAddHostNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                            size_t numDependencies, const CUDA_HOST_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    if (!nodeParams || !nodeParams->fn)
        return CUDA_ERROR_INVALID_VALUE;
    sim_node_t *node;
    sim_op_t op = {.kind = SIM_OP_HOST_FUNCTION, .u.host_function = {nodeParams->fn, nodeParams->userData}};
    pthread_mutex_lock(&sim.lock);
    CUresult result =
        sim_node_add(phGraphNode, hGraph, dependencies, numDependencies, CU_GRAPH_NODE_TYPE_HOST, &op, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphAddEmptyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                             size_t numDependencies) {
    SIM_ENTER();
    sim_node_t *node;
    sim_op_t op = {.kind = SIM_OP_NOP};
    pthread_mutex_lock(&sim.lock);
    CUresult result =
        sim_node_add(phGraphNode, hGraph, dependencies, numDependencies, CU_GRAPH_NODE_TYPE_EMPTY, &op, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult add_child(CUgraphNode *out, CUgraph hGraph, const CUgraphNode *dependencies, size_t count,
                          CUgraph childGraph, bool move) {
    sim_node_t *node;
    sim_op_t op = {.kind = SIM_OP_NOP};
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *child = sim_graph_of(childGraph);
    bool unable = child && !move && (sim_graph_has_memory(child) || sim_graph_has_conditions(child));
    CUresult result = unable ? CUDA_ERROR_NOT_SUPPORTED
                      : child && !child->capture && !(move && child->owner) && childGraph != hGraph
                          ? sim_node_add(out, hGraph, dependencies, count, CU_GRAPH_NODE_TYPE_GRAPH, &op, &node)
                          : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) {
        node->child = move ? child : sim_graph_clone(child, node);
        if (node->child) {
            node->child->owner = node;
        } else {
            sim_node_delete(node);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphAddChildGraphNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                  size_t numDependencies, CUgraph childGraph) {
    SIM_ENTER();
    return add_child(phGraphNode, hGraph, dependencies, numDependencies, childGraph, false);
}

CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode hNode, CUgraph *phGraph) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && phGraph && node->child;
    if (ok)
        *phGraph = (CUgraph)(void *)node->child;
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphExecChildGraphNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, CUgraph childGraph) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    sim_program_t *fresh = NULL;
    pthread_mutex_lock(&sim.lock);
    sim_exec_t *exec = sim_exec_of(hGraphExec);
    const sim_node_t *node = sim_node_of(hNode);
    sim_graph_t *child = sim_graph_of(childGraph);
    const sim_step_t *step = exec && node && child ? sim_program_step(exec->program, node) : NULL;
    if (step && step->child)
        result = sim_program_make(child, &fresh);
    if (result == CUDA_SUCCESS && fresh->count != step->child->count)
        result = CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    for (size_t i = 0; result == CUDA_SUCCESS && i < fresh->count; i++) {
        if (fresh->steps[i].op.kind != step->child->steps[i].op.kind)
            result = CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
        fresh->steps[i].node = step->child->steps[i].node;
    }
    sim_program_t *program = result == CUDA_SUCCESS ? sim_exec_writable(exec) : NULL;
    if (program) {
        sim_step_t *place = sim_program_step(program, node);
        sim_program_release(place->child);
        place->child = fresh;
    } else {
        sim_program_release(fresh);
    }
    pthread_mutex_unlock(&sim.lock);
    return result == CUDA_SUCCESS && !program ? CUDA_ERROR_OUT_OF_MEMORY : result;
}

CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                           const CUgraphEdgeData *dependencyData, size_t numDependencies,
                           CUgraphNodeParams *nodeParams) {
    SIM_ENTER();
    (void)dependencyData;
    static const int zero[sizeof nodeParams->reserved0 / sizeof *nodeParams->reserved0];
    if (!nodeParams || memcmp(nodeParams->reserved0, zero, sizeof zero) != 0 || nodeParams->reserved2)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_KERNEL_NODE_PARAMS kernel;
    CUDA_MEMSET_NODE_PARAMS set;
    CUDA_MEM_ALLOC_NODE_PARAMS alloc;
    CUDA_HOST_NODE_PARAMS host;
    CUDA_BATCH_MEM_OP_NODE_PARAMS batch;
    CUresult result;
    switch (nodeParams->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        memcpy(&kernel, &nodeParams->kernel, sizeof kernel);
        return cuGraphAddKernelNode_v2(phGraphNode, hGraph, dependencies, numDependencies, &kernel);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        memcpy(&set, &nodeParams->memset, sizeof set);
        return cuGraphAddMemsetNode(phGraphNode, hGraph, dependencies, numDependencies, &set, nodeParams->memset.ctx);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return cuGraphAddMemcpyNode(phGraphNode, hGraph, dependencies, numDependencies, &nodeParams->memcpy.copyParams,
                                    nodeParams->memcpy.copyCtx);
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return cuGraphAddEmptyNode(phGraphNode, hGraph, dependencies, numDependencies);
    case CU_GRAPH_NODE_TYPE_HOST:
        memcpy(&host, &nodeParams->host, sizeof host);
        return cuGraphAddHostNode(phGraphNode, hGraph, dependencies, numDependencies, &host);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        memcpy(&batch, &nodeParams->memOp, sizeof batch);
        return cuGraphAddBatchMemOpNode(phGraphNode, hGraph, dependencies, numDependencies, &batch);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return cuGraphAddEventRecordNode(phGraphNode, hGraph, dependencies, numDependencies,
                                         nodeParams->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return cuGraphAddEventWaitNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams->eventWait.event);
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        return sim_conditional_add(phGraphNode, hGraph, dependencies, numDependencies, &nodeParams->conditional);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        memcpy(&alloc, &nodeParams->alloc, sizeof alloc);
        result = cuGraphAddMemAllocNode(phGraphNode, hGraph, dependencies, numDependencies, &alloc);
        nodeParams->alloc.dptr = alloc.dptr;
        return result;
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        return cuGraphAddMemFreeNode(phGraphNode, hGraph, dependencies, numDependencies, nodeParams->free.dptr);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return add_child(phGraphNode, hGraph, dependencies, numDependencies, nodeParams->graph.graph,
                         nodeParams->graph.ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE);
    default:
        return CUDA_ERROR_INVALID_VALUE; // also of external semaphores: there are none here
    }
}
