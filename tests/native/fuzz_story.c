/*
 * The grammar of stories: what may be made, of what, and what may end.
 *
 * One thread, no memory of its own beyond one story. To teach it a new kind of object, add a verb that makes it, one that ends
 * it, and those that make others point at it.
 */
#include "fuzz_story.h"
#include "simgpu_check.h"
#include "tpg_session.h"

#include <string.h>

#define KNOWN 8u  /* of each kind, the newest ones */
#define FIRST 16u /* indices below are the ordinary program's */
#define VERBS_MAX 1500u
#define FILL 2u /* a kernel of kernels_ptx, with these parameters: */
struct fill {
    uint64_t address;
    uint32_t value, unused;
    uint64_t count;
};

struct story {
    struct tpw_link *link;
    const unsigned char *at, *end;
    uint64_t address; /* a word that becomes one */
    uint32_t context; /* id, of the frames */
    uint64_t known[TPG_KIND_LIMIT][KNOWN];
    uint32_t made[TPG_KIND_LIMIT], next[TPG_KIND_LIMIT];
};

static unsigned byte(struct story *t) { return t->at < t->end ? *t->at++ : 0; }

static uint64_t handle_of(uint32_t kind, uint32_t index) { return tp_handle_make(kind, 1u << TP_INDEX_BITS | index); }

static uint64_t fresh(struct story *t, uint32_t kind) {
    uint64_t handle = handle_of(kind, FIRST + t->next[kind]++);
    t->known[kind][t->made[kind]++ % KNOWN] = handle;
    return handle;
}

/* One that was made, the newest most often; now and then one that has ended, or that never was. */
static uint64_t some(struct story *t, uint32_t kind) {
    unsigned which = byte(t), back = which & 1 ? which >> 1 & (KNOWN - 1) : which >> 1 & 1;
    uint64_t handle = t->made[kind] ? t->known[kind][(t->made[kind] - 1 - back) % KNOWN] : 0;
    return handle && which != 0xff ? handle : handle_of(kind, 0);
}

/* It ends; the story remembers it once in eight times, to use it after its end. */
static uint64_t end(struct story *t, uint32_t kind) {
    uint64_t handle = some(t, kind);
    for (unsigned i = 0; i < KNOWN && byte(t) % 8; i++) {
        if (t->known[kind][i] == handle) {
            t->known[kind][i] = handle_of(kind, 0);
        }
    }
    return handle;
}

static uint64_t stream(struct story *t) {
    unsigned which = byte(t);
    return which % 8 == 0 ? 1 : which % 8 == 1 ? 2 : some(t, TPG_STREAM);
}

/* Whose node's parameters are set: a graph's new one mostly, an executable graph's, or the node's own. */
static uint64_t owner(struct story *t, uint64_t *node) {
    unsigned which = byte(t) % 8;
    *node = which < 6 ? fresh(t, TPG_GRAPHNODE) : some(t, TPG_GRAPHNODE);
    return which < 6 ? some(t, TPG_GRAPH) : which == 6 ? some(t, TPG_GRAPHEXEC) : 0;
}

#define SAY(name, ...) FUZZ_SEND(t->link, 1 + (t->context & 1), t->context, name, TP_FRAME_CALL, __VA_ARGS__)

static void in_context(struct story *t) {
    t->context = tp_handle_id(byte(t) % 3 ? handle_of(TPG_CONTEXT, 0) : some(t, TPG_CONTEXT));
}

static void image(struct story *t, uint32_t kind) {
    SAY(image_load, .size = sizeof kernels_ptx, .owner = fresh(t, kind), .is_library = kind == TPG_LIBRARY,
        .data = kernels_ptx, .data_size = sizeof kernels_ptx);
}

static uint64_t function(struct story *t) { return some(t, byte(t) % 2 ? TPG_FUNCTION : TPG_KERNEL); }

