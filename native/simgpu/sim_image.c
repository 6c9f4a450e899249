// Module images: telling the containers apart, choosing an entry of a fatbin, and the parsed result.
//
// The driver API passes an image without its length, so a container's own sizes are followed, as by the real driver:
// the caller must have made sure that they match what is there. Inside that extent nothing is trusted: every offset
// is bounded, every count is capped. Parsing has no state; a parsed image is immutable and shared by reference,
// counted under sim.lock.
#include "sim.h"

#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WRAPPER_MAGIC 0x466243B1u
#define CONTAINER_MAGIC 0xBA55ED50u
#define LARGEST_IMAGE (2ull << 30) // cuBLASLt's reach several hundred MB
#define FATBIN_PTX 1
#define FATBIN_ELF 2
#define FLAG_LZ4 0x2000u
#define FLAG_ZSTD 0x8000u

typedef struct {
    uint32_t magic, version;
    const void *data;
    const void *filename_or_fatbins;
} wrapper_t;

typedef struct {
    uint16_t kind, version;
    uint32_t header_size;
    uint64_t padded_size;
    uint32_t compressed_size, options;
    uint16_t minor, major;
    uint32_t arch;
    uint32_t name_offset, name_size;
    uint64_t flags;
    uint64_t zero, uncompressed_size;
} fatbin_entry_t;
_Static_assert(sizeof(fatbin_entry_t) == 64, "layout of a fatbin entry");

bool sim_lz4_decode(const unsigned char *in, uint64_t in_size, unsigned char *out, uint64_t out_size) {
    uint64_t i = 0, o = 0;
    while (i < in_size) {
        unsigned token = in[i++];
        uint64_t literals = token >> 4, match = token & 15;
        if (literals == 15) {
            unsigned more;
            do {
                if (i >= in_size)
                    return false;
                more = in[i++];
                literals += more;
            } while (more == 255);
        }
        if (literals > in_size - i || literals > out_size - o)
            return false;
        memcpy(out + o, in + i, literals);
        i += literals;
        o += literals;
        if (i == in_size)
            break; // the last sequence has literals only
        if (in_size - i < 2)
            return false;
        uint64_t distance = (uint64_t)in[i] | (uint64_t)in[i + 1] << 8;
        i += 2;
        if (match == 15) {
            unsigned more;
            do {
                if (i >= in_size)
                    return false;
                more = in[i++];
                match += more;
            } while (more == 255);
        }
        match += 4;
        if (!distance || distance > o || match > out_size - o)
            return false;
        for (uint64_t k = 0; k < match; k++, o++)
            out[o] = out[o - distance]; // may overlap: byte by byte
    }
    return o == out_size;
}

// One text for each name, never freed: the driver gives the same one for the kernels of two modules.
static const char *one_name(const char *name, size_t length) {
    static struct text {
        struct text *next;
        char text[];
    } *texts[256];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned hash = 0;
    length = strnlen(name, length);
    for (size_t i = 0; i < length; i++)
        hash = hash * 31 + (unsigned char)name[i];
    pthread_mutex_lock(&lock);
    struct text *at = texts[hash % 256];
    while (at && (strncmp(at->text, name, length) || at->text[length]))
        at = at->next;
    if (!at && (at = calloc(1, sizeof *at + length + 1))) {
        memcpy(at->text, name, length);
        at->next = texts[hash % 256];
        texts[hash % 256] = at;
    }
    pthread_mutex_unlock(&lock);
    return at ? at->text : NULL;
}

