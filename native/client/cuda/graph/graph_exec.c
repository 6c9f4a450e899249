/*
 * Executable graphs in the client: instantiating and updating wait for an answer, a launch is a post like a kernel's.
 *
 * Any thread; owns nothing. Error nodes that the driver names get handles as other nodes do.
 */
#include "tpc_graph.h"
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpg_cuda_send.h"

#define INSTANTIATE_FLAGS 15u /* all of CUgraphInstantiate_flags */

CUresult tpc_graph_instantiate(const char *name, CUgraphExec *out_exec, CUgraph graph, uint64_t flags, CUstream upload,
                               bool detailed, CUgraphNode *error_node, CUgraphInstantiateResult *why) {
    TPC_CONTEXT(context);
    if (flags & ~(uint64_t)INSTANTIATE_FLAGS) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CAPTURE_UNSAFE(name);
    if (!out_exec) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CHECK_HANDLE(GRAPH, graph, false);
    struct tpc_fresh fresh;
    struct copies *copies;
    TPC_TRY(tpc_copies_learn(name, graph, &copies));
    if (!tpc_fresh_make(&fresh, 1)) {
        tpc_copies_free(copies);
        return TPC_NO_HANDLES;
    }
    struct tpg_graph_instantiate_in in = {.graph = (uint64_t)(uintptr_t)graph,
                                          .exec = tpc_mint(TPG_GRAPHEXEC),
                                          .flags = flags,
                                          .upload = (uint64_t)(uintptr_t)upload,
                                          .detailed = detailed,
                                          .fresh = fresh.handles[0]};
    in.mixed = tpc_copies_mixed(copies, &in.mixed_count);
    struct tpg_graph_instantiate_out out;
    CUresult result = tpc_call_graph_instantiate(name, &in, &out);
    if (result == CUDA_SUCCESS) {
        result = (CUresult)out.error;
        tpc_fresh_note(&fresh, out.error_node, in.graph);
        if (result) {
            tpc_unmint(TPG_GRAPHEXEC, in.exec);
        }
        if (error_node) {
            *error_node = (CUgraphNode)(uintptr_t)out.error_node;
        }
        if (why) {
            *why = (CUgraphInstantiateResult)out.result;
        }
    }
    tpc_fresh_end(&fresh);
    if (result == CUDA_SUCCESS) {
        *out_exec = (CUgraphExec)(uintptr_t)in.exec;
        tpc_copies_instantiated(*out_exec, copies);
        context->flags |= context->primary ? CU_CTX_LMEM_RESIZE_TO_MAX : 0; /* (580.159.04, measured) */
        return CUDA_SUCCESS;
    }
    tpc_copies_free(copies);
    return result;
}

CUresult tpc_cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer,
                                   size_t bufferSize) {
    if (phErrorNode) {
        *phErrorNode = NULL;
    }
    if (logBuffer && bufferSize) {
        logBuffer[0] = 0; /* drivers since 12 write no log */
    }
    return tpc_graph_instantiate("cuGraphInstantiate", phGraphExec, hGraph, 0, NULL, true, phErrorNode, NULL);
}

CUresult tpc_do_cuGraphInstantiateWithParams(CUstream implicit, CUgraphExec *phGraphExec, CUgraph hGraph,
                                             CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams) {
    if (instantiateParams->flags & ~(cuuint64_t)INSTANTIATE_FLAGS) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CAPTURE_UNSAFE("cuGraphInstantiateWithParams");
    CUstream upload = instantiateParams->hUploadStream ? instantiateParams->hUploadStream : implicit;
    TPC_CHECK_HANDLE(STREAM, upload, true);
    instantiateParams->hErrNode_out = NULL;
    instantiateParams->result_out = CUDA_GRAPH_INSTANTIATE_ERROR;
    return tpc_graph_instantiate("cuGraphInstantiateWithParams", phGraphExec, hGraph, instantiateParams->flags, upload,
                                 true, &instantiateParams->hErrNode_out, &instantiateParams->result_out);
}

/* As with a kernel: what the program wrote into mapped host memory is there when the graph runs. So is what its copies read. */
CUresult tpc_check_cuGraphLaunch(CUgraphExec hGraph, CUstream hStream) {
    if (TP_UNLIKELY(atomic_load_explicit(&tpc_captures, memory_order_relaxed))) {
        TPC_TRY(tpc_capture_refuse("cuGraphLaunch", hStream)); /* whatever is launched (580.159.04, measured) */
    }
    tpc_twins_push();
    TPC_TRY(TPC_MANAGED_LEAVE());
    TPC_TRY(tpc_copies_before_launch("cuGraphLaunch", hGraph, hStream));
    return tpc_graph_memory_asks();
}

