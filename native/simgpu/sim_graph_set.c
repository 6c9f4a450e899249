// Nodes of any kind: the parameters of host functions, setting by kind, and the text of a graph.
//
// Codes are those of driver 580.159.04. Under sim.lock.
#include "sim_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static CUresult put_host(CUgraphExec exec, bool in_exec, CUgraphNode handle, const CUDA_HOST_NODE_PARAMS *p) {
    if (!p || !p->fn)
        return CUDA_ERROR_INVALID_VALUE;
    sim_node_t *node;
    sim_op_t op = {.kind = SIM_OP_HOST_FUNCTION, .u.host_function = {p->fn, p->userData}};
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_node_put(exec, handle, in_exec, CU_GRAPH_NODE_TYPE_HOST, &op, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphHostNodeSetParams(CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    return put_host(NULL, false, hNode, nodeParams);
}

CUresult cuGraphExecHostNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                      const CUDA_HOST_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    return put_host(hGraphExec, true, hNode, nodeParams);
}

CUresult cuGraphHostNodeGetParams(CUgraphNode hNode, CUDA_HOST_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && nodeParams && node->type == CU_GRAPH_NODE_TYPE_HOST;
    if (ok)
        *nodeParams = (CUDA_HOST_NODE_PARAMS){node->op.u.host_function.call, node->op.u.host_function.data};
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphBatchMemOpNodeGetParams(CUgraphNode hNode, CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams_out) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(hNode);
    bool ok = node && nodeParams_out && node->type == CU_GRAPH_NODE_TYPE_BATCH_MEM_OP &&
              node->op.kind == SIM_OP_BATCH; // a captured word is kept in another form
    if (ok)
        *nodeParams_out = (CUDA_BATCH_MEM_OP_NODE_PARAMS){.ctx = (CUcontext)(void *)node->context,
                                                          .count = node->op.u.batch.count,
                                                          .paramArray = node->op.u.batch.list};
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult put_child(CUgraphNode handle, CUgraph child_handle) {
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_node_t *node = sim_node_of(handle);
    const sim_graph_t *child = sim_graph_of(child_handle);
    if (node && child && !child->capture)
        result =
            sim_graph_has_memory(child) || sim_graph_has_conditions(child) ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
    sim_graph_t *copy = result == CUDA_SUCCESS ? sim_graph_clone(child, node) : NULL;
    if (copy) {
        sim_graph_delete(node->child);
        node->child = copy;
    } else if (result == CUDA_SUCCESS) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

#define SET(form, ...) (in_exec ? cuGraphExec##form(exec, handle, __VA_ARGS__) : cuGraph##form(handle, __VA_ARGS__))

static CUresult set(CUgraphExec exec, bool in_exec, CUgraphNode handle, const CUgraphNodeParams *p) {
    static const int zero[sizeof p->reserved0 / sizeof *p->reserved0];
    CUDA_KERNEL_NODE_PARAMS kernel;
    CUDA_MEMSET_NODE_PARAMS fill;
    CUDA_HOST_NODE_PARAMS host;
    CUDA_BATCH_MEM_OP_NODE_PARAMS batch;
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(handle);
    bool ok = node && p && node->type == p->type && memcmp(p->reserved0, zero, sizeof zero) == 0 && !p->reserved2 &&
              (!in_exec || sim_exec_of(exec));
    pthread_mutex_unlock(&sim.lock);
    if (!ok)
        return CUDA_ERROR_INVALID_VALUE;
    switch (p->type) {
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_KERNEL:
        memcpy(&kernel, &p->kernel, sizeof kernel);
        return SET(KernelNodeSetParams_v2, &kernel);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        memcpy(&fill, &p->memset, sizeof fill);
        return in_exec ? cuGraphExecMemsetNodeSetParams(exec, handle, &fill, p->memset.ctx)
                       : cuGraphMemsetNodeSetParams(handle, &fill);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return in_exec ? cuGraphExecMemcpyNodeSetParams(exec, handle, &p->memcpy.copyParams, p->memcpy.copyCtx)
                       : cuGraphMemcpyNodeSetParams(handle, &p->memcpy.copyParams);
    case CU_GRAPH_NODE_TYPE_HOST:
        memcpy(&host, &p->host, sizeof host);
        return SET(HostNodeSetParams, &host);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return SET(EventRecordNodeSetEvent, p->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return SET(EventWaitNodeSetEvent, p->eventWait.event);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        memcpy(&batch, &p->memOp, sizeof batch);
        return SET(BatchMemOpNodeSetParams, &batch);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return in_exec ? cuGraphExecChildGraphNodeSetParams(exec, handle, p->graph.graph)
                       : put_child(handle, p->graph.graph);
    default:
        return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult cuGraphNodeSetParams(CUgraphNode hNode, CUgraphNodeParams *nodeParams) {
    SIM_ENTER();
    return set(NULL, false, hNode, nodeParams);
}

CUresult cuGraphExecNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, CUgraphNodeParams *nodeParams) {
    SIM_ENTER();
    return set(hGraphExec, true, hNode, nodeParams);
}

// ---- The text of a graph -----------------------------------------------------------------------------------------

static void print(FILE *file, const sim_graph_t *graph, unsigned number, unsigned *last) {
    fprintf(file, "subgraph cluster_%u {\nlabel=\"graph_%u\" graph[style=\"dashed\"];\n", number, number);
    for (size_t i = 0; i < graph->nodes.count; i++)
        fprintf(file, "\"graph_%u_node_%zu\"[style=\"solid\" shape=\"rectangle\" label=\"%zu\ntype %d\n\"];\n\n",
                number, i, i, (int)graph->nodes.items[i]->type);
    for (size_t i = 0; i < graph->nodes.count; i++)
        for (size_t k = 0; k < graph->nodes.items[i]->dependencies.count; k++)
            for (size_t j = 0; j < graph->nodes.count; j++)
                if (graph->nodes.items[j] == graph->nodes.items[i]->dependencies.items[k])
                    fprintf(file, "\"graph_%u_node_%zu\" -> \"graph_%u_node_%zu\";\n", number, j, number, i);
    fprintf(file, "}\n");
    for (size_t i = 0; i < graph->nodes.count; i++)
        if (graph->nodes.items[i]->child)
            print(file, graph->nodes.items[i]->child, ++*last, last);
    for (size_t i = 0; i < graph->nodes.count; i++)
        for (size_t k = 0; k < graph->nodes.items[i]->nbodies; k++)
            print(file, graph->nodes.items[i]->bodies[k], ++*last, last);
}

CUresult cuGraphDebugDotPrint(CUgraph hGraph, const char *path, unsigned int flags) {
    SIM_ENTER();
    (void)flags; // the driver overlooks those that it does not know
    pthread_mutex_lock(&sim.lock);
    const sim_graph_t *graph = sim_graph_of(hGraph);
    FILE *file = graph && path ? fopen(path, "w") : NULL;
    unsigned last = 1;
    if (file) {
        fprintf(file, "digraph dot {\n");
        print(file, graph, 1, &last);
        fprintf(file, "}\n");
    }
    pthread_mutex_unlock(&sim.lock);
    if (!graph || !path)
        return CUDA_ERROR_INVALID_VALUE;
    return file && fclose(file) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}
