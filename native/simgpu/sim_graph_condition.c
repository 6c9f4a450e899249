// Conditional nodes: values that kernels set, and graphs that run by them.
//
// A value belongs to the outermost graph, and is named by its number there; what a kernel names is the value of the graph that its
// thread runs. Each executable graph has its own values, which stay from launch to launch unless they begin anew. The graphs of
// a node are made with it and end with it. Everything is under sim.lock, but running, which is the stream's thread.
#include "sim_graph.h"

#include <stdlib.h>
#include <string.h>

static _Thread_local sim_program_t *running;

static CUresult usable(CUcontext handle) {
    if (!sim_handle_is(handle, SIM_CONTEXT))
        return CUDA_ERROR_INVALID_CONTEXT;
    return ((sim_context_t *)(void *)handle)->active ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

static sim_graph_t *root_of(sim_graph_t *graph) {
    while (graph && graph->owner)
        graph = graph->owner->graph;
    return graph;
}

CUresult cuGraphConditionalHandleCreate(CUgraphConditionalHandle *pHandle_out, CUgraph hGraph, CUcontext ctx,
                                        unsigned int defaultLaunchValue, unsigned int flags) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *graph = root_of(sim_graph_of(hGraph));
    if (pHandle_out && graph && !(flags & ~(unsigned)CU_GRAPH_COND_ASSIGN_DEFAULT))
        result = usable(ctx);
    if (result == CUDA_SUCCESS &&
        !sim_grow(&graph->conditions, &graph->conditions_capacity, graph->nconditions + 1, sizeof *graph->conditions))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS) {
        graph->conditions[graph->nconditions++] =
            (sim_condition_t){.initial = defaultLaunchValue, .begins_anew = flags != 0};
        *pHandle_out = graph->nconditions;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

static bool size_ok(const CUDA_CONDITIONAL_NODE_PARAMS *p) {
    switch (p->type) {
    case CU_GRAPH_COND_TYPE_IF:
        return p->size == 1 || p->size == 2;
    case CU_GRAPH_COND_TYPE_WHILE:
        return p->size == 1;
    case CU_GRAPH_COND_TYPE_SWITCH:
        return p->size != 0;
    }
    return false;
}

CUresult sim_conditional_add(CUgraphNode *out, CUgraph handle, const CUgraphNode *dependencies, size_t count,
                             CUDA_CONDITIONAL_NODE_PARAMS *p) {
    sim_node_t *node = NULL;
    sim_op_t op = {.kind = SIM_OP_NOP};
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *root = root_of(sim_graph_of(handle));
    if (root && size_ok(p) && p->handle && p->handle <= root->nconditions && !root->conditions[p->handle - 1].used)
        result = usable(p->ctx);
    if (result == CUDA_SUCCESS)
        result = sim_node_add(out, handle, dependencies, count, CU_GRAPH_NODE_TYPE_CONDITIONAL, &op, &node);
    sim_graph_t **bodies = result == CUDA_SUCCESS ? calloc(p->size, sizeof(sim_graph_t *)) : NULL;
    if (result == CUDA_SUCCESS) {
        node->bodies = bodies;
        node->condition = (size_t)p->handle;
        node->by = p->type;
        node->context = (sim_context_t *)(void *)p->ctx;
        result = bodies ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (; result == CUDA_SUCCESS && node->nbodies < p->size; node->nbodies++) {
        if (!(bodies[node->nbodies] = sim_graph_new()))
            result = CUDA_ERROR_OUT_OF_MEMORY;
        else
            bodies[node->nbodies]->owner = node;
    }
    if (result == CUDA_SUCCESS) {
        root->conditions[p->handle - 1].used = true;
        p->phGraph_out = (CUgraph *)(void *)bodies;
    } else if (node) {
        sim_node_delete(node);
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

bool sim_graph_has_conditions(const sim_graph_t *graph) {
    for (size_t i = 0; i < graph->nodes.count; i++)
        if (graph->nodes.items[i]->bodies ||
            (graph->nodes.items[i]->child && sim_graph_has_conditions(graph->nodes.items[i]->child)))
            return true;
    return false;
}

// What a graph of a conditional node may have in it.
static bool may_be_inside(const sim_graph_t *graph) {
    for (size_t i = 0; i < graph->nodes.count; i++) {
        const sim_node_t *node = graph->nodes.items[i];
        const sim_copy_t *copy = node->op.kind == SIM_OP_COPY ? &node->op.u.copy : NULL;
        if (copy && (!copy->dst.mapped || !copy->src.mapped))
            return false;
        if (node->type == CU_GRAPH_NODE_TYPE_GRAPH
                ? !node->child || !may_be_inside(node->child)
                : node->type != CU_GRAPH_NODE_TYPE_KERNEL && !copy && node->type != CU_GRAPH_NODE_TYPE_EMPTY &&
                      node->type != CU_GRAPH_NODE_TYPE_MEMSET && node->type != CU_GRAPH_NODE_TYPE_CONDITIONAL)
            return false;
    }
    return true;
}

CUresult sim_conditional_step(const sim_node_t *node, sim_step_t *step) {
    CUresult result = CUDA_SUCCESS;
    step->condition = node->condition;
    step->by = node->by;
    step->bodies = calloc(node->nbodies + 1, sizeof *step->bodies);
    if (!step->bodies)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (; step->nbodies < node->nbodies && result == CUDA_SUCCESS; step->nbodies += result == CUDA_SUCCESS) {
        sim_graph_t *body = node->bodies[step->nbodies];
        result = may_be_inside(body) ? sim_program_make(body, &step->bodies[step->nbodies]) : CUDA_ERROR_INVALID_VALUE;
    }
    return result;
}

CUresult sim_conditional_values(const sim_graph_t *graph, sim_program_t *program) {
    if (!graph->nconditions)
        return CUDA_SUCCESS;
    program->conditions = malloc(graph->nconditions * sizeof *program->conditions);
    if (!program->conditions)
        return CUDA_ERROR_OUT_OF_MEMORY;
    program->nconditions = graph->nconditions;
    memcpy(program->conditions, graph->conditions, graph->nconditions * sizeof *program->conditions);
    return CUDA_SUCCESS;
}

sim_program_t *sim_conditional_begin(sim_program_t *program) {
    sim_program_t *outer = running;
    running = program->nconditions ? program : running;
    for (size_t i = 0; i < program->nconditions; i++)
        if (program->conditions[i].begins_anew)
            program->conditions[i].value = program->conditions[i].initial;
    return outer;
}

void sim_conditional_end(sim_program_t *outer) { running = outer; }

bool sim_conditional_set(uint64_t handle, uint32_t value) {
    bool known = running && handle && handle <= running->nconditions;
    if (known)
        running->conditions[handle - 1].value = value;
    return known;
}

CUresult sim_conditional_run(sim_stream_t *stream, const sim_step_t *step) {
    CUresult result = CUDA_SUCCESS;
    const uint32_t *value = &running->conditions[step->condition - 1].value;
    switch (step->by) {
    case CU_GRAPH_COND_TYPE_IF:
        if (*value)
            return sim_program_run(stream, step->bodies[0]);
        return step->nbodies == 2 ? sim_program_run(stream, step->bodies[1]) : CUDA_SUCCESS;
    case CU_GRAPH_COND_TYPE_WHILE:
        while (*value && result == CUDA_SUCCESS && !atomic_load(&stream->context->killed) &&
               !sim_context_error(stream->context))
            result = sim_program_run(stream, step->bodies[0]);
        return result;
    case CU_GRAPH_COND_TYPE_SWITCH:
        return *value < step->nbodies ? sim_program_run(stream, step->bodies[*value]) : CUDA_SUCCESS;
    }
    return CUDA_SUCCESS;
}
