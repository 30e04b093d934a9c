/* A CUDA driver whose device is this process' memory, for tests of the `cuda` device on machines without a GPU.
 *
 * It is strict and lazy where a real one may be: fresh memory is full of garbage, what is not mapped cannot be touched,
 * a mapping is undone as a whole or not at all, and work is done as late as can be: when somebody asks whether it is done,
 * the oldest streams first. So memory that is taken away, used again or zeroed at the wrong time shows. Kernels, by name:
 *   set    {u64 address, u32 value, u32 count}   writes words; an address outside of all memory is a fault
 *   hold   {}                                    its stream stands still until `release` runs on another one
 *   release {}
 *   peek   {u64 to, u64 from, u32 count}         copies words from anywhere, as kernels can
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef uint64_t u64;
typedef uint32_t u32;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_PTX = 218, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };
#define GRANULE (2ul << 20)
#define TOTAL (64ul << 20)
#define EXPORT __attribute__((visibility("default")))
#define CHECK(what) do { if (!(what)) { fprintf(stderr, "fake driver: misuse: %s\n", #what); abort(); } } while (0)

static pthread_mutex_t big = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
#define LOCKED __attribute__((cleanup(unlock))) int locked = (pthread_mutex_lock(&big), 0)
static void unlock(int *locked) { (void)locked; pthread_mutex_unlock(&big); }

/* FAKE_HANG: a file that holds the name of a call; while it does, that call does not come back. */
static void hang_in(const char *call) {
    char name[64] = "";
    const char *path = getenv("FAKE_HANG");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    if (fscanf(file, "%63s", name) != 1) name[0] = 0;
    fclose(file);
    if (!strcmp(name, call)) for (;;) pause();
}
#define MAY_HANG hang_in(__func__)

/* Memory: everything that operations may touch. */
struct piece { u64 at, bytes; int kind; u64 handle; struct piece *next; int is_accessible; };
enum { MAPPED = 1, PLAIN, PINNED, REGISTERED };
static struct piece *pieces;
static u64 physical_bytes, next_handle = 1, handle_bytes[4096];
static u32 fault;

static void add_piece(u64 at, u64 bytes, int kind, u64 handle) {
    struct piece *p = malloc(sizeof *p);
    *p = (struct piece){at, bytes, kind, handle, pieces, 0};
    pieces = p;
}
static int remove_piece(u64 at, u64 bytes, int kind, struct piece *out) {
    for (struct piece **p = &pieces; *p; p = &(*p)->next)
        if ((*p)->at == at && (*p)->kind == kind && (bytes == 0 || (*p)->bytes == bytes)) {
            struct piece *gone = *p;
            *out = *gone;
            *p = gone->next;
            free(gone);
            return 1;
        }
    return 0;
}
/* Whether all of it is memory; neighbours count as one. */
static int is_memory(u64 at, u64 bytes) {
    u64 end = at + bytes;
    while (at < end) {
        struct piece *p = pieces;
        while (p && !(p->at <= at && at < p->at + p->bytes)) p = p->next;
        if (!p) return 0;
        at = p->at + p->bytes;
    }
    return 1;
}

/* Work. */
enum { COPY, SET8, SET16, SET32, RECORD, WAIT, KERNEL };
struct op { int kind; u64 a, b, n, rows, pitch; u64 generation; struct event *event; u64 before[64]; char name[16]; unsigned char params[32]; struct op *next; };
struct event { u64 recorded, reached; };
struct stream { int blocking, alive; u64 issued, done; struct op *head, *tail; };
static struct stream streams[64] = {{.alive = 1}};
static int released;

