// Cubins: kernel names, parameter layouts, resource use and global variables out of a CUDA ELF file.
//
// What is read: section names, the symbol table, .nv.info (register counts, stack sizes) and .nv.info.<kernel>
// (parameters, launch bounds). The bytes are hostile; `size` bounds every read, and each offset and count is checked
// against it before use. No state.
#include "sim.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

#define ATTR_KPARAM_INFO 0x17u
#define ATTR_KPARAM_INFO_V2 0x45u
#define ATTR_MAX_THREADS 0x05u
#define ATTR_CBANK_PARAM_SIZE 0x19u
#define ATTR_REGCOUNT 0x2fu
#define ATTR_FRAME_SIZE 0x11u
#define SYSTEM_SHARED 1024 // CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK

typedef struct {
    const unsigned char *bytes;
    uint64_t size;
    Elf64_Ehdr header;
    const unsigned char *names; // section name strings
    uint64_t names_size;
} elf_t;

static bool read_section(const elf_t *elf, unsigned index, Elf64_Shdr *section) {
    if (index >= elf->header.e_shnum)
        return false;
    memcpy(section, elf->bytes + elf->header.e_shoff + (uint64_t)index * sizeof *section, sizeof *section);
    if (section->sh_type == SHT_NULL)
        section->sh_offset = section->sh_size = 0; // has no bytes, whatever it states
    if (section->sh_type == SHT_NOBITS)
        return true;
    return section->sh_offset <= elf->size && section->sh_size <= elf->size - section->sh_offset;
}

// A string that ends within its table; NULL otherwise.
static const char *string_at(const unsigned char *table, uint64_t size, uint64_t offset) {
    if (offset >= size || !memchr(table + offset, 0, size - offset))
        return NULL;
    return (const char *)table + offset;
}

static bool open_elf(elf_t *elf, const unsigned char *bytes, uint64_t size) {
    memset(elf, 0, sizeof *elf);
    if (size < sizeof elf->header || memcmp(bytes, ELFMAG, SELFMAG))
        return false;
    memcpy(&elf->header, bytes, sizeof elf->header);
    const Elf64_Ehdr *header = &elf->header;
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != 190 ||
        header->e_shentsize != sizeof(Elf64_Shdr))
        return false;
    if (header->e_shoff > size || (uint64_t)header->e_shnum * sizeof(Elf64_Shdr) > size - header->e_shoff)
        return false;
    elf->bytes = bytes;
    elf->size = size;
    Elf64_Shdr names;
    if (!read_section(elf, header->e_shstrndx, &names) || names.sh_type != SHT_STRTAB)
        return false;
    elf->names = bytes + names.sh_offset;
    elf->names_size = names.sh_size;
    return true;
}

static bool note_param(sim_entry_t *entry, uint32_t ordinal, uint32_t offset, uint32_t size) {
    if (ordinal >= SIM_MAX_PARAMS || !size || size > SIM_MAX_PARAM_BYTES || offset > SIM_MAX_PARAM_BYTES - size)
        return false;
    if (ordinal >= entry->nparams) {
        sim_param_t *grown = realloc(entry->params, (ordinal + 1) * sizeof *grown);
        if (!grown)
            return false;
        memset(grown + entry->nparams, 0, (ordinal + 1 - entry->nparams) * sizeof *grown);
        entry->params = grown;
        entry->nparams = ordinal + 1;
    }
    entry->params[ordinal] = (sim_param_t){offset, size};
    if (offset + size > entry->param_bytes)
        entry->param_bytes = offset + size;
    return true;
}

typedef bool (*info_visitor_t)(void *user, unsigned attribute, const unsigned char *value, unsigned size);

// Records: u8 format, u8 attribute, then by format nothing (1), one byte (2), a half word (3), or u16 size and bytes
// (4).
static bool walk_info(const elf_t *elf, const Elf64_Shdr *section, info_visitor_t visit, void *user) {
    const unsigned char *at = elf->bytes + section->sh_offset;
    uint64_t left = section->sh_size;
    while (left >= 4) {
        unsigned format = at[0], attribute = at[1], inline_value = (unsigned)at[2] | (unsigned)at[3] << 8;
        unsigned size = format == 4 ? inline_value : 0;
        if (format < 1 || format > 4 || size > left - 4)
            return false;
        const unsigned char *value = format == 4 ? at + 4 : at + 2;
        if (!visit(user, attribute, value, format == 4 ? size : 2))
            return false;
        at += 4 + size;
        left -= 4 + size;
    }
    return left == 0;
}

