// PTX text: kernel names, parameter layouts, launch bounds, static shared memory and global variables.
//
// A small tokenizer and a reader of directives; instructions are skipped, and looked at by sim_ptx_check.c. The text is hostile and bounded by `size`.
// What cannot be understood in a place that matters is an error with a line for the JIT's error log, never a guess.
// No state.
#include "sim.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *at, *end;
    const char *token;
    size_t length; // 0: end of text
    unsigned line;
    sim_image_t *image;
    char *log;
    size_t log_size;
    int target;
    CUresult result;
} ptx_t;

static void fail(ptx_t *p, CUresult result, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void fail(ptx_t *p, CUresult result, const char *format, ...) {
    if (p->result != CUDA_SUCCESS)
        return;
    p->result = result;
    p->length = 0;
    if (!p->log_size)
        return;
    int used = snprintf(p->log, p->log_size, "ptxas application ptx input, line %u; error   : ", p->line);
    if (used < 0 || (size_t)used >= p->log_size)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(p->log + used, p->log_size - (size_t)used, format, arguments);
    va_end(arguments);
}

static bool is_word(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '.' || c == '%'; }

static void next(ptx_t *p) {
    p->length = 0;
    if (p->result != CUDA_SUCCESS)
        return;
    for (;;) {
        while (p->at < p->end && isspace((unsigned char)*p->at))
            p->line += *p->at++ == '\n';
        if (p->end - p->at >= 2 && p->at[0] == '/' && p->at[1] == '/') {
            while (p->at < p->end && *p->at != '\n')
                p->at++;
        } else if (p->end - p->at >= 2 && p->at[0] == '/' && p->at[1] == '*') {
            p->at += 2;
            while (p->end - p->at >= 2 && !(p->at[0] == '*' && p->at[1] == '/'))
                p->line += *p->at++ == '\n';
            p->at = p->end - p->at >= 2 ? p->at + 2 : p->end;
        } else {
            break;
        }
    }
    if (p->at >= p->end)
        return;
    p->token = p->at;
    if (*p->at == '"') {
        p->at++;
        while (p->at < p->end && *p->at != '"')
            p->line += *p->at++ == '\n';
        if (p->at < p->end)
            p->at++;
    } else if (is_word(*p->at)) {
        const bool directive = *p->at == '.'; // two of them need no space between: .param.u64
        while (p->at < p->end && is_word(*p->at) && !(directive && p->at > p->token && *p->at == '.'))
            p->at++;
    } else {
        p->at++;
    }
    p->length = (size_t)(p->at - p->token);
}

static bool is(const ptx_t *p, const char *text) {
    return p->length == strlen(text) && !memcmp(p->token, text, p->length);
}

static bool expect(ptx_t *p, const char *text) {
    if (!is(p, text)) {
        fail(p, CUDA_ERROR_INVALID_PTX, "expected '%s' near '%.*s'", text, (int)(p->length < 40 ? p->length : 40),
             p->length ? p->token : "");
        return false;
    }
    next(p);
    return true;
}

static uint64_t number(ptx_t *p) {
    char text[32];
    if (!p->length || p->length >= sizeof text || !isdigit((unsigned char)*p->token)) {
        fail(p, CUDA_ERROR_INVALID_PTX, "expected a number near '%.*s'", (int)(p->length < 40 ? p->length : 40),
             p->length ? p->token : "");
        return 0;
    }
    memcpy(text, p->token, p->length);
    text[p->length] = 0;
    if (text[p->length - 1] == 'U')
        text[p->length - 1] = 0;
    char *stop;
    uint64_t value = strtoull(text, &stop, 0);
    if (*stop)
        fail(p, CUDA_ERROR_INVALID_PTX, "'%s' is not a whole number", text);
    next(p);
    return value;
}

// Bytes of one element of a fundamental type such as .u64; 0: not a type.
static uint32_t type_bytes(const ptx_t *p) {
    static const struct {
        const char *name;
        uint32_t bytes;
    } types[] = {{".b8", 1},     {".u8", 1},         {".s8", 1},     {".b16", 2}, {".u16", 2}, {".s16", 2},
                 {".f16", 2},    {".bf16", 2},       {".b32", 4},    {".u32", 4}, {".s32", 4}, {".f32", 4},
                 {".f16x2", 4},  {".b64", 8},        {".u64", 8},    {".s64", 8}, {".f64", 8}, {".b128", 16},
                 {".texref", 8}, {".samplerref", 8}, {".surfref", 8}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (is(p, types[i].name))
            return types[i].bytes;
    return 0;
}

typedef struct {
    uint64_t align, element, count;
    uint64_t size;
    const char *name;
    size_t name_length;
    bool texture, surface; // a reference, which is no memory
    bool managed;
} variable_t;

// [.align N] [.ptr …] [.v2|.v4] .type name [dims]…; stands after the state space, ends behind the last bracket.
static bool variable(ptx_t *p, variable_t *v) {
    *v = (variable_t){.count = 1};
    uint64_t vector = 1;
    bool pointee = false;
    for (; p->length; next(p)) {
        uint32_t bytes = type_bytes(p);
        if (bytes) {
            v->element = bytes;
            v->texture = is(p, ".texref");
            v->surface = is(p, ".surfref");
        } else if (is(p, ".align")) {
            next(p);
            uint64_t align = number(p);
            if (!align || (align & (align - 1)) || align > 4096)
                fail(p, CUDA_ERROR_INVALID_PTX, "alignment must be a power of two up to 4096");
            if (!pointee)
                v->align = align;
            if (!p->length)
                return false;
            p->at = p->token; // the loop steps on
        } else if (is(p, ".v2") || is(p, ".v4")) {
            vector = (uint64_t)(p->token[2] - '0');
        } else if (is(p, ".ptr")) {
            pointee = true; // what follows describes what the pointer points at
        } else if (is(p, ".attribute")) {
            next(p);
            next(p);
            if (!is(p, ".managed"))
                fail(p, CUDA_ERROR_NOT_SUPPORTED, "of the attributes of variables only .managed is simulated");
            v->managed = true;
            next(p);
        } else if (*p->token != '.') {
            break;
        }
    }
    if (!p->length || !v->element) {
        fail(p, CUDA_ERROR_INVALID_PTX, "a variable needs a type and a name");
        return false;
    }
    v->name = p->token;
    v->name_length = p->length;
    next(p);
    bool open_ended = false;
    while (is(p, "[")) {
        next(p);
        uint64_t dimension = 0;
        if (is(p, "]"))
            open_ended = true;
        else
            dimension = number(p);
        if (!expect(p, "]"))
            return false;
        if (__builtin_mul_overflow(v->count, open_ended ? 0 : dimension, &v->count))
            fail(p, CUDA_ERROR_INVALID_PTX, "array is too large");
    }
    v->element *= vector;
    if (!v->align)
        v->align = v->element;
    if (__builtin_mul_overflow(v->element, v->count, &v->size) || v->size > 1ull << 32)
        fail(p, CUDA_ERROR_INVALID_PTX, "array is too large");
    return p->result == CUDA_SUCCESS;
}

static void parameters(ptx_t *p, sim_entry_t *entry) {
    uint64_t offset = 0;
    while (p->length && !is(p, ")")) {
        variable_t v;
        if (!expect(p, ".param") || !variable(p, &v))
            return;
        offset = (offset + v.align - 1) & ~(v.align - 1);
        if (!v.size || v.size > SIM_MAX_PARAM_BYTES || offset > SIM_MAX_PARAM_BYTES - v.size ||
            entry->nparams == SIM_MAX_PARAMS) {
            fail(p, CUDA_ERROR_INVALID_PTX, "parameters of '%s' exceed %u bytes", entry->name, SIM_MAX_PARAM_BYTES);
            return;
        }
        sim_param_t *grown = realloc(entry->params, (entry->nparams + 1) * sizeof *grown);
        if (!grown) {
            fail(p, CUDA_ERROR_OUT_OF_MEMORY, "out of host memory");
            return;
        }
        entry->params = grown;
        entry->params[entry->nparams++] = (sim_param_t){(uint32_t)offset, (uint32_t)v.size};
        offset += v.size;
        entry->param_bytes = (uint32_t)offset;
        if (is(p, ","))
            next(p);
        else if (!is(p, ")"))
            expect(p, ",");
    }
    expect(p, ")");
}

// .maxntid and .reqntid: up to three numbers whose product bounds the block.
static void launch_bounds(ptx_t *p, sim_entry_t *entry) {
    uint64_t threads = 1;
    next(p);
    for (int i = 0; i < 3 && p->result == CUDA_SUCCESS; i++) {
        uint64_t n = number(p);
        if (!n || n > 1024 || (threads *= n) > 1024) {
            fail(p, CUDA_ERROR_INVALID_PTX, "launch bounds exceed 1024 threads");
            return;
        }
        if (!is(p, ","))
            break;
        next(p);
    }
    entry->attributes[CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = (int)threads;
}

// Behind '{' of a function body to behind its '}'; with an entry, static shared variables are added up.
static void body(ptx_t *p, sim_entry_t *entry) {
    uint64_t shared = 0;
    unsigned depth = 1;
    while (p->length && depth) {
        if (is(p, "{"))
            depth++;
        else if (is(p, "}"))
            depth--;
        if (entry && is(p, ".shared")) {
            variable_t v;
            next(p);
            if (!variable(p, &v))
                return;
            shared = ((shared + v.align - 1) & ~(v.align - 1)) + v.size;
            if (shared > 1u << 20)
                fail(p, CUDA_ERROR_INVALID_PTX, "'%s' uses too much shared data", entry->name);
            continue;
        }
        next(p);
    }
    if (depth)
        fail(p, CUDA_ERROR_INVALID_PTX, "the text ends inside a function");
    if (entry)
        entry->attributes[CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES] = (int)shared;
}

static void function(ptx_t *p, bool kernel) {
    next(p);
    if (!kernel && is(p, "(")) { // return value
        while (p->length && !is(p, ")"))
            next(p);
        next(p);
    }
    if (!p->length || !is_word(*p->token)) {
        fail(p, CUDA_ERROR_INVALID_PTX, "expected the name of a function");
        return;
    }
    const char *name = p->token;
    size_t length = p->length;
    next(p);
    sim_entry_t *entry = kernel ? sim_image_add_entry(p->image, name, length) : NULL;
    if (kernel && !entry) {
        fail(p, CUDA_ERROR_OUT_OF_MEMORY, "too many kernels");
        return;
    }
    if (entry)
        entry->attributes[CU_FUNC_ATTRIBUTE_PTX_VERSION] = p->target;
    if (is(p, "(")) {
        next(p);
        if (kernel) {
            parameters(p, entry);
        } else {
            while (p->length && !is(p, ")"))
                next(p);
            expect(p, ")");
        }
    }
    while (p->length && !is(p, "{") && !is(p, ";")) {
        if (entry && (is(p, ".maxntid") || is(p, ".reqntid")))
            launch_bounds(p, entry);
        else
            next(p);
    }
    if (is(p, ";") && !kernel)
        next(p); // a declaration
    else if (expect(p, "{"))
        body(p, entry);
}

static void put(ptx_t *p, sim_global_t *global, uint64_t *offset, uint64_t value, uint64_t bytes) {
    if (bytes > global->size - *offset) {
        fail(p, CUDA_ERROR_INVALID_PTX, "too many initial values for '%s'", global->name);
        return;
    }
    memcpy(global->init + *offset, &value, bytes);
    *offset += bytes;
}

// Initial values: whole numbers, 0f… and 0d… floats, nested braces. Addresses of other variables are refused, not
// guessed.
static void initial_values(ptx_t *p, sim_global_t *global, uint64_t element) {
    uint64_t offset = 0, depth = 0;
    if (element > 8) {
        fail(p, CUDA_ERROR_NOT_SUPPORTED, "initial values of vector variables are not simulated");
        return;
    }
    do {
        if (is(p, "{")) {
            depth++;
            next(p);
        } else if (is(p, "}")) {
            if (depth)
                depth--;
            next(p);
        } else if (is(p, ",")) {
            next(p);
        } else {
            bool negative = is(p, "-");
            if (negative)
                next(p);
            if (!p->length || !isdigit((unsigned char)*p->token)) {
                fail(p, CUDA_ERROR_NOT_SUPPORTED, "the initial value '%.*s' of '%s' is not simulated",
                     (int)(p->length < 40 ? p->length : 40), p->length ? p->token : "", global->name);
                return;
            }
            bool f32 = p->length == 10 && p->token[0] == '0' && (p->token[1] | 32) == 'f';
            bool f64 = p->length == 18 && p->token[0] == '0' && (p->token[1] | 32) == 'd';
            uint64_t value;
            if (f32 || f64) {
                char digits[24];
                memcpy(digits, p->token + 2, p->length - 2);
                digits[p->length - 2] = 0;
                value = strtoull(digits, NULL, 16);
                if ((f32 ? 4u : 8u) != element)
                    fail(p, CUDA_ERROR_INVALID_PTX, "'%s' has an initial value of another size", global->name);
                next(p);
            } else {
                value = number(p);
                if (negative)
                    value = (uint64_t)-(int64_t)value;
            }
            if (p->result == CUDA_SUCCESS)
                put(p, global, &offset, value, element);
        }
    } while (p->length && (depth || is(p, ",")) && p->result == CUDA_SUCCESS);
}

static void global_variable(ptx_t *p, bool external) {
    variable_t v;
    next(p);
    if (!variable(p, &v))
        return;
    if (!external && (v.texture || v.surface)) {
        if (!sim_image_add_reference(p->image, v.name, v.name_length, v.surface))
            fail(p, CUDA_ERROR_OUT_OF_MEMORY, "too many references");
        if (is(p, "=") || v.count != 1)
            fail(p, CUDA_ERROR_NOT_SUPPORTED, "'%.*s': references with initial values or in arrays are not simulated",
                 (int)v.name_length, v.name);
    } else if (!external) {
        if (!v.size || v.size > 1ull << 30) {
            fail(p, CUDA_ERROR_INVALID_PTX, "variable '%.*s' has no size or more than 1 GiB", (int)v.name_length,
                 v.name);
            return;
        }
        sim_global_t *global = sim_image_add_global(p->image, v.name, v.name_length);
        if (!global) {
            fail(p, CUDA_ERROR_OUT_OF_MEMORY, "too many variables");
            return;
        }
        global->size = v.size;
        global->managed = v.managed;
        if (is(p, "=")) {
            next(p);
            global->init = calloc(1, v.size);
            if (!global->init)
                fail(p, CUDA_ERROR_OUT_OF_MEMORY, "out of host memory");
            else
                initial_values(p, global, v.element);
        }
    }
    expect(p, ";");
}

static void header(ptx_t *p) {
    next(p);
    if (!expect(p, ".version"))
        return;
    unsigned major = 0, minor = 0;
    char version[16] = "";
    if (p->length && p->length < sizeof version)
        memcpy(version, p->token, p->length);
    if (sscanf(version, "%2u.%2u", &major, &minor) != 2) {
        fail(p, CUDA_ERROR_INVALID_PTX, ".version needs a number");
        return;
    }
    static const unsigned latest[] = {[1] = 5, [2] = 3, [3] = 2, [4] = 3, [5] = 0, [6] = 5, [7] = 8, [8] = 8, [9] = 0};
    if (!major || major >= sizeof latest / sizeof *latest || minor > latest[major]) {
        fail(p, CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "there is no PTX %s up to 9.0", version);
        return;
    }
    next(p);
    if (!expect(p, ".target"))
        return;
    if (p->length < 5 || p->length > 8 || memcmp(p->token, "sm_", 3)) {
        fail(p, CUDA_ERROR_INVALID_PTX, ".target needs an architecture");
        return;
    }
    p->target = 0;
    size_t digits = 3;
    for (; digits < p->length && isdigit((unsigned char)p->token[digits]); digits++)
        p->target = p->target * 10 + p->token[digits] - '0';
    bool exact = digits < p->length; // sm_100a, sm_120f: for that architecture (family) only
    if (p->target > 90 || (exact && p->target != 90))
        fail(p, CUDA_ERROR_INVALID_PTX, "architecture sm_%d is not that of the device, sm_90", p->target);
    next(p);
    while (is(p, ",")) { // texmode_independent, debug …
        next(p);
        next(p);
    }
}

int sim_ptx_target(const char *text, uint64_t size) {
    ptx_t p = {.at = text, .end = text + size, .line = 1};
    next(&p);
    return is(&p, ".version") ? 0 : -1;
}

CUresult sim_ptx_parse(const char *text, uint64_t size, sim_image_t *image, char *log, size_t log_size) {
    ptx_t p = {.at = text, .end = text + size, .line = 1, .image = image, .log = log, .log_size = log_size};
    header(&p);
    bool external = false;
    while (p.length && p.result == CUDA_SUCCESS) {
        if (is(&p, ".entry")) {
            function(&p, true);
        } else if (is(&p, ".func")) {
            function(&p, false);
        } else if (is(&p, ".global") || is(&p, ".const")) {
            global_variable(&p, external);
        } else if (is(&p,
                      ".shared")) { // module-level: belongs to the kernels that use it; nvcc demotes those with a size
            variable_t v;
            next(&p);
            if (variable(&p, &v))
                expect(&p, ";");
        } else if (is(&p, ".extern")) {
            external = true;
            next(&p);
            continue;
        } else if (is(&p, ".visible") || is(&p, ".weak") || is(&p, ".common")) {
            next(&p);
            continue;
        } else if (is(&p, ".section")) { // debug data up to the closing brace
            while (p.length && !is(&p, "{"))
                next(&p);
            next(&p);
            body(&p, NULL);
        } else if (is(&p, "}")) {
            fail(&p, CUDA_ERROR_INVALID_PTX, "a '}' too many");
        } else {
            next(&p); // .address_size, .file, .pragma, .alias, and their operands
        }
        external = false;
    }
    return p.result == CUDA_SUCCESS ? sim_ptx_check(text, size, log, log_size) : p.result;
}