static int run_kernel(struct op *op, int stream) {
    if (!strcmp(op->name, "hold")) return released > 0 ? (released--, 1) : 0;
    if (!strcmp(op->name, "release")) { (void)stream; released++; return 1; }
    if (!strcmp(op->name, "peek")) {
        u64 ends[2]; u32 words;
        memcpy(ends, op->params, 16); memcpy(&words, op->params + 16, 4);
        if (!is_memory(ends[0], words * 4ul) || !is_memory(ends[1], words * 4ul)) { fault = ILLEGAL_ADDRESS; return 1; }
        memmove((void *)ends[0], (void *)ends[1], words * 4ul);
        return 1;
    }
    u64 at; u32 value, count;
    memcpy(&at, op->params, 8); memcpy(&value, op->params + 8, 4); memcpy(&count, op->params + 12, 4);
    if (!is_memory(at, count * 4ul)) { fault = ILLEGAL_ADDRESS; return 1; }
    for (u32 i = 0; i < count; i++) ((u32 *)at)[i] = value;
    return 1;
}
static int run_op(struct op *op, int stream) {
    for (int s = 0; s < 64; s++) if (streams[s].done < op->before[s]) return 0;
    if (fault && op->kind != RECORD) return 1;
    u64 end = op->rows ? op->pitch * (op->rows - 1) : 0;
    switch (op->kind) {
    case COPY: CHECK(is_memory(op->a, op->n) && is_memory(op->b, op->n)); memmove((void *)op->a, (void *)op->b, op->n); return 1;
    case SET8: CHECK(is_memory(op->a, end + op->n)); for (u64 r = 0; r < (op->rows ? op->rows : 1); r++) memset((void *)(op->a + r * op->pitch), (int)op->b, op->n); return 1;
    case SET16: CHECK(is_memory(op->a, end + op->n * 2)); for (u64 r = 0; r < (op->rows ? op->rows : 1); r++) for (u64 i = 0; i < op->n; i++) ((uint16_t *)(op->a + r * op->pitch))[i] = (uint16_t)op->b; return 1;
    case SET32: CHECK(is_memory(op->a, end + op->n * 4)); for (u64 r = 0; r < (op->rows ? op->rows : 1); r++) for (u64 i = 0; i < op->n; i++) ((u32 *)(op->a + r * op->pitch))[i] = (u32)op->b; return 1;
    case RECORD: if (op->event->reached < op->generation) op->event->reached = op->generation; return 1;
    case WAIT: return op->event->reached >= op->generation;
    default: return run_kernel(op, stream);
    }
}
static void pump(void) {
    for (int again = 1; again;) {
        again = 0;
        for (int s = 0; s < 64; s++) while (streams[s].head && run_op(streams[s].head, s)) {
            struct op *op = streams[s].head;
            streams[s].head = op->next;
            if (!op->next) streams[s].tail = NULL;
            streams[s].done++;
            free(op);
            again = 1;
        }
    }
}
static u32 submit(u64 stream, struct op value) {
    if (fault) return fault;
    if (stream >= 64 || !streams[stream].alive) return INVALID_HANDLE;
    struct op *op = malloc(sizeof *op);
    *op = value;
    op->next = NULL;
    memset(op->before, 0, sizeof op->before);
    if (stream == 0) { for (int s = 1; s < 64; s++) if (streams[s].blocking) op->before[s] = streams[s].issued; }
    else if (streams[stream].blocking) op->before[0] = streams[0].issued;
    streams[stream].issued++;
    if (streams[stream].tail) streams[stream].tail->next = op; else streams[stream].head = op;
    streams[stream].tail = op;
    return OK;
}