static void kernel_node(struct story *t) {
    const uint64_t before = some(t, TPG_GRAPHNODE);
    uint64_t node, of = owner(t, &node);
    const struct {
        CUDA_KERNEL_NODE_PARAMS node;
        uint64_t function, size;
        struct fill fill;
    } params = {.node = {.gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .blockDimX = 64, .blockDimY = 1, .blockDimZ = 1},
                .function = function(t),
                .size = sizeof params.fill,
                .fill = {t->address, 7, 0, 64}};
    const size_t count = byte(t) % 4 == 0;
    if (tp_handle_is(of, TPG_GRAPH)) {
        SAY(cuGraphAddKernelNode_v2, .hGraph = of, .phGraphNode = node, .dependencies = &before,
            .dependencies_count = count, .numDependencies = count, .nodeParams = &params,
            .nodeParams_size = sizeof params);
    } else if (of) {
        SAY(cuGraphExecKernelNodeSetParams_v2, .hGraphExec = of, .hNode = node, .nodeParams = &params,
            .nodeParams_size = sizeof params);
    } else {
        SAY(cuGraphKernelNodeSetParams_v2, .hNode = node, .nodeParams = &params, .nodeParams_size = sizeof params);
    }
}

static void memory_node(struct story *t) {
    const CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                .srcDevice = t->address,
                                .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                .dstDevice = t->address + 512,
                                .WidthInBytes = 64,
                                .Height = 1,
                                .Depth = 1};
    uint64_t node, of = owner(t, &node), context = byte(t) % 2 ? some(t, TPG_CONTEXT) : 0;
    if (byte(t) % 2) {
        if (tp_handle_is(of, TPG_GRAPH)) {
            SAY(cuGraphAddMemcpyNode, .hGraph = of, .phGraphNode = node, .ctx = context, .copyParams = &copy,
                .copyParams_size = sizeof copy);
        } else if (of) {
            SAY(cuGraphExecMemcpyNodeSetParams, .hGraphExec = of, .hNode = node, .ctx = context, .copyParams = &copy,
                .copyParams_size = sizeof copy);
        } else {
            SAY(cuGraphMemcpyNodeSetParams, .hNode = node, .nodeParams = &copy, .nodeParams_size = sizeof copy);
        }
    } else {
        const CUDA_MEMSET_NODE_PARAMS set = {.dst = t->address, .width = 4, .height = 1, .elementSize = 1};
        if (tp_handle_is(of, TPG_GRAPH)) {
            SAY(cuGraphAddMemsetNode, .hGraph = of, .phGraphNode = node, .ctx = context, .memsetParams = &set,
                .memsetParams_size = sizeof set);
        } else if (of) {
            SAY(cuGraphExecMemsetNodeSetParams, .hGraphExec = of, .hNode = node, .ctx = context, .memsetParams = &set,
                .memsetParams_size = sizeof set);
        } else {
            SAY(cuGraphMemsetNodeSetParams, .hNode = node, .nodeParams = &set, .nodeParams_size = sizeof set);
        }
    }
}

static void nodes(struct story *t) {
    const uint64_t of = some(t, TPG_GRAPH);
    uint64_t list[4];
    for (size_t i = 0; i < 4; i++) {
        list[i] = fresh(t, TPG_GRAPHNODE);
    }
    SAY(graph_list, .subject = byte(t) % 4 ? of : some(t, TPG_GRAPHNODE), .what = byte(t) % 5, .count = 4,
        .fresh = list, .fresh_count = 4);
}

static void capture(struct story *t) {
    const uint64_t before = some(t, TPG_GRAPHNODE), in = some(t, TPG_STREAM);
    if (byte(t) % 2) {
        SAY(capture_begin, .stream = in, .graph = some(t, TPG_GRAPH), .into = 1, .dependencies = &before,
            .dependencies_count = byte(t) % 4 == 0);
    } else {
        SAY(capture_begin, .stream = in, .graph = fresh(t, TPG_GRAPH));
    }
}

