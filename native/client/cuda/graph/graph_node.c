/*
 * Nodes in the client: adding them, changing their parameters, reading those of kernels back.
 *
 * Any thread. Both wait for the answer: the driver refuses at once, and a program that hears of a refused change of an
 * executable graph instantiates anew. A kernel's parameters there are posted, since programs change them before each launch. A kernel's parameters are gathered as for a launch. The arrays that GetParams points to
 * last as long as the node's handle (process/told.c).
 */
#include "tpc_graph_node.h"
#include "tpc_code.h"
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_client_structs.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>

/* ---- kernels ---- */

static struct tpc_kernel *kernel_of(const CUDA_KERNEL_NODE_PARAMS *p) {
    return tpc_kernel_of((uint64_t)(uintptr_t)(p->func ? (void *)p->func : (void *)p->kern));
}

/* What follows the struct: the handle of the function or kernel, and the bytes of its parameters. */
CUresult tpc_size_CUDA_KERNEL_NODE_PARAMS_func(const CUDA_KERNEL_NODE_PARAMS *from, size_t *size) {
    unsigned char block[TPC_BLOCK_LIMIT];
    const void *source;
    struct tpc_kernel *k = kernel_of(from);
    if (!k) {
        return CUDA_ERROR_INVALID_HANDLE; /* before the context is looked at (580.159.04, measured) */
    }
    TPC_CONTEXT(context);
    TPC_TRY(tpc_kernel_shape(context, k, from));
    TPC_TRY(tpc_kernel_block(k, from, block, &source));
    *size += sizeof k->handle + tp_array_size(k->parameter_bytes, 1);
    return CUDA_SUCCESS;
}

void tpc_put_CUDA_KERNEL_NODE_PARAMS_func(const CUDA_KERNEL_NODE_PARAMS *from, struct tp_cursor *c) {
    unsigned char block[TPC_BLOCK_LIMIT];
    const void *source;
    const struct tpc_kernel *k = kernel_of(from);
    if (k && tpc_kernel_block(kernel_of(from), from, block, &source) == CUDA_SUCCESS) { /* as before, or not at all */
        tp_put_u64(c, k->handle);
        tp_put_bytes(c, source, k->parameter_bytes);
    }
}

/* ---- reading a kernel's parameters back ---- */

/* The bytes of the parameters, and behind them an address for each. */
static void **keep(uint64_t node, const struct tpc_kernel *k, const void *bytes, size_t size) {
    const struct tpc_parameter *layout = atomic_load_explicit(&k->layout, memory_order_relaxed);
    const size_t padded = (size + 15) & ~(size_t)15;
    unsigned char *block = tpc_told(node, k, bytes, size, padded - size + (k->parameters + 1) * sizeof(void *));
    void **params = block ? (void **)(void *)(block + padded) : NULL;
    for (uint32_t i = 0; block && i < k->parameters; i++) {
        params[i] = block + layout[i].offset;
    }
    return params;
}

