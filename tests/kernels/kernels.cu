// Five kernels with extern "C" names, shared by every test that needs device code. They are built once to PTX
// (kernels.ptx, by build.sh beside this file), so that no test needs a CUDA toolkit. The simulated GPU has a C body
// for each of them by name and parameter layout: change neither here without changing it there. A thread works on the
// one element of its flat index, so a grid that is too small leaves the rest as it was. No host code, no memory but
// what the caller passes in.
#include <stddef.h>
#include <stdint.h>

extern "C" __global__ void vector_add(const float *a, const float *b, float *c, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        c[i] = a[i] + b[i];
}

extern "C" __global__ void saxpy(int n, float a, const float *x, float *y)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        y[i] = a * x[i] + y[i];
}

extern "C" __global__ void fill_u32(uint32_t *out, uint32_t value, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[i] = value;
}

extern "C" __global__ void iota_u32(uint32_t *out, size_t n)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
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
