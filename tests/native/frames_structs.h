/*
 * What a hostile client can send in the place of structs and handles: cases of test_frames.c, which has what they use.
 *
 * A struct that is not what its declaration says is refused; one of another length than it says ends the session.
 */
#ifndef FRAMES_STRUCTS_H
#define FRAMES_STRUCTS_H

/* A struct that stands for anything but what its declaration says: refused, and no pointer in it is followed. */
static void case_struct(void) {
    const uint64_t graph = handle(TPG_GRAPH, 0), event = handle(TPG_EVENT, 0);
    CUstreamBatchMemOpParams op = {
        .writeValue = {.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32, .address = ADDRESS, .value = 1, .alias = 0x4141}};
    struct {
        CUDA_BATCH_MEM_OP_NODE_PARAMS params;
        CUstreamBatchMemOpParams op;
    } node = {.params = {.ctx = (CUcontext)(uintptr_t)handle(TPG_CONTEXT, 0), .count = 1}, .op = op};
    CUDA_MEMSET_NODE_PARAMS set = {.dst = ADDRESS, .width = 4, .height = 1, .elementSize = 4};
    CUmemLocation place = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 99};
#define BATCH()                                                                                                        \
    SEND(0, cuStreamBatchMemOp_v2, CALL, .stream = handle(TPG_STREAM, 0), .count = 1, .paramArray = &op,               \
         .paramArray_size = sizeof op)
#define NODE(index)                                                                                                    \
    SEND(0, cuGraphAddBatchMemOpNode, CALL, .hGraph = graph, .phGraphNode = handle(TPG_GRAPHNODE, index),              \
         .nodeParams = &node, .nodeParams_size = sizeof node)
#define SET(index)                                                                                                     \
    SEND(0, cuGraphAddMemsetNode, CALL, .hGraph = graph, .phGraphNode = handle(TPG_GRAPHNODE, index),                  \
         .memsetParams = &set, .memsetParams_size = sizeof set)
    SEND(0, cuGraphCreate, CALL, .phGraph = graph);
    SEND(0, cuEventCreate, 0, .phEvent = event);
    BATCH();
    op.writeValue.address = 0x1000;
    BATCH(); /* refused, 1 */
    op.operation = (CUstreamBatchMemOpType)99;
    BATCH(); /* 2 */
    NODE(0);
    node.params.paramArray = (CUstreamBatchMemOpParams *)(uintptr_t)0x4141414141414141;
    NODE(1);
    node.params.ctx = (CUcontext)(uintptr_t)event;
    NODE(2); /* 3 */
    SET(3);
    set.width = SIZE_MAX / 2 + 1; /* with its elements' size no bytes at all, in 64 bits */
    SET(4);                       /* 4 */
    set.width = 4;
    set.height = 2;
    set.pitch = SIZE_MAX;
    SET(5); /* 5 */
    SEND(0, cuMemPoolGetAccess, CALL, .memPool = handle(TPG_POOL, 0), .location = &place,
         .location_size = sizeof place); /* 6 */
}

/* Structs of another length than they say, which end the session: one short, one long, a list that is not there. */
static void struct_of(size_t size, unsigned int count) {
    CUstreamBatchMemOpParams ops[2] = {{.operation = CU_STREAM_MEM_OP_BARRIER},
                                       {.operation = CU_STREAM_MEM_OP_BARRIER}};
    SEND(0, cuStreamBatchMemOp_v2, CALL, .stream = handle(TPG_STREAM, 0), .count = count, .paramArray = ops,
         .paramArray_size = size);
}
static void case_struct_short(void) { struct_of(sizeof(CUstreamBatchMemOpParams) - 1, 1); }
static void case_struct_long(void) { struct_of(sizeof(CUstreamBatchMemOpParams) + 8, 1); }
static void case_struct_count(void) { struct_of(sizeof(CUstreamBatchMemOpParams), UINT32_MAX); }
static void case_struct_list(void) {
    CUDA_BATCH_MEM_OP_NODE_PARAMS params = {.ctx = (CUcontext)(uintptr_t)handle(TPG_CONTEXT, 0), .count = 3};
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
    SEND(0, cuGraphAddBatchMemOpNode, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 0),
         .nodeParams = &params, .nodeParams_size = sizeof params);
}

