// Executable graphs: a program made from a graph, launched as one operation of a stream.
//
// A program's steps are in an order that respects every dependency, so executing them one after the other is a correct
// execution. A launch holds a reference to the program: destroying or changing the executable graph afterwards does
// not touch what is queued. Programs are changed under sim.lock only, and only while nobody else holds them.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

void sim_program_release(sim_program_t *program) {
    if (!program || atomic_fetch_sub(&program->refs, 1) != 1)
        return;
    for (size_t i = 0; i < program->count; i++) {
        sim_op_discard(&program->steps[i].op);
        sim_program_release(program->steps[i].child);
        for (size_t k = 0; k < program->steps[i].nbodies; k++)
            sim_program_release(program->steps[i].bodies[k]);
        free(program->steps[i].bodies);
    }
    for (size_t i = 0; i < program->nusers; i++)
        sim_user_drop(program->users[i], 1);
    free(program->users);
    free(program->conditions);
    free(program);
}

static bool ready(const sim_node_t *node) {
    for (size_t i = 0; i < node->dependencies.count; i++)
        if (!node->dependencies.items[i]->listed)
            return false;
    return true;
}

// Spreads a position over 64 bits, so that sums of different sets of positions differ (the finisher of SplitMix64).
static uint64_t spread(size_t position) {
    uint64_t x = (position + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static CUresult add_step(sim_program_t *program, sim_node_t *node) {
    sim_step_t *step = &program->steps[program->count];
    step->node = node;
    step->enabled = true;
    node->position = program->count;
    for (size_t i = 0; i < node->dependencies.count; i++)
        step->edges += spread(node->dependencies.items[i]->position);
    sim_op_follow(&node->op, node->context);
    if (!sim_op_copy(&step->op, &node->op))
        return CUDA_ERROR_OUT_OF_MEMORY;
    program->count++;
    node->listed = true;
    if (node->bodies)
        return sim_conditional_step(node, step);
    return node->child ? sim_program_make(node->child, &step->child) : CUDA_SUCCESS;
}

CUresult sim_program_make(sim_graph_t *graph, sim_program_t **out) {
    sim_program_t *program = calloc(1, sizeof *program + graph->nodes.count * sizeof *program->steps);
    CUresult result = program ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (program) {
        atomic_store(&program->refs, 1);
        program->users = calloc(graph->nusers + 1, sizeof *program->users);
        if (!program->users)
            result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS)
        result = sim_conditional_values(graph, program);
    for (size_t i = 0; i < graph->nodes.count; i++)
        graph->nodes.items[i]->listed = false;
    for (bool news = true; news && result == CUDA_SUCCESS;) {
        news = false;
        for (size_t i = 0; i < graph->nodes.count && result == CUDA_SUCCESS; i++) {
            sim_node_t *node = graph->nodes.items[i];
            if (node->listed || !ready(node))
                continue;
            result = add_step(program, node);
            news = true;
        }
    }
    if (result == CUDA_SUCCESS && program->count < graph->nodes.count)
        result = CUDA_ERROR_INVALID_VALUE; // a cycle
    for (size_t i = 0; i < graph->nusers && result == CUDA_SUCCESS; i++) {
        program->users[program->nusers++] = graph->users[i].object;
        sim_user_hold(graph->users[i].object, 1);
    }
    if (result != CUDA_SUCCESS)
        sim_program_release(program);
    else
        *out = program;
    return result;
}

static sim_program_t *program_copy(const sim_program_t *from) {
    sim_program_t *to = calloc(1, sizeof *to + from->count * sizeof *to->steps);
    if (!to || !(to->users = calloc(from->nusers + 1, sizeof *to->users))) {
        free(to);
        return NULL;
    }
    atomic_store(&to->refs, 1);
    if (from->nconditions && !(to->conditions = malloc(from->nconditions * sizeof *to->conditions))) {
        sim_program_release(to);
        return NULL;
    }
    if (from->nconditions)
        memcpy(to->conditions, from->conditions, from->nconditions * sizeof *to->conditions);
    to->nconditions = from->nconditions;
    for (size_t i = 0; i < from->nusers; i++) {
        to->users[to->nusers++] = from->users[i];
        sim_user_hold(from->users[i], 1);
    }
    for (size_t i = 0; i < from->count; i++) {
        sim_step_t *step = &to->steps[i];
        if (!sim_op_copy(&step->op, &from->steps[i].op)) {
            sim_program_release(to);
            return NULL;
        }
        step->node = from->steps[i].node;
        step->enabled = from->steps[i].enabled;
        step->edges = from->steps[i].edges;
        step->child = from->steps[i].child;
        step->condition = from->steps[i].condition;
        step->by = from->steps[i].by;
        step->bodies = calloc(from->steps[i].nbodies + 1, sizeof *step->bodies);
        for (; step->bodies && step->nbodies < from->steps[i].nbodies; step->nbodies++) {
            step->bodies[step->nbodies] = from->steps[i].bodies[step->nbodies];
            atomic_fetch_add(&step->bodies[step->nbodies]->refs, 1);
        }
        to->count++;
        if (step->child)
            atomic_fetch_add(&step->child->refs, 1);
    }
    return to;
}

void sim_program_place(const sim_program_t *program, sim_stream_t *stream, uint64_t seq) {
    for (size_t i = 0; i < program->count; i++) {
        const sim_step_t *step = &program->steps[i];
        sim_event_t *event = step->op.kind == SIM_OP_RECORD_NODE ? sim_event_of(step->op.u.event_handle) : NULL;
        if (event && event->context == sim_home(stream->context))
            sim_event_place(event, stream, seq);
        if (step->child)
            sim_program_place(step->child, stream, seq);
    }
}

bool sim_program_await(const sim_program_t *program, const sim_stream_t *stream, sim_op_t *launch) {
    bool ok = true;
    for (size_t i = 0; i < program->count && ok; i++) {
        const sim_step_t *step = &program->steps[i];
        const sim_event_t *event = step->op.kind == SIM_OP_WAIT_NODE ? sim_event_of(step->op.u.event_handle) : NULL;
        if (event && event->stream && event->stream != stream)
            ok = sim_stream_depend(launch, event->stream, event->seq);
        if (step->child && ok)
            ok = sim_program_await(step->child, stream, launch);
    }
    return ok;
}

CUresult sim_program_run(sim_stream_t *stream, sim_program_t *program) {
    CUresult result = CUDA_SUCCESS;
    sim_program_t *outer = sim_conditional_begin(program);
    for (size_t i = 0; i < program->count && result == CUDA_SUCCESS; i++) {
        const sim_step_t *step = &program->steps[i];
        sim_op_t op = step->op; // runs read it only
        if (!step->enabled)
            continue;
        result = sim_run(stream, &op);
        if (result == CUDA_SUCCESS && step->child)
            result = sim_program_run(stream, step->child);
        if (result == CUDA_SUCCESS && step->bodies && step->nbodies)
            result = sim_conditional_run(stream, step);
    }
    sim_conditional_end(outer);
    return result;
}

sim_step_t *sim_program_step(sim_program_t *program, const sim_node_t *node) {
    for (size_t i = 0; node && i < program->count; i++)
        if (program->steps[i].node == node)
            return &program->steps[i];
    return NULL;
}

sim_exec_t *sim_exec_of(CUgraphExec handle) {
    return sim_handle_is(handle, SIM_GRAPH_EXEC) ? (sim_exec_t *)(void *)handle : NULL;
}

sim_program_t *sim_exec_writable(sim_exec_t *exec) {
    if (atomic_load(&exec->program->refs) == 1)
        return exec->program;
    sim_program_t *copy = program_copy(exec->program);
    if (copy) {
        sim_program_release(exec->program);
        exec->program = copy;
    }
    return copy;
}

// ---- The API -----------------------------------------------------------------------------------------------------

#define FLAGS                                                                                                          \
    (CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |                            \
     CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY)

// A capture takes memsets of any address; what nobody has is found out here (580.159.04, measured).
static bool sets_fit(const sim_program_t *program, int device) {
    bool fit = true;
    for (size_t i = 0; i < program->count && fit; i++) {
        const sim_op_t *op = &program->steps[i].op;
        const sim_set_t *set = &op->u.set;
        for (uint64_t y = 0; op->kind == SIM_OP_SET && fit && y < set->height; y++)
            fit = sim_map_check(set->dst.address + y * set->dst.pitch, set->width, device, ~0u, true) == CUDA_SUCCESS;
        fit = fit && (!program->steps[i].child || sets_fit(program->steps[i].child, device));
        for (size_t k = 0; fit && k < program->steps[i].nbodies; k++)
            fit = sets_fit(program->steps[i].bodies[k], device);
    }
    return fit;
}

static CUresult instantiate(sim_context_t *context, CUgraphExec *out, CUgraph handle, unsigned long long flags) {
    if (!out || (flags & ~(unsigned long long)(FLAGS | CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH)))
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH)
        return CUDA_ERROR_NOT_SUPPORTED;
    sim_exec_t *exec = calloc(1, sizeof *exec);
    if (!exec)
        return CUDA_ERROR_OUT_OF_MEMORY;
    exec->context = context;
    exec->flags = flags;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *graph = sim_graph_of(handle);
    const bool conditions = graph && sim_graph_has_conditions(graph);
    CUresult result = graph && !graph->capture ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = conditions && graph->exec ? CUDA_ERROR_NOT_SUPPORTED : sim_program_make(graph, &exec->program);
    pthread_rwlock_rdlock(&sim.map_lock);
    if (result == CUDA_SUCCESS && !sets_fit(exec->program, context->device))
        result = CUDA_ERROR_INVALID_VALUE;
    pthread_rwlock_unlock(&sim.map_lock);
    if (result == CUDA_SUCCESS)
        result = sim_graph_memory_instantiate(exec->program, true);
    if (result == CUDA_SUCCESS && !sim_handle_add(exec, SIM_GRAPH_EXEC)) {
        (void)sim_graph_memory_instantiate(exec->program, false);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS && conditions) {
        exec->graph = handle;
        graph->exec = exec;
    }
    pthread_mutex_unlock(&sim.lock);
    if (result != CUDA_SUCCESS) {
        sim_program_release(exec->program);
        free(exec);
        return result;
    }
    context->flags |= context->primary ? CU_CTX_LMEM_RESIZE_TO_MAX : 0; // (580.159.04, measured)
    *out = (CUgraphExec)(void *)exec;
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags) {
    SIM_ENTER_CONTEXT(context);
    if (flags & ~15ull)
        return CUDA_ERROR_INVALID_VALUE;
    SIM_UNSAFE(); // behind the flags (580.159.04, measured)
    return instantiate(context, phGraphExec, hGraph, flags & ~(unsigned long long)CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD);
}

CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer,
                               size_t bufferSize) {
    SIM_ENTER();
    if (phErrorNode)
        *phErrorNode = NULL;
    if (logBuffer && bufferSize)
        logBuffer[0] = 0; // drivers since 12 write no log
    return cuGraphInstantiateWithFlags(phGraphExec, hGraph, 0);
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *phGraphExec, CUgraph hGraph,
                                      CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams) {
    SIM_ENTER_CONTEXT(context);
    if (!instantiateParams || (instantiateParams->flags & ~15ull))
        return CUDA_ERROR_INVALID_VALUE;
    SIM_UNSAFE();
    CUresult result = instantiate(context, phGraphExec, hGraph, instantiateParams->flags);
    instantiateParams->hErrNode_out = NULL;
    instantiateParams->result_out =
        result == CUDA_SUCCESS ? CUDA_GRAPH_INSTANTIATE_SUCCESS : CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;
    return result;
}