void tpc_noted_cuGraphLaunch(CUgraphExec hGraph, CUstream hStream) {
    tpc_host_functions_launched();
    tpc_copies_behind_launch("cuGraphLaunch", hGraph, hStream);
    tpc_watch_launched();
}

CUresult tpc_cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo) {
    CUgraphExecUpdateResultInfo aside; /* nobody need be told (580.159.04, measured) */
    resultInfo = resultInfo ? resultInfo : &aside;
    *resultInfo = (CUgraphExecUpdateResultInfo){.result = CU_GRAPH_EXEC_UPDATE_ERROR};
    if (tpc_check_handle(TPG_GRAPHEXEC, (uint64_t)(uintptr_t)hGraphExec, false) != CUDA_SUCCESS ||
        tpc_check_handle(TPG_GRAPH, (uint64_t)(uintptr_t)hGraph, false) != CUDA_SUCCESS) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    struct tpc_fresh fresh;
    struct copies *copies;
    TPC_TRY(tpc_copies_learn("cuGraphExecUpdate", hGraph, &copies));
    if (!tpc_fresh_make(&fresh, 2)) {
        tpc_copies_free(copies);
        return TPC_NO_HANDLES;
    }
    struct tpg_graph_update_in in = {.exec = (uint64_t)(uintptr_t)hGraphExec,
                                     .graph = (uint64_t)(uintptr_t)hGraph,
                                     .fresh = fresh.handles,
                                     .fresh_count = fresh.count};
    in.mixed = tpc_copies_mixed(copies, &in.mixed_count);
    struct tpg_graph_update_out out;
    CUresult result = tpc_call_graph_update("cuGraphExecUpdate", &in, &out);
    if (result == CUDA_SUCCESS) {
        tpc_fresh_note(&fresh, out.error_node, in.graph);
        tpc_fresh_note(&fresh, out.error_from, in.graph);
        *resultInfo = (CUgraphExecUpdateResultInfo){.result = (CUgraphExecUpdateResult)out.result,
                                                    .errorNode = (CUgraphNode)(uintptr_t)out.error_node,
                                                    .errorFromNode = (CUgraphNode)(uintptr_t)out.error_from};
        result = (CUresult)out.error;
    }
    tpc_fresh_end(&fresh);
    if (result == CUDA_SUCCESS) {
        tpc_copies_updated(hGraphExec, copies);
    } else {
        tpc_copies_free(copies);
    }
    return result;
}

CUresult tpc_cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out,
                               CUgraphExecUpdateResult *updateResult_out) {
    CUgraphExecUpdateResultInfo info = {.result = CU_GRAPH_EXEC_UPDATE_ERROR};
    CUresult result = tpc_cuGraphExecUpdate_v2(hGraphExec, hGraph, &info);
    if (updateResult_out) { /* of what is no graph it tells no reason, unlike the newer form (580.159.04, measured) */
        *updateResult_out = result == CUDA_ERROR_INVALID_VALUE ? CU_GRAPH_EXEC_UPDATE_SUCCESS : info.result;
    }
    if (hErrorNode_out) {
        *hErrorNode_out = info.errorNode;
    }
    return result;
}

/* The kernel nodes of executable graphs that were set, of which each place knows the last: the first time the driver's answer is waited
 * for, since the node may be of another kind or graph; behind that, programs set the same ones before each launch. */
static _Atomic uint64_t nodes_set[1024];

static _Atomic uint64_t *place_of(CUgraphExec exec, CUgraphNode node, uint64_t *pair) {
    *pair = (uint64_t)tp_handle_id((uintptr_t)exec) << 32 | tp_handle_id((uintptr_t)node);
    return &nodes_set[*pair * 0x9e3779b97f4a7c15 >> 54];
}

CUresult tpc_exec_node_asks(CUgraphExec exec, CUgraphNode node) {
    uint64_t pair;
    if (atomic_load_explicit(place_of(exec, node, &pair), memory_order_relaxed) != pair) {
        tpc_wait_for_next_post();
    }
    return CUDA_SUCCESS;
}

void tpc_exec_node_set(CUgraphExec exec, CUgraphNode node) {
    uint64_t pair;
    _Atomic uint64_t *place = place_of(exec, node, &pair);
    atomic_store_explicit(place, pair, memory_order_relaxed);
}