/* A resource of the device by a token, which may be one that was given or not, or what is none. */
static void describe(struct story *t) {
    struct {
        unsigned int type, magic, index, more[33];
    } r = {.type = byte(t) % 8 ? CU_DEV_RESOURCE_TYPE_SM : byte(t),
           .magic = byte(t) % 8 ? 0x6b6f7461 : byte(t) * 0x01010101u,
           .index = byte(t) % 4 ? 0 : byte(t),
           .more = {[21] = 132, [22] = 8, [23] = 8}};
    if (byte(t) % 4 == 0) { /* a part, as the driver shows it */
        r.more[21] = 8u * byte(t);
        r.more[22] = r.more[23] = 0;
    }
    SAY(cuDeviceGetDevResource, .device = byte(t) % 2, .type = CU_DEV_RESOURCE_TYPE_SM);
    SAY(resource_split, .groups = byte(t) % 20, .least = byte(t), .wanted = byte(t) % 4 != 0, .input = (const void *)&r,
        .input_size = sizeof r);
    SAY(cuDevResourceGenerateDesc, .phDesc = fresh(t, TPG_DEVDESC), .nbResources = 1, .resources = &r,
        .resources_size = sizeof r);
}

/* Things that are made. */
static void make(struct story *t, unsigned verb) {
    switch (verb) {
    case 0:
        SAY(context_create, .context = fresh(t, TPG_CONTEXT), .device = byte(t) % 2);
        break;
    case 1:
        image(t, TPG_MODULE);
        break;
    case 2:
        image(t, TPG_LIBRARY);
        break;
    case 3:
        SAY(function_get, .module = some(t, TPG_MODULE), .function = fresh(t, TPG_FUNCTION), .index = FILL);
        break;
    case 4:
        SAY(kernel_get, .library = some(t, TPG_LIBRARY), .kernel = fresh(t, TPG_KERNEL), .index = FILL);
        break;
    case 5:
        SAY(kernel_function, .kernel = some(t, TPG_KERNEL), .function = fresh(t, TPG_FUNCTION));
        break;
    case 6:
        SAY(library_module, .library = some(t, TPG_LIBRARY), .module = fresh(t, TPG_MODULE));
        break;
    case 7:
        SAY(stream_create, .stream = fresh(t, TPG_STREAM), .flags = byte(t) % 2);
        break;
    case 8:
        SAY(cuEventCreate, .phEvent = fresh(t, TPG_EVENT));
        break;
    case 9:
    case 10:
        SAY(cuGraphCreate, .phGraph = fresh(t, TPG_GRAPH));
        break;
    case 11:
        SAY(cuGraphClone, .phGraphClone = fresh(t, TPG_GRAPH), .originalGraph = some(t, TPG_GRAPH));
        break;
    case 12:
    case 13:
        kernel_node(t);
        break;
    case 14:
        memory_node(t);
        break;
    case 15:
        if (byte(t) % 2) {
            SAY(cuGraphAddEventRecordNode, .hGraph = some(t, TPG_GRAPH), .phGraphNode = fresh(t, TPG_GRAPHNODE),
                .event = some(t, TPG_EVENT));
        } else {
            SAY(cuGraphAddEmptyNode, .hGraph = some(t, TPG_GRAPH), .phGraphNode = fresh(t, TPG_GRAPHNODE));
        }
        break;
    case 16:
    case 17:
        SAY(graph_child, .owner = some(t, TPG_GRAPH), .node = fresh(t, TPG_GRAPHNODE), .child = some(t, TPG_GRAPH),
            .move = byte(t) % 2);
        break;
    case 18:
        SAY(cuGraphChildGraphNodeGetGraph, .hNode = some(t, TPG_GRAPHNODE), .phGraph = fresh(t, TPG_GRAPH));
        break;
    case 19:
        nodes(t);
        break;
    case 20:
    case 21:
        SAY(graph_instantiate, .graph = some(t, TPG_GRAPH), .exec = fresh(t, TPG_GRAPHEXEC), .detailed = byte(t) % 2,
            .fresh = fresh(t, TPG_GRAPHNODE), .mixed = (const uint64_t[]){t->address, t->address + 4096},
            .mixed_count = byte(t) % 3);
        break;
    case 22:
        SAY(user_object_create, .object = fresh(t, TPG_USEROBJECT), .token = 100 + byte(t), .references = 2);
        break;
    case 23:
        SAY(graph_host, .owner = some(t, TPG_GRAPH), .node = fresh(t, TPG_GRAPHNODE), .token = 100 + byte(t));
        break;
    case 24:
        SAY(link_create, .link = fresh(t, TPG_LINK));
        break;
    case 25:
        describe(t);
        break;
    default:
        SAY(context_create, .context = fresh(t, TPG_CONTEXT), .device = 0, .share = some(t, TPG_DEVDESC));
        break;
    }
}

