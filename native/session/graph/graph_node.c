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

#include <stdlib.h>

struct place {
    uint32_t owner;  /* TPG_GRAPH, TPG_GRAPHEXEC or 0 */
    uint64_t holder; /* the graph of the node, or the executable one: who keeps what the node points at */
    CUgraph graph;
    CUgraphExec exec;
    CUgraphNode node;          /* of the last two */
    CUgraphNode *dependencies; /* in scratch memory */
    size_t count;
};

static int32_t find_place(struct tpw_session *s, uint64_t owner, uint64_t node, const uint64_t *dependencies,
                          size_t count, struct place *out) {
    int32_t error = CUDA_SUCCESS;
    *out = (struct place){.owner = owner ? tp_handle_type(owner) : 0,
                          .holder = owner ? owner : tpw_graph_of_node(s, node),
                          .count = count};
    if (out->owner == TPG_GRAPH) {
        out->graph = tpw_graph(s, owner, &error);
        out->dependencies = tpw_nodes(s, dependencies, count, &error);
        return error;
    }
    if (owner && out->owner != TPG_GRAPHEXEC) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    out->exec = owner ? tpw_exec(s, owner, &error) : NULL;
    out->node = tpw_node(s, node, &error);
    return error;
}

/* What the driver is given as dependencies: edges with ports are added behind the node, by the client. */
#define BEFORE(place) (place).dependencies, (place).count

static int32_t placed(struct tpw_session *s, const struct tp_frame *frame, uint64_t owner, uint64_t handle,
                      const struct place *place, CUgraphNode made, int32_t error) {
    if (error || place->owner != TPG_GRAPH) {
        return error;
    }
    return tpw_made_in(s, frame, TPG_GRAPHNODE, handle, (uint64_t)(uintptr_t)made, owner, CUDA_SUCCESS);
}

#define FIND(in) find_place(s, (in)->owner, (in)->node, (in)->dependencies, (in)->dependencies_count, &place)
#define PLACED(made, error) placed(s, frame, in->owner, in->node, &place, made, error)

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

/* One side of a copy: device memory of the client, all of the box. */
static void check_side(struct tpw_session *s, uint64_t base, uint64_t x, uint64_t y, uint64_t z, uint64_t pitch,
                       uint64_t rows, const CUDA_MEMCPY3D *copy, int32_t *error) {
    uint64_t slice = 0, start = 0, skip = 0, extent = 0, reach = 0, bottom = 0;
    bool bad = !copy->WidthInBytes || !copy->Height || !copy->Depth;
    bad = bad || __builtin_add_overflow(x, copy->WidthInBytes, &reach) ||
          __builtin_add_overflow(y, copy->Height, &bottom);
    pitch = pitch ? pitch : reach;
    rows = rows ? rows : bottom;
    bad = bad || (pitch < reach && (copy->Height > 1 || copy->Depth > 1)) || (rows < bottom && copy->Depth > 1);
    bad = bad || __builtin_mul_overflow(pitch, rows, &slice) || __builtin_mul_overflow(slice, z, &skip) ||
          __builtin_add_overflow(base, skip, &start) || __builtin_mul_overflow(pitch, y, &skip) ||
          __builtin_add_overflow(start, skip, &start) || __builtin_add_overflow(start, x, &start);
    bad = bad || __builtin_mul_overflow(slice, copy->Depth - 1, &extent) ||
          __builtin_mul_overflow(pitch, copy->Height - 1, &skip) || __builtin_add_overflow(extent, skip, &extent) ||
          __builtin_add_overflow(extent, copy->WidthInBytes, &extent);
    if (bad && !*error) {
        *error = CUDA_ERROR_INVALID_VALUE;
    }
    tpw_check_range(s, start, extent, error);
}

/* Of what is copied in device memory: pointers of the client's or the driver's own are nobody else's. */
static void no_pointers(CUDA_MEMCPY3D *copy) {
    copy->srcHost = copy->dstHost = NULL;
    copy->srcArray = copy->dstArray = NULL;
    copy->reserved0 = copy->reserved1 = NULL;
}

