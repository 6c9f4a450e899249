/*
 * Graphs of a random program: built node by node or captured, made executable, changed, launched.
 *
 * Any thread of the program; an object is used by one thread between two barriers.
 */
#include "driver.h"

CUgraph graphs[MOST_GRAPHS];
CUgraphExec execs[MOST_EXECS];
static CUgraphNode nodes[MOST_GRAPHS][MOST_NODES];

static CUDA_KERNEL_NODE_PARAMS kernel_node(const struct operation *op, struct arguments *x) {
    kernel_arguments(op, &op->effect, x);
    return (CUDA_KERNEL_NODE_PARAMS){.func = kernel_of(op, x->kernel),
                                     .gridDimX = x->grid,
                                     .gridDimY = 1,
                                     .gridDimZ = 1,
                                     .blockDimX = x->block,
                                     .blockDimY = 1,
                                     .blockDimZ = 1,
                                     .kernelParams = x->pointers};
}

static CUDA_MEMSET_NODE_PARAMS memset_node(const struct effect *e) {
    return (CUDA_MEMSET_NODE_PARAMS){.dst = address_of(e->to) + e->to_offset,
                                     .pitch = e->height > 1 ? e->to_pitch : 0,
                                     .value = (unsigned)e->value,
                                     .elementSize = e->element,
                                     .width = e->width,
                                     .height = e->height};
}

static void add_node(const struct operation *op) {
    const struct effect *e = &op->effect;
    CUgraph graph = graphs[op->a[0]];
    CUgraphNode needed[MOST_NODES], *node = &nodes[op->a[0]][op->a[1]];
    size_t count = 0;
    struct arguments x;
    for (int i = 0; i < MOST_NODES; i++)
        if (op->a[2] >> i & 1)
            needed[count++] = nodes[op->a[0]][i];
    switch (e->code) {
    case OP_empty:
        CALL(cuGraphAddEmptyNode, node, graph, needed, count);
        break;
    case OP_child:
        CALL(cuGraphAddChildGraphNode, node, graph, needed, count, graphs[e->graph]);
        break;
    case OP_copy: {
        CUDA_MEMCPY3D copy = copy_in_three_dimensions(op, e);
        CALL(cuGraphAddMemcpyNode, node, graph, needed, count, &copy, current_context(op));
        break;
    }
    case OP_set: {
        CUDA_MEMSET_NODE_PARAMS set = memset_node(e);
        CALL(cuGraphAddMemsetNode, node, graph, needed, count, &set, current_context(op));
        break;
    }
    case OP_host: {
        CUDA_HOST_NODE_PARAMS host = {host_function, (void *)(uintptr_t)e};
        CALL(cuGraphAddHostNode, node, graph, needed, count, &host);
        break;
    }
    case OP_fill:
    case OP_iota:
    case OP_mix:
    case OP_spin: {
        CUDA_KERNEL_NODE_PARAMS launch = kernel_node(op, &x);
        CALL(cuGraphAddKernelNode_v2, node, graph, needed, count, &launch);
        break;
    }
    default:
        fail(op, "it is no node");
    }
}

static void set_node(const struct operation *op) {
    const struct effect *e = &op->effect;
    CUgraphExec exec = execs[op->a[0]];
    CUgraphNode node = nodes[op->a[1]][op->a[2]];
    struct arguments x;
    switch (e->code) {
    case OP_copy: {
        CUDA_MEMCPY3D copy = copy_in_three_dimensions(op, e);
        CALL(cuGraphExecMemcpyNodeSetParams, exec, node, &copy, current_context(op));
        break;
    }
    case OP_set: {
        CUDA_MEMSET_NODE_PARAMS set = memset_node(e);
        CALL(cuGraphExecMemsetNodeSetParams, exec, node, &set, current_context(op));
        break;
    }
    case OP_fill:
    case OP_iota:
    case OP_mix:
    case OP_spin: {
        CUDA_KERNEL_NODE_PARAMS launch = kernel_node(op, &x);
        CALL(cuGraphExecKernelNodeSetParams_v2, exec, node, &launch);
        break;
    }
    default:
        fail(op, "it is no node that can be set");
    }
}

static void update(const struct operation *op) {
    CUgraphExecUpdateResultInfo info = {0};
    CALL(cuGraphExecUpdate_v2, execs[op->a[0]], graphs[op->a[1]], &info);
    if (info.result != CU_GRAPH_EXEC_UPDATE_SUCCESS)
        fail(op, "the update says %d", (int)info.result);
}

bool graph_operation(const struct operation *op) {
    const long long *a = op->a;
    switch (op->code) {
    case OP_graph:
        CALL(cuGraphCreate, &graphs[a[0]], 0);
        return true;
    case OP_node:
        add_node(op);
        return true;
    case OP_setnode:
        set_node(op);
        return true;
    case OP_inst: {
        CUDA_GRAPH_INSTANTIATE_PARAMS how = {0};
        if (a[2] == 1)
            CALL(cuGraphInstantiateWithParams, &execs[a[0]], graphs[a[1]], &how);
        else
            CALL(cuGraphInstantiateWithFlags, &execs[a[0]], graphs[a[1]],
                 a[2] ? CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH : 0);
        return true;
    }
    case OP_launch:
        CALL(cuGraphLaunch, execs[a[0]], stream_of((int)a[1]));
        return true;
    case OP_upload:
        CALL(cuGraphUpload, execs[a[0]], stream_of((int)a[1]));
        return true;
    case OP_clone:
        CALL(cuGraphClone, &graphs[a[0]], graphs[a[1]]);
        return true;
    case OP_update:
        update(op);
        return true;
    case OP_graph_destroy:
        CALL(cuGraphDestroy, graphs[a[0]]);
        graphs[a[0]] = NULL;
        return true;
    case OP_exec_destroy:
        CALL(cuGraphExecDestroy, execs[a[0]]);
        execs[a[0]] = NULL;
        return true;
    case OP_capture:
        CALL(cuStreamBeginCapture_v2, stream_of((int)a[0]), (CUstreamCaptureMode)a[1]);
        return true;
    case OP_end_capture:
        CALL(cuStreamEndCapture, stream_of((int)a[0]), &graphs[a[1]]);
        return true;
    default:
        return false;
    }
}

void graphs_end(void) {
    const struct operation *op = NULL;
    for (int i = 0; i < MOST_EXECS; i++) {
        if (execs[i])
            CALL(cuGraphExecDestroy, execs[i]);
        execs[i] = NULL;
    }
    for (int i = 0; i < MOST_GRAPHS; i++) {
        if (graphs[i])
            CALL(cuGraphDestroy, graphs[i]);
        graphs[i] = NULL;
    }
}