/* Copies with arrays: of another kind, of a level whose mipmap has ended, of rows that lie in each other. */
static void case_struct_box(void) {
    const CUDA_ARRAY3D_DESCRIPTOR shape = {.Width = 64, .Height = 32, .Format = CU_AD_FORMAT_FLOAT, .NumChannels = 1};
    CUDA_MEMCPY3D copy = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                          .srcDevice = ADDRESS,
                          .srcPitch = 256,
                          .srcHeight = 2,
                          .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                          .dstArray = (CUarray)(uintptr_t)handle(TPG_ARRAY, 1),
                          .WidthInBytes = 256,
                          .Height = 2,
                          .Depth = 1};
#define BOX() SEND(0, copy_box, CALL, .stream = 1, .copy = &copy, .copy_size = sizeof copy)
    SEND(0, memory_alloc, CALL, .size = 4096);
    SEND(0, cuMipmappedArrayCreate, CALL, .pHandle = handle(TPG_MIPMAP, 0), .pMipmappedArrayDesc = &shape,
         .numMipmapLevels = 2);
    SEND(0, cuMipmappedArrayGetLevel, CALL, .hMipmappedArray = handle(TPG_MIPMAP, 0),
         .pLevelArray = handle(TPG_ARRAY, 1));
    BOX();
    copy.srcPitch = 0;
    BOX(); /* refused, 1 */
    copy.srcPitch = SIZE_MAX;
    BOX(); /* 2 */
    copy.srcPitch = 256;
    copy.srcMemoryType = CU_MEMORYTYPE_HOST;
    copy.srcHost = (void *)(uintptr_t)0x4141414141414141;
    BOX(); /* 3 */
    copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.dstArray = (CUarray)(uintptr_t)handle(TPG_MIPMAP, 0);
    BOX(); /* 4 */
    copy.dstArray = (CUarray)(uintptr_t)handle(TPG_ARRAY, 1);
    SEND(0, cuMipmappedArrayDestroy, 0, .hMipmappedArray = handle(TPG_MIPMAP, 0));
    BOX();                                                                           /* 5 */
    SEND(0, cuArrayDestroy, CALL, .hArray = handle(TPG_ARRAY, 1));                   /* 6 */
    SEND(0, cuMipmappedArrayDestroy, CALL, .hMipmappedArray = handle(TPG_ARRAY, 1)); /* 7 */
}

/* A kernel's parameters that are said to be more than what came, which ends the session. Before: of a size that the kernel does
 * not take, and an event in the place of the kernel. */
static void case_struct_kernel(void) {
    struct kernel_params params = kernel_params(handle(TPG_FUNCTION, 0));
    load(0, TPG_MODULE, 0);
    SEND(0, function_get, CALL, .module = handle(TPG_MODULE, 0), .function = handle(TPG_FUNCTION, 0), .index = FILL);
    SEND(0, cuGraphCreate, CALL, .phGraph = handle(TPG_GRAPH, 0));
#define KERNEL(bytes)                                                                                                  \
    SEND(0, cuGraphAddKernelNode_v2, CALL, .hGraph = handle(TPG_GRAPH, 0), .phGraphNode = handle(TPG_GRAPHNODE, 0),    \
         .nodeParams = &params, .nodeParams_size = (bytes))
    params.size = sizeof params.arguments - 8;
    KERNEL(sizeof params - 8); /* refused, 1 */
    params.size = sizeof params.arguments;
    params.function = handle(TPG_EVENT, 0);
    KERNEL(sizeof params); /* 2 */
    params.function = handle(TPG_FUNCTION, 0);
    params.size += 8;
    KERNEL(sizeof params);
}

/* What stays in the session goes by tokens: those that it never gave name nothing, and no byte of the client's is the driver's. A
 * green context ends with the primary one that it is a part of, and so does what is done in it. */
