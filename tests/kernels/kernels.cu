// Five kernels with extern "C" names, shared by every test that needs device code. They are built once to PTX
// (kernels.ptx, by build.sh beside this file), so that no test needs a CUDA toolkit. The simulated GPU has a C body
// for each of them by name and parameter layout: change neither here without changing it there. Every loop strides
// over the grid, so any grid and block are right. No host code, no memory but what the caller passes in.
#include <stddef.h>
#include <stdint.h>

extern "C" __global__ void vector_add(const float *a, const float *b, float *c, int n)
{
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += (int)(gridDim.x * blockDim.x))
        c[i] = a[i] + b[i];
}

extern "C" __global__ void saxpy(int n, float a, const float *x, float *y)
{
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += (int)(gridDim.x * blockDim.x))
        y[i] = a * x[i] + y[i];
}

extern "C" __global__ void fill_u32(uint32_t *out, uint32_t value, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        out[i] = value;
}

extern "C" __global__ void iota_u32(uint32_t *out, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        out[i] = (uint32_t)i;
}

extern "C" __global__ void spin_ns(uint64_t ns)
{
    uint64_t start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < ns);
}
