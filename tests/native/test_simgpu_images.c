// Simulated GPU: module images of every kind, their handles, and hostile ones.
//
// A cubin, a fatbin (plain, LZ4, zstd) and its wrapper are made by hand here, so that no CUDA toolkit is needed;
// images made by nvcc are passed as arguments where there is one. Hostile images end at a page that cannot be read:
// one byte too far ends the test.
#include "simgpu_check.h"

#include <elf.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    unsigned char bytes[1 << 16];
    size_t size;
} image_t;

static size_t add(image_t *image, const void *data, size_t size, size_t align) {
    image->size = (image->size + align - 1) & ~(align - 1);
    size_t at = image->size;
    CHECK(at + size <= sizeof image->bytes);
    memcpy(image->bytes + at, data, size);
    image->size += size;
    return at;
}

// A cubin with vector_add, a variable `counter` = 7 and one kernel that nobody executes.
static void make_cubin(image_t *image, unsigned arch) {
    static const char names[] =
        "\0.shstrtab\0.strtab\0.symtab\0.text.vector_add\0.nv.info.vector_add\0.nv.global.init\0.nv.info\0"
        ".text.other\0.nv.shared.other\0.nv.info.other";
    static const char strings[] = "\0vector_add\0counter\0other";
    struct info {
        uint8_t format, attribute;
        uint16_t size;
        uint32_t index;
        uint16_t ordinal, offset;
        uint32_t packed;
    } params[4]; // last one first, as nvcc writes them
    for (uint16_t i = 0; i < 4; i++) {
        uint16_t ordinal = (uint16_t)(3 - i);
        params[i] =
            (struct info){4, 0x17, 12, 0, ordinal, (uint16_t)(ordinal * 8), (ordinal == 3 ? 4u : 8u) << 18 | 0x1f000};
    }
    struct {
        uint8_t format, attribute;
        uint16_t size;
        uint32_t symbol, registers;
    } file_info = {4, 0x2f, 8, 1, 77};
    struct {
        uint8_t format, attribute;
        uint16_t size;
        uint32_t index;
        uint16_t ordinal, offset, bytes, flags;
        uint8_t bounds[4];
        uint32_t xyz[3];
        // the second form of parameter records
    } other_info = {4, 0x45, 12, 0, 0, 0, 5000, 0, {4, 0x05, 12, 0}, {64, 2, 1}};
    Elf64_Sym symbols[4] = {
        {0},
        {.st_name = 1, .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC), .st_shndx = 4},
        {.st_name = 12, .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_OBJECT), .st_shndx = 6, .st_value = 4, .st_size = 4},
        {.st_name = 20, .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC), .st_shndx = 8}};
    uint32_t data[2] = {0, 7};
    char code[64] = {0};
    Elf64_Ehdr header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1, 0x41, 8},
                         .e_type = ET_EXEC,
                         .e_machine = 190,
                         .e_version = 1,
                         .e_flags = 0x6000004u | arch << 8,
                         .e_ehsize = sizeof header,
                         .e_shentsize = sizeof(Elf64_Shdr),
                         .e_shnum = 11,
                         .e_shstrndx = 1};
    Elf64_Shdr sections[11] = {{0}};
    struct {
        const char *name;
        const void *data;
        size_t size;
        uint32_t type;
    } parts[] = {{".shstrtab", names, sizeof names, SHT_STRTAB},
                 {".strtab", strings, sizeof strings, SHT_STRTAB},
                 {".symtab", symbols, sizeof symbols, SHT_SYMTAB},
                 {".text.vector_add", code, sizeof code, SHT_PROGBITS},
                 {".nv.info.vector_add", params, sizeof params, 0x70000000},
                 {".nv.global.init", data, sizeof data, SHT_PROGBITS},
                 {".nv.info", &file_info, sizeof file_info, 0x70000000},
                 {".text.other", code, sizeof code, SHT_PROGBITS},
                 {".nv.shared.other", NULL, 2048, SHT_NOBITS},
                 {".nv.info.other", &other_info, sizeof other_info, 0x70000000}};
    image->size = 0;
    add(image, &header, sizeof header, 1);
    for (unsigned i = 0; i < 10; i++) {
        Elf64_Shdr *section = &sections[i + 1];
        for (unsigned at = 0; at < sizeof names; at += (unsigned)strlen(names + at) + 1)
            if (!strcmp(names + at, parts[i].name))
                section->sh_name = at;
        CHECK(section->sh_name);
        section->sh_type = parts[i].type;
        section->sh_size = parts[i].size;
        section->sh_link = 2;
        if (parts[i].data)
            section->sh_offset = add(image, parts[i].data, parts[i].size, 8);
    }
    header.e_shoff = add(image, sections, sizeof sections, 8);
    memcpy(image->bytes, &header, sizeof header);
}