static void case_token(void) {
    struct {
        unsigned int type, magic, index, more[33];
    } r = {.type = CU_DEV_RESOURCE_TYPE_SM, .magic = 0x6b6f7461};
    _Static_assert(sizeof r == sizeof(CUdevResource), "the same");
    const uint64_t desc = handle(TPG_DEVDESC, 0), event = handle(TPG_EVENT, 0), green = handle(TPG_CONTEXT, 1);
    r.more[21] = 132; /* what shows of it: multiprocessors, and steps */
    r.more[22] = r.more[23] = 8;
#define SPLIT()                                                                                                        \
    SEND(0, resource_split, CALL, .groups = 2, .least = 16, .wanted = 1, .input = (const void *)&r,                    \
         .input_size = sizeof r)
#define DESCRIBE(number, count, size)                                                                                  \
    SEND(0, cuDevResourceGenerateDesc, CALL, .phDesc = handle(TPG_DEVDESC, number), .nbResources = (count),            \
         .resources = &r, .resources_size = (size))
    SEND(0, cuEventCreate, 0, .phEvent = event);
    SEND(0, cuDeviceGetDevResource, CALL, .device = 0, .type = CU_DEV_RESOURCE_TYPE_SM);
    SPLIT();
    DESCRIBE(0, 1, sizeof r);
    r.more[21] = 131;
    SPLIT(); /* refused, 1 */
    r.more[21] = 132;
    r.index = 1000;
    SPLIT(); /* 2 */
    r.index = 0;
    r.magic = 0x41414141;
    memset(r.more, 0x41, sizeof r.more);
    SPLIT();                  /* 3 */
    DESCRIBE(1, 1, sizeof r); /* 4 */
    r.type = 7;
    SPLIT();                                                                          /* 5 */
    DESCRIBE(1, 0, 0);                                                                /* 6 */
    SEND(0, context_create, CALL, .context = green, .share = event);                  /* 7 */
    SEND(0, context_create, CALL, .context = green, .share = handle(TPG_DEVDESC, 1)); /* 8 */
    SEND(0, context_create, CALL, .context = green, .share = desc);
    SEND(1, stream_create, 0, .stream = handle(TPG_STREAM, 5), .flags = CU_STREAM_NON_BLOCKING);
    SEND(0, cuCtxRecordEvent, CALL, .hCtx = green, .hEvent = event);
    SEND(0, cuCtxWaitEvent, CALL, .hCtx = event, .hEvent = event);   /* 9 */
    SEND(0, cuCtxRecordEvent, CALL, .hCtx = green, .hEvent = green); /* 10 */
    for (uint32_t i = 0; i < 63; i++) {
        SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 2 + i), .share = desc);
    }
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 90), .share = desc); /* 11: too many */
    SEND(0, primary_release, CALL, .device = 0);
    let_it_look();
    SEND(1, stream_create, CALL, .stream = handle(TPG_STREAM, 6));                    /* 12 */
    SEND(0, stream_wait, CALL, .stream = handle(TPG_STREAM, 5));                      /* 13 */
    SEND(0, cuCtxRecordEvent, CALL, .hCtx = green, .hEvent = event);                  /* 14 */
    SEND(0, context_create, CALL, .context = handle(TPG_CONTEXT, 91), .share = desc); /* 15 */
    SEND(0, context_destroy, CALL, .context = green);                                 /* 16 */
}

/* Handles of another kind than an operation's: the hand-written function never sees them. */
static void case_kinds(void) {
    const uint64_t event = handle(TPG_EVENT, 0), pool = handle(TPG_POOL, 0), graph = handle(TPG_GRAPH, 0);
    SEND(0, cuEventCreate, 0, .phEvent = event);
    SEND(0, cuGraphCreate, CALL, .phGraph = graph);
    SEND(0, stream_wait, CALL, .stream = event);                             /* refused, 1 */
    SEND(0, event_query, CALL, .event = pool);                               /* 2 */
    SEND(0, cuGraphDestroy, CALL, .hGraph = event);                          /* 3 */
    SEND(0, cuMemPoolGetAttribute, CALL, .pool = graph);                     /* 4 */
    SEND(0, cuFuncIsLoaded, CALL, .function = event);                        /* 5 */
    SEND(0, cuGraphAddEmptyNode, CALL, .hGraph = graph, .phGraphNode = pool, /* the end of the session */
         .dependencies = &event, .dependencies_count = 0);
}

#endif