static uint32_t u32_at(const unsigned char *p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint16_t u16_at(const unsigned char *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static bool visit_kernel(void *user, unsigned attribute, const unsigned char *value, unsigned size) {
    sim_entry_t *entry = user;
    switch (attribute) {
    case ATTR_KPARAM_INFO:
        return size >= 12 && note_param(entry, u16_at(value + 4), u16_at(value + 6), u32_at(value + 8) >> 18);
    case ATTR_KPARAM_INFO_V2:
        return size >= 10 && note_param(entry, u16_at(value + 4), u16_at(value + 6), u16_at(value + 8));
    case ATTR_MAX_THREADS: {
        if (size < 12)
            return false;
        uint64_t threads = (uint64_t)u32_at(value) * u32_at(value + 4);
        if (threads > 1024 || threads * u32_at(value + 8) > 1024)
            return true; // cannot be launched with more anyway
        threads *= u32_at(value + 8);
        if (threads)
            entry->attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = (int)threads;
        return true;
    }
    default:
        return true;
    }
}

typedef struct {
    const elf_t *elf;
    sim_image_t *image;
    const Elf64_Shdr *symbols, *strings;
} file_info_t;

static sim_entry_t *entry_by_symbol(const file_info_t *info, uint32_t index) {
    if (index >= info->symbols->sh_size / sizeof(Elf64_Sym))
        return NULL;
    Elf64_Sym symbol;
    memcpy(&symbol, info->elf->bytes + info->symbols->sh_offset + (uint64_t)index * sizeof symbol, sizeof symbol);
    const char *name = string_at(info->elf->bytes + info->strings->sh_offset, info->strings->sh_size, symbol.st_name);
    unsigned found;
    return name && sim_image_find(info->image, name, &found) ? &info->image->entries[found] : NULL;
}

static bool visit_file(void *user, unsigned attribute, const unsigned char *value, unsigned size) {
    const file_info_t *info = user;
    if ((attribute != ATTR_REGCOUNT && attribute != ATTR_FRAME_SIZE) || size < 8)
        return true;
    sim_entry_t *entry = entry_by_symbol(info, u32_at(value));
    uint32_t number = u32_at(value + 4);
    if (!entry)
        return true; // a device function
    if (attribute == ATTR_REGCOUNT && number && number <= 255)
        entry->attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] = (int)number;
    if (attribute == ATTR_FRAME_SIZE && number <= 512u << 10)
        entry->attributes[CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES] = (int)number;
    return true;
}

// Global variables: object symbols in .nv.global.init (with data), .nv.global (zero) and the user's constant bank 3.
static CUresult add_globals(const elf_t *elf, const Elf64_Shdr *symbols, const Elf64_Shdr *strings,
                            sim_image_t *image) {
    uint64_t count = symbols->sh_size / sizeof(Elf64_Sym);
    for (uint64_t i = 0; i < count; i++) {
        Elf64_Sym symbol;
        memcpy(&symbol, elf->bytes + symbols->sh_offset + i * sizeof symbol, sizeof symbol);
        if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || symbol.st_shndx == SHN_UNDEF ||
            symbol.st_shndx >= SHN_LORESERVE)
            continue;
        Elf64_Shdr section;
        if (!read_section(elf, symbol.st_shndx, &section))
            return CUDA_ERROR_INVALID_IMAGE;
        const char *where = string_at(elf->names, elf->names_size, section.sh_name);
        if (!where ||
            (strcmp(where, ".nv.global") && strcmp(where, ".nv.global.init") && strcmp(where, ".nv.constant3")))
            continue;
        const char *name = string_at(elf->bytes + strings->sh_offset, strings->sh_size, symbol.st_name);
        if (!name || !symbol.st_size || symbol.st_value > section.sh_size ||
            symbol.st_size > section.sh_size - symbol.st_value)
            return CUDA_ERROR_INVALID_IMAGE;
        sim_global_t *global = sim_image_add_global(image, name, strlen(name));
        if (!global)
            return CUDA_ERROR_OUT_OF_MEMORY;
        global->size = symbol.st_size;
        global->managed = symbol.st_other & 4; // what nvcc 12 and 13 write for __managed__
        if (section.sh_type == SHT_NOBITS)
            continue;
        global->init = malloc(symbol.st_size);
        if (!global->init)
            return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(global->init, elf->bytes + section.sh_offset + symbol.st_value, symbol.st_size);
    }
    return CUDA_SUCCESS;
}