// One entry of a fatbin; `flags` says how `payload` is compressed.
static void add_entry(image_t *fatbin, unsigned kind, unsigned arch, const void *payload, size_t size, uint64_t flags,
                      size_t plain_size) {
    struct {
        uint16_t kind, version;
        uint32_t header_size;
        uint64_t padded;
        uint32_t compressed, options;
        uint16_t minor, major;
        uint32_t arch;
        uint64_t name, flags, zero, plain;
    } entry = {(uint16_t)kind, 0x101, 64,        (size + 7) & ~7ull, flags ? (uint32_t)size : 0, 0, 0, 8, arch, 0,
               flags | 0x11,   0,     plain_size};
    CHECK(sizeof entry == 64);
    add(fatbin, &entry, sizeof entry, 8);
    add(fatbin, payload, size, 1);
    static const char zeros[8];
    add(fatbin, zeros, (8 - size % 8) % 8, 1);
}

static void begin_fatbin(image_t *fatbin) {
    fatbin->size = 0;
    uint32_t words[4] = {0xBA55ED50, 16u << 16 | 1, 0, 0};
    add(fatbin, words, sizeof words, 1);
}

static void end_fatbin(image_t *fatbin) {
    uint64_t body = fatbin->size - 16;
    memcpy(fatbin->bytes + 8, &body, 8);
}

// An LZ4 block: literals, then runs of the byte before where there are any.
static size_t lz4(const unsigned char *in, size_t size, unsigned char *out) {
    size_t o = 0, start = 0, i = 0;
    while (start < size) {
        size_t run = 0;
        for (i = start; i < size; i++) {
            for (run = 0; i && i + run < size && in[i + run] == in[i - 1]; run++)
                ;
            if (run >= 4 && i + run + 12 < size)
                break;
            run = 0;
        }
        size_t literals = i - start, match = run ? run - 4 : 0;
        out[o++] = (unsigned char)((literals < 15 ? literals : 15) << 4 | (match < 15 ? match : 15));
        if (literals >= 15) {
            size_t rest = literals - 15;
            for (; rest >= 255; rest -= 255)
                out[o++] = 255;
            out[o++] = (unsigned char)rest;
        }
        memcpy(out + o, in + start, literals);
        o += literals;
        start = i + run;
        if (!run)
            break;
        out[o++] = 1;
        out[o++] = 0;
        if (match >= 15) {
            size_t rest = match - 15;
            for (; rest >= 255; rest -= 255)
                out[o++] = 255;
            out[o++] = (unsigned char)rest;
        }
    }
    return o;
}

static void check_layout(CUfunction function) {
    static const size_t offsets[] = {0, 8, 16, 24}, sizes[] = {8, 8, 8, 4};
    size_t offset, size;
    for (size_t i = 0; i < 4; i++) {
        OK(cuFuncGetParamInfo(function, i, &offset, &size));
        CHECK(offset == offsets[i] && size == sizes[i]);
    }
    GIVES(1, cuFuncGetParamInfo(function, 4, &offset, &size));
}

