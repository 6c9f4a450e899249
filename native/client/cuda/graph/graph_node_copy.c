/*
 * Copy nodes in the client: sides in device memory as they are, sides in the program's own memory by a buffer.
 *
 * Any thread; owns nothing. Buffers, and what a launch does with them, are in graph_copy.c; when the program reads a node's
 * parameters, it is told its own address again.
 */
#include "tpc_graph_node.h"
#include "tpc_copy.h"
#include "tpg_cuda_send.h"

/* The box of the program's memory that a side is. */
static CUresult box_of(const struct tpc_copy_side *side, uint64_t base, const CUDA_MEMCPY3D *p,
                       struct tpc_host_side *out) {
    uint64_t reach = 0, bottom = 0, first = 0, slices = 0, end = 0;
    *out = (struct tpc_host_side){.width = p->WidthInBytes,
                                  .height = p->Height,
                                  .depth = p->Depth,
                                  .type = side->type,
                                  .base = base,
                                  .x = side->x,
                                  .y = side->y,
                                  .z = side->z,
                                  .told_pitch = side->pitch,
                                  .told_height = side->height};
    bool fits = base && out->width && out->height && out->depth &&
                !__builtin_add_overflow(out->x, out->width, &reach) &&
                !__builtin_add_overflow(out->y, out->height, &bottom);
    uint64_t rows = side->height ? side->height : bottom;
    out->pitch = side->pitch ? side->pitch : reach;
    fits = fits && (out->pitch >= reach || (out->height == 1 && out->depth == 1)) &&
           (rows >= bottom || out->depth == 1) && !__builtin_mul_overflow(out->pitch, rows, &out->slice) &&
           !__builtin_mul_overflow(out->pitch, out->y, &first) &&
           !__builtin_mul_overflow(out->slice, out->z, &slices) && !__builtin_add_overflow(first, slices, &first) &&
           !__builtin_add_overflow(first, out->x, &first) && !__builtin_add_overflow(first, base, &first) &&
           !__builtin_mul_overflow(out->slice, out->depth, &end) && !__builtin_add_overflow(end, first, &end);
    out->first = (unsigned char *)(uintptr_t)first;
    return fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* Turns one side into device memory: pinned memory by its address on the GPU, other memory of the program by a buffer. */
static CUresult device_side(const char *name, struct tpc_copy_side *side, const CUDA_MEMCPY3D *p, bool up,
                            struct tpc_host_copy **made) {
    struct tpc_host_side box;
    uint64_t base = side->type == CU_MEMORYTYPE_UNIFIED ? side->device : side->host, reachable = 0;
    bool host = side->type == CU_MEMORYTYPE_HOST || side->type == CU_MEMORYTYPE_UNIFIED;
    if (host && tpc_at_device(base)) {
        host = false;
        side->type = CU_MEMORYTYPE_DEVICE;
        side->device = base;
    }
    if (side->type == CU_MEMORYTYPE_DEVICE && tpc_is_pinned((const void *)(uintptr_t)side->device, 1)) {
        base = side->device; /* its address is one of the device as well */
        host = true;
    }
    if (side->type == CU_MEMORYTYPE_ARRAY) {
        tp_log(TP_ERROR, "%s: a copy node with an array is not supported over this connection", name);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (!host) {
        return side->type == CU_MEMORYTYPE_DEVICE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    if (tpc_host_in_graph((const void *)(uintptr_t)base, p->WidthInBytes, &reachable)) {
        side->type = CU_MEMORYTYPE_DEVICE;
        side->device = reachable;
        return CUDA_SUCCESS;
    }
    CUresult result = box_of(side, base, p, &box);
    result = result ? result : tpc_host_copy_make(name, &box, up, made);
    if (result == CUDA_SUCCESS) {
        *side = (struct tpc_copy_side){
            .type = CU_MEMORYTYPE_DEVICE, .device = (*made)->address, .pitch = p->WidthInBytes, .height = p->Height};
    }
    return result;
}

/* Of a graph inside a child node the driver may have the references elsewhere: those stay until it ends. */
CUresult tpc_node_gives_up(uint64_t node) {
    CUgraph graph = tpc_record(TPG_GRAPHNODE, node);
    bool inside = tpc_record(TPG_GRAPH, (uint64_t)(uintptr_t)graph) != NULL;
    return inside ? CUDA_SUCCESS : tpc_host_copy_unkeep(graph, node);
}

/* The buffers go with the node, or are given back when there is none. */
static CUresult keep(CUgraph graph, CUgraphNode node, struct tpc_host_copy *const made[2], CUresult result) {
    for (size_t i = 0; i < 2; i++) {
        if (made[i] && result == CUDA_SUCCESS) {
            result = tpc_host_copy_keep(made[i], graph, (uint64_t)(uintptr_t)node);
        } else if (made[i]) {
            tpc_host_copy_drop(made[i]);
        }
    }
    return result;
}

/* The copy with both sides in memory that the GPU reaches. */
static CUresult reaching(const char *name, const CUDA_MEMCPY3D *p, CUDA_MEMCPY3D *copy, struct tpc_host_copy *made[2]) {
    struct tpc_copy_side from = TPC_SIDE_3D(p, src), to = TPC_SIDE_3D(p, dst);
    TPC_TRY(device_side(name, &from, p, true, &made[0]));
    TPC_TRY(device_side(name, &to, p, false, &made[1]));
    from.host = to.host = 0;
    *copy = *p;
    TPC_PUT_SIDE(copy, src, from);
    TPC_PUT_SIDE(copy, dst, to);
    copy->srcLOD = copy->dstLOD = 0;
    return p->WidthInBytes && p->Height && p->Depth ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* A side as the program put it; of pinned memory that the GPU reaches both addresses are the same. */
static void tell(struct tpc_copy_side *side) {
    struct tpc_host_side box;
    if (side->type == CU_MEMORYTYPE_DEVICE && tpc_is_pinned((const void *)(uintptr_t)side->device, 1)) {
        side->type = CU_MEMORYTYPE_HOST;
        side->host = side->device;
        side->device = 0;
    }
    if (side->type == CU_MEMORYTYPE_DEVICE && tpc_host_copy_side(side->device, &box)) {
        bool host = box.type == CU_MEMORYTYPE_HOST;
        *side = (struct tpc_copy_side){.type = box.type,
                                       .host = host ? box.base : 0,
                                       .device = host ? 0 : box.base,
                                       .x = box.x,
                                       .y = box.y,
                                       .z = box.z,
                                       .pitch = box.told_pitch,
                                       .height = box.told_height};
    }
}

/* ---- the API ---- */

CUresult tpc_do_cuGraphMemcpyNodeGetParams(CUgraphNode hNode, CUDA_MEMCPY3D *nodeParams) {
    struct tpg_graph_memcpy_get_out out;
    TPC_TRY(tpc_call_graph_memcpy_get("cuGraphMemcpyNodeGetParams", (uint64_t)(uintptr_t)hNode, &out));
    struct tpc_copy_side from = TPC_SIDE_3D(&out.params, src), to = TPC_SIDE_3D(&out.params, dst);
    tell(&from);
    tell(&to);
    *nodeParams = out.params;
    TPC_PUT_SIDE(nodeParams, src, from);
    TPC_PUT_SIDE(nodeParams, dst, to);
    return CUDA_SUCCESS;
}

CUresult tpc_cuGraphAddMemcpyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                  size_t numDependencies, const CUDA_MEMCPY3D *copyParams, CUcontext ctx) {
    CUDA_MEMCPY3D copy;
    struct tpc_host_copy *made[2] = {0};
    if (!copyParams) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(GRAPH, hGraph, false);
    if (!phGraphNode || (numDependencies && !dependencies)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(CONTEXT, ctx, true);
    CUresult result = reaching("cuGraphAddMemcpyNode", copyParams, &copy, made);
    if (result == CUDA_SUCCESS) {
        result = tpc_sent_cuGraphAddMemcpyNode(phGraphNode, hGraph, dependencies, numDependencies, &copy, ctx);
    }
    return keep(hGraph, result == CUDA_SUCCESS ? *phGraphNode : NULL, made, result);
}

CUresult tpc_cuGraphMemcpyNodeSetParams(CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams) {
    CUDA_MEMCPY3D copy;
    struct tpc_host_copy *made[2] = {0};
    TPC_CHECK_HANDLE(GRAPHNODE, hNode, false);
    CUresult result =
        nodeParams ? reaching("cuGraphMemcpyNodeSetParams", nodeParams, &copy, made) : CUDA_ERROR_INVALID_VALUE;
    result = result ? result : tpc_sent_cuGraphMemcpyNodeSetParams(hNode, &copy);
    result = result ? result : tpc_node_gives_up((uint64_t)(uintptr_t)hNode); /* what it had before */
    return keep(tpc_record(TPG_GRAPHNODE, (uint64_t)(uintptr_t)hNode), hNode, made, result);
}

CUresult tpc_cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D *copyParams,
                                            CUcontext ctx) {
    CUDA_MEMCPY3D copy;
    struct tpc_host_copy *made[2] = {0};
    TPC_CHECK_HANDLE(GRAPHEXEC, hGraphExec, false);
    TPC_CHECK_HANDLE(GRAPHNODE, hNode, false);
    if (!copyParams) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(CONTEXT, ctx, true);
    TPC_TRY(tpc_copies_may_change("cuGraphExecMemcpyNodeSetParams", hGraphExec, hNode, false));
    TPC_TRY(tpc_copies_fixed("cuGraphExecMemcpyNodeSetParams", hGraphExec));
    CUresult result = reaching("cuGraphExecMemcpyNodeSetParams", copyParams, &copy, made);
    result = result ? result : tpc_sent_cuGraphExecMemcpyNodeSetParams(hGraphExec, hNode, &copy, ctx);
    const bool changes = made[0] || made[1] || tpc_copies_has(hGraphExec);
    return result == CUDA_SUCCESS && changes ? tpc_copies_changed(hGraphExec, hNode, made)
                                             : keep(NULL, hNode, made, result);
}