static CUresult add_kernels(const elf_t *elf, sim_image_t *image, int arch) {
    for (unsigned i = 0; i < elf->header.e_shnum; i++) {
        Elf64_Shdr section;
        if (!read_section(elf, i, &section))
            return CUDA_ERROR_INVALID_IMAGE;
        if (section.sh_type != SHT_PROGBITS)
            continue;
        const char *name = string_at(elf->names, elf->names_size, section.sh_name);
        if (!name)
            return CUDA_ERROR_INVALID_IMAGE;
        if (strncmp(name, ".text.", 6) || !name[6])
            continue;
        sim_entry_t *entry = sim_image_add_entry(image, name + 6, strlen(name + 6));
        if (!entry)
            return CUDA_ERROR_OUT_OF_MEMORY;
        entry->attributes[CU_FUNC_ATTRIBUTE_BINARY_VERSION] = arch;
        entry->attributes[CU_FUNC_ATTRIBUTE_PTX_VERSION] = arch;
        unsigned registers = section.sh_info >> 24; // where files before ABI 8 keep the count
        if (registers)
            entry->attributes[CU_FUNC_ATTRIBUTE_NUM_REGS] = (int)registers;
    }
    return CUDA_SUCCESS;
}

CUresult sim_cubin_parse(const unsigned char *bytes, uint64_t size, sim_image_t *image) {
    elf_t elf;
    if (!open_elf(&elf, bytes, size))
        return CUDA_ERROR_INVALID_IMAGE;
    uint32_t flags = elf.header.e_flags;
    int arch = (int)(elf.header.e_ident[EI_ABIVERSION] >= 8 ? flags >> 8 & 0xff : flags & 0xff);
    if (arch / 10 != 9 || arch % 10 != 0)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    CUresult result = add_kernels(&elf, image, arch);
    if (result != CUDA_SUCCESS)
        return result;
    for (unsigned i = 0; i < elf.header.e_shnum; i++) {
        Elf64_Shdr section;
        if (!read_section(&elf, i, &section))
            return CUDA_ERROR_INVALID_IMAGE;
        const char *name = string_at(elf.names, elf.names_size, section.sh_name);
        if (!name)
            return CUDA_ERROR_INVALID_IMAGE;
        unsigned found;
        if (!strncmp(name, ".nv.info.", 9) && section.sh_type != SHT_NOBITS &&
            sim_image_find(image, name + 9, &found)) {
            if (!walk_info(&elf, &section, visit_kernel, &image->entries[found]))
                return CUDA_ERROR_INVALID_IMAGE;
        } else if (!strncmp(name, ".nv.shared.", 11) && sim_image_find(image, name + 11, &found)) {
            if (section.sh_size > 1u << 20)
                return CUDA_ERROR_INVALID_IMAGE;
            // What compilers write for 9.0 begins with what the system keeps of each block, which is nobody's static memory:
            // cuDNN asks for all of the opt-in limit behind it.
            int shared = (int)section.sh_size;
            image->entries[found].attributes[CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES] =
                shared < SYSTEM_SHARED ? shared : shared - SYSTEM_SHARED;
        } else if (section.sh_type == SHT_SYMTAB) {
            Elf64_Shdr strings;
            if (!read_section(&elf, section.sh_link, &strings) || strings.sh_type != SHT_STRTAB)
                return CUDA_ERROR_INVALID_IMAGE;
            result = add_globals(&elf, &section, &strings, image);
            if (result != CUDA_SUCCESS)
                return result;
            // The file-wide .nv.info speaks of kernels by symbol index.
            file_info_t info = {&elf, image, &section, &strings};
            for (unsigned k = 0; k < elf.header.e_shnum; k++) {
                Elf64_Shdr other;
                if (!read_section(&elf, k, &other) || other.sh_type == SHT_NOBITS)
                    continue;
                const char *other_name = string_at(elf.names, elf.names_size, other.sh_name);
                if (other_name && !strcmp(other_name, ".nv.info") && !walk_info(&elf, &other, visit_file, &info))
                    return CUDA_ERROR_INVALID_IMAGE;
            }
        }
    }
    for (unsigned i = 0; i < image->nentries; i++) // a hole in the parameter list
        for (unsigned k = 0; k < image->entries[i].nparams; k++)
            if (!image->entries[i].params[k].size)
                return CUDA_ERROR_INVALID_IMAGE;
    return CUDA_SUCCESS;
}