int32_t tpw_graph_memcpy(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_memcpy_in *in) {
    struct place place;
    CUgraphNode made = NULL;
    CUDA_MEMCPY3D copy;
    int32_t error = FIND(in);
    CUcontext context = tpw_context_of(s, frame, in->context, place.holder, &error);
    memcpy(&copy, in->params, sizeof copy);
    no_pointers(&copy);
    copy.srcLOD = copy.dstLOD = 0;
    if (!error && (copy.srcMemoryType != CU_MEMORYTYPE_DEVICE || copy.dstMemoryType != CU_MEMORYTYPE_DEVICE)) {
        error = CUDA_ERROR_NOT_SUPPORTED; /* the client has turned what it can into device addresses */
    }
    check_side(s, copy.srcDevice, copy.srcXInBytes, copy.srcY, copy.srcZ, copy.srcPitch, copy.srcHeight, &copy, &error);
    check_side(s, copy.dstDevice, copy.dstXInBytes, copy.dstY, copy.dstZ, copy.dstPitch, copy.dstHeight, &copy, &error);
    if (error) {
        return error;
    }
    if (place.owner == TPG_GRAPH) {
        error = (int32_t)s->cuda.cuGraphAddMemcpyNode(&made, place.graph, BEFORE(place), &copy, context);
    } else if (place.owner) {
        error = (int32_t)s->cuda.cuGraphExecMemcpyNodeSetParams(place.exec, place.node, &copy, context);
    } else {
        error = (int32_t)s->cuda.cuGraphMemcpyNodeSetParams(place.node, &copy);
    }
    return PLACED(made, error);
}

/* Levels of child graphs in a graph, more than TPW_GRAPH_DEPTH if there are too many. */
static unsigned levels(struct tpw_session *s, CUgraph graph, unsigned above, int32_t *error) {
    size_t count = 0;
    unsigned most = 0;
    if (above > TPW_GRAPH_DEPTH || *error) {
        return 1;
    }
    CUgraphNode *nodes = NULL;
    *error = tpw_nodes_of(s, graph, &nodes, &count);
    for (size_t i = 0; i < count && above + most <= TPW_GRAPH_DEPTH && !*error; i++) {
        CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
        CUgraph child = NULL;
        *error = (int32_t)s->cuda.cuGraphNodeGetType(nodes[i], &type);
        for (uint32_t at = 0; !*error && (child = tpw_inner_graph(s, nodes[i], type, &at, error));) {
            unsigned below = levels(s, child, above + 1, error);
            most = below > most ? below : most;
        }
    }
    free(nodes);
    return most + 1;
}

int32_t tpw_graph_child(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_child_in *in,
                        CUgraph child) {
    struct place place;
    CUgraphNode made = NULL;
    int32_t error = FIND(in);
    if (!error && levels(s, child, 0, &error) > TPW_GRAPH_DEPTH && !error) {
        tp_log(TP_WARN, "a graph with more than %u levels of child graphs was to become one", TPW_GRAPH_DEPTH);
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    if (error) {
        return error;
    }
    if (place.owner == TPG_GRAPHEXEC) {
        return (int32_t)s->cuda.cuGraphExecChildGraphNodeSetParams(place.exec, place.node, child);
    }
    if (place.owner != TPG_GRAPH) {
        return tpw_graph_replace(s, in->node, place.node, child);
    }
    if (in->move) {
        error = tpw_graph_may_move(s, in->child, in->owner);
        if (error) {
            return error;
        }
        CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_GRAPH};
        params.graph.graph = child;
        params.graph.ownership = CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE;
        error = (int32_t)s->cuda.cuGraphAddNode_v2(&made, place.graph, place.dependencies, NULL, place.count, &params);
    } else {
        error = (int32_t)s->cuda.cuGraphAddChildGraphNode(&made, place.graph, BEFORE(place), child);
    }
    if (error || !in->move) {
        return PLACED(made, error);
    }
    error = PLACED(made, CUDA_SUCCESS);
    error = error ? error : tpw_graph_inside(s, in->child, in->node);
    if (error) {
        tpw_graph_forget(s, in->child); /* the node had it, and has taken it along or keeps it without a name */
    }
    return error;
}