static void check_runs(CUfunction function) {
    CUdeviceptr a, c;
    float host[64], back[64];
    int n = 64;
    for (int i = 0; i < n; i++)
        host[i] = (float)i;
    OK(cuMemAlloc_v2(&a, sizeof host));
    OK(cuMemAlloc_v2(&c, sizeof host));
    OK(cuMemcpyHtoD_v2(a, host, sizeof host));
    void *params[] = {&a, &a, &c, &n};
    OK(cuLaunchKernel(function, 2, 1, 1, 32, 1, 1, 0, NULL, params, NULL));
    OK(cuMemcpyDtoH_v2(back, c, sizeof back));
    for (int i = 0; i < n; i++)
        CHECK(back[i] == 2.0f * (float)i);
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(c));
}

static void check_counter(CUmodule module) {
    CUdeviceptr p;
    size_t size;
    int value = 0;
    OK(cuModuleGetGlobal_v2(&p, &size, module, "counter"));
    CHECK(size == 4);
    OK(cuMemcpyDtoH_v2(&value, p, 4));
    CHECK(value == 7);
    GIVES(1, cuMemFree_v2(p));
    GIVES(500, cuModuleGetGlobal_v2(&p, &size, module, "no_such_variable"));
}

static void check_module(const void *code) {
    CUmodule module;
    CUfunction function;
    OK(cuModuleLoadData(&module, code));
    OK(cuModuleGetFunction(&function, module, "vector_add"));
    check_layout(function);
    check_runs(function);
    check_counter(module);
    GIVES(500, cuModuleGetFunction(&function, module, "no_such_kernel"));
    OK(cuModuleUnload(module));
    GIVES(400, cuModuleUnload(module));
    GIVES(400, cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
}

static void containers(void) {
    image_t cubin, foreign, fatbin;
    unsigned char packed[1 << 15];
    make_cubin(&cubin, 90);
    make_cubin(&foreign, 80);
    check_module(cubin.bytes);
    CUmodule module;
    GIVES(209, cuModuleLoadData(&module, foreign.bytes));

    CUfunction function;
    int value;
    OK(cuModuleLoadData(&module, cubin.bytes));
    OK(cuModuleGetFunction(&function, module, "vector_add"));
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_NUM_REGS, function));
    CHECK(value == 77);
    OK(cuModuleGetFunction(&function, module, "other"));
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function));
    CHECK(value == 1024); // of a section of 2048 bytes, the first 1024 are the system's
    OK(cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232448 - 1024));
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function));
    CHECK(value == 128);
    size_t offset, size;
    OK(cuFuncGetParamInfo(function, 0, &offset, &size));
    CHECK(offset == 0 && size == 5000);
    unsigned count;
    OK(cuModuleGetFunctionCount(&count, module));
    CUfunction both[2];
    OK(cuModuleEnumerateFunctions(both, 2, module));
    const char *name;
    OK(cuFuncGetName(&name, both[1]));
    CHECK(count == 2 && both[1] == function && !strcmp(name, "other"));
    OK(cuModuleUnload(module));

    begin_fatbin(&fatbin);
    add_entry(&fatbin, 2, 80, foreign.bytes, foreign.size, 0, 0);
    add_entry(&fatbin, 2, 90, cubin.bytes, cubin.size, 0, 0);
    add_entry(&fatbin, 1, 90, "not parsed", 11, 0, 0); // the cubin is preferred
    end_fatbin(&fatbin);
    check_module(fatbin.bytes);
    struct {
        uint32_t magic, version;
        const void *data, *more;
    } wrapper = {0x466243B1, 1, fatbin.bytes, NULL};
    check_module(&wrapper);
    OK(cuModuleLoadFatBinary(&module, &wrapper));
    OK(cuModuleUnload(module));

    begin_fatbin(&fatbin);
    size_t packed_size = lz4(cubin.bytes, cubin.size, packed);
    CHECK(packed_size < cubin.size);
    add_entry(&fatbin, 2, 90, packed, packed_size, 0x2000, cubin.size);
    end_fatbin(&fatbin);
    check_module(fatbin.bytes);

    begin_fatbin(&fatbin);
    add_entry(&fatbin, 2, 90, cubin.bytes, cubin.size, 0x8000, cubin.size);
    end_fatbin(&fatbin);
    // Bytes that are no zstd: seen by libzstd, or refused by name on a machine without it.
    CUresult zstd = cuModuleLoadData(&module, fatbin.bytes);
    CHECK(zstd == CUDA_ERROR_INVALID_IMAGE || zstd == CUDA_ERROR_NOT_SUPPORTED);
    begin_fatbin(&fatbin);
    add_entry(&fatbin, 2, 90, cubin.bytes, cubin.size, 0x8000, cubin.size);
    add_entry(&fatbin, 1, 75, kernels_ptx, sizeof kernels_ptx, 0, 0);
    end_fatbin(&fatbin);
    check_module(fatbin.bytes); // unless something else can be used
    begin_fatbin(&fatbin);
    add_entry(&fatbin, 2, 80, foreign.bytes, foreign.size, 0, 0);
    end_fatbin(&fatbin);
    GIVES(209, cuModuleLoadData(&module, fatbin.bytes));
    begin_fatbin(&fatbin);
    end_fatbin(&fatbin);
    GIVES(209, cuModuleLoadData(&module, fatbin.bytes));
}