/* The driver. */
/* FAKE_INIT: what the driver's start answers. FAKE_VERSION: for which CUDA it is. */
static u32 number_of(const char *variable, u32 otherwise) { const char *text = getenv(variable); return text ? (u32)atoi(text) : otherwise; }
EXPORT u32 cuInit(u32 flags) { return flags ? INVALID_VALUE : number_of("FAKE_INIT", OK); }
EXPORT u32 cuDriverGetVersion(int *v) { *v = (int)number_of("FAKE_VERSION", 12020); return OK; }
EXPORT u32 cuDeviceGetCount(int *n) { *n = 1; return OK; }
EXPORT u32 cuDeviceGet(int *d, int n) { *d = n; return n ? 101 : OK; }
EXPORT u32 cuDeviceGetName(char *name, int len, int d) { (void)d; snprintf(name, len, "fake GPU"); return OK; }
EXPORT u32 cuDeviceGetUuid_v2(unsigned char *uuid, int d) { (void)d; memset(uuid, 7, 16); return OK; }
EXPORT u32 cuDeviceTotalMem_v2(size_t *bytes, int d) { (void)d; *bytes = TOTAL; return OK; }
EXPORT u32 cuDeviceGetAttribute(int *value, int a, int d) { (void)d; if (a < 1 || a > 120) return INVALID_VALUE; *value = a == 75 ? 8 : a == 76 ? 6 : a; return OK; }
EXPORT u32 cuDevicePrimaryCtxRetain(u64 *c, int d) { (void)d; *c = 1; return OK; }
EXPORT u32 cuDevicePrimaryCtxRelease_v2(int d) { (void)d; return OK; }
EXPORT u32 cuDevicePrimaryCtxSetFlags_v2(int d, u32 f) { (void)d; (void)f; return OK; }
EXPORT u32 cuCtxCreate_v2(u64 *c, u32 f, int d) { (void)f; (void)d; *c = 2; return OK; }
EXPORT u32 cuCtxDestroy_v2(u64 c) { return c == 2 ? OK : INVALID_HANDLE; }
EXPORT u32 cuCtxSetCurrent(u64 c) { return c == 1 || c == 2 ? OK : 201; }
EXPORT u32 cuCtxSetLimit(u32 l, size_t v) { (void)l; (void)v; LOCKED; return fault; }
EXPORT u32 cuCtxSynchronize(void) { MAY_HANG; LOCKED; pump(); return fault; }
EXPORT u32 cuStreamCreateWithPriority(u64 *out, u32 flags, int p) {
    LOCKED; (void)p;
    for (u64 s = 1; s < 64; s++) if (!streams[s].alive && !streams[s].head) { streams[s].alive = 1; streams[s].blocking = !flags; *out = s; return OK; }
    return OUT_OF_MEMORY;
}
EXPORT u32 cuStreamDestroy_v2(u64 s) { LOCKED; CHECK(s && s < 64 && streams[s].alive); streams[s].alive = 0; return OK; }
EXPORT u32 cuStreamQuery(u64 s) { MAY_HANG; LOCKED; pump(); if (fault) return fault; if (s == 0) { for (int i = 0; i < 64; i++) if (streams[i].head && (i == 0 || streams[i].blocking)) return NOT_READY; return OK; } return streams[s].head ? NOT_READY : OK; }
EXPORT u32 cuStreamWaitEvent(u64 s, struct event *e, u32 f) { LOCKED; (void)f; return submit(s, (struct op){.kind = WAIT, .event = e, .generation = e->recorded}); }
EXPORT u32 cuEventCreate(struct event **e, u32 f) { (void)f; *e = calloc(1, sizeof **e); return OK; }
/* Kept: operations may still name it. */
EXPORT u32 cuEventDestroy_v2(struct event *e) { return e ? OK : INVALID_HANDLE; }
EXPORT u32 cuEventQuery(struct event *e) { MAY_HANG; LOCKED; pump(); if (fault) return fault; return e->reached < e->recorded ? NOT_READY : OK; }
EXPORT u32 cuEventRecord(struct event *e, u64 s) { LOCKED; e->recorded++; return submit(s, (struct op){.kind = RECORD, .event = e, .generation = e->recorded}); }
EXPORT u32 cuEventElapsedTime(float *ms, struct event *a, struct event *b) { LOCKED; *ms = 1.5f; return a->reached < a->recorded || b->reached < b->recorded ? NOT_READY : OK; }

