/*
 * Questions about addresses: cuPointerGetAttribute(s), cuPointerSetAttribute.
 *
 * Any thread; everything is answered from the interval map. The single form refuses an address that is not CUDA's, the
 * multiple form answers it with zeros, as the driver does. One difference from the real driver is told in the restrictions of
 * the README: over TCP the device pointer of pinned host memory is not the host pointer but the address of its twin on the
 * worker.
 */
#include "tpc_memory.h"
#include "tpc_stream.h"
#include "tpc_vmm.h"

static bool is_host(const struct tpc_range *range) {
    return range->where == TPC_PINNED || (range->flags & TPC_MADE_MASK) == TPC_MADE_TWIN;
}

static uint64_t host_pointer(const struct tpc_range *range, uint64_t address) {
    const struct tpc_host *host = range->detail;
    return range->where == TPC_PINNED ? address : (uint64_t)(uintptr_t)host->memory + (address - range->start);
}

/* What is known without making a twin: 0 for pinned memory that has none. */
static uint64_t device_pointer(const struct tpc_range *range, uint64_t address) {
    if (range->where != TPC_PINNED) {
        return address;
    }
    return range->device_address ? range->device_address + (address - range->start) : 0;
}

static int device_of(const struct tpc_range *range) {
    if (range && (range->flags & TPC_MADE_MASK) == TPC_MADE_MAP) {
        return tpc_mapping_device(range->detail);
    }
    unsigned int made = range ? range->flags & TPC_MADE_MASK : 0;
    if (made == TPC_MADE_POOL || made == TPC_MADE_GRAPH || made == TPC_MADE_IPC) {
        return range->device;
    }
    return range && range->context ? range->context->device
                                   : -2; /* what the driver says of memory that is not its own */
}

const struct tpc_context *tpc_range_context(const struct tpc_range *range) {
    bool mapped = (range->flags & TPC_MADE_MASK) == TPC_MADE_MAP;
    return mapped ? tpc_primary_of(tpc_mapping_device(range->detail)) : range->context;
}

/* Memory of cuMemAlloc and managed memory lie in blocks, side by side with other such memory (580.159.04, measured). */
struct block {
    uint64_t start, size;
};

static struct block block_of(const struct tpc_range *range) {
    const uint64_t block = 2 << 20;
    unsigned int made = range ? range->flags & TPC_MADE_MASK : 0;
    struct block found = {.start = range ? range->start : 0, .size = range ? range->size : 0};
    if (made == TPC_MADE_MANAGED || made == TPC_MADE_ALLOC) {
        uint64_t end = (found.start + found.size + block - 1) & ~(block - 1);
        found.start &= ~(block - 1);
        found.size = end - found.start;
    }
    return found;
}

#define ANSWER(type, value)                                                                                            \
    do {                                                                                                               \
        type answer = (type)(value);                                                                                   \
        memcpy(data, &answer, sizeof answer);                                                                          \
        return CUDA_SUCCESS;                                                                                           \
    } while (0)

/* `range` NULL: an address that is not CUDA's. Sizes are those that cuda.h states for each attribute. */
static CUresult answer_one(void *data, CUpointer_attribute attribute, const struct tpc_range *range, uint64_t address) {
    unsigned int made = range ? range->flags & TPC_MADE_MASK : 0;
    const bool managed = made == TPC_MADE_MANAGED;
    const bool plain =
        range && made != TPC_MADE_MAP && made != TPC_MADE_POOL && made != TPC_MADE_GRAPH && !tpc_pool_local_of(range);
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        ANSWER(CUcontext, (uintptr_t)(plain && range->context ? range->context->handle : 0));
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        ANSWER(unsigned int, !range ? 0 : is_host(range) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        ANSWER(CUdeviceptr, range ? device_pointer(range, address) : 0);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (range && !is_host(range) && !managed) {
            memset(data, 0, sizeof(void *));
            return CUDA_ERROR_INVALID_VALUE; /* the multiple form overlooks it */
        }
        ANSWER(void *, (uintptr_t)(range && !managed ? host_pointer(range, address) : address));
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS:
        return CUDA_ERROR_NOT_SUPPORTED; /* for kernel drivers of the machine with the GPU */
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        ANSWER(int, range && (range->flags & TPC_SYNC_MEMOPS));
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
        ANSWER(unsigned long long, range ? range->buffer_id : 0);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        ANSWER(int, device_of(range));
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        ANSWER(CUdeviceptr, range ? range->start : 0);
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        ANSWER(CUdeviceptr, block_of(range).start);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        ANSWER(size_t, range ? range->size : 0);
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        ANSWER(size_t, block_of(range).size);
    case CU_POINTER_ATTRIBUTE_MAPPED:
        ANSWER(unsigned char, range != NULL);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        ANSWER(unsigned int, managed); /* the runtime reads four bytes and takes anything else for managed memory */
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        ANSWER(unsigned char, made == TPC_MADE_ALLOC);
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
        ANSWER(unsigned char, 0);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        ANSWER(unsigned long long, made == TPC_MADE_POOL && tpc_pool_is((uintptr_t)range->detail, TPC_POOL_SHAREABLE)
                                       ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
                                       : 0);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        if (made == TPC_MADE_MAP) {
            ANSWER(int, tpc_mapping_access(range->detail, device_of(range)));
        }
        ANSWER(int, range ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE : 0);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        ANSWER(CUmemoryPool, made == TPC_MADE_POOL ? (uintptr_t)range->detail : range ? tpc_pool_local_of(range) : 0);
    }
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult tpc_cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr) {
    struct tpc_range range;
    if (!data || !tpc_range_at(ptr, &range)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER && range.where == TPC_PINNED) {
        /* Whoever asks for this alone means to give it to a kernel. */
        CUdeviceptr address = 0;
        CUresult result = tpc_host_device_address(ptr, &address);
        if (result == CUDA_SUCCESS) {
            memcpy(data, &address, sizeof address);
        }
        return result;
    }
    return answer_one(data, attribute, &range, ptr);
}

CUresult tpc_do_cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data,
                                       CUdeviceptr ptr) {
    struct tpc_range range;
    for (unsigned int i = 0; i < numAttributes; i++) {
        if (!data[i] || (int)attributes[i] < CU_POINTER_ATTRIBUTE_CONTEXT ||
            attributes[i] > CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    bool known = tpc_range_at(ptr, &range);
    for (unsigned int i = 0; i < numAttributes; i++) {
        (void)answer_one(data[i], attributes[i], known ? &range : NULL, ptr);
    }
    return CUDA_SUCCESS;
}

static void set_sync(struct tpc_range *range, uint64_t value) {
    range->flags = value ? range->flags | TPC_SYNC_MEMOPS : range->flags & ~(unsigned int)TPC_SYNC_MEMOPS;
}

CUresult tpc_cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr) {
    TPC_TRY(tpc_own_context(0)); /* there need not be one (580.159.04, asked) */
    struct tpc_range range;
    int wanted = 0;
    if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS || !tpc_range_at(ptr, &range)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TPC_CAPTURE_UNSAFE("cuPointerSetAttribute");
    memcpy(&wanted, value, sizeof wanted);
    return tpc_range_change(range.start, set_sync, wanted != 0) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
