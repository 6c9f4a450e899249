/*
 * Copies as nodes of graphs: how the program's memory becomes part of a graph, and the buffers that stand for it there.
 *
 * Any thread. Where the GPU does not reach the memory, a node is given a buffer, device memory of this process on the worker
 * that counts as an allocation does. A buffer stands for one side of a copy as the program described it and never changes.
 * Nodes whose sides are equal share one, in one direction and context: so the driver, which lets no update of an executable
 * graph change the addresses of a copy of several rows, sees equal addresses where the program's are equal. What such nodes
 * read or write at a time is the same memory natively, too. A buffer lives while a graph has such a node, by a user object for
 * each that the driver hands on to clones, child graphs and executable graphs, and while a list of an executable graph has it
 * (graph/graph_copy.c). A node that gets another buffer, or is destroyed, takes the reference from its graph, and leaves those
 * of clones and executable graphs. The lists are guarded by a lock that is not held across a call.
 */
#include "tpc_copy.h"
#include "tpg_cuda_send.h"

#include <stdlib.h>
#include <tp_segment.h>

#define ALIVE_MAX 65536u /* buffers: all of them are named to the worker in one frame */
#define PIECES_MAX 1024u /* parts of the program's memory that a download writes: each is a transfer of its own */

/* What a graph has of a buffer for a node: one reference of a user object, which the driver hands on to clones, child graphs and
 * executable graphs, and which ends with the last of them. */
struct hold {
    struct hold *next, **here;
    struct tpc_host_copy *copy;
    CUuserObject object;
    uint64_t node; /* 0 where it is not known: of a capture, or when the node has another buffer by now */
};

_Atomic size_t tpc_host_copies;
static struct tp_lock lock;
static struct tpc_host_copy *alive;
static struct hold *holds;

/* ---- buffers ---- */

/* The calling thread may have another context, or be the one that runs destructors. */
static void give_back(const struct tpc_host_copy *copy) {
    struct tp_thread *self = tp_thread_self();
    const uint32_t before = self->context;
    if (copy->address && copy->context->life == copy->life) {
        self->context = tp_handle_id(copy->context->handle);
        tpc_post_memory_free("cuGraphDestroy", copy->address);
        self->context = before;
    }
    if (copy->pinned) {
        tpc_post_host_twin_free("cuGraphDestroy", copy->pinned);
    }
}

static void drop(struct tpc_host_copy *copy) {
    tp_lock_take(&lock);
    bool last = --copy->references == 0;
    if (last && TP_TAKE(alive, it == copy)) {
        atomic_fetch_sub(&tpc_host_copies, 1);
    }
    tp_lock_drop(&lock);
    if (last) {
        give_back(copy);
        free(copy);
    }
}

void tpc_host_copy_drop(struct tpc_host_copy *copy) {
    if (copy) {
        drop(copy);
    }
}

static void no_graph_has_it(void *user) {
    struct hold *hold = user;
    tp_lock_take(&lock);
    *hold->here = hold->next;
    if (hold->next) {
        hold->next->here = hold->here;
    }
    tp_lock_drop(&lock);
    drop(hold->copy);
    free(hold);
}

static bool same_side(const struct tpc_host_side *a, const struct tpc_host_side *b) {
    return a->first == b->first && a->pitch == b->pitch && a->slice == b->slice && a->width == b->width &&
           a->height == b->height && a->depth == b->depth && a->type == b->type && a->base == b->base && a->x == b->x &&
           a->y == b->y && a->z == b->z && a->told_pitch == b->told_pitch && a->told_height == b->told_height;
}

/* One that is there already, with a reference for the caller; with the lock. */
static struct tpc_host_copy *find(const struct tpc_host_side *side, bool up, const struct tpc_context *context) {
    struct tpc_host_copy *copy = TP_FIND(alive, it->up == up && it->address && it->context == context &&
                                                    it->life == context->life && same_side(&it->side, side));
    if (copy) {
        copy->references++;
    }
    return copy;
}