CUresult cuGraphExecDestroy(CUgraphExec hGraphExec) {
    SIM_ENTER();
    SIM_UNSAFE();
    pthread_mutex_lock(&sim.lock);
    sim_exec_t *exec = sim_exec_of(hGraphExec);
    // The driver waited here for a host function of another stream (580.159.04, on an H200); not for every graph.
    if (exec && exec->context->active) {
        sim_context_drain(exec->context);
        exec = sim_exec_of(hGraphExec);
    }
    if (exec) {
        sim_handle_remove(exec);
        (void)sim_graph_memory_instantiate(exec->program, false);
        sim_graph_t *graph = exec->graph ? sim_graph_of(exec->graph) : NULL;
        if (graph && graph->exec == exec)
            graph->exec = NULL;
    }
    if (exec && exec->last)
        sim_stream_release(exec->last);
    pthread_mutex_unlock(&sim.lock);
    if (!exec)
        return CUDA_ERROR_INVALID_VALUE;
    sim_program_release(exec->program);
    free(exec);
    return CUDA_SUCCESS;
}

static void follow(const sim_program_t *program) {
    for (size_t i = 0; i < program->count; i++) {
        const sim_op_t *op = &program->steps[i].op;
        sim_op_follow(op, op->kind == SIM_OP_LAUNCH ? (sim_context_t *)(void *)op->u.launch.request.ctx : NULL);
        if (program->steps[i].child)
            follow(program->steps[i].child);
        for (size_t k = 0; k < program->steps[i].nbodies; k++)
            follow(program->steps[i].bodies[k]);
    }
}