static void texts(void) {
    CUmodule module;
    check_module(kernels_ptx);
    GIVES(200, cuModuleLoadData(&module, "hello"));
    GIVES(200, cuModuleLoadData(&module, ""));
    GIVES(1, cuModuleLoadData(&module, NULL));
    GIVES(218, cuModuleLoadData(&module, ".version 8.0"));
    GIVES(218, cuModuleLoadData(&module, ".version 8.0 .target sm_80 .entry k(.param .u65 x) { }"));
    GIVES(218, cuModuleLoadData(&module, ".version 8.0 .target sm_80 .entry k() {"));
    GIVES(222, cuModuleLoadData(&module, ".version 99.0 .target sm_80"));
    GIVES(218, cuModuleLoadData(&module, ".version 8.8 .target sm_100"));
    OK(cuModuleLoadData(&module, ".version 8.8\n.target sm_90a\n"));
    OK(cuModuleUnload(module));

    char log[256] = "unchanged";
    CUjit_option options[] = {CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log, (void *)(uintptr_t)sizeof log};
    GIVES(218,
          cuModuleLoadDataEx(&module, ".version 8.0 .target sm_80\n.entry k(.param .u65 x) { }", 2, options, values));
    CHECK(strstr(log, "line 2") && (uintptr_t)values[1] == strlen(log));
    char tiny[4] = "zzz";
    void *tiny_values[] = {tiny, (void *)3};
    GIVES(218, cuModuleLoadDataEx(&module, ".version 8.0 .target sm_80\n.entry k(.param .u65 x) { }", 2, options,
                                  tiny_values));
    CHECK(tiny[2] == 0 && (uintptr_t)tiny_values[1] == 2);

    // Directives without a space between them, as nvcc and the halves of CUDA 12 write them.
    CUfunction dense;
    OK(cuModuleLoadData(&module, ".version 8.0\n.target sm_80\n.address_size 64\n.visible.entry dense(.param.u64 p) {\n"
                                 "{.reg.b16 h; .shared.u32 s; mov.b16 h, 0;}\nret;\n}\n"));
    OK(cuModuleGetFunction(&dense, module, "dense"));
    size_t at = 1, bytes = 0;
    OK(cuFuncGetParamInfo(dense, 0, &at, &bytes));
    CHECK(at == 0 && bytes == 8);
    OK(cuModuleUnload(module));

    module = load_kernels();
    CUfunction function = kernel(module, "unknown_kernel");
    size_t offset, size;
    int value;
    OK(cuFuncGetParamInfo(function, 1, &offset, &size));
    CHECK(offset == 5000 && size == 8);
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function));
    CHECK(value == 256);
    OK(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function));
    CHECK(value == 128);
    CUdeviceptr p;
    double scale[2];
    OK(cuModuleGetGlobal_v2(&p, &size, module, "scale"));
    OK(cuMemcpyDtoH_v2(scale, p, size));
    CHECK(size == 16 && scale[0] == 1.0 && scale[1] == 2.0);
    char table[8];
    OK(cuModuleGetGlobal_v2(&p, &size, module, "table"));
    OK(cuMemcpyDtoH_v2(table, p, 8));
    CHECK(!memcmp(table, "\1\2\3\4\5\0\0\0", 8));
    int blocks, min_grid, block;
    function = kernel(module, "spin_ns");
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, 256, 0));
    CHECK(blocks == 8); // 2048 threads
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, 32, 0));
    CHECK(blocks == 32);
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, 32, 40000));
    CHECK(blocks == 5); // 233472 / (40000 + 1024 rounded up)
    OK(cuOccupancyMaxPotentialBlockSize(&min_grid, &block, function, NULL, 0, 0));
    CHECK(block == 1024 && min_grid == 264);
    OK(cuModuleUnload(module));
}

