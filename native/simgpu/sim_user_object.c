// User objects: counted references to something of the program, whose destructor runs when the last one goes.
//
// The count is atomic, since the program of a graph may be released by a stream's thread. The destructor runs on
// whichever thread drops the last reference, where it may not call CUDA. A handle stays known until then.
#include "sim_graph.h"

#include <stdlib.h>

struct sim_user {
    void *pointer;
    CUhostFn destroy;
    atomic_uint refs;
};

void sim_user_hold(sim_user_t *user, unsigned count) { atomic_fetch_add(&user->refs, count); }

void sim_user_drop(sim_user_t *user, unsigned count) {
    if (atomic_fetch_sub(&user->refs, count) != count)
        return;
    user->destroy(user->pointer);
    free(user);
}

CUresult cuUserObjectCreate(CUuserObject *object_out, void *ptr, CUhostFn destroy, unsigned int initialRefcount,
                            unsigned int flags) {
    SIM_ENTER();
    if (!object_out || !destroy || !initialRefcount || initialRefcount > INT32_MAX ||
        flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
        return CUDA_ERROR_INVALID_VALUE;
    sim_user_t *user = calloc(1, sizeof *user);
    if (!user)
        return CUDA_ERROR_OUT_OF_MEMORY;
    user->pointer = ptr;
    user->destroy = destroy;
    atomic_store(&user->refs, initialRefcount);
    pthread_mutex_lock(&sim.lock);
    bool added = sim_handle_add(user, SIM_USER_OBJECT);
    pthread_mutex_unlock(&sim.lock);
    if (!added) {
        free(user);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *object_out = (CUuserObject)(void *)user;
    return CUDA_SUCCESS;
}

// The kind of a freed object's place in the table stays: an address that malloc gives again is a new object then.
static sim_user_t *lookup(CUuserObject handle) {
    return sim_handle_is(handle, SIM_USER_OBJECT) ? (sim_user_t *)(void *)handle : NULL;
}

static CUresult change(CUuserObject object, unsigned count, bool retain) {
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&sim.lock);
    sim_user_t *user = lookup(object);
    if (!user || !count || count > INT32_MAX || (!retain && count > atomic_load(&user->refs)))
        result = CUDA_ERROR_INVALID_VALUE;
    else if (retain)
        sim_user_hold(user, count);
    else if (atomic_load(&user->refs) == count)
        sim_handle_remove(user);
    pthread_mutex_unlock(&sim.lock);
    if (result == CUDA_SUCCESS && !retain)
        sim_user_drop(user, count);
    return result;
}

CUresult cuUserObjectRetain(CUuserObject object, unsigned int count) {
    SIM_ENTER();
    return change(object, count, true);
}

CUresult cuUserObjectRelease(CUuserObject object, unsigned int count) {
    SIM_ENTER();
    return change(object, count, false);
}

CUresult cuGraphRetainUserObject(CUgraph graph, CUuserObject object, unsigned int count, unsigned int flags) {
    SIM_ENTER();
    CUresult result = CUDA_SUCCESS;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *g = sim_graph_of(graph);
    sim_user_t *user = lookup(object);
    if (!g || !user || !count || count > INT32_MAX || (flags & ~(unsigned)CU_GRAPH_USER_OBJECT_MOVE)) {
        result = CUDA_ERROR_INVALID_VALUE;
    } else if (!sim_grow(&g->users, &g->users_capacity, g->nusers + 1, sizeof *g->users)) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else {
        if (!(flags & CU_GRAPH_USER_OBJECT_MOVE))
            sim_user_hold(user, count);
        g->users[g->nusers].object = user;
        g->users[g->nusers++].count = count;
    }
    pthread_mutex_unlock(&sim.lock);
    return result;
}

CUresult cuGraphReleaseUserObject(CUgraph graph, CUuserObject object, unsigned int count) {
    SIM_ENTER();
    CUresult result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_lock(&sim.lock);
    sim_graph_t *g = sim_graph_of(graph);
    sim_user_t *user = lookup(object);
    for (size_t i = 0; g && user && count && i < g->nusers; i++) {
        if (g->users[i].object != user || g->users[i].count < count)
            continue;
        g->users[i].count -= count;
        if (!g->users[i].count)
            g->users[i] = g->users[--g->nusers];
        result = CUDA_SUCCESS;
        break;
    }
    pthread_mutex_unlock(&sim.lock);
    if (result == CUDA_SUCCESS)
        sim_user_drop(user, count);
    return result;
}
