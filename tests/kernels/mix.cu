// The kernel of the random programs (tests/random), built to mix.ptx by build.sh. Its result depends on the order of its
// runs and on both operands, so a copy that came too early or too late shows. The simulated GPU has a C body for it.
#include <stddef.h>
#include <stdint.h>

extern "C" __global__ void mix_u32(uint32_t *out, const uint32_t *in, uint32_t factor, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[i] = out[i] * factor + in[i];
}