/* Things that end. */
static void finish(struct story *t, unsigned verb) {
    switch (verb) {
    case 0:
        SAY(context_destroy, .context = end(t, TPG_CONTEXT));
        break;
    case 1:
        SAY(module_unload, .module = end(t, TPG_MODULE));
        break;
    case 2:
        SAY(library_unload, .library = end(t, TPG_LIBRARY));
        break;
    case 3:
        SAY(stream_destroy, .stream = end(t, TPG_STREAM));
        break;
    case 4:
        SAY(cuEventDestroy_v2, .hEvent = end(t, TPG_EVENT));
        break;
    case 5:
    case 6:
        SAY(cuGraphDestroy, .hGraph = end(t, TPG_GRAPH));
        break;
    case 7:
        SAY(cuGraphDestroyNode, .hNode = end(t, TPG_GRAPHNODE));
        break;
    case 8:
        SAY(cuGraphExecDestroy, .hGraphExec = end(t, TPG_GRAPHEXEC));
        break;
    case 9:
        SAY(cuUserObjectRelease, .object = some(t, TPG_USEROBJECT), .count = 1);
        break;
    case 10:
        SAY(primary_release, .device = 0);
        SAY(primary_retain, .device = 0, .context = handle_of(TPG_CONTEXT, 0));
        break;
    default:
        SAY(link_destroy, .link = end(t, TPG_LINK));
        break;
    }
}

