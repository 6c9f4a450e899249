/*
 * Nodes of any kind: setting their parameters, and the text of a graph.
 *
 * Any thread; owns nothing. A node's kind is asked of the worker, because one of another kind is refused at once.
 */
#include "tpc_graph_node.h"
#include "tpc_code.h"
#include "tpg_client.h"
#include "tpg_cuda_send.h"

#include <errno.h>
#include <fcntl.h>
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
    CUDA_MEMSET_NODE_PARAMS memset;
    CUDA_HOST_NODE_PARAMS host;
    CUDA_BATCH_MEM_OP_NODE_PARAMS batch;
    if (!tpc_params_clean(p)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_TRY(tpc_cuGraphNodeGetType(node, &type));
    if (type != p->type) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    switch (type) {
    case CU_GRAPH_NODE_TYPE_EMPTY:
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_KERNEL:
        memcpy(&kernel, &p->kernel, sizeof kernel);
        if (!tpc_kernel_of((uint64_t)(uintptr_t)(kernel.func ? (void *)kernel.func : (void *)kernel.kern))) {
            return CUDA_ERROR_INVALID_HANDLE;
        }
        return exec ? tpc_cuGraphExecKernelNodeSetParams_v2(exec, node, &kernel)
                    : tpc_cuGraphKernelNodeSetParams_v2(node, &kernel);
    case CU_GRAPH_NODE_TYPE_MEMSET:
        memcpy(&memset, &p->memset, sizeof memset);
        return exec ? tpc_cuGraphExecMemsetNodeSetParams(exec, node, &memset, p->memset.ctx)
                    : tpc_cuGraphMemsetNodeSetParams(node, &memset);
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return exec ? tpc_cuGraphExecMemcpyNodeSetParams(exec, node, &p->memcpy.copyParams, p->memcpy.copyCtx)
                    : tpc_cuGraphMemcpyNodeSetParams(node, &p->memcpy.copyParams);
    case CU_GRAPH_NODE_TYPE_HOST:
        memcpy(&host, &p->host, sizeof host);
        return exec ? tpc_cuGraphExecHostNodeSetParams(exec, node, &host) : tpc_cuGraphHostNodeSetParams(node, &host);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return exec ? tpc_cuGraphExecEventRecordNodeSetEvent(exec, node, p->eventRecord.event)
                    : tpc_cuGraphEventRecordNodeSetEvent(node, p->eventRecord.event);
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        return exec ? tpc_cuGraphExecEventWaitNodeSetEvent(exec, node, p->eventWait.event)
                    : tpc_cuGraphEventWaitNodeSetEvent(node, p->eventWait.event);
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        memcpy(&batch, &p->memOp, sizeof batch);
        return exec ? tpc_cuGraphExecBatchMemOpNodeSetParams(exec, node, &batch)
                    : tpc_cuGraphBatchMemOpNodeSetParams(node, &batch);
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return exec ? tpc_cuGraphExecChildGraphNodeSetParams(exec, node, p->graph.graph)
                    : set_child(node, p->graph.graph);
    default:
        break;
    }
    tp_say_once(&said, "cuGraphNodeSetParams: nodes of type %d keep the parameters that they were made with",
                (int)type);
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* ---- the text of a graph ---- */

static bool write_all(int fd, const unsigned char *bytes, size_t size) {
    while (size) {
        ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        bytes += n;
        size -= (size_t)n;
    }
    return true;
}

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
        if (result == CUDA_SUCCESS && !write_all(fd, out.text, out.text_size)) {
            result = CUDA_ERROR_OPERATING_SYSTEM;
        }
        first += result == CUDA_SUCCESS ? out.text_size : 0;
        tp_reply_free(&reply);
    } while (result == CUDA_SUCCESS && out.text_size && first < out.total);
    close(fd);
    return result;
}
