/*
 * Nodes of any kind: setting their parameters, and the text of a graph.
 *
 * Any thread; owns nothing. A node's kind is asked of the worker, because one of another kind is refused at once.
 */
#include "tpc_graph_node.h"
#include "tpc_code.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#include <fcntl.h>
#include <tp_system.h>
#include <unistd.h>

bool tpc_params_clean(const CUgraphNodeParams *params) {
    return params && tp_is_zero(params->reserved0, sizeof params->reserved0) && !params->reserved2;
}

static CUresult set_child(CUgraphNode node, CUgraph child) {
    TPC_CHECK_HANDLE(GRAPH, child, false);
    TPC_TRY(tpc_call_graph_child_set("cuGraphNodeSetParams", (uint64_t)(uintptr_t)node, (uint64_t)(uintptr_t)child));
    tpc_unmint_parts(TPG_GRAPHNODE, (uint64_t)(uintptr_t)node);
    return CUDA_SUCCESS;
}

CUresult tpc_node_set(CUgraphExec exec, CUgraphNode node, const CUgraphNodeParams *p) {
    static _Atomic bool said;
    CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
    CUDA_KERNEL_NODE_PARAMS kernel;
    bool chosen;
    if (!tpc_params_clean(p)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_cuGraphNodeGetType(node, &type));
    if (type != p->type) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(&kernel, &p->kernel, sizeof kernel);
    if (type == CU_GRAPH_NODE_TYPE_KERNEL &&
        !tpc_kernel_of((uint64_t)(uintptr_t)(kernel.func ? (void *)kernel.func : (void *)kernel.kern))) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    CUresult result = exec ? tpg_node_set_in(exec, node, p, &chosen) : tpg_node_set(node, p, &chosen);
    if (chosen || type == CU_GRAPH_NODE_TYPE_EMPTY) {
        return result;
    }
    if (type == CU_GRAPH_NODE_TYPE_GRAPH) {
        return set_child(node, p->graph.graph);
    }
    tp_say_once(&said, "cuGraphNodeSetParams: nodes of type %d keep the parameters that they were made with",
                (int)type);
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* ---- the text of a graph ---- */

/* The file is one of this machine: the worker sends what the driver would write into it. */
CUresult tpc_do_cuGraphDebugDotPrint(CUgraph hGraph, const char *path, unsigned int flags) {
    uint64_t first = 0;
    struct tpg_graph_dot_out out = {0};
    struct tp_reply reply;
    CUresult result = CUDA_SUCCESS;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    do {
        result = tpc_call_graph_dot("cuGraphDebugDotPrint", (uint64_t)(uintptr_t)hGraph, flags, first, &out, &reply);
        if (result == CUDA_SUCCESS && !tp_write_all(fd, out.text, out.text_size)) {
            result = CUDA_ERROR_OPERATING_SYSTEM;
        }
        first += result == CUDA_SUCCESS ? out.text_size : 0;
        tp_reply_free(&reply);
    } while (result == CUDA_SUCCESS && out.text_size && first < out.total);
    close(fd);
    return result;
}
