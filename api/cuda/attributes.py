"""Attributes of devices that the client answers itself, whatever the worker's driver says.

Where the device could do what the connection or this client refuses, the attribute has to say no, because programs ask the
attribute first and take another way. Everything else is what the worker's driver reports.
"""

from tensor_fusion.apigen.describe import attribute

ATTRIBUTES = [
    # The host memory that kernels could reach would be the worker's, not the program's.
    attribute("CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS", 0),
    attribute("CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES", 0),
    attribute("CU_DEVICE_ATTRIBUTE_DIRECT_MANAGED_MEM_ACCESS_FROM_HOST", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_ONLY_PARTIAL_HOST_NATIVE_ATOMIC_SUPPORTED", 0),
    # Registered memory has a twin on the worker, whose address is another one.
    attribute("CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM", 0),
    # Managed memory is the program's or the device's at a time.
    attribute("CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS", 0),
    # Of handles for other processes descriptors alone.
    attribute("CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_HANDLE_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_WIN32_KMT_HANDLE_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES", bits=1),
    attribute("CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HOST_ALLOC_DMA_BUF_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HOST_NUMA_MULTINODE_IPC_SUPPORTED", 0),
    # A network card of the client's machine cannot reach the worker's GPU.
    attribute("CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS", 0),
    attribute("CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING", 0),
    attribute("CU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES", 0),
    # Host memory of the driver's virtual-memory API and pools would lie on the worker.
    attribute("CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HOST_NUMA_MEMORY_POOLS_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HOST_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_HOST_MEMORY_POOLS_SUPPORTED", 0),
    # The NUMA node beside the GPU is one of the worker; -1 is the driver's answer for "none here".
    attribute("CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID", -1),
    attribute("CU_DEVICE_ATTRIBUTE_NUMA_ID", -1),
    attribute("CU_DEVICE_ATTRIBUTE_NUMA_CONFIG", 0),
    # The functions behind these are refused by name (api/cuda).
    attribute("CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_COOPERATIVE_MULTI_DEVICE_LAUNCH", 0),
    attribute("CU_DEVICE_ATTRIBUTE_SPARSE_CUDA_ARRAY_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_TIMELINE_SEMAPHORE_INTEROP_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_ALGORITHM_MASK", 0),
    attribute("CU_DEVICE_ATTRIBUTE_MEM_DECOMPRESS_MAXIMUM_LENGTH", 0),
    attribute("CU_DEVICE_ATTRIBUTE_D3D12_CIG_SUPPORTED", 0),
    attribute("CU_DEVICE_ATTRIBUTE_VULKAN_CIG_SUPPORTED", 0),
]
