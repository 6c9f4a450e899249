/*
 * Nodes that the client adds or changes: kernel, memset, copy, child graph, empty, host function.
 *
 * Executor thread only. Each operation is in one of three places: a new node of a graph, a node in an executable graph, a
 * node itself. No pointer of the client reaches the driver: a kernel's parameters are the bytes of the frame, of exactly
 * the size that the kernel takes; sides of copies and memsets must lie in memory that the client was given.
 */
#include "tpg_session.h"
#include "tpg_session_structs.h"
#include "tpw_graph.h"
#include "tpw_code.h"
#include "tpw_memory.h"

/* The kernel of a node and its parameters, which are the bytes of the frame. A kernel of a library needs its context named;
 * a function has one, and for that the driver looks at no other. */
void tpw_take_CUDA_KERNEL_NODE_PARAMS_func(struct tpw_session *s, const struct tp_frame *frame, struct tp_cursor *c,
                                           uint64_t by, const CUDA_KERNEL_NODE_PARAMS *from,
                                           CUDA_KERNEL_NODE_PARAMS *to, int32_t *error) {
    struct {
        size_t bytes;
        void *extra[5];
    } *block = tpw_scratch(s, 1, sizeof *block, error);
    const uint64_t handle = tp_get_u64(c);
    size_t bytes;
    const void *params = tp_get_bytes(c, &bytes);
    const struct tpw_object *object = tpw_launchable(s, handle, bytes, error);
    *error = *error ? *error : tpw_hold_function(s, tpw_holder(s, by), object);
    if (*error) {
        return;
    }
    block->bytes = bytes;
    void *const extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, (void *)(uintptr_t)params, CU_LAUNCH_PARAM_BUFFER_SIZE,
                           &block->bytes, CU_LAUNCH_PARAM_END};
    memcpy(block->extra, extra, sizeof extra);
    bool kernel = object->kind == TPG_KERNEL;
    to->func = kernel ? NULL : (CUfunction)(uintptr_t)object->native;
    to->kern = kernel ? (CUkernel)(uintptr_t)object->native : NULL;
    to->ctx = kernel || from->ctx ? to->ctx : NULL;
    to->extra = bytes ? block->extra : NULL;
}

/* Of what is copied in device memory: pointers of the client's or the driver's own are nobody else's. */
static void no_pointers(CUDA_MEMCPY3D *copy) {
    copy->srcHost = copy->dstHost = NULL;
    copy->srcArray = copy->dstArray = NULL;
    copy->reserved0 = copy->reserved1 = NULL;
}

int32_t tpw_graph_fits(struct tpw_session *s, CUgraph child) {
    struct tpw_walk walk = {.look = NULL};
    int32_t error = tpw_walk(s, child, &walk);
    if (walk.deepest >= TPW_GRAPH_DEPTH) {
        tp_log(TP_WARN, "a graph with more than %u levels of child graphs was to become one", TPW_GRAPH_DEPTH);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return error;
}

int32_t tpw_cuGraphExecChildGraphNodeSetParams(struct tpw_session *s, const struct tp_frame *frame,
                                               const struct tpg_cuGraphExecChildGraphNodeSetParams_in *in,
                                               CUgraphExec exec, CUgraphNode node, CUgraph child) {
    TPW_TRY(tpw_graph_fits(s, child));
    return (int32_t)s->cuda.cuGraphExecChildGraphNodeSetParams(exec, node, child);
}

/* What the driver is given as dependencies: edges with ports are added behind the node, by the client. */
#define BEFORE(in) dependencies, (in)->dependencies_count
#define PLACED(made, error)                                                                                            \
    tpw_made_in(s, frame, TPG_GRAPHNODE, in->node, (uint64_t)(uintptr_t)(made), in->owner, error)

int32_t tpw_graph_child(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_child_in *in,
                        CUgraph graph, CUgraphNode *dependencies, CUgraph child) {
    CUgraphNode made = NULL;
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_GRAPH};
    TPW_TRY(tpw_graph_fits(s, child));
    if (!in->move) {
        int32_t error = (int32_t)s->cuda.cuGraphAddChildGraphNode(&made, graph, BEFORE(in), child);
        return PLACED(made, error);
    }
    TPW_TRY(tpw_graph_may_move(s, in->child, in->owner));
    params.graph.graph = child;
    params.graph.ownership = CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE;
    TPW_TRY(s->cuda.cuGraphAddNode_v2(&made, graph, dependencies, NULL, in->dependencies_count, &params));
    int32_t error = PLACED(made, CUDA_SUCCESS);
    if (error) {
        tpw_forget(s, TPG_GRAPH, in->child); /* the node had it, and has taken it along */
    } else {
        tpw_object(s, TPG_GRAPH, in->child)->owner = in->node;
    }
    return error;
}

