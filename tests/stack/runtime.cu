// A program on the CUDA runtime whose kernels the simulated GPU executes: every result is compared on the CPU.
//
// One thread but for the section that starts four. It includes the five kernels, so that they come out of an embedded
// cubin by way of the runtime's registration, and not out of PTX text that a program loads itself.
#include "../kernels/kernels.cu"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        cudaError_t error_ = (call);                                                                                   \
        if (error_ != cudaSuccess) {                                                                                   \
            fprintf(stderr, "line %d: %s: %s (%d)\n", __LINE__, #call, cudaGetErrorString(error_), (int)error_);       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: failed: %s\n", __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static void compute(int n, int seed, cudaStream_t stream)
{
    std::vector<float> a(n), b(n), c(n);
    for (int i = 0; i < n; i++) {
        a[i] = (float)((i * 7 + seed) % 4099);
        b[i] = (float)((i * 3 + seed) % 2053);
    }
    float *da, *db, *dc, *pinned;
    MUST(cudaMalloc(&da, n * 4));
    MUST(cudaMalloc(&db, n * 4));
    MUST(cudaMallocAsync((void **)&dc, n * 4, stream));
    MUST(cudaMallocHost(&pinned, n * 4));
    MUST(cudaMemcpyAsync(da, a.data(), n * 4, cudaMemcpyHostToDevice, stream));
    memcpy(pinned, b.data(), n * 4);
    MUST(cudaMemcpyAsync(db, pinned, n * 4, cudaMemcpyDefault, stream));
    vector_add<<<(n + 127) / 128, 128, 0, stream>>>(da, db, dc, n);
    saxpy<<<(n + 255) / 256, 256, 0, stream>>>(n, 3.0f, da, dc);
    MUST(cudaGetLastError());
    MUST(cudaMemcpyAsync(pinned, dc, n * 4, cudaMemcpyDeviceToHost, stream));
    MUST(cudaStreamSynchronize(stream));
    for (int i = 0; i < n; i++)
        CHECK(pinned[i] == 3 * a[i] + (a[i] + b[i]));
    fill_u32<<<n, 1, 0, stream>>>((uint32_t *)da, 0xabcd0000u + seed, n);
    iota_u32<<<(n + 511) / 512, 512, 0, stream>>>((uint32_t *)db, n);
    MUST(cudaMemcpyAsync(a.data(), da, n * 4, cudaMemcpyDeviceToHost, stream));
    MUST(cudaMemcpyAsync(b.data(), db, n * 4, cudaMemcpyDeviceToHost, stream));
    MUST(cudaStreamSynchronize(stream));
    for (int i = 0; i < n; i++) {
        uint32_t filled, counted;
        memcpy(&filled, &a[i], 4);
        memcpy(&counted, &b[i], 4);
        CHECK(filled == 0xabcd0000u + seed && counted == (uint32_t)i);
    }
    MUST(cudaFree(da));
    MUST(cudaFree(db));
    MUST(cudaFreeAsync(dc, stream));
    MUST(cudaFreeHost(pinned));
}

static void thread_run(int seed)
{
    cudaStream_t stream;
    MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int turn = 0; turn < 8; turn++)
        compute(10000 + 999 * seed, seed * 16 + turn, turn % 3 ? stream : cudaStreamPerThread);
    MUST(cudaStreamDestroy(stream));
}

__managed__ uint32_t table[20000];
__managed__ int counter = 5;

// Managed variables are there before anything else of the runtime was called.
static void managed(void)
{
    CHECK(counter == 5 && table[0] == 0 && table[19999] == 0);
    for (uint32_t turn = 1; turn < 4; turn++) {
        uint32_t *words, back = 0;
        counter = (int)turn;
        fill_u32<<<80, 256>>>(table, turn, 19999);
        MUST(cudaDeviceSynchronize());
        CHECK(counter == (int)turn && table[0] == turn && table[19998] == turn && table[19999] == 0);
        MUST(cudaMallocManaged(&words, 80000));
        memset(words, 1, 80000);
        fill_u32<<<80, 256>>>(words + 1, turn, 19000);
        MUST(cudaMemcpy(&back, words + 19000, 4, cudaMemcpyDefault));
        MUST(cudaMemcpyFromSymbol(&counter, table, 4, 4));
        MUST(cudaDeviceSynchronize());
        CHECK(back == turn && words[0] == 0x01010101 && words[19000] == turn && words[19001] == 0x01010101);
        CHECK(counter == (int)turn);
        cudaPointerAttributes about;
        MUST(cudaPointerGetAttributes(&about, turn == 1 ? words : table));
        CHECK(about.type == cudaMemoryTypeManaged && about.hostPointer == about.devicePointer);
        MUST(cudaFree(words));
    }
}

int main()
{
    int devices = 0;
    cudaDeviceProp property;
    cudaEvent_t before, after;
    float ms = 0;
    managed();
    MUST(cudaGetDeviceCount(&devices));
    MUST(cudaGetDeviceProperties(&property, 0));
    compute(300000, 1, nullptr);
    MUST(cudaEventCreate(&before));
    MUST(cudaEventCreate(&after));
    MUST(cudaEventRecord(before));
    spin_ns<<<1, 1>>>(5000000);
    MUST(cudaEventRecord(after));
    MUST(cudaEventSynchronize(after));
    MUST(cudaEventElapsedTime(&ms, before, after));
    CHECK(ms >= 5 && ms < 5000);
    std::vector<std::thread> threads;
    for (int i = 1; i <= 4; i++)
        threads.emplace_back(thread_run, i);
    for (auto &thread : threads)
        thread.join();
    spin_ns<<<1, 2048>>>(1);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue); // as with driver 580.159.04 on an H200
    CHECK(cudaGetLastError() == cudaSuccess);
    MUST(cudaDeviceSynchronize());
    printf("right on %s, %d device\n", property.name, devices);
    return 0;
}