/* Things that are done with those. */
static void act(struct story *t, unsigned verb) {
    const struct fill fill = {t->address, 7, 0, 64};
    const uint64_t first = some(t, TPG_GRAPHNODE), second = some(t, TPG_GRAPHNODE);
    const uint64_t names[2] = {handle_of(TPG_GRAPHNODE, FIRST + t->next[TPG_GRAPHNODE]),
                               handle_of(TPG_GRAPHNODE, FIRST + 1 + t->next[TPG_GRAPHNODE])};
    switch (verb) {
    case 0:
    case 1:
        capture(t);
        break;
    case 2:
    case 3:
        SAY(capture_end, .stream = stream(t));
        break;
    case 4:
        SAY(launch, .function = function(t), .stream = stream(t), .shape = {1, 1, 1, 64, 1, 1, 0}, .params = &fill,
            .params_size = sizeof fill);
        break;
    case 5:
        SAY(cuMemsetD8Async, .dstDevice = t->address, .uc = 1, .N = 64, .hStream = stream(t));
        break;
    case 6:
        SAY(cuEventRecord, .hEvent = some(t, TPG_EVENT), .hStream = stream(t));
        break;
    case 7:
        SAY(cuEventRecordWithFlags, .hEvent = some(t, TPG_EVENT), .hStream = stream(t),
            .flags = CU_EVENT_RECORD_EXTERNAL);
        break;
    case 8:
        SAY(cuStreamWaitEvent, .hStream = stream(t), .hEvent = some(t, TPG_EVENT), .Flags = byte(t) % 2);
        break;
    case 9:
    case 10:
        SAY(cuGraphLaunch, .hGraph = some(t, TPG_GRAPHEXEC), .hStream = stream(t));
        break;
    case 11:
        SAY(graph_update, .exec = some(t, TPG_GRAPHEXEC), .graph = some(t, TPG_GRAPH), .fresh = names,
            .fresh_count = 2);
        t->next[TPG_GRAPHNODE] += 2;
        break;
    case 12:
        SAY(graph_kernel_get, .node = first);
        break;
    case 13:
        SAY(cuGraphNodeSetEnabled, .hGraphExec = some(t, TPG_GRAPHEXEC), .hNode = first, .isEnabled = byte(t) % 2);
        break;
    case 14:
        if (byte(t) % 2) {
            const CUgraphEdgeData port = {.from_port = byte(t) % 4};
            SAY(cuGraphRemoveDependencies_v2, .hGraph = some(t, TPG_GRAPH), .from = &first, .from_count = 1,
                .to = &second, .to_count = 1, .edgeData = &port, .edgeData_count = 1, .numDependencies = 1);
        } else {
            SAY(cuGraphAddDependencies, .hGraph = some(t, TPG_GRAPH), .from = &first, .from_count = 1, .to = &second,
                .to_count = 1, .numDependencies = 1);
        }
        break;
    case 15:
        SAY(cuGraphNodeFindInClone, .hOriginalNode = first, .hClonedGraph = some(t, TPG_GRAPH),
            .phNode = fresh(t, TPG_GRAPHNODE));
        break;
    case 16:
        SAY(graph_order, .exec = some(t, TPG_GRAPHEXEC), .stream = stream(t), .end = byte(t) % 2);
        break;
    case 17:
        SAY(capture_dependencies, .stream = stream(t), .flags = byte(t) % 2, .dependencies = &first,
            .dependencies_count = 1);
        break;
    case 18:
        SAY(capture_info, .stream = stream(t), .fresh = names, .fresh_count = 2);
        t->next[TPG_GRAPHNODE] += 2;
        break;
    case 19:
        SAY(cuGraphRetainUserObject, .graph = some(t, TPG_GRAPH), .object = some(t, TPG_USEROBJECT), .count = 1,
            .flags = byte(t) % 2);
        break;
    case 20:
        SAY(cuGraphReleaseUserObject, .graph = some(t, TPG_GRAPH), .object = some(t, TPG_USEROBJECT), .count = 1);
        break;
    case 21:
        SAY(cuGraphExecChildGraphNodeSetParams, .hGraphExec = some(t, TPG_GRAPHEXEC), .hNode = first,
            .childGraph = some(t, TPG_GRAPH));
        break;
    case 22:
        SAY(event_query, .event = some(t, TPG_EVENT));
        break;
    case 23:
        SAY(stream_wait, .stream = stream(t));
        break;
    case 24:
        SAY(graph_copies, .graph = some(t, TPG_GRAPH), .buffers = &t->address, .buffers_count = 1);
        break;
    case 25:
        SAY(kernel_name, .function = function(t));
        break;
    case 26:
        SAY(global_get, .owner = some(t, byte(t) % 2 ? TPG_MODULE : TPG_LIBRARY), .name = "counter");
        break;
    case 27:
        fuzz_link_pause(t->link);
        break;
    case 28:
        SAY(cuCtxRecordEvent, .hCtx = some(t, TPG_CONTEXT), .hEvent = some(t, TPG_EVENT));
        break;
    default:
        SAY(cuCtxWaitEvent, .hCtx = some(t, TPG_CONTEXT), .hEvent = some(t, TPG_EVENT));
        break;
    }
}

void fuzz_story(struct tpw_link *link, const unsigned char *bytes, size_t size, unsigned char address) {
    struct story story = {.link = link, .at = bytes, .end = bytes + size, .address = (uint64_t)address << 56};
    for (unsigned i = 0; story.at < story.end && i < VERBS_MAX; i++) {
        unsigned verb = byte(&story);
        in_context(&story);
        if (verb < 110) {
            make(&story, verb % 27);
        } else if (verb < 150) {
            finish(&story, verb % 12);
        } else {
            act(&story, verb % 30);
        }
    }
}
