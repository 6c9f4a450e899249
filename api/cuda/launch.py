"""Launches, host functions, occupancy, tensor maps."""

from tensor_fusion.apigen.describe import call, custom, local, older, per_thread, pure

FUNCTIONS = [
    custom("cuLaunchKernel", ops="capture_break launch cuOccupancyMaxActiveBlocksPerMultiprocessor",
           by='tpc_launch("cuLaunchKernel", f, &(struct tpg_shape){gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes}, hStream, kernelParams, extra, 0)'),
    custom("cuLaunchCooperativeKernel", ops="capture_break launch cuOccupancyMaxActiveBlocksPerMultiprocessor",
           by='tpc_launch("cuLaunchCooperativeKernel", f, &(struct tpg_shape){gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes}, hStream, kernelParams, NULL, 1)'),
    custom("cuLaunchKernelEx", ops="capture_break launch launch_ex cuOccupancyMaxActiveBlocksPerMultiprocessor", implicit=True, config="there"),
    custom("cuLaunchHostFunc", ops="host_function", current=True, hStream="handle?"),
    custom("cuStreamAddCallback", ops="host_function", implicit=True, current=True, hStream="handle?"),
    custom("cuLaunchCooperativeKernelMultiDevice", ops="capture_break launch cuOccupancyMaxActiveBlocksPerMultiprocessor"),
    # By parts, as before CUDA 4.
    local("cuFuncSetBlockShape"),
    local("cuFuncSetSharedSize"),
    local("cuParamSetSize"),
    older("cuParamSeti", "cuParamSetv", ptr="&value", numbytes="sizeof value"),
    older("cuParamSetf", "cuParamSetv", ptr="&value", numbytes="sizeof value"),
    local("cuParamSetv"),
    older("cuLaunch", "cuLaunchGridAsync", grid_width="1", grid_height="1", hStream="CU_STREAM_LEGACY"),
    older("cuLaunchGrid", "cuLaunchGridAsync", hStream="CU_STREAM_LEGACY"),
    custom("cuLaunchGridAsync", ops="launch cuOccupancyMaxActiveBlocksPerMultiprocessor"),
    pure("cuOccupancyMaxActiveBlocksPerMultiprocessor"),
    pure("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags"),
    pure("cuOccupancyAvailableDynamicSMemPerBlock"),
    older("cuOccupancyMaxPotentialBlockSize", "cuOccupancyMaxPotentialBlockSizeWithFlags", flags="CU_OCCUPANCY_DEFAULT"),
    custom("cuOccupancyMaxPotentialBlockSizeWithFlags", ops="cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags"),
    pure("cuOccupancyMaxActiveClusters", func="handle function or CUDA_ERROR_INVALID_VALUE", config="struct"),
    pure("cuOccupancyMaxPotentialClusterSize", func="handle function or CUDA_ERROR_INVALID_VALUE", config="struct"),
    pure("cuTensorMapEncodeTiled", boxDim="array tensorRank", elementStrides="array tensorRank", contextless=True, globalAddress="value", globalDim="array tensorRank", globalStrides="array tensorRank - 1"),
    pure("cuTensorMapEncodeIm2col", pixelBoxLowerCorner="array tensorRank - 2", pixelBoxUpperCorner="array tensorRank - 2", elementStrides="array tensorRank", contextless=True, globalAddress="value", globalDim="array tensorRank", globalStrides="array tensorRank - 1"),
    pure("cuTensorMapEncodeIm2colWide", elementStrides="array tensorRank", contextless=True, globalAddress="value", globalDim="array tensorRank", globalStrides="array tensorRank - 1"),
    # The driver knows where in its bytes a map has the address.
    call("cuTensorMapReplaceAddress", tensorMap="both", globalAddress="value"),
    per_thread("cuLaunchCooperativeKernel_ptsz", "cuLaunchCooperativeKernel"),
    per_thread("cuLaunchHostFunc_ptsz", "cuLaunchHostFunc"),
    per_thread("cuLaunchKernelEx_ptsz", "cuLaunchKernelEx"),
    per_thread("cuLaunchKernel_ptsz", "cuLaunchKernel"),
    per_thread("cuStreamAddCallback_ptsz", "cuStreamAddCallback"),
]