static struct tpc_host_copy *shared(const struct tpc_host_side *side, bool up, const struct tpc_context *context) {
    tp_lock_take(&lock);
    struct tpc_host_copy *copy = find(side, up, context);
    tp_lock_drop(&lock);
    return copy;
}

/* Lists the copy, unless another thread made its equal meanwhile: then that one is returned, and this one's buffer given back. */
static struct tpc_host_copy *list(struct tpc_host_copy *copy) {
    tp_lock_take(&lock);
    struct tpc_host_copy *equal = find(&copy->side, copy->up, copy->context);
    if (!equal) {
        TP_PUSH(alive, copy);
        atomic_fetch_add(&tpc_host_copies, 1);
    }
    tp_lock_drop(&lock);
    if (equal) {
        give_back(copy);
        free(copy);
    }
    return equal ? equal : copy;
}

static void note_memory(struct tpc_host_copy *copy) {
    struct tpc_range range;
    const bool known = tpc_range_at((uint64_t)(uintptr_t)copy->side.first, &range);
    tp_lock_take(&lock);
    copy->memory = known ? range.buffer_id : 0;
    tp_lock_drop(&lock);
}

CUresult tpc_host_copy_make(const char *name, const struct tpc_host_side *side, bool up, struct tpc_host_copy **out) {
    TPC_CONTEXT(context);
    context = context->home;
    uint64_t size = 0;
    bool fits = side->width && side->height && side->depth && side->first &&
                !__builtin_mul_overflow(side->width, side->height, &size) &&
                !__builtin_mul_overflow(size, side->depth, &size);
    if (!fits || tpc_is_device_address((uint64_t)(uintptr_t)side->first)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *out = shared(side, up, context);
    if (*out) {
        note_memory(*out);
        return CUDA_SUCCESS;
    }
    uint64_t pieces = side->pitch == side->width || side->height == 1 ? side->depth : side->height * side->depth;
    if ((!up && pieces > PIECES_MAX) || atomic_load(&tpc_host_copies) >= ALIVE_MAX) {
        tp_log(TP_ERROR,
               "%s: a copy node that writes %llu separate parts of this program's memory, or the %zuth such node "
               "beside others, is not supported; the most are %u and %u",
               name, (unsigned long long)pieces, atomic_load(&tpc_host_copies) + 1, PIECES_MAX, ALIVE_MAX);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    struct tpc_host_copy *copy = calloc(1, sizeof *copy);
    if (!copy) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    uint64_t address;
    CUresult result = tpc_call_memory_alloc(name, size, &address);
    if (result != CUDA_SUCCESS) {
        free(copy);
        return result;
    }
    *copy = (struct tpc_host_copy){
        .address = address, .side = *side, .up = up, .context = context, .life = context->life, .references = 1};
    *out = list(copy);
    note_memory(*out);
    return CUDA_SUCCESS;
}

CUresult tpc_host_copy_keep(struct tpc_host_copy *copy, CUgraph graph, uint64_t node) {
    struct hold *hold = calloc(1, sizeof *hold);
    CUuserObject object;
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    if (hold) {
        result = tpc_cuUserObjectCreate(&object, hold, no_graph_has_it, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC);
    }
    if (result != CUDA_SUCCESS) {
        free(hold);
        drop(copy);
        return result;
    }
    tp_lock_take(&lock);
    *hold = (struct hold){.next = holds, .here = &holds, .copy = copy, .object = object, .node = node};
    if (holds) {
        holds->here = &hold->next;
    }
    holds = hold;
    tp_lock_drop(&lock);
    result = tpc_cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE);
    if (result != CUDA_SUCCESS) {
        tpc_cuUserObjectRelease(object, 1); /* ends the copy */
    }
    return result;
}

/* One that the node's graph has for it; the node has none any more. */
static CUuserObject take_hold(uint64_t node) {
    CUuserObject object = NULL;
    tp_lock_take(&lock);
    for (struct hold *hold = holds; node && hold && !object; hold = hold->next) {
        if (hold->node == node) {
            object = hold->object;
            hold->node = 0;
        }
    }
    tp_lock_drop(&lock);
    return object;
}

CUresult tpc_host_copy_unkeep(CUgraph graph, uint64_t node) {
    CUresult result = CUDA_SUCCESS;
    CUuserObject object;
    while (result == CUDA_SUCCESS && (object = take_hold(node))) {
        result = tpc_cuGraphReleaseUserObject(graph, object, 1);
    }
    return result;
}

CUresult tpc_host_copy_pin(const char *name, struct tpc_host_copy *copy) {
    const struct tpc_host_side *side = &copy->side;
    uint64_t pinned = 0;
    struct tp_thread *self = tp_thread_self();
    const uint32_t before = self->context;
    tp_lock_take(&lock);
    const bool there = copy->pinned != 0;
    tp_lock_drop(&lock);
    self->context = tp_handle_id(copy->context->handle);
    CUresult result =
        there ? CUDA_SUCCESS : tpc_call_host_twin(name, side->width * side->height * side->depth, 0, 0, 1, &pinned);
    self->context = before;
    tp_lock_take(&lock);
    if (!copy->pinned) {
        copy->pinned = pinned;
        pinned = 0;
    }
    tp_lock_drop(&lock);
    if (pinned) { /* another thread was faster */
        tpc_post_host_twin_free(name, pinned);
    }
    return result;
}

static void context_gone(const struct tpc_context *context) {
    tp_lock_take(&lock);
    for (struct tpc_host_copy *copy = alive; copy; copy = copy->next) {
        if (copy->context == context) {
            copy->address = 0;
        }
    }
    tp_lock_drop(&lock);
}
TP_REGISTER(tpc_context_gone, context_gone);

bool tpc_host_copy_side(uint64_t address, struct tpc_host_side *side) {
    bool found = false;
    tp_lock_take(&lock);
    for (const struct tpc_host_copy *copy = alive; address && copy && !found; copy = copy->next) {
        found = copy->address == address;
        if (found) {
            *side = copy->side;
        }
    }
    tp_lock_drop(&lock);
    return found;
}

uint64_t *tpc_host_copy_addresses(size_t *count) {
    tp_lock_take(&lock);
    size_t n = 0, most = atomic_load(&tpc_host_copies);
    uint64_t *addresses = calloc(most + 1, sizeof *addresses);
    for (const struct tpc_host_copy *copy = alive; addresses && copy && n < most; copy = copy->next) {
        addresses[n++] = copy->address;
    }
    tp_lock_drop(&lock);
    *count = n;
    return addresses;
}

struct tpc_host_copy *tpc_host_copy_hold(uint64_t address) {
    tp_lock_take(&lock);
    struct tpc_host_copy *copy = TP_FIND(alive, it->address == address);
    if (copy) {
        copy->references++;
    }
    tp_lock_drop(&lock);
    return copy;
}

void tpc_host_copy_retain(struct tpc_host_copy *copy) {
    tp_lock_take(&lock);
    copy->references++;
    tp_lock_drop(&lock);
}

/* ---- what a capture takes ---- */

/* The one place that decides how host memory becomes part of a graph. As it is if the GPU reaches the memory itself, at an
 * address that stays the same for as long as the memory lives: pinned memory in the shared segment, or with a twin. Otherwise by a
 * buffer, which stands for it; then the memory gets no twin while the buffer is there, because the two would know nothing of each
 * other. */
bool tpc_host_in_graph(const void *host, size_t size, uint64_t *device) {
    struct tpc_range range;
    uint64_t offset = tpc_host_offset(host, size);
    *device = TP_SEGMENT_ADDRESS + offset;
    const uint64_t address = (uint64_t)(uintptr_t)host;
    const bool known = !offset && tpc_range_at(address, &range);
    if (known && range.where == TPC_DEVICE_MEMORY) {
        *device = address; /* managed memory */
        return (range.flags & TPC_MADE_MASK) == TPC_MADE_MANAGED;
    }
    if (known && range.where == TPC_PINNED && range.device_address) {
        *device = range.device_address + (address - range.start);
        return size <= range.size - (address - range.start);
    }
    return offset != 0;
}

/* Memory that was freed, and is another's now, does not count; what was pageable may have been registered since. */
static void refuse_twin(const struct tpc_range *range, bool *refused) {
    static _Atomic bool said;
    const bool registered = (range->flags & TPC_MADE_MASK) == TPC_MADE_REGISTER;
    tp_lock_take(&lock);
    for (const struct tpc_host_copy *copy = alive; copy && !*refused; copy = copy->next) {
        const struct tpc_host_side *side = &copy->side;
        const uint64_t first = (uint64_t)(uintptr_t)side->first, bytes = side->slice * side->depth;
        *refused = first < range->start + range->size && range->start < first + bytes &&
                   (copy->memory == range->buffer_id || (registered && !copy->memory));
    }
    tp_lock_drop(&lock);
    if (*refused) {
        tp_say_once(&said,
                    "a graph copies from or to some of the %llu bytes of pinned memory at 0x%llx, which kernels are to "
                    "use now; "
                    "over this connection kernels must have used it (or its device address have been asked for) before "
                    "the copy becomes part of a graph: CUDA_ERROR_NOT_SUPPORTED",
                    (unsigned long long)range->size, (unsigned long long)range->start);
    }
}
TP_REGISTER(tpc_twin_wanted, refuse_twin);

CUresult tpc_capture_copy(const char *name, CUstream stream, const void *host, size_t size, bool sync, CUgraph *graph) {
    struct tpc_capture_info info;
    uint64_t device;
    *graph = NULL;
    CUresult result = tpc_capture_look(stream, &info);
    if (result == CUDA_SUCCESS && info.status == CU_STREAM_CAPTURE_STATUS_NONE) {
        return CUDA_SUCCESS;
    }
    if (result == CUDA_SUCCESS && info.status == CU_STREAM_CAPTURE_STATUS_INVALIDATED) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (result == CUDA_SUCCESS && !sync) {
        *graph = tpc_host_in_graph(host, size, &device) ? NULL : (CUgraph)(uintptr_t)info.graph;
        return CUDA_SUCCESS;
    }
    CUresult broken = tpc_capture_break(name, stream);
    return result != CUDA_SUCCESS ? result : broken != CUDA_SUCCESS ? broken : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

static CUresult between(const char *name, const struct tpg_area *area, uint64_t buffer, bool up, CUstream stream) {
    if (area->height == 1 || area->pitch == area->width) {
        return tpc_copy_across(name, up ? area->address : buffer, up ? buffer : area->address,
                               area->width * area->height, stream);
    }
    const struct tpg_rows up_rows = {area->address, area->pitch, buffer, area->width, area->width, area->height};
    const struct tpg_rows down_rows = {buffer, area->width, area->address, area->pitch, area->width, area->height};
    return tpc_copy_rows(name, up ? &up_rows : &down_rows, stream);
}

CUresult tpc_capture_host(const char *name, CUgraph graph, const struct tpg_area *area, const void *host,
                          uint64_t host_pitch, bool up, CUstream stream) {
    struct tpc_host_copy *copy = NULL;
    struct tpc_host_side side = {.first = (unsigned char *)(uintptr_t)host,
                                 .pitch = host_pitch,
                                 .slice = host_pitch * area->height,
                                 .width = area->width,
                                 .height = area->height,
                                 .depth = 1,
                                 .type = CU_MEMORYTYPE_HOST,
                                 .base = (uint64_t)(uintptr_t)host,
                                 .told_pitch = host_pitch,
                                 .told_height = area->height};
    CUresult result = tpc_host_copy_make(name, &side, up, &copy);
    if (result == CUDA_SUCCESS) {
        result = between(name, area, copy->address, up, stream);
        if (result == CUDA_SUCCESS) {
            result = tpc_host_copy_keep(copy, graph, 0);
        } else {
            drop(copy);
        }
    }
    if (result != CUDA_SUCCESS) {
        tpc_capture_refuse(name, stream); /* a graph without it would do something else than the program wrote */
    }
    return result;
}