EXPORT u32 cuMemAddressReserve(u64 *out, size_t bytes, size_t align, u64 hint, u64 flags) {
    (void)align; (void)flags;
    if (bytes % GRANULE) return INVALID_VALUE;
    void *at = mmap((void *)hint, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (hint ? MAP_FIXED_NOREPLACE : 0), -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    *out = (u64)at;
    return OK;
}
EXPORT u32 cuMemAddressFree(u64 at, size_t bytes) { return munmap((void *)at, bytes) ? INVALID_VALUE : OK; }
EXPORT u32 cuMemCreate(u64 *handle, size_t bytes, const void *prop, u64 flags) {
    LOCKED; (void)prop; (void)flags;
    if (bytes % GRANULE) return INVALID_VALUE;
    if (physical_bytes + bytes > TOTAL || next_handle >= 4096) return OUT_OF_MEMORY;
    physical_bytes += bytes;
    handle_bytes[next_handle] = bytes;
    *handle = next_handle++;
    return OK;
}
EXPORT u32 cuMemRelease(u64 handle) { LOCKED; CHECK(handle && handle < next_handle && handle_bytes[handle]); physical_bytes -= handle_bytes[handle]; handle_bytes[handle] = 0; return OK; }
EXPORT u32 cuMemMap(u64 at, size_t bytes, size_t offset, u64 handle, u64 flags) {
    LOCKED; (void)flags;
    CHECK(handle_bytes[handle] >= offset + bytes && offset % GRANULE == 0 && at % GRANULE == 0);
    for (struct piece *p = pieces; p; p = p->next) if (p->at < at + bytes && at < p->at + p->bytes) return INVALID_VALUE;
    add_piece(at, bytes, MAPPED, handle);
    return OK;
}
EXPORT u32 cuMemSetAccess(u64 at, size_t bytes, const void *desc, size_t count) {
    LOCKED; (void)desc; (void)count;
    CHECK(is_memory(at, bytes) && !mprotect((void *)at, bytes, PROT_READ | PROT_WRITE));
    for (struct piece *p = pieces; p; p = p->next)
        if (p->at == at && !p->is_accessible) { p->is_accessible = 1; memset((void *)at, 0xaa, bytes); }
    return OK;
}
EXPORT u32 cuMemUnmap(u64 at, size_t bytes) {
    MAY_HANG; LOCKED;
    struct piece gone;
    CHECK(remove_piece(at, bytes, MAPPED, &gone) && !mprotect((void *)at, bytes, PROT_NONE));
    return OK;
}
/* Enough for the check of the GPU; everything else is to be mapped. FAKE_BROKEN: the GPU fails that check. */
EXPORT u32 cuMemAlloc_v2(u64 *at, size_t bytes) {
    LOCKED;
    if (getenv("FAKE_BROKEN") && !strcmp(getenv("FAKE_BROKEN"), "crash")) abort();
    if (getenv("FAKE_BROKEN")) return 214;
    if (bytes > 65536) return OUT_OF_MEMORY;
    *at = (u64)malloc(bytes);
    add_piece(*at, bytes, PLAIN, 0);
    return OK;
}
EXPORT u32 cuMemFree_v2(u64 at) { LOCKED; struct piece gone; if (!remove_piece(at, 0, PLAIN, &gone)) return INVALID_VALUE; free((void *)at); return OK; }
EXPORT u32 cuMemHostAlloc(void **at, size_t bytes, u32 flags) { LOCKED; (void)flags; *at = malloc(bytes); add_piece((u64)*at, bytes, PINNED, 0); return OK; }
EXPORT u32 cuMemFreeHost(void *at) { LOCKED; struct piece gone; CHECK(remove_piece((u64)at, 0, PINNED, &gone)); free(at); return OK; }
EXPORT u32 cuMemHostRegister_v2(void *at, size_t bytes, u32 flags) { LOCKED; if (flags != 3 || (u64)at % 4096 || bytes % 4096) return INVALID_VALUE; add_piece((u64)at, bytes, REGISTERED, 0); return OK; }
EXPORT u32 cuMemHostUnregister(void *at) { LOCKED; struct piece gone; CHECK(remove_piece((u64)at, 0, REGISTERED, &gone)); return OK; }
EXPORT u32 cuMemHostGetDevicePointer_v2(u64 *out, void *at, u32 flags) { (void)flags; *out = (u64)at; return OK; }

static u32 copy(u64 dst, u64 src, size_t n, u64 s) { LOCKED; return submit(s, (struct op){.kind = COPY, .a = dst, .b = src, .n = n}); }
EXPORT u32 cuMemcpyHtoDAsync_v2(u64 dst, const void *src, size_t n, u64 s) { return copy(dst, (u64)src, n, s); }
EXPORT u32 cuMemcpyDtoHAsync_v2(void *dst, u64 src, size_t n, u64 s) { return copy((u64)dst, src, n, s); }
EXPORT u32 cuMemcpyDtoDAsync_v2(u64 dst, u64 src, size_t n, u64 s) { return copy(dst, src, n, s); }
EXPORT u32 cuMemcpyAsync(u64 dst, u64 src, size_t n, u64 s) { return copy(dst, src, n, s); }
struct box { size_t sx, sy, sz, slod; u32 skind; const void *shost; u64 sdev; void *sarray, *r0; size_t spitch, srows, dx, dy, dz, dlod; u32 dkind; void *dhost; u64 ddev; void *darray, *r1; size_t dpitch, drows, width, height, depth; };
EXPORT u32 cuMemcpy3DAsync_v2(const struct box *b, u64 s) {
    if (b->spitch < b->width || b->dpitch < b->width || (b->depth > 1 && (b->srows < b->height || b->drows < b->height))) return INVALID_VALUE;
    for (size_t z = 0; z < b->depth; z++) for (size_t y = 0; y < b->height; y++) {
        u32 status = copy(b->ddev + (z * b->drows + y) * b->dpitch, b->sdev + (z * b->srows + y) * b->spitch, b->width, s);
        if (status) return status;
    }
    return OK;
}
EXPORT u32 cuMemsetD8Async(u64 at, unsigned char v, size_t n, u64 s) { LOCKED; return submit(s, (struct op){.kind = SET8, .a = at, .b = v, .n = n}); }
EXPORT u32 cuMemsetD16Async(u64 at, uint16_t v, size_t n, u64 s) { LOCKED; return submit(s, (struct op){.kind = SET16, .a = at, .b = v, .n = n}); }
EXPORT u32 cuMemsetD32Async(u64 at, u32 v, size_t n, u64 s) { LOCKED; return submit(s, (struct op){.kind = SET32, .a = at, .b = v, .n = n}); }
EXPORT u32 cuMemsetD2D8Async(u64 at, size_t p, unsigned char v, size_t w, size_t h, u64 s) { LOCKED; return submit(s, (struct op){.kind = SET8, .a = at, .b = v, .n = w, .rows = h, .pitch = p}); }
EXPORT u32 cuMemsetD2D16Async(u64 at, size_t p, uint16_t v, size_t w, size_t h, u64 s) { LOCKED; return submit(s, (struct op){.kind = SET16, .a = at, .b = v, .n = w, .rows = h, .pitch = p}); }
EXPORT u32 cuMemsetD2D32Async(u64 at, size_t p, u32 v, size_t w, size_t h, u64 s) { LOCKED; return submit(s, (struct op){.kind = SET32, .a = at, .b = v, .n = w, .rows = h, .pitch = p}); }

/* A map is what was asked for: address, six numbers, last size, last stride, last edge of the box. */
EXPORT u32 cuTensorMapEncodeTiled(unsigned char *map, u32 type, u32 rank, void *at, const u64 *sizes, const u64 *strides, const u32 *box, const u32 *steps, u32 interleave, u32 swizzle, u32 promotion, u32 fill) {
    CHECK((u64)map % 64 == 0 && rank >= 1 && rank <= 5 && steps[rank - 1] == 1);
    u64 words[3] = {sizes[rank - 1], rank > 1 ? strides[rank - 2] : 0, box[rank - 1]};
    unsigned char numbers[6] = {type, rank, interleave, swizzle, promotion, fill};
    memset(map, 0, 128);
    memcpy(map, &at, 8); memcpy(map + 8, numbers, 6); memcpy(map + 16, words, 24);
    return OK;
}

/* Only textures of linear memory, type 2; the object is its address, which lies 8 bytes into the description. */
EXPORT u32 cuTexObjectCreate(u64 *out, const u32 *resource, const void *texture, const void *view) {
    if (!resource || !texture || view || resource[0] != 2) return INVALID_VALUE;
    memcpy(out, resource + 2, 8);
    return OK;
}
EXPORT u32 cuTexObjectDestroy(u64 object) { return object ? OK : INVALID_HANDLE; }

/* The module's text lists its kernels. */
EXPORT u32 cuModuleLoadDataEx(char **module, const char *image, u32 n, const u32 *options, void **values) {
    MAY_HANG;
    if (strstr(image, ".broken")) {
        for (u32 i = 0; i < n; i++) if (options[i] == 5) snprintf(values[i], 64, "line 3: it is broken");
        return INVALID_PTX;
    }
    *module = strdup(image);
    return OK;
}
EXPORT u32 cuModuleUnload(char *module) { free(module); return OK; }
EXPORT u32 cuModuleGetFunction(const char **f, const char *module, const char *name) {
    const char *names[] = {"set", "hold", "release", "peek"};
    for (int i = 0; i < 4; i++) if (!strcmp(name, names[i]) && strstr(module, name)) { *f = names[i]; return OK; }
    return NOT_FOUND;
}
EXPORT u32 cuModuleGetGlobal_v2(u64 *at, size_t *bytes, const char *module, const char *name) { (void)at; (void)bytes; (void)module; (void)name; return NOT_FOUND; }
EXPORT u32 cuFuncSetAttribute(const char *f, int a, int v) { (void)f; (void)a; return v < 0 ? INVALID_VALUE : OK; }
EXPORT u32 cuFuncSetCacheConfig(const char *f, u32 c) { (void)f; (void)c; return OK; }
static u32 launch(const char *f, u64 s, void **extra) {
    LOCKED;
    struct op op = {.kind = KERNEL};
    snprintf(op.name, sizeof op.name, "%s", f);
    if (extra) {
        CHECK(extra[0] == (void *)1 && extra[2] == (void *)2 && extra[4] == NULL);
        size_t bytes = *(size_t *)extra[3];
        if (bytes > sizeof op.params) return INVALID_VALUE;
        memcpy(op.params, extra[1], bytes);
    }
    return submit(s, op);
}
EXPORT u32 cuLaunchKernel(const char *f, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, u64 s, void **params, void **extra) {
    (void)shared; (void)params;
    MAY_HANG;
    return gx && gy && gz && bx && by && bz ? launch(f, s, extra) : INVALID_VALUE;
}
struct config { u32 size[7]; u64 stream; void *attributes; u32 count; };
EXPORT u32 cuLaunchKernelEx(const struct config *c, const char *f, void **params, void **extra) { (void)params; return launch(f, c->stream, extra); }