static void libraries(void) {
    CUlibrary library;
    CUkernel kernel_handle, all[7];
    CUfunction function;
    CUmodule module;
    unsigned count;
    size_t offset, size;
    const char *name;
    CUlibraryOption option = CU_LIBRARY_BINARY_IS_PRESERVED;
    void *one = (void *)1;
    OK(cuLibraryLoadData(&library, kernels_ptx, NULL, NULL, 0, &option, &one, 1));
    OK(cuLibraryGetKernelCount(&count, library));
    CHECK(count == 7);
    OK(cuLibraryEnumerateKernels(all, 7, library));
    OK(cuLibraryGetKernel(&kernel_handle, library, "vector_add"));
    CHECK(kernel_handle == all[0]);
    GIVES(500, cuLibraryGetKernel(&kernel_handle, library, "no_such_kernel"));
    OK(cuLibraryGetKernel(&kernel_handle, library, "vector_add"));
    OK(cuKernelGetName(&name, kernel_handle));
    CHECK(!strcmp(name, "vector_add"));
    CUmodule again; // one text for a name, whichever image has it
    CUfunction twin;
    const char *text;
    OK(cuModuleLoadData(&again, kernels_ptx));
    OK(cuModuleGetFunction(&twin, again, "vector_add"));
    OK(cuFuncGetName(&text, twin));
    OK(cuModuleUnload(again));
    CHECK(text == name);
    OK(cuKernelGetParamInfo(kernel_handle, 3, &offset, &size));
    CHECK(offset == 24 && size == 4);
    GIVES(1, cuKernelGetParamInfo(kernel_handle, 4, &offset, &size));
    check_runs((CUfunction)(void *)kernel_handle); // as the CUDA runtime launches
    int value;
    OK(cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536, kernel_handle, 0));
    OK(cuKernelGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel_handle, 0));
    CHECK(value == 65536);
    GIVES(1, cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 300000, kernel_handle, 0));
    GIVES(1, cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_NUM_REGS, 3, kernel_handle, 0));
    OK(cuKernelGetFunction(&function, kernel_handle));
    check_runs(function);
    OK(cuLibraryGetModule(&module, library));
    CUfunction same;
    OK(cuModuleGetFunction(&same, module, "vector_add"));
    CHECK(same == function);
    check_counter(module);
    GIVES(800, cuModuleUnload(module)); // belongs to the library
    OK(cuLibraryUnload(library));
    GIVES(400, cuLibraryUnload(library));
    GIVES(400, cuKernelGetName(&name, kernel_handle));
    GIVES(400, cuFuncGetName(&name, function));
}

