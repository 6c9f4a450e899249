// Captures, graphs, executable graphs and user objects of the simulated GPU.
//
// A graph is a list of nodes with their dependencies; a node holds the operation that a stream would have executed. A
// program is what an executable graph launches: a copy of all operations in an order that respects the dependencies,
// counted by references, since a launch that is queued keeps the program that it was made with. Everything here is
// under sim.lock, except that programs and user objects are released by any thread (their counts are atomic).
// Arguments of the exported functions are as hostile as everywhere in the simulator.
#ifndef SIM_GRAPH_H
#define SIM_GRAPH_H

#include "sim.h"

typedef struct sim_node sim_node_t;
typedef struct sim_graph sim_graph_t;
typedef struct sim_user sim_user_t;

struct sim_node {
    sim_graph_t *graph;
    CUgraphNodeType type;
    sim_node_list_t dependencies;
    sim_op_t op;               // SIM_OP_NOP for empty nodes and child graphs
    sim_graph_t *child;        // of a child graph node; owned
    sim_graph_t **bodies;      // of a conditional node; owned
    size_t nbodies, condition; // the number of its value
    CUgraphConditionalNodeType by;
    const sim_node_t *original; // of a node in a clone
    sim_context_t *context;     // that it runs in; NULL: any
    bool listed;                // scratch of the search for an order
    bool captured;   // by a stream, and no program has taken it out of what the stream's next operation waits for
    size_t position; // in the program that was made last
    CUlaunchAttributeValue attributes[CU_LAUNCH_ATTRIBUTE_MAX];
    union { // what the Get functions answer
        CUDA_KERNEL_NODE_PARAMS kernel;
        CUDA_MEMCPY3D copy;
        CUDA_MEMSET_NODE_PARAMS set;
        CUDA_MEM_ALLOC_NODE_PARAMS alloc;
    } params;
    void **values; // what the parameters that are told point to
};

// A value that kernels set and conditional nodes look at.
typedef struct {
    uint32_t value, initial;
    bool begins_anew, used;
} sim_condition_t;

struct sim_graph {
    sim_node_list_t nodes;
    sim_node_t *owner; // child graph or conditional node that this graph is inside
    sim_condition_t *conditions;
    size_t nconditions, conditions_capacity;
    const void *exec; // of a graph with conditional nodes, which has one at a time
    sim_capture_t *capture;
    struct {
        sim_user_t *object;
        unsigned count;
    } *users;
    size_t nusers, users_capacity;
};

struct sim_capture {
    int refs; // the list of captures, streams and events
    unsigned long long id;
    CUstreamCaptureMode mode;
    pthread_t thread;
    sim_graph_t *graph;
    bool own_graph; // false: captured into a graph of the caller
    size_t first;   // nodes of the graph from here on are captured ones
    sim_stream_t *origin;
    CUresult invalid; // why, 0 while it is not
    bool ended;
    sim_capture_t *next;
};

typedef struct {
    sim_op_t op;
    const sim_node_t *node;
    bool enabled;
    uint64_t edges; // a sum over the positions of the steps that it depends on: equal for equal edges
    sim_program_t *child;
    sim_program_t **bodies;
    size_t nbodies, condition;
    CUgraphConditionalNodeType by;
} sim_step_t;

struct sim_program {
    atomic_int refs;
    size_t count;
    sim_user_t **users;
    size_t nusers;
    sim_condition_t *conditions; // of a whole executable graph
    size_t nconditions;
    sim_step_t steps[];
};

typedef struct {
    sim_context_t *context;
    sim_program_t *program;
    CUgraph graph; // that it was made of, which may be gone
    unsigned long long flags;
    sim_stream_t *last; // where it was launched last, with a reference; the next launch is behind that one
    uint64_t last_seq;
} sim_exec_t;

// sim_capture.c; all under sim.lock
bool sim_capturing(void); // any capture at all
// The operation instead becomes a node if the stream captures; *taken says whether that, or an error, settles it.
CUresult sim_capture_push(sim_stream_t *stream, sim_op_t *op, bool *taken);
CUresult sim_capture_record(sim_stream_t *stream, sim_event_t *event, bool *taken);
CUresult sim_capture_wait(sim_stream_t *stream, sim_event_t *event, bool *taken);
// What a query of the stream, or of the event, gives because of captures; 0 when they do not matter.
CUresult sim_capture_touch(sim_stream_t *stream);
CUresult sim_capture_touch_context(sim_context_t *context);
CUresult sim_capture_touch_event(sim_event_t *event);
// What a call that must not be made during a capture gives, by the modes of the captures and of the calling thread.
CUresult sim_capture_unsafe(void);  // takes sim.lock
CUresult sim_capture_forbids(void); // the same under it
// Such an operation cannot be part of a graph: the capture that the stream is in ends with CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED. Any
// other answer is about the stream; takes sim.lock.
CUresult sim_capture_bars(sim_context_t *context, CUstream handle);
// Of the legacy stream beside a blocking one that captures: it ends that capture; takes sim.lock.
CUresult sim_capture_implicit(sim_context_t *context, CUstream handle);
void sim_capture_fails(sim_stream_t *stream, CUresult why); // the capture that the stream is in, if any
#define SIM_UNSAFE()                                                                                                   \
    do {                                                                                                               \
        CUresult unsafe_ = sim_capturing() ? sim_capture_unsafe() : CUDA_SUCCESS;                                      \
        if (unsafe_ != CUDA_SUCCESS)                                                                                   \
            return unsafe_;                                                                                            \
    } while (0)