int32_t tpw_graph_alloc(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_alloc_in *in,
                        struct tpg_graph_alloc_out *out, const CUDA_MEM_ALLOC_NODE_PARAMS *asked) {
    CUDA_MEM_ALLOC_NODE_PARAMS params = *asked;
    struct place place;
    CUgraphNode made = NULL;
    uint32_t device = 0;
    int32_t error = FIND(in);
    if (!error && place.owner != TPG_GRAPH) {
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    error = error ? error : (int32_t)s->cuda.cuGraphAddMemAllocNode(&made, place.graph, BEFORE(place), &params);
    error = error ? error : tpw_device_index(s, params.poolProps.location.id, &device);
    if (!error) { /* the driver lets no such node be destroyed: without a block it is of no use, and does no harm */
        TP_ASK(tpw_memory_captured, error, s, place.graph, params.dptr, params.bytesize, device);
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
                              const struct tpg_graph_conditional_in *in) {
    struct place place;
    CUgraphNode made = NULL;
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_CONDITIONAL};
    size_t named = 0;
    int32_t error = FIND(in);
    if (!error && (place.owner != TPG_GRAPH || tpw_graph_depth(s, in->owner) >= TPW_GRAPH_DEPTH)) {
        error = CUDA_ERROR_NOT_SUPPORTED;
    }
    params.conditional.handle = in->condition;
    params.conditional.type = (CUgraphConditionalNodeType)in->kind;
    params.conditional.size = (unsigned int)in->bodies_count;
    params.conditional.ctx = tpw_context_of(s, frame, in->context, place.holder, &error);
    if (!error) {
        error = (int32_t)s->cuda.cuGraphAddNode_v2(&made, place.graph, place.dependencies, NULL, place.count, &params);
    }
    error = error ? error : PLACED(made, CUDA_SUCCESS);
    if (error) {
        return error;
    }
    for (uint64_t body; named < in->bodies_count && !error; named += !error) {
        memcpy(&body, in->bodies + named, sizeof body);
        error = tpw_made(s, frame, TPG_GRAPH, body, (uint64_t)(uintptr_t)params.conditional.phGraph_out[named], 0);
        error = error ? error : tpw_graph_body(s, body, in->node);
    }
    if (error) { /* the client would not know what to put into it */
        struct tpg_graph_node_destroy_in gone = {.node = in->node};
        (void)tpw_graph_node_destroy(s, frame, &gone, made);
    }
    return error;
}

int32_t tpw_graph_host(struct tpw_session *s, const struct tp_frame *frame, const struct tpg_graph_host_in *in) {
    struct place place;
    CUgraphNode made = NULL;
    CUDA_HOST_NODE_PARAMS params = {0};
    int32_t error = FIND(in);
    if (!error && place.owner == TPG_GRAPHEXEC) {
        struct tpw_kept *kept = NULL;
        error = tpw_host_kept(s, in->token, &params.fn, &params.userData, &kept);
        error = error ? error : tpw_exec_hold(s, place.holder, kept);
        return error ? error : (int32_t)s->cuda.cuGraphExecHostNodeSetParams(place.exec, place.node, &params);
    }
    CUgraph graph = error ? NULL : tpw_graph(s, place.holder, &error);
    error = error ? error : tpw_host_repeated(s, graph, in->token, &params.fn, &params.userData);
    if (!error && !place.owner) { /* the function before is needed as long as the graph may be launched as it was */
        return (int32_t)s->cuda.cuGraphHostNodeSetParams(place.node, &params);
    }
    error = error ? error : (int32_t)s->cuda.cuGraphAddHostNode(&made, place.graph, BEFORE(place), &params);
    return error ? error : PLACED(made, error);
}

/* ---- asking ---- */

/* The client's handle of a function or kernel of the driver. */
static struct tpw_object *known(struct tpw_session *s, uint32_t kind, uint64_t native) {
    struct tpw_object *object = NULL;
    for (uint32_t at = 0; native && (object = tpw_next_object(s, kind, &at));) {
        if (object->native == native) {
            break;
        }
    }
    return object;
}

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
    error = error ? error : (int32_t)s->cuda.cuGraphKernelNodeGetParams_v2(node, &params);
    if (error) {
        return error;
    }
    struct tpw_object *object = known(s, TPG_FUNCTION, (uint64_t)(uintptr_t)params.func);
    object = object ? object : known(s, TPG_KERNEL, (uint64_t)(uintptr_t)params.kern);
    object = object ? object : known(s, TPG_KERNEL, (uint64_t)(uintptr_t)params.func);
    struct tpw_object *context = known(s, TPG_CONTEXT, (uint64_t)(uintptr_t)params.ctx);
    if (!s->entered_native &&
        context) { /* the driver needs one to describe a kernel that was not used under this handle */
        tpw_visit(s, (CUcontext)(uintptr_t)context->native, context->id);
    }
    const struct tpw_kernel *kernel = object ? tpw_kernel_described(s, object, &error) : NULL;
    if (error) {
        return error;
    }
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
    out->function = tp_handle_make(object->kind, object->id);
    out->context = context ? tp_handle_make(TPG_CONTEXT, context->id) : 0;
    out->grid_x = params.gridDimX;
    out->grid_y = params.gridDimY;
    out->grid_z = params.gridDimZ;
    out->block_x = params.blockDimX;
    out->block_y = params.blockDimY;
    out->block_z = params.blockDimZ;
    out->shared_bytes = params.sharedMemBytes;
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

int32_t tpw_graph_attribute_set(struct tpw_session *s, const struct tp_frame *frame,
                                const struct tpg_graph_attribute_set_in *in, CUgraphNode node,
                                const CUlaunchAttribute *attribute) {
    return (int32_t)s->cuda.cuGraphKernelNodeSetAttribute(node, attribute->id, &attribute->value);
}