// A launch is behind the launches of the same executable graph before it, in whatever stream.
CUresult cuGraphLaunch(CUgraphExec hGraph, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    pthread_mutex_lock(&sim.lock);
    sim_exec_t *exec = sim_exec_of(hGraph);
    sim_stream_t *stream;
    uint64_t seq = 0;
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS && stream->capture)
        result = sim_capture_touch(stream); // no launch becomes a node, whatever is launched (580.159.04, measured)
    if (result == CUDA_SUCCESS && !exec)
        result = CUDA_ERROR_INVALID_VALUE;
    if (exec && sim_strict())
        follow(exec->program);
    // With memory nodes the driver (580.159.04) waits for the launch before, where that is in another stream.
    if (result == CUDA_SUCCESS && sim_graph_program_has_memory(exec->program)) {
        stream->refs++;
        while (exec && !stream->dying && exec->last && exec->last != stream && exec->last->done < exec->last_seq) {
            sim_stream_wait(exec->last, exec->last_seq); // others may launch it meanwhile, or end it
            exec = sim_exec_of(hGraph);
        }
        if (!exec || stream->dying)
            result = CUDA_ERROR_INVALID_HANDLE;
        sim_stream_release(stream);
    }
    if (result == CUDA_SUCCESS)
        result = sim_graph_memory_launch(exec->program, exec->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    if (result == CUDA_SUCCESS) {
        sim_op_t op = {.kind = SIM_OP_GRAPH, .u.program = exec->program};
        atomic_fetch_add(&op.u.program->refs, 1);
        stream->refs++;
        if (exec->last && !sim_stream_depend(&op, exec->last, exec->last_seq)) {
            sim_op_discard(&op);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        } else {
            result = sim_stream_push(stream, &op, &seq);
        }
        exec = sim_exec_of(hGraph); // the lock may have been given away for a while
        if (seq && exec) {
            if (exec->last)
                sim_stream_release(exec->last);
            exec->last = stream;
            exec->last_seq = seq;
        } else {
            sim_stream_release(stream);
        }
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphUpload(CUgraphExec hGraph, CUstream hStream) {
    SIM_ENTER_STREAM(context, hStream);
    pthread_mutex_lock(&sim.lock);
    const sim_exec_t *exec = sim_exec_of(hGraph);
    sim_stream_t *stream;
    CUresult result = sim_stream_resolve(context, hStream, &stream);
    if (result == CUDA_SUCCESS && stream->capture)
        result = sim_capture_touch(stream);
    if (result == CUDA_SUCCESS)
        result = exec ? sim_graph_memory_upload(exec->program) : CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&sim.lock);
    sim_op_t op = {.kind = SIM_OP_NOP}; // nothing to bring anywhere
    return result == CUDA_SUCCESS ? sim_submit(context, hStream, &op, false, SIM_GO_ON) : result;
}

CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_exec_t *exec = sim_exec_of(hGraphExec);
    if (exec && flags)
        *flags = exec->flags;
    pthread_mutex_unlock(&sim.lock);
    return exec && flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// Where a side of a copy lies, as far as a change of an executable graph looks at it (asked of an H200): in host memory of any
// kind, in memory of cuMemAlloc, in mapped memory, which a pool's is, too.
static int memory_kind(const sim_side_t *side) {
    enum { HOST, ALLOCATED, MAPPED };
    const sim_range_t *range = side->mapped ? sim_map_find(side->address) : NULL;
    if (!range || range->kind == SIM_RANGE_HOST || range->kind == SIM_RANGE_REGISTERED)
        return HOST;
    return range->kind == SIM_RANGE_VMM || range->pool ? MAPPED : ALLOCATED;
}

static bool same_side(const sim_side_t *a, const sim_side_t *b, bool rows) {
    return memory_kind(a) == memory_kind(b) &&
           (!rows || (a->address == b->address && a->pitch == b->pitch && a->slice == b->slice));
}

// A copy of one row may get other addresses in memory of the same kind, and another width; one of several rows nothing.
bool sim_copy_may_become(const sim_copy_t *a, const sim_copy_t *b) {
    const bool rows = a->height > 1 || a->depth > 1 || b->height > 1 || b->depth > 1;
    if (rows && (a->width != b->width || a->height != b->height || a->depth != b->depth))
        return false;
    pthread_rwlock_rdlock(&sim.map_lock);
    bool same = same_side(&a->dst, &b->dst, rows) && same_side(&a->src, &b->src, rows);
    pthread_rwlock_unlock(&sim.map_lock);
    return same;
}

// The same shape: as many steps, of the same kinds, with the same edges. An H200 refuses one edge more or less, also where the
// other edges imply it.
static CUgraphExecUpdateResult compare(const sim_program_t *old, const sim_program_t *fresh, const sim_node_t **at) {
    if (old->count != fresh->count)
        return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    for (size_t i = 0; i < old->count; i++) {
        *at = fresh->steps[i].node;
        if (old->steps[i].op.kind != fresh->steps[i].op.kind || !old->steps[i].child != !fresh->steps[i].child)
            return CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED;
        if (old->steps[i].edges != fresh->steps[i].edges)
            return CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
        if (fresh->steps[i].op.kind == SIM_OP_GRAPH_ALLOC &&
            fresh->steps[i].op.u.memory.address != old->steps[i].op.u.memory.address)
            return CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
        if (fresh->steps[i].op.kind == SIM_OP_COPY &&
            !sim_copy_may_become(&old->steps[i].op.u.copy, &fresh->steps[i].op.u.copy))
            return CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
        CUgraphExecUpdateResult inner = CU_GRAPH_EXEC_UPDATE_SUCCESS;
        if (old->steps[i].nbodies != fresh->steps[i].nbodies || old->steps[i].by != fresh->steps[i].by)
            return CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
        if (old->steps[i].child)
            inner = compare(old->steps[i].child, fresh->steps[i].child, at);
        for (size_t k = 0; k < old->steps[i].nbodies && !inner; k++)
            inner = compare(old->steps[i].bodies[k], fresh->steps[i].bodies[k], at);
        if (inner)
            return inner;
    }
    *at = NULL;
    return CU_GRAPH_EXEC_UPDATE_SUCCESS;
}

// Later changes name the nodes of the graph that the executable one was made from.
static void keep_names(const sim_program_t *old, sim_program_t *fresh) {
    for (size_t i = 0; i < old->count; i++) {
        fresh->steps[i].node = old->steps[i].node;
        fresh->steps[i].enabled = old->steps[i].enabled;
        if (old->steps[i].child)
            keep_names(old->steps[i].child, fresh->steps[i].child);
        for (size_t k = 0; k < old->steps[i].nbodies; k++)
            keep_names(old->steps[i].bodies[k], fresh->steps[i].bodies[k]);
    }
}

CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo) {
    SIM_ENTER(); // it needs no context, and nobody to tell (580.159.04, measured)
    CUgraphExecUpdateResultInfo aside;
    resultInfo = resultInfo ? resultInfo : &aside;
    sim_program_t *fresh = NULL;
    const sim_node_t *at = NULL;
    *resultInfo = (CUgraphExecUpdateResultInfo){.result = CU_GRAPH_EXEC_UPDATE_ERROR};
    pthread_mutex_lock(&sim.lock);
    sim_exec_t *exec = sim_exec_of(hGraphExec);
    sim_graph_t *graph = sim_graph_of(hGraph);
    CUresult result = exec && graph ? sim_program_make(graph, &fresh) : CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS) {
        resultInfo->result = compare(exec->program, fresh, &at);
        resultInfo->errorNode = (CUgraphNode)(void *)(uintptr_t)at;
        if (resultInfo->result) {
            result = CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
        } else {
            keep_names(exec->program, fresh);
            sim_program_t *old = exec->program;
            exec->program = fresh;
            fresh = old;
        }
        sim_program_release(fresh);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out,
                           CUgraphExecUpdateResult *updateResult_out) {
    SIM_ENTER();
    CUgraphExecUpdateResultInfo info;
    CUresult result = cuGraphExecUpdate_v2(hGraphExec, hGraph, &info);
    if (updateResult_out) // of what is no graph it tells no reason, unlike the newer form (580.159.04, measured)
        *updateResult_out = result == CUDA_ERROR_INVALID_VALUE ? CU_GRAPH_EXEC_UPDATE_SUCCESS : info.result;
    if (hErrorNode_out)
        *hErrorNode_out = info.errorNode;
    return result;
}

CUresult cuGraphNodeSetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int isEnabled) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_exec_t *exec = sim_exec_of(hGraphExec);
    const sim_node_t *node = sim_node_of(hNode);
    bool able = exec && node &&
                (node->type == CU_GRAPH_NODE_TYPE_KERNEL || node->type == CU_GRAPH_NODE_TYPE_MEMSET ||
                 node->type == CU_GRAPH_NODE_TYPE_MEMCPY) &&
                sim_program_step(exec->program, node);
    if (able) {
        sim_program_t *program = sim_exec_writable(exec);
        result = program ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
        if (program)
            sim_program_step(program, node)->enabled = isEnabled != 0;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphNodeGetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int *isEnabled) {
    SIM_ENTER();
    pthread_mutex_lock(&sim.lock);
    const sim_exec_t *exec = sim_exec_of(hGraphExec);
    const sim_step_t *step = exec ? sim_program_step(exec->program, sim_node_of(hNode)) : NULL;
    if (step && isEnabled)
        *isEnabled = step->enabled;
    pthread_mutex_unlock(&sim.lock);
    return step && isEnabled ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