int32_t tpw_graph_alloc(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_alloc_in *in,
                        struct tpg_graph_alloc_out *out, CUgraph graph, CUgraphNode *dependencies,
                        const CUDA_MEM_ALLOC_NODE_PARAMS *asked) {
    CUDA_MEM_ALLOC_NODE_PARAMS params = *asked;
    CUgraphNode made = NULL;
    uint32_t device = 0;
    int32_t error = (int32_t)s->cuda.cuGraphAddMemAllocNode(&made, graph, BEFORE(in), &params);
    error = error ? error : tpw_device_index(s, params.poolProps.location.id, &device);
    if (!error) { /* the driver lets no such node be destroyed: without a block it is of no use, and does no harm */
        TP_ASK(tpw_memory_captured, error, s, graph, params.dptr, params.bytesize, device);
    }
    error = error ? error : PLACED(made, CUDA_SUCCESS);
    const struct tpw_range *block = error ? NULL : tpw_range_at(s, params.dptr);
    if (block) {
        *out = (struct tpg_graph_alloc_out){
            .address = params.dptr, .block = block->at.start, .block_size = block->at.size};
    }
    return error;
}

int32_t tpw_graph_conditional(struct tpw_session *s, const struct tp_frame *frame,
                              const struct tpg_graph_conditional_in *in, CUgraph graph, CUgraphNode *dependencies) {
    CUgraphNode made = NULL;
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_CONDITIONAL};
    size_t named = 0;
    int32_t error = tpw_graph_depth(s, in->owner) < TPW_GRAPH_DEPTH ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
    params.conditional.handle = in->condition;
    params.conditional.type = (CUgraphConditionalNodeType)in->kind;
    params.conditional.size = (unsigned int)in->bodies_count;
    params.conditional.ctx = tpw_context_of(s, frame, in->context, in->owner, &error);
    if (!error) {
        error = (int32_t)s->cuda.cuGraphAddNode_v2(&made, graph, dependencies, NULL, in->dependencies_count, &params);
    }
    error = error ? error : PLACED(made, CUDA_SUCCESS);
    TPW_TRY(error);
    for (; named < in->bodies_count && !error; named += !error) {
        const uint64_t body = tp_word_at(in->bodies, named);
        error = tpw_made(s, frame, TPG_GRAPH, body, (uint64_t)(uintptr_t)params.conditional.phGraph_out[named], 0);
        error = error ? error : tpw_graph_body(s, body, in->node);
    }
    if (error) { /* the client would not know what to put into it */
        struct tpg_cuGraphDestroyNode_in gone = {.hNode = in->node};
        (void)tpw_cuGraphDestroyNode(s, frame, &gone, made);
    }
    return error;
}

int32_t tpw_graph_host(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_host_in *in,
                       CUgraph graph, CUgraphNode *dependencies) {
    CUgraphNode made = NULL;
    CUDA_HOST_NODE_PARAMS params = {0};
    TPW_TRY(tpw_host_repeated(s, graph, in->token, &params.fn, &params.userData));
    int32_t error = (int32_t)s->cuda.cuGraphAddHostNode(&made, graph, BEFORE(in), &params);
    return PLACED(made, error);
}

int32_t tpw_graph_host_set(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_host_set_in *in,
                           CUgraphExec exec, CUgraphNode node) {
    CUDA_HOST_NODE_PARAMS params = {0};
    int32_t error = CUDA_SUCCESS;
    if (exec) {
        struct tpw_kept *kept = NULL;
        TPW_TRY(tpw_host_kept(s, in->token, &params.fn, &params.userData, &kept));
        TPW_TRY(tpw_exec_hold(s, in->exec, kept));
        return (int32_t)s->cuda.cuGraphExecHostNodeSetParams(exec, node, &params);
    }
    CUgraph graph = tpw_graph(s, tpw_graph_of_node(s, in->node), &error);
    TPW_TRY(error);
    /* The function before is needed as long as the graph may be launched as it was. */
    TPW_TRY(tpw_host_repeated(s, graph, in->token, &params.fn, &params.userData));
    return (int32_t)s->cuda.cuGraphHostNodeSetParams(node, &params);
}

/* ---- asking ---- */