void sim_capture_event_drop(sim_event_t *event);
void sim_capture_stream_gone(sim_stream_t *stream);
CUresult sim_capture_append(sim_stream_t *stream, sim_node_t *node);

// sim_graph.c; under sim.lock
bool sim_list_add(sim_node_list_t *list, sim_node_t *node);
sim_graph_t *sim_graph_new(void);
void sim_graph_delete(sim_graph_t *graph);
sim_graph_t *sim_graph_clone(const sim_graph_t *graph, sim_node_t *owner);
// A node with these dependencies, which must be of the same graph; takes over what `op` owns when it succeeds.
CUresult sim_node_new(sim_graph_t *graph, CUgraphNodeType type, const CUgraphNode *dependencies, size_t count,
                      const sim_op_t *op, sim_node_t **node);
void sim_node_delete(sim_node_t *node);
// What a node points at, where the driver would follow it: ends the process if it has ended (TF_SIM_DEAD_HANDLES).
void sim_op_follow(const sim_op_t *op, const sim_context_t *context);
sim_graph_t *sim_graph_of(CUgraph handle);
sim_node_t *sim_node_of(CUgraphNode handle);
bool sim_op_copy(sim_op_t *to, const sim_op_t *from);

// sim_graph_exec.c
CUresult sim_program_make(sim_graph_t *graph, sim_program_t **program); // under sim.lock
void sim_program_release(sim_program_t *program);                       // any thread
// The events that its nodes record are recorded in this launch, the operation `seq` of the stream. Under sim.lock.
void sim_program_place(const sim_program_t *program, sim_stream_t *stream, uint64_t seq);
// A launch waits for the events that its nodes wait for, as they were recorded last when it was made. Under sim.lock.
bool sim_program_await(const sim_program_t *program, const sim_stream_t *stream, sim_op_t *launch);
CUresult sim_program_run(sim_stream_t *stream, sim_program_t *program);
sim_step_t *sim_program_step(sim_program_t *program, const sim_node_t *node);
// Whether a step of an executable graph may be changed so: by its own function or by an update.
bool sim_copy_may_become(const sim_copy_t *a, const sim_copy_t *b);
sim_exec_t *sim_exec_of(CUgraphExec handle);        // under sim.lock
sim_program_t *sim_exec_writable(sim_exec_t *exec); // its program, for a change that launches under way do not see

// sim_graph_node.c; under sim.lock
CUresult sim_node_add(CUgraphNode *out, CUgraph handle, const CUgraphNode *dependencies, size_t count,
                      CUgraphNodeType type, sim_op_t *op, sim_node_t **made);
// Whether it is a node of that type, and the executable graph has it: looked at before what it is to do (580.159.04, measured).
bool sim_node_puts(CUgraphExec exec_handle, CUgraphNode handle, bool in_exec, CUgraphNodeType type);
// Replaces what a node does, or a step of an executable graph does.
CUresult sim_node_put(CUgraphExec exec_handle, CUgraphNode handle, bool in_exec, CUgraphNodeType type, sim_op_t *op,
                      sim_node_t **out);
CUresult sim_kernel_op(sim_context_t *context, const CUDA_KERNEL_NODE_PARAMS *params, sim_op_t *op); // sim_launch.c

// sim_graph_condition.c; under sim.lock, but the last four
CUresult sim_conditional_add(CUgraphNode *out, CUgraph handle, const CUgraphNode *dependencies, size_t count,
                             CUDA_CONDITIONAL_NODE_PARAMS *p); // takes sim.lock
bool sim_graph_has_conditions(const sim_graph_t *graph);
CUresult sim_conditional_step(const sim_node_t *node, sim_step_t *step);
CUresult sim_conditional_values(const sim_graph_t *graph, sim_program_t *program);
sim_program_t *sim_conditional_begin(sim_program_t *program); // returns what the thread ran before
void sim_conditional_end(sim_program_t *outer);
bool sim_conditional_set(uint64_t handle, uint32_t value); // false: the graph that runs has no such value
CUresult sim_conditional_run(sim_stream_t *stream, const sim_step_t *step);

// sim_graph_memory.c
// For an operation that is to become a node behind others: gives an allocation its addresses. Under sim.lock.
CUresult sim_graph_memory_prepare(const sim_graph_t *graph, const sim_node_list_t *front, sim_op_t *op);
bool sim_graph_op_copied(const sim_op_t *op);        // false: its addresses are gone
void sim_graph_op_discarded(sim_op_t *op);           // any thread
bool sim_graph_has_memory(const sim_graph_t *graph); // under sim.lock
bool sim_graph_program_has_memory(const sim_program_t *program);
// What a launch allocates and frees, when it is called; refused where it does not fit what is allocated. Under sim.lock.
CUresult sim_graph_memory_launch(const sim_program_t *program, bool frees_first);
// One executable graph at a time has the memory of a graph.
CUresult sim_graph_memory_instantiate(const sim_program_t *program, bool begins);
// The operation that frees it; false: it is none of a graph, or nothing is allocated there.
bool sim_graph_memory_free(uint64_t address, sim_op_t *op);
void sim_graph_memory_run(const sim_op_t *op);
// A copy or set outside graphs of memory of one in which nothing is allocated.
bool sim_graph_memory_missing(const sim_op_t *op);
CUresult sim_graph_memory_upload(const sim_program_t *program);

// sim_user_object.c; any thread
void sim_user_hold(sim_user_t *user, unsigned count);
void sim_user_drop(sim_user_t *user, unsigned count);

#endif