sim_entry_t *sim_image_add_entry(sim_image_t *image, const char *name, size_t length) {
    if (image->nentries >= 1u << 16)
        return NULL;
    sim_entry_t *grown = realloc(image->entries, (image->nentries + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    image->entries = grown;
    sim_entry_t *entry = &grown[image->nentries];
    memset(entry, 0, sizeof *entry);
    entry->name = one_name(name, length);
    if (!entry->name)
        return NULL;
    entry->attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024;
    entry->attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] = 16;
    entry->attributes[CU_FUNC_ATTRIBUTE_PTX_VERSION] = 90;
    entry->attributes[CU_FUNC_ATTRIBUTE_BINARY_VERSION] = 90;
    entry->attributes[CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES] = 49152;
    entry->attributes[CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT] = -1;
    image->nentries++;
    return entry;
}

sim_global_t *sim_image_add_global(sim_image_t *image, const char *name, size_t length) {
    if (image->nglobals >= 1u << 16)
        return NULL;
    sim_global_t *grown = realloc(image->globals, (image->nglobals + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    image->globals = grown;
    sim_global_t *global = &grown[image->nglobals];
    memset(global, 0, sizeof *global);
    global->name = strndup(name, length);
    if (!global->name)
        return NULL;
    image->nglobals++;
    return global;
}

bool sim_image_add_reference(sim_image_t *image, const char *name, size_t length, bool surface) {
    if (image->nreferences >= 1u << 16)
        return false;
    sim_named_t *grown = realloc(image->references, (image->nreferences + 1) * sizeof *grown);
    if (!grown)
        return false;
    image->references = grown;
    grown[image->nreferences] = (sim_named_t){.name = strndup(name, length), .surface = surface};
    if (!grown[image->nreferences].name)
        return false;
    image->nreferences++;
    return true;
}

static void image_free(sim_image_t *image) {
    for (unsigned i = 0; i < image->nentries; i++) {
        free(image->entries[i].params);
    }
    for (unsigned i = 0; i < image->nglobals; i++) {
        free(image->globals[i].name);
        free(image->globals[i].init);
    }
    for (unsigned i = 0; i < image->nreferences; i++)
        free(image->references[i].name);
    free(image->entries);
    free(image->globals);
    free(image->references);
    free(image);
}

void sim_image_release(sim_image_t *image) {
    if (!--image->refs)
        image_free(image);
}

const sim_entry_t *sim_image_find(const sim_image_t *image, const char *name, unsigned *index) {
    for (unsigned i = 0; i < image->nentries; i++) {
        if (strcmp(image->entries[i].name, name))
            continue;
        *index = i;
        return &image->entries[i];
    }
    return NULL;
}

// The extent that an ELF header claims: the end of its last section or header table. 0: not a cubin.
static uint64_t elf_extent(const unsigned char *bytes) {
    Elf64_Ehdr header;
    memcpy(&header, bytes, sizeof header);
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_machine != 190)
        return 0;
    if (header.e_ehsize != sizeof header || header.e_shentsize != sizeof(Elf64_Shdr))
        return 0;
    if (header.e_phnum && header.e_phentsize != sizeof(Elf64_Phdr))
        return 0;
    uint64_t sections_end = header.e_shoff + (uint64_t)header.e_shnum * sizeof(Elf64_Shdr);
    uint64_t programs_end = header.e_phnum ? header.e_phoff + (uint64_t)header.e_phnum * sizeof(Elf64_Phdr) : 0;
    if (header.e_shoff < sizeof header || header.e_shoff > LARGEST_IMAGE || header.e_phoff > LARGEST_IMAGE)
        return 0;
    uint64_t extent = sections_end > programs_end ? sections_end : programs_end;
    for (unsigned i = 0; i < header.e_shnum; i++) {
        Elf64_Shdr section;
        memcpy(&section, bytes + header.e_shoff + (uint64_t)i * sizeof section, sizeof section);
        if (section.sh_type == SHT_NOBITS || section.sh_type == SHT_NULL)
            continue;
        if (section.sh_offset > LARGEST_IMAGE || section.sh_size > LARGEST_IMAGE)
            return 0;
        if (section.sh_offset + section.sh_size > extent)
            extent = section.sh_offset + section.sh_size;
    }
    return extent > LARGEST_IMAGE ? 0 : extent;
}

// Higher is better, 0 is unusable on a 9.0 device: a cubin of the same major number and no higher minor one, else PTX.
static unsigned score(const fatbin_entry_t *entry) {
    if (entry->kind == FATBIN_ELF)
        return entry->arch / 10 == 9 && entry->arch % 10 == 0 ? 1000 + entry->arch : 0;
    if (entry->kind == FATBIN_PTX)
        return entry->arch <= 90 ? entry->arch : 0;
    return 0;
}

static CUresult parse_payload(const fatbin_entry_t *entry, const unsigned char *payload, uint64_t size,
                              sim_image_t *image, char *log, size_t log_size) {
    if (entry->kind == FATBIN_ELF)
        return sim_cubin_parse(payload, size, image);
    return sim_ptx_parse((const char *)payload, strnlen((const char *)payload, size), image, log, log_size);
}

static CUresult parse_entry(const fatbin_entry_t *entry, const unsigned char *payload, sim_image_t *image, char *log,
                            size_t log_size) {
    if (!(entry->flags & FLAG_LZ4))
        return parse_payload(entry, payload, entry->padded_size, image, log, log_size);
    // 255 is the best that LZ4 can do, so a hostile entry cannot ask for more than that times its own size.
    if (!entry->compressed_size || entry->compressed_size > entry->padded_size || !entry->uncompressed_size ||
        entry->uncompressed_size > LARGEST_IMAGE || entry->uncompressed_size / 256 > entry->compressed_size)
        return CUDA_ERROR_INVALID_IMAGE;
    unsigned char *plain = malloc(entry->uncompressed_size);
    if (!plain)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = CUDA_ERROR_INVALID_IMAGE;
    if (sim_lz4_decode(payload, entry->compressed_size, plain, entry->uncompressed_size))
        result = parse_payload(entry, plain, entry->uncompressed_size, image, log, log_size);
    free(plain);
    return result;
}

// zstd is not worth writing again: the machine's libzstd.so.1 does it where there is one, as on every Debian and Ubuntu.
static CUresult parse_zstd(const fatbin_entry_t *entry, const unsigned char *payload, sim_image_t *image, char *log,
                           size_t log_size) {
    static size_t (*decompress)(void *, size_t, const void *, size_t);
    static unsigned (*is_error)(size_t);
    if (!decompress) {
        void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
        void *symbols[2] = {library ? dlsym(library, "ZSTD_isError") : NULL,
                            library ? dlsym(library, "ZSTD_decompress") : NULL};
        if (!symbols[0] || !symbols[1]) {
            sim_complain("the only usable entries of a fatbin are compressed with zstd and there is no libzstd.so.1; "
                         "build it with -Xfatbin -compress-mode=speed or --no-compress");
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        memcpy(&is_error, &symbols[0], sizeof is_error);
        memcpy(&decompress, &symbols[1], sizeof decompress);
    }
    if (!entry->compressed_size || entry->compressed_size > entry->padded_size || !entry->uncompressed_size ||
        entry->uncompressed_size > LARGEST_IMAGE)
        return CUDA_ERROR_INVALID_IMAGE;
    unsigned char *plain = malloc(entry->uncompressed_size);
    if (!plain)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult result = CUDA_ERROR_INVALID_IMAGE;
    size_t size = decompress(plain, entry->uncompressed_size, payload, entry->compressed_size);
    if (!is_error(size) && size == entry->uncompressed_size)
        result = parse_payload(entry, plain, size, image, log, log_size);
    free(plain);
    return result;
}

static CUresult parse_container(const unsigned char *bytes, sim_image_t *image, char *log, size_t log_size) {
    uint16_t version, header_size;
    uint64_t body;
    memcpy(&version, bytes + 4, 2);
    memcpy(&header_size, bytes + 6, 2);
    memcpy(&body, bytes + 8, 8);
    if (version != 1 || header_size < 16 || body > LARGEST_IMAGE)
        return CUDA_ERROR_INVALID_IMAGE;
    unsigned best_score = 0;
    fatbin_entry_t best = {0};
    const unsigned char *best_payload = NULL;
    // Anything usable is preferred to zstd, for which a library is needed.
    for (uint64_t at = 0; at < body;) {
        fatbin_entry_t entry;
        const unsigned char *start = bytes + header_size + at;
        if (body - at < sizeof entry)
            return CUDA_ERROR_INVALID_IMAGE;
        memcpy(&entry, start, sizeof entry);
        if (entry.header_size < sizeof entry || entry.header_size > body - at ||
            entry.padded_size > body - at - entry.header_size)
            return CUDA_ERROR_INVALID_IMAGE;
        unsigned points = 2 * score(&entry);
        if (points && !(entry.flags & FLAG_ZSTD))
            points += 1u << 16;
        if (points > best_score) {
            best_score = points;
            best = entry;
            best_payload = start + entry.header_size;
        }
        at += entry.header_size + entry.padded_size;
    }
    if (!best_payload)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    return best.flags & FLAG_ZSTD ? parse_zstd(&best, best_payload, image, log, log_size)
                                  : parse_entry(&best, best_payload, image, log, log_size);
}

CUresult sim_image_parse(const void *code, sim_image_t **out, char *log, size_t log_size) {
    if (!code)
        return CUDA_ERROR_INVALID_VALUE;
    sim_image_t *image = calloc(1, sizeof *image);
    if (!image)
        return CUDA_ERROR_OUT_OF_MEMORY;
    image->refs = 1;
    CUresult result = CUDA_ERROR_INVALID_IMAGE;
    const unsigned char *bytes = code;
    uint32_t magic = 0;
    // Byte by byte up to a NUL, since a text may be shorter than a magic number.
    for (unsigned i = 0; i < 4; i++) {
        magic |= (uint32_t)bytes[i] << (8 * i);
        if (!bytes[i])
            break;
    }
    if (magic == WRAPPER_MAGIC) {
        wrapper_t wrapper;
        memcpy(&wrapper, bytes, sizeof wrapper);
        uint32_t inner = 0;
        if ((wrapper.version == 1 || wrapper.version == 2) && wrapper.data)
            memcpy(&inner, wrapper.data, 4);
        if (inner == CONTAINER_MAGIC)
            result = parse_container(wrapper.data, image, log, log_size);
    } else if (magic == CONTAINER_MAGIC) {
        result = parse_container(bytes, image, log, log_size);
    } else if (!memcmp(&magic, ELFMAG, SELFMAG)) {
        uint64_t extent = elf_extent(bytes);
        if (extent)
            result = sim_cubin_parse(bytes, extent, image);
    } else if (bytes[0]) {
        uint64_t length = strnlen((const char *)bytes, LARGEST_IMAGE);
        if (sim_ptx_target((const char *)bytes, length) >= 0)
            result = sim_ptx_parse((const char *)bytes, length, image, log, log_size);
    }
    if (result == CUDA_SUCCESS)
        *out = image;
    else
        image_free(image);
    if (result != CUDA_SUCCESS && log_size && !*log)
        snprintf(log, log_size, "simulated GPU: the image was refused with error %d", (int)result);
    return result;
}