// ---- Hostile images ----------------------------------------------------------------------------------------------

static uint64_t seed = 88172645463325252ull;

static uint64_t random_number(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

// Loads many damaged versions of an image that lies right before an unreadable page. The first `keep` bytes state the
// image's size, the last `tail` are a terminator: both stay, since the caller of a driver vouches for them.
static unsigned hostile(const unsigned char *good, size_t size, size_t keep, size_t tail, unsigned rounds) {
    size_t room = (size + 4095) & ~(size_t)4095;
    unsigned char *pages = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED && mprotect(pages + room, 4096, PROT_NONE) == 0);
    unsigned char *image = pages + room - size;
    unsigned loaded = 0;
    for (unsigned round = 0; round < rounds; round++) {
        memcpy(image, good, size);
        for (unsigned changes = 1 + (unsigned)(random_number() % 4); changes; changes--) {
            static const unsigned char nasty[] = {0, 1, 0x7f, 0x80, 0xff};
            size_t at = keep + random_number() % (size - keep - tail);
            if (random_number() & 1)
                image[at] = (unsigned char)random_number();
            else
                image[at] = nasty[random_number() % sizeof nasty];
        }
        CUmodule module;
        CUresult result = cuModuleLoadData(&module, image);
        CHECK(result == 0 || result == 2 || result == 200 || result == 209 || result == 218 || result == 222 ||
              result == 801);
        if (result == CUDA_SUCCESS) {
            loaded++;
            OK(cuModuleUnload(module));
        }
    }
    munmap(pages, room + 4096);
    return loaded;
}

static void hostile_images(void) {
    static image_t cubin, fatbin;
    unsigned char packed[1 << 15];
    size_t before, after, total;
    OK(cuMemGetInfo_v2(&before, &total));
    make_cubin(&cubin, 90);
    begin_fatbin(&fatbin);
    add_entry(&fatbin, 2, 90, cubin.bytes, cubin.size, 0, 0);
    end_fatbin(&fatbin);
    unsigned loaded = hostile(fatbin.bytes, fatbin.size, 16, 0, 20000);
    begin_fatbin(&fatbin);
    add_entry(&fatbin, 2, 90, packed, lz4(cubin.bytes, cubin.size, packed), 0x2000, cubin.size);
    end_fatbin(&fatbin);
    loaded += hostile(fatbin.bytes, fatbin.size, 16, 0, 20000);
    loaded += hostile((const unsigned char *)kernels_ptx, sizeof kernels_ptx, 0, 1, 20000);
    CHECK(loaded > 0); // some damage is harmless
    OK(cuMemGetInfo_v2(&after, &total));
    CHECK(before == after);
    // Every truncation of a cubin inside a container that states the truncated size.
    for (size_t size = 0; size < cubin.size; size++) {
        begin_fatbin(&fatbin);
        add_entry(&fatbin, 2, 90, cubin.bytes, size, 0, 0);
        end_fatbin(&fatbin);
        unsigned char *exact = malloc(fatbin.size);
        memcpy(exact, fatbin.bytes, fatbin.size);
        CUmodule module;
        if (size / 8 != (cubin.size - 1) / 8)
            CHECK(cuModuleLoadData(&module, exact) != CUDA_SUCCESS);
        free(exact);
    }
}

static void from_file(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file);
    unsigned char *bytes = calloc(1, 1 << 20);
    size_t size = fread(bytes, 1, (1 << 20) - 1, file);
    fclose(file);
    CHECK(size > 0);
    check_module(bytes);
    free(bytes);
}

int main(int argc, char **argv) {
    start();
    containers();
    texts();
    libraries();
    hostile_images();
    for (int i = 1; i < argc; i++)
        from_file(argv[i]);
    OK(cuDevicePrimaryCtxReset_v2(0));
    puts("ok");
    return 0;
}