/* The driver tells parameters in the form in which they were given: here the bytes of a node that this file made. */
static const void *buffer_of(void **extra, size_t *size) {
    const void *buffer = NULL;
    for (size_t i = 0; extra && extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
        if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER) {
            buffer = extra[i + 1];
        } else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE) {
            memcpy(size, extra[i + 1], sizeof *size);
        } else {
            return NULL;
        }
    }
    return buffer;
}

int32_t tpw_graph_kernel_get(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_graph_kernel_get_in *in, struct tpg_graph_kernel_get_out *out,
                             CUgraphNode node) {
    int32_t error = CUDA_SUCCESS;
    CUDA_KERNEL_NODE_PARAMS params = {0};
    TPW_TRY(s->cuda.cuGraphKernelNodeGetParams_v2(node, &params));
    const uint64_t function = tpw_known(s, TPG_FUNCTION, (uint64_t)(uintptr_t)params.func);
    uint64_t kern = function ? 0 : tpw_known(s, TPG_KERNEL, (uint64_t)(uintptr_t)params.kern);
    kern = function || kern ? kern : tpw_known(s, TPG_KERNEL, (uint64_t)(uintptr_t)params.func);
    const uint64_t context = tpw_known(s, TPG_CONTEXT, (uint64_t)(uintptr_t)params.ctx);
    if (!s->entered_native &&
        context) { /* the driver needs one to describe a kernel that was not used under this handle */
        tpw_visit(s, params.ctx, tp_handle_id(context));
    }
    struct tpw_object *object = tpw_object(s, TPG_FUNCTION, function ? function : kern);
    const struct tpw_kernel *kernel = object ? tpw_kernel_described(s, object, &error) : NULL;
    TPW_TRY(error);
    size_t buffer_size = 0;
    const void *buffer = params.kernelParams ? NULL : buffer_of(params.extra, &buffer_size);
    if (!kernel ||
        (kernel->parameter_bytes && !params.kernelParams && (!buffer || buffer_size < kernel->parameter_bytes))) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    unsigned char *block = tpw_scratch(s, kernel->parameter_bytes, 1, &error);
    if (!error && buffer) {
        memcpy(block, buffer, kernel->parameter_bytes);
    }
    for (uint32_t i = 0; !error && params.kernelParams && i < kernel->parameters; i++) {
        memcpy(block + kernel->layout[i].offset, params.kernelParams[i], kernel->layout[i].size);
    }
    out->node = params; /* without the pointers, which are the driver's own */
    out->node.func = (CUfunction)(uintptr_t)function;
    out->node.kern = (CUkernel)(uintptr_t)kern;
    out->node.ctx = (CUcontext)(uintptr_t)context;
    out->node.kernelParams = out->node.extra = NULL;
    out->params = block;
    out->params_size = kernel->parameter_bytes;
    return error;
}

int32_t tpw_graph_host_get(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_host_get_in *in,
                           struct tpg_graph_host_get_out *out, CUgraphNode node) {
    CUDA_HOST_NODE_PARAMS params = {0};
    int32_t error = (int32_t)s->cuda.cuGraphHostNodeGetParams(node, &params);
    out->token = error ? 0 : tpw_host_token(params.fn, params.userData);
    return error;
}

/* Host memory of a node is the client's pinned memory in the segment, told by the address that it has everywhere. */
static void tell_host(struct tpw_session *s, CUmemorytype *type, const void *host, CUdeviceptr *device) {
    const struct tpw_range *range = tpw_range_at(s, (uint64_t)(uintptr_t)host);
    if (*type == CU_MEMORYTYPE_HOST && range && range->kind == TPW_RANGE_PINNED) {
        *type = CU_MEMORYTYPE_DEVICE;
        *device = (uint64_t)(uintptr_t)host;
    }
}

/* Other pointers in it are the driver's own: the client is told addresses of its memory, and numbers. */
int32_t tpw_graph_memcpy_get(struct tpw_session *s, const struct tp_frame *frame,
                             const struct tpg_graph_memcpy_get_in *in, struct tpg_graph_memcpy_get_out *out,
                             CUgraphNode node) {
    int32_t error = (int32_t)s->cuda.cuGraphMemcpyNodeGetParams(node, &out->params);
    tell_host(s, &out->params.srcMemoryType, out->params.srcHost, &out->params.srcDevice);
    tell_host(s, &out->params.dstMemoryType, out->params.dstHost, &out->params.dstDevice);
    no_pointers(&out->params);
    return error;
}
