// Kernels that print and that fail an assertion, apart from kernels.cu: a program whose images print pays for it.
#include <assert.h>
#include <stdint.h>
#include <stdio.h>

extern "C" __global__ void print_threads(uint32_t value)
{
    unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    printf("thread %u of %u: %u\n", thread, gridDim.x * blockDim.x, value);
}

extern "C" __global__ void assert_below(uint32_t value, uint32_t limit)
{
    // The simulated GPU has this line's number.
    assert(value < limit);
}
