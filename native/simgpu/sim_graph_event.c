// Nodes that record and wait for events, and nodes that write and wait for words.
//
// A record node records its event anew at each launch; a wait node makes the launch wait for the event as it was recorded
// last when the launch was made. Arguments are checked as for the same operation in a stream. Under sim.lock.
#include "sim_graph.h"

#include <stdlib.h>

static CUresult event_op(CUevent event, sim_op_kind_t kind, sim_op_t *op) {
    *op = (sim_op_t){.kind = kind, .u.event_handle = event};
    return !event ? CUDA_ERROR_INVALID_VALUE : sim_event_of(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult add_event(CUgraphNode *out, CUgraph graph, const CUgraphNode *dependencies, size_t count, CUevent event,
                          CUgraphNodeType type, sim_op_kind_t kind) {
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = event_op(event, kind, &op);
    if (result == CUDA_SUCCESS)
        result = sim_node_add(out, graph, dependencies, count, type, &op, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult put_event(CUgraphExec exec, bool in_exec, CUgraphNode handle, CUevent event, CUgraphNodeType type,
                          sim_op_kind_t kind) {
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result =
        sim_node_puts(exec, handle, in_exec, type) ? event_op(event, kind, &op) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = sim_node_put(exec, handle, in_exec, type, &op, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult get_event(CUgraphNode handle, CUevent *event, CUgraphNodeType type) {
    pthread_mutex_lock(&sim.lock);
    const sim_node_t *node = sim_node_of(handle);
    bool ok = node && event && node->type == type;
    if (ok)
        *event = node->op.u.event_handle;
    pthread_mutex_unlock(&sim.lock);
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

#define EVENT_NODES(NAME, TYPE, KIND)                                                                                  \
    CUresult cuGraphAddEvent##NAME##Node(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,    \
                                         size_t numDependencies, CUevent event) {                                      \
        SIM_ENTER();                                                                                                   \
        return add_event(phGraphNode, hGraph, dependencies, numDependencies, event, TYPE, KIND);                       \
    }                                                                                                                  \
    CUresult cuGraphEvent##NAME##NodeGetEvent(CUgraphNode hNode, CUevent *event_out) {                                 \
        SIM_ENTER();                                                                                                   \
        return get_event(hNode, event_out, TYPE);                                                                      \
    }                                                                                                                  \
    CUresult cuGraphEvent##NAME##NodeSetEvent(CUgraphNode hNode, CUevent event) {                                      \
        SIM_ENTER();                                                                                                   \
        return put_event(NULL, false, hNode, event, TYPE, KIND);                                                       \
    }                                                                                                                  \
    CUresult cuGraphExecEvent##NAME##NodeSetEvent(CUgraphExec hGraphExec, CUgraphNode hNode, CUevent event) {          \
        SIM_ENTER();                                                                                                   \
        return put_event(hGraphExec, true, hNode, event, TYPE, KIND);                                                  \
    }
EVENT_NODES(Record, CU_GRAPH_NODE_TYPE_EVENT_RECORD, SIM_OP_RECORD_NODE)
EVENT_NODES(Wait, CU_GRAPH_NODE_TYPE_WAIT_EVENT, SIM_OP_WAIT_NODE)

// ---- Words -------------------------------------------------------------------------------------------------------

static CUresult batch_op(const CUDA_BATCH_MEM_OP_NODE_PARAMS *p, sim_op_t *op) {
    if (!p || p->flags || !p->count || !p->paramArray)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_handle_is(p->ctx, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    return sim_batch_op((sim_context_t *)(void *)p->ctx, p->count, p->paramArray, op);
}

CUresult cuGraphAddBatchMemOpNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                  size_t numDependencies, const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = batch_op(nodeParams, &op);
    if (result == CUDA_SUCCESS)
        result = sim_node_add(phGraphNode, hGraph, dependencies, numDependencies, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, &op,
                              &node);
    if (result == CUDA_SUCCESS)
        node->context = (sim_context_t *)(void *)nodeParams->ctx;
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static CUresult put_batch(CUgraphExec exec, bool in_exec, CUgraphNode handle, const CUDA_BATCH_MEM_OP_NODE_PARAMS *p) {
    sim_op_t op;
    sim_node_t *node;
    pthread_mutex_lock(&sim.lock);
    CUresult result = sim_node_puts(exec, handle, in_exec, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP) ? batch_op(p, &op)
                                                                                            : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = sim_node_put(exec, handle, in_exec, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, &op, &node);
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphBatchMemOpNodeSetParams(CUgraphNode hNode, const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    return put_batch(NULL, false, hNode, nodeParams);
}

CUresult cuGraphExecBatchMemOpNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode,
                                            const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams) {
    SIM_ENTER();
    return put_batch(hGraphExec, true, hNode, nodeParams);
}