CUresult tpc_do_cuGraphKernelNodeGetParams_v2(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS *nodeParams) {
    struct tpg_graph_kernel_get_out out;
    struct tp_reply reply TPC_REPLY;
    TPC_TRY(tpc_call_graph_kernel_get("cuGraphKernelNodeGetParams", (uint64_t)(uintptr_t)hNode, &out, &reply));
    struct tpc_kernel *k = kernel_of(&out.node);
    if (k) {
        TPC_TRY(tpc_kernel_describe(k));
    }
    if (!k || k->parameter_bytes != out.params_size) {
        return tpc_bad_reply(&reply);
    }
    void **params = keep((uint64_t)(uintptr_t)hNode, k, out.params, out.params_size);
    if (!params) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *nodeParams = out.node;
    nodeParams->kernelParams = params;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuGraphKernelNodeGetParams(CUgraphNode hNode, CUDA_KERNEL_NODE_PARAMS_v1 *nodeParams) {
    CUDA_KERNEL_NODE_PARAMS params;
    TPC_TRY(tpc_cuGraphKernelNodeGetParams_v2(hNode, &params));
    params.func = params.func ? params.func : (CUfunction)(void *)params.kern;
    memcpy(nodeParams, &params, sizeof *nodeParams);
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuGraphKernelNodeSetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr,
                                              const CUkernelNodeAttrValue *value) {
    const CUlaunchAttribute attribute = {.id = attr, .value = *value};
    struct tpc_flat flat TPC_FLAT = {.size = 0};
    TPC_TRY(tpg_flatten_CUlaunchAttribute(&attribute, 1, &flat));
    struct tpg_graph_attribute_set_in in = {
        .node = (uint64_t)(uintptr_t)hNode, .attribute = flat.bytes, .attribute_size = flat.size};
    CUresult result = tpc_call_graph_attribute_set("cuGraphKernelNodeSetAttribute", &in);
    if (attr == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT || attr == CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT) {
        tpc_watch_graphs_record();
    }
    return result;
}

/* ---- the others ---- */

static CUresult child_node(const char *name, const struct tpc_new_node *t, CUgraph child, bool move) {
    TPC_CHECK_HANDLE(GRAPH, child, false);
    struct tpg_graph_child_in in = {TPC_NEW_NODE(t), .child = (uint64_t)(uintptr_t)child, .move = move};
    CUresult result = tpc_call_graph_child(name, &in);
    if (result == CUDA_SUCCESS && move) {
        tpc_set_record(TPG_GRAPH, in.child, (void *)(uintptr_t)t->node);
    }
    return result;
}

CUresult tpc_cuGraphExecChildGraphNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, CUgraph childGraph) {
    struct copies *copies = NULL;
    TPC_TRY(tpc_copies_may_change("cuGraphExecChildGraphNodeSetParams", hGraphExec, hNode, true));
    TPC_TRY(tpc_copies_fixed("cuGraphExecChildGraphNodeSetParams", hGraphExec));
    TPC_TRY(tpc_copies_learn("cuGraphExecChildGraphNodeSetParams", childGraph, &copies));
    if (copies) {
        tp_log(TP_ERROR,
               "cuGraphExecChildGraphNodeSetParams: the graph copies between the device and this program's memory; "
               "putting it into an executable graph is not supported over this connection");
        tpc_copies_free(copies);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    return tpc_sent_cuGraphExecChildGraphNodeSetParams(hGraphExec, hNode, childGraph);
}

/* The function of a node is known for as long as that may run, or nobody calls it. */
static CUresult settle_host(uint64_t token, CUresult result) {
    if (result != CUDA_SUCCESS) {
        tpc_host_refused(token);
    }
    return result;
}

static CUresult host_node(const char *name, const struct tpc_new_node *t, CUhostFn function, void *user) {
    if (!function) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpg_graph_host_in in = {TPC_NEW_NODE(t), .token = tpc_host_lasting(function, user)};
    return in.token ? settle_host(in.token, tpc_call_graph_host(name, &in)) : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult tpc_node_set_host(const char *name, CUgraphExec exec, CUgraphNode node, const CUDA_HOST_NODE_PARAMS *params) {
    TPC_CHECK_HANDLE(GRAPHNODE, node, false);
    TPC_TRY(exec ? tpc_copies_fixed(name, exec) : CUDA_SUCCESS);
    if (!params || !params->fn) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const uint64_t token = tpc_host_lasting(params->fn, params->userData);
    return token ? settle_host(token, tpc_call_graph_host_set(name, (uint64_t)(uintptr_t)exec,
                                                              (uint64_t)(uintptr_t)node, token))
                 : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult tpc_do_cuGraphHostNodeGetParams(CUgraphNode hNode, CUDA_HOST_NODE_PARAMS *nodeParams) {
    uint64_t token;
    CUresult result = tpc_call_graph_host_get("cuGraphHostNodeGetParams", (uint64_t)(uintptr_t)hNode, &token);
    if (result == CUDA_SUCCESS && !tpc_host_of(token, &nodeParams->fn, &nodeParams->userData)) {
        result = tpc_bad_reply(&(struct tp_reply){.size = sizeof token});
    }
    return result;
}

static CUresult alloc_node(const char *name, const struct tpc_new_node *t, CUDA_MEM_ALLOC_NODE_PARAMS *p) {
    if (p->poolProps.allocType != CU_MEM_ALLOCATION_TYPE_PINNED) {
        return CUDA_ERROR_INVALID_VALUE; /* before a list behind it is read */
    }
    struct tpc_flat params TPC_FLAT = {.size = 0};
    TPC_TRY(tpg_flatten_CUDA_MEM_ALLOC_NODE_PARAMS(p, 1, &params));
    struct tpg_graph_alloc_in in = {TPC_NEW_NODE(t), .params = params.bytes, .params_size = params.size};
    struct tpg_graph_alloc_out out = {0};
    TPC_TRY(tpc_call_graph_alloc(name, &in, &out));
    tpc_graph_block(out.block, out.block_size, p->poolProps.location.id);
    p->dptr = out.address;
    return CUDA_SUCCESS;
}

CUresult tpc_do_cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                       size_t numDependencies, CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams) {
    CUgraphNodeParams params = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
    memcpy(&params.alloc, nodeParams, sizeof *nodeParams);
    CUresult result =
        tpc_node_add("cuGraphAddMemAllocNode", phGraphNode, hGraph, dependencies, numDependencies, &params);
    nodeParams->dptr = result == CUDA_SUCCESS ? params.alloc.dptr : nodeParams->dptr;
    return result;
}

#define BODIES_MAX 4096u /* named in one frame */

/* The graphs that it runs are the driver's own; the program gets handles for them, in an array that lasts as long as the node. */
static CUresult conditional_node(const char *name, const struct tpc_new_node *t, CUDA_CONDITIONAL_NODE_PARAMS *p) {
    struct tpg_graph_conditional_in in = {TPC_NEW_NODE(t), .condition = p->handle, .kind = (unsigned int)p->type,
                                          .context = (uint64_t)(uintptr_t)p->ctx};
    const unsigned int most[] = {2, 1, BODIES_MAX};
    if ((unsigned int)p->type > CU_GRAPH_COND_TYPE_SWITCH || !p->size || p->size > most[p->type]) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(CONTEXT, p->ctx, false);
    uint64_t *bodies = tpc_told(t->node, NULL, NULL, 0, p->size * sizeof *bodies);
    CUresult result = bodies ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    for (; result == CUDA_SUCCESS && in.bodies_count < p->size; in.bodies_count += bodies[in.bodies_count] != 0) {
        bodies[in.bodies_count] = tpc_mint_record(TPG_GRAPH, (void *)(uintptr_t)t->node);
        result = bodies[in.bodies_count] ? CUDA_SUCCESS : TPC_NO_HANDLES;
    }
    in.bodies = bodies;
    result = result ? result : tpc_call_graph_conditional(name, &in);
    if (result == CUDA_SUCCESS) {
        p->phGraph_out = (CUgraph *)(void *)bodies;
        return result;
    }
    for (size_t i = 0; i < in.bodies_count; i++) {
        tpc_unmint(TPG_GRAPH, bodies[i]);
    }
    return result;
}

/* Nodes whose parameters need more than their description says: where they go is settled before. */
static CUresult settled_node(const char *name, const struct tpc_new_node *t, CUgraphNodeParams *p) {
    static _Atomic bool said;
    CUDA_MEM_ALLOC_NODE_PARAMS alloc;
    CUresult result;
    switch (p->type) {
    case CU_GRAPH_NODE_TYPE_HOST:
        return host_node(name, t, p->host.fn, p->host.userData);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return child_node(name, t, p->graph.graph, p->graph.ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE);
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        return conditional_node(name, t, &p->conditional);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        memcpy(&alloc, &p->alloc, sizeof alloc);
        result = alloc_node(name, t, &alloc);
        p->alloc.dptr = result == CUDA_SUCCESS ? alloc.dptr : p->alloc.dptr;
        return result;
    default:
        tp_say_once(&said, "%s: there are no nodes of type %d here", name, (int)p->type);
        return CUDA_ERROR_INVALID_VALUE; /* as of a type that is none (580.159.04, measured) */
    }
}

CUresult tpc_node_add(const char *name, CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count,
                      CUgraphNodeParams *params) {
    TPC_CHECK_HANDLE(GRAPH, graph, false);
    if (!out || (count && !dependencies)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const uint64_t owner = (uint64_t)(uintptr_t)graph;
    const struct tpc_new_node t = {.owner = owner,
                                   .node = tpc_mint_record(TPG_GRAPHNODE, (void *)(uintptr_t)owner),
                                   .dependencies = dependencies,
                                   .count = count};
    CUresult result = t.node ? settled_node(name, &t, params) : TPC_NO_HANDLES;
    if (result == CUDA_SUCCESS) {
        *out = (CUgraphNode)(uintptr_t)t.node;
    } else if (t.node) {
        tpc_unmint(TPG_GRAPHNODE, t.node);
    }
    return result;
}

/* Edges with ports are added behind the node, which goes again when one is refused. */
static CUresult add_ports(CUgraphNode node, CUgraph graph, const CUgraphNode *before, const CUgraphEdgeData *edges,
                          size_t count) {
    CUresult result = CUDA_SUCCESS;
    for (size_t i = 0; i < count && result == CUDA_SUCCESS; i++) {
        result = tpc_cuGraphAddDependencies_v2(graph, &before[i], &node, &edges[i], 1);
    }
    if (result != CUDA_SUCCESS) {
        tpc_cuGraphDestroyNode(node);
    }
    return result;
}

CUresult tpc_cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                               const CUgraphEdgeData *dependencyData, size_t numDependencies,
                               CUgraphNodeParams *nodeParams) {
    bool described;
    if (!phGraphNode || !tpc_params_clean(nodeParams) || (numDependencies && !dependencies)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const bool plain = tpc_edges_plain(dependencyData, numDependencies);
    const CUgraphNode *before = plain ? dependencies : NULL;
    const size_t count = plain ? numDependencies : 0;
    CUgraphNode made = NULL;
    CUresult result = tpg_node_add(&made, hGraph, before, count, nodeParams, &described);
    if (!described) {
        result = tpc_node_add("cuGraphAddNode", &made, hGraph, before, count, nodeParams);
    }
    if (result == CUDA_SUCCESS && !plain) {
        result = add_ports(made, hGraph, dependencies, dependencyData, numDependencies);
    }
    if (result == CUDA_SUCCESS) {
        *phGraphNode = made;
    }
    return result;
}
