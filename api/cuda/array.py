"""CUDA arrays, textures, surfaces.

The value of a texture or surface object is the driver's own, because programs hand it to kernels; the driver has a table of
them and answers every other number as it does a gone one.
"""

from tensor_fusion.apigen.describe import call, custom, older, per_thread, post

FUNCTIONS = [
    # Arrays.
    call("cuArray3DCreate_v2", session="hand", unsafe=True),
    older("cuArray3DCreate", "cuArray3DCreate_v2"),
    older("cuArrayCreate_v2", "cuArray3DCreate_v2"),
    older("cuArrayCreate", "cuArray3DCreate_v2"),
    post("cuArrayDestroy", session="hand", contextless=True, hArray="gone array", after_loss="ok"),
    call("cuArray3DGetDescriptor_v2", contextless=True),
    call("cuArray3DGetDescriptor", contextless=True),
    call("cuArrayGetDescriptor_v2", contextless=True),
    call("cuArrayGetDescriptor", contextless=True),
    call("cuArrayGetMemoryRequirements", contextless=True),
    call("cuArrayGetSparseProperties", contextless=True),
    call("cuArrayGetPlane", contextless=True, pPlaneArray="fresh array of hArray"),
    call("cuMipmappedArrayCreate", session="hand", unsafe=True),
    post("cuMipmappedArrayDestroy", session="hand", contextless=True, hMipmappedArray="gone mipmap", after_loss="ok"),
    call("cuMipmappedArrayGetLevel", contextless=True, pLevelArray="fresh array of hMipmappedArray"),
    call("cuMipmappedArrayGetMemoryRequirements", contextless=True),
    call("cuMipmappedArrayGetSparseProperties", contextless=True),
    # Objects.
    call("cuTexObjectCreate", pResDesc="struct", pResViewDesc="in?"),
    post("cuTexObjectDestroy"),
    call("cuTexObjectGetResourceDesc", pResDesc="outstruct"),
    call("cuTexObjectGetTextureDesc"),
    call("cuTexObjectGetResourceViewDesc"),
    call("cuSurfObjectCreate", pResDesc="struct"),
    post("cuSurfObjectDestroy"),
    call("cuSurfObjectGetResourceDesc", pResDesc="outstruct"),
    # Copies of one row; boxes are those of copy.py.
    custom("cuMemcpyHtoA_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free", implicit=True),
    custom("cuMemcpyAtoH_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free", implicit=True),
    custom("cuMemcpyDtoA_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free", implicit=True),
    custom("cuMemcpyAtoD_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free", implicit=True),
    custom("cuMemcpyAtoA_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free", implicit=True),
    custom("cuMemcpyHtoAAsync_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free"),
    custom("cuMemcpyAtoHAsync_v2", ops="copy_in copy_in_bulk copy_in_late copy_out copy_out_bulk copy_out_post copy_device_2d copy_box memory_alloc memory_free"),
    older("cuMemcpyHtoA", "cuMemcpyHtoA_v2"),
    older("cuMemcpyAtoH", "cuMemcpyAtoH_v2"),
    older("cuMemcpyDtoA", "cuMemcpyDtoA_v2"),
    older("cuMemcpyAtoD", "cuMemcpyAtoD_v2"),
    older("cuMemcpyAtoA", "cuMemcpyAtoA_v2"),
    older("cuMemcpyHtoAAsync", "cuMemcpyHtoAAsync_v2"),
    older("cuMemcpyAtoHAsync", "cuMemcpyAtoHAsync_v2"),
    per_thread("cuMemcpyHtoA_v2_ptds", "cuMemcpyHtoA_v2"),
    per_thread("cuMemcpyAtoH_v2_ptds", "cuMemcpyAtoH_v2"),
    per_thread("cuMemcpyDtoA_v2_ptds", "cuMemcpyDtoA_v2"),
    per_thread("cuMemcpyAtoD_v2_ptds", "cuMemcpyAtoD_v2"),
    per_thread("cuMemcpyAtoA_v2_ptds", "cuMemcpyAtoA_v2"),
    per_thread("cuMemcpyHtoAAsync_v2_ptsz", "cuMemcpyHtoAAsync_v2"),
    per_thread("cuMemcpyAtoHAsync_v2_ptsz", "cuMemcpyAtoHAsync_v2"),
]
