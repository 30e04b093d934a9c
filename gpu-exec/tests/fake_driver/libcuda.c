/* A CUDA driver whose devices are this process' memory, for tests of the `cuda` device on machines without a GPU.
 *
 * It is strict and lazy where a real one may be: fresh memory is full of garbage, what is not mapped cannot be touched, nor
 * what is mapped for another device, a mapping is undone as a whole or not at all, streams and events are used with their own
 * context alone, and work is done as late as can be: when somebody asks whether it is done, the oldest streams first. So
 * memory that is taken away, used again or zeroed at the wrong time shows. Kernels, by name:
 *   set    {u64 address, u32 value, u32 count}   writes words; an address outside of all memory is a fault
 *   hold   {}                                    its stream stands still until `release` runs on another one
 *   release {}
 *   peek   {u64 to, u64 from, u32 count}         copies words from anywhere, as kernels can
 *   farcall_check                                as set; does nothing where FAKE_BROKEN is "kernels"
 * FAKE_DEVICES: how many there are, 1 if it is not set; each has 64 MiB.
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
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_PTX = 218, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700 };
#define GRANULE (2ul << 20)
#define TOTAL (64ul << 20)
#define EXPORT __attribute__((visibility("default")))
#define CHECK(what) do { if (!(what)) { fprintf(stderr, "fake driver: misuse: %s\n", #what); abort(); } } while (0)

static pthread_mutex_t big = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
#define LOCKED __attribute__((cleanup(unlock))) int locked = (pthread_mutex_lock(&big), 0)
static void unlock(int *locked) { (void)locked; pthread_mutex_unlock(&big); }
static u32 number_of(const char *variable, u32 otherwise) { const char *text = getenv(variable); return text ? (u32)atoi(text) : otherwise; }

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

/* Devices and contexts. Context 1 + d is the primary one of device d, those from 17 on are made by the program. */
enum { DEVICES = 16, CONTEXTS = 24, STREAMS = 128 };
struct context { int alive, device; u32 fault; };
static struct context contexts[CONTEXTS];
static __thread u64 current;
/* FAKE_LOST: a file that holds the number of a device and a status, with which every call for that device is answered. */
static u32 lost(int device) {
    int which = -1;
    u32 status = OK;
    const char *path = getenv("FAKE_LOST");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return OK;
    if (fscanf(file, "%d %u", &which, &status) != 2) which = -1;
    fclose(file);
    return which == device ? status : OK;
}
static u32 fault_of(u64 context) { u32 status = lost(contexts[context].device); return status ? status : contexts[context].fault; }
/* FAKE_GONE: a file; a driver that is started while it is there does not find its first device: the next one has its number, and so on. */
static int is_gone;
static int device_count(void) { return (int)number_of("FAKE_DEVICES", 1) - is_gone; }

/* Memory: everything that operations may touch. `access`: what each device may do there; 1 to read, 2 to write. */
struct piece { u64 at, bytes; int kind; u64 handle; struct piece *next; int is_filled; unsigned char access[DEVICES]; };
enum { READ = 1, WRITE = 2, BOTH = 3 };
enum { MAPPED = 1, PLAIN, PINNED, REGISTERED };
static struct piece *pieces;
static u64 physical_bytes[DEVICES], next_handle = 1, handle_bytes[4096];
static int handle_device[4096];

static struct piece *add_piece(u64 at, u64 bytes, int kind, u64 handle) {
    struct piece *p = calloc(1, sizeof *p);
    *p = (struct piece){.at = at, .bytes = bytes, .kind = kind, .handle = handle, .next = pieces};
    if (kind == PINNED || kind == REGISTERED) memset(p->access, BOTH, sizeof p->access);
    return pieces = p;
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
/* Whether a device may do this with all of it; neighbours count as one. */
static int is_memory(int device, u64 at, u64 bytes, int access) {
    u64 end = at + bytes;
    while (at < end) {
        struct piece *p = pieces;
        while (p && !(p->at <= at && at < p->at + p->bytes)) p = p->next;
        if (!p || (p->access[device] & access) != access) return 0;
        at = p->at + p->bytes;
    }
    return 1;
}

static int is_broken(void) { return getenv("FAKE_BROKEN") && number_of("FAKE_BROKEN_DEVICE", (u32)contexts[current].device) == (u32)contexts[current].device; }
/* Work. Stream c is the legacy stream of context c; others begin behind the contexts. */
enum { COPY, SET8, SET16, SET32, RECORD, WAIT, KERNEL };
struct op { int kind; u64 a, b, n, rows, pitch; int to, from; u64 generation; struct event *event; u64 before[STREAMS]; char name[16]; unsigned char params[32]; struct op *next; };
struct event { u64 recorded, reached, context; };
struct stream { int blocking, alive; u64 context, issued, done; struct op *head, *tail; };
static struct stream streams[STREAMS];
static int released;

static int run_kernel(struct op *op, struct context *context) {
    int device = context->device;
    if (!strcmp(op->name, "hold")) return released > 0 ? (released--, 1) : 0;
    if (!strcmp(op->name, "release")) { released++; return 1; }
    if (!strcmp(op->name, "peek")) {
        u64 ends[2]; u32 words;
        memcpy(ends, op->params, 16); memcpy(&words, op->params + 16, 4);
        if (!is_memory(device, ends[0], words * 4ul, WRITE) || !is_memory(device, ends[1], words * 4ul, READ)) { context->fault = ILLEGAL_ADDRESS; return 1; }
        memmove((void *)ends[0], (void *)ends[1], words * 4ul);
        return 1;
    }
    if (!strcmp(op->name, "farcall_check") && is_broken()) return 1;
    u64 at; u32 value, count;
    memcpy(&at, op->params, 8); memcpy(&value, op->params + 8, 4); memcpy(&count, op->params + 12, 4);
    if (!is_memory(device, at, count * 4ul, WRITE)) { context->fault = ILLEGAL_ADDRESS; return 1; }
    for (u32 i = 0; i < count; i++) ((u32 *)at)[i] = value;
    return 1;
}
static int run_op(struct op *op, int stream) {
    for (int s = 0; s < STREAMS; s++) if (streams[s].done < op->before[s]) return 0;
    struct context *context = &contexts[streams[stream].context];
    if (context->fault && op->kind != RECORD) return 1;
    u64 end = op->rows ? op->pitch * (op->rows - 1) : 0, rows = op->rows ? op->rows : 1;
    u64 width = op->kind == SET16 ? 2 : op->kind == SET32 ? 4 : 1;
    switch (op->kind) {
    case COPY: CHECK(is_memory(op->to, op->a, op->n, WRITE) && is_memory(op->from, op->b, op->n, READ)); memmove((void *)op->a, (void *)op->b, op->n); return 1;
    case SET8: case SET16: case SET32:
        CHECK(is_memory(context->device, op->a, end + op->n * width, WRITE));
        for (u64 r = 0; r < rows; r++) for (u64 i = 0; i < op->n; i++) memcpy((void *)(op->a + r * op->pitch + i * width), &op->b, width);
        return 1;
    case RECORD: if (op->event->reached < op->generation) op->event->reached = op->generation; return 1;
    case WAIT: return op->event->reached >= op->generation;
    default: return run_kernel(op, context);
    }
}
static void pump(void) {
    for (int again = 1; again;) {
        again = 0;
        for (int s = 0; s < STREAMS; s++) while (streams[s].head && run_op(streams[s].head, s)) {
            struct op *op = streams[s].head;
            streams[s].head = op->next;
            if (!op->next) streams[s].tail = NULL;
            streams[s].done++;
            free(op);
            again = 1;
        }
    }
}
/* The stream that a handle names in the current context. */
static u64 stream_of(u64 stream) {
    CHECK(current && contexts[current].alive);
    if (stream == 0) return current;
    CHECK(stream >= CONTEXTS && stream < STREAMS && streams[stream].alive && streams[stream].context == current);
    return stream;
}
static u32 submit(u64 stream, struct op value) {
    stream = stream_of(stream);
    u32 fault = fault_of(current);
    if (fault) return fault;
    struct op *op = malloc(sizeof *op);
    *op = value;
    op->next = NULL;
    memset(op->before, 0, sizeof op->before);
    if (stream == current) { for (int s = CONTEXTS; s < STREAMS; s++) if (streams[s].blocking && streams[s].context == current) op->before[s] = streams[s].issued; }
    else if (streams[stream].blocking) op->before[current] = streams[current].issued;
    streams[stream].issued++;
    if (streams[stream].tail) streams[stream].tail->next = op; else streams[stream].head = op;
    streams[stream].tail = op;
    return OK;
}

/* The driver. */
static char device_name[64];
static u32 open_context(u64 context, int device) {
    if (device < 0 || device >= device_count()) return INVALID_DEVICE;
    if (lost(device)) return lost(device);
    if (!contexts[context].alive) contexts[context] = (struct context){.alive = 1, .device = device};
    streams[context].context = context;
    return OK;
}
/* FAKE_INIT: what the driver's start answers. FAKE_INIT_MS: how long it takes. The name says what MPS gave it then. FAKE_VERSION: for which CUDA it is. */
EXPORT u32 cuInit(u32 flags) {
    usleep(number_of("FAKE_INIT_MS", 0) * 1000);
    is_gone = getenv("FAKE_GONE") && !access(getenv("FAKE_GONE"), F_OK);
    const char *percentage = getenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE");
    snprintf(device_name, sizeof device_name, percentage ? "fake GPU, %s%%" : "fake GPU", percentage);
    return flags ? INVALID_VALUE : number_of("FAKE_INIT", OK);
}
EXPORT u32 cuDriverGetVersion(int *v) { *v = (int)number_of("FAKE_VERSION", 12020); return OK; }
EXPORT u32 cuDeviceGetCount(int *n) { *n = device_count(); return OK; }
EXPORT u32 cuDeviceGet(int *d, int n) { *d = n; return n < 0 || n >= device_count() ? INVALID_DEVICE : OK; }
EXPORT u32 cuDeviceGetName(char *name, int len, int d) { (void)d; snprintf(name, len, "%s", device_name); return OK; }
EXPORT u32 cuDeviceGetUuid_v2(unsigned char *uuid, int d) { memset(uuid, 7 + d + is_gone, 16); return OK; }
EXPORT u32 cuDeviceTotalMem_v2(size_t *bytes, int d) { (void)d; *bytes = TOTAL; return OK; }
EXPORT u32 cuDeviceGetAttribute(int *value, int a, int d) { (void)d; if (a < 1 || a > 120) return INVALID_VALUE; *value = a == 75 ? 8 : a == 76 ? 6 : a; return OK; }
EXPORT u32 cuDevicePrimaryCtxRetain(u64 *c, int d) { LOCKED; *c = 1 + (u64)d; return open_context(*c, d); }
EXPORT u32 cuDevicePrimaryCtxRelease_v2(int d) { LOCKED; CHECK(contexts[1 + d].alive); return OK; }
EXPORT u32 cuDevicePrimaryCtxSetFlags_v2(int d, u32 f) { (void)d; (void)f; return OK; }
EXPORT u32 cuCtxCreate_v2(u64 *c, u32 f, int d) {
    LOCKED; (void)f;
    for (u64 made = 1 + DEVICES; made < CONTEXTS; made++) if (!contexts[made].alive && !streams[made].head) { u32 status = open_context(made, d); if (!status) *c = current = made; return status; }
    return OUT_OF_MEMORY;
}
EXPORT u32 cuCtxDestroy_v2(u64 c) { LOCKED; if (c <= DEVICES || c >= CONTEXTS || !contexts[c].alive) return INVALID_HANDLE; contexts[c].alive = 0; return OK; }
EXPORT u32 cuCtxSetCurrent(u64 c) { LOCKED; if (!c || c >= CONTEXTS || !contexts[c].alive) return INVALID_CONTEXT; current = c; return OK; }
EXPORT u32 cuCtxSetLimit(u32 l, size_t v) { (void)l; (void)v; LOCKED; return fault_of(current); }
EXPORT u32 cuCtxSynchronize(void) { MAY_HANG; LOCKED; pump(); return fault_of(current); }
EXPORT u32 cuStreamCreateWithPriority(u64 *out, u32 flags, int p) {
    LOCKED; (void)p;
    for (u64 s = CONTEXTS; s < STREAMS; s++) if (!streams[s].alive && !streams[s].head) { streams[s].alive = 1; streams[s].blocking = !flags; streams[s].context = current; *out = s; return OK; }
    return OUT_OF_MEMORY;
}
EXPORT u32 cuStreamDestroy_v2(u64 s) { LOCKED; CHECK(s && stream_of(s)); streams[s].alive = 0; return OK; }
EXPORT u32 cuStreamQuery(u64 s) {
    MAY_HANG; LOCKED;
    s = stream_of(s);
    pump();
    u32 fault = fault_of(current);
    if (fault) return fault;
    for (u64 i = CONTEXTS; i < STREAMS; i++) if (s == current && streams[i].head && streams[i].blocking && streams[i].context == current) return NOT_READY;
    return streams[s].head ? NOT_READY : OK;
}
EXPORT u32 cuStreamWaitEvent(u64 s, struct event *e, u32 f) { LOCKED; (void)f; return submit(s, (struct op){.kind = WAIT, .event = e, .generation = e->recorded}); }
EXPORT u32 cuEventCreate(struct event **e, u32 f) { LOCKED; (void)f; *e = calloc(1, sizeof **e); (*e)->context = current; return OK; }
/* Kept: operations may still name it. */
EXPORT u32 cuEventDestroy_v2(struct event *e) { return e ? OK : INVALID_HANDLE; }
EXPORT u32 cuEventQuery(struct event *e) { MAY_HANG; LOCKED; pump(); u32 fault = fault_of(e->context); if (fault) return fault; return e->reached < e->recorded ? NOT_READY : OK; }
EXPORT u32 cuEventRecord(struct event *e, u64 s) { LOCKED; if (e->context != current) return INVALID_HANDLE; e->recorded++; return submit(s, (struct op){.kind = RECORD, .event = e, .generation = e->recorded}); }
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
    LOCKED; (void)flags;
    int device = ((const int *)prop)[3];
    if (bytes % GRANULE || device < 0 || device >= device_count()) return INVALID_VALUE;
    if (physical_bytes[device] + bytes > TOTAL || next_handle >= 4096) return OUT_OF_MEMORY;
    physical_bytes[device] += bytes;
    handle_bytes[next_handle] = bytes;
    handle_device[next_handle] = device;
    *handle = next_handle++;
    return OK;
}
EXPORT u32 cuMemRelease(u64 handle) { LOCKED; CHECK(handle && handle < next_handle && handle_bytes[handle]); physical_bytes[handle_device[handle]] -= handle_bytes[handle]; handle_bytes[handle] = 0; return OK; }
EXPORT u32 cuMemMap(u64 at, size_t bytes, size_t offset, u64 handle, u64 flags) {
    LOCKED; (void)flags;
    CHECK(handle_bytes[handle] >= offset + bytes && offset % GRANULE == 0 && at % GRANULE == 0);
    for (struct piece *p = pieces; p; p = p->next) if (p->at < at + bytes && at < p->at + p->bytes) return INVALID_VALUE;
    add_piece(at, bytes, MAPPED, handle);
    return OK;
}
struct access { int kind, device; u32 flags; };
EXPORT u32 cuMemSetAccess(u64 at, size_t bytes, const struct access *wanted, size_t count) {
    LOCKED;
    CHECK(count == 1 && wanted->kind == 1 && wanted->device >= 0 && wanted->device < device_count());
    for (struct piece *p = pieces; p; p = p->next) if (p->at == at && p->kind == MAPPED && p->bytes == bytes) {
        CHECK(!mprotect((void *)at, bytes, PROT_READ | PROT_WRITE));
        p->access[wanted->device] = (unsigned char)wanted->flags;
        if (wanted->flags && !p->is_filled) { p->is_filled = 1; memset((void *)at, 0xaa, bytes); }
        return OK;
    }
    return INVALID_VALUE;
}
EXPORT u32 cuMemUnmap(u64 at, size_t bytes) {
    MAY_HANG; LOCKED;
    struct piece gone;
    CHECK(remove_piece(at, bytes, MAPPED, &gone) && !mprotect((void *)at, bytes, PROT_NONE));
    return OK;
}
/* Enough for the check of the GPU; everything else is to be mapped. FAKE_BROKEN: GPUs fail that check, all or the one of
 * FAKE_BROKEN_DEVICE. */
EXPORT u32 cuMemAlloc_v2(u64 *at, size_t bytes) {
    LOCKED;
    if (is_broken() && !strcmp(getenv("FAKE_BROKEN"), "crash")) abort();
    if (is_broken() && strcmp(getenv("FAKE_BROKEN"), "kernels")) return 214;
    if (bytes > 65536) return OUT_OF_MEMORY;
    *at = (u64)malloc(bytes);
    add_piece(*at, bytes, PLAIN, 0)->access[contexts[current].device] = BOTH;
    return OK;
}
EXPORT u32 cuMemFree_v2(u64 at) { LOCKED; struct piece gone; if (!remove_piece(at, 0, PLAIN, &gone)) return INVALID_VALUE; free((void *)at); return OK; }
EXPORT u32 cuMemHostAlloc(void **at, size_t bytes, u32 flags) { LOCKED; if (flags != 1) return INVALID_VALUE; *at = malloc(bytes); add_piece((u64)*at, bytes, PINNED, 0); return OK; }
EXPORT u32 cuMemFreeHost(void *at) { LOCKED; struct piece gone; CHECK(remove_piece((u64)at, 0, PINNED, &gone)); free(at); return OK; }
EXPORT u32 cuMemHostRegister_v2(void *at, size_t bytes, u32 flags) { LOCKED; if (flags != 3 || (u64)at % 4096 || bytes % 4096) return INVALID_VALUE; add_piece((u64)at, bytes, REGISTERED, 0); return OK; }
EXPORT u32 cuMemHostUnregister(void *at) { LOCKED; struct piece gone; CHECK(remove_piece((u64)at, 0, REGISTERED, &gone)); return OK; }
EXPORT u32 cuMemHostGetDevicePointer_v2(u64 *out, void *at, u32 flags) { (void)flags; *out = (u64)at; return OK; }

static u32 copy(u64 dst, u64 src, size_t n, u64 s) {
    LOCKED;
    int device = contexts[current].device;
    return submit(s, (struct op){.kind = COPY, .a = dst, .b = src, .n = n, .to = device, .from = device});
}
EXPORT u32 cuMemcpyHtoDAsync_v2(u64 dst, const void *src, size_t n, u64 s) { return copy(dst, (u64)src, n, s); }
EXPORT u32 cuMemcpyDtoHAsync_v2(void *dst, u64 src, size_t n, u64 s) { return copy((u64)dst, src, n, s); }
EXPORT u32 cuMemcpyDtoDAsync_v2(u64 dst, u64 src, size_t n, u64 s) { return copy(dst, src, n, s); }
EXPORT u32 cuMemcpyAsync(u64 dst, u64 src, size_t n, u64 s) { return copy(dst, src, n, s); }
static u32 copy_peer(u64 dst, u64 to, u64 src, u64 from, size_t n, u64 s) {
    LOCKED;
    CHECK(to < CONTEXTS && from < CONTEXTS && contexts[to].alive && contexts[from].alive);
    return submit(s, (struct op){.kind = COPY, .a = dst, .b = src, .n = n, .to = contexts[to].device, .from = contexts[from].device});
}
EXPORT u32 cuMemcpyPeerAsync(u64 dst, u64 to, u64 src, u64 from, size_t n, u64 s) { return copy_peer(dst, to, src, from, n, s); }
struct box { size_t sx, sy, sz, slod; u32 skind; const void *shost; u64 sdev; void *sarray; u64 from; size_t spitch, srows, dx, dy, dz, dlod; u32 dkind; void *dhost; u64 ddev; void *darray; u64 to; size_t dpitch, drows, width, height, depth; };
static u32 copy_box(const struct box *b, u64 to, u64 from, u64 s) {
    if (b->spitch < b->width || b->dpitch < b->width || (b->depth > 1 && (b->srows < b->height || b->drows < b->height))) return INVALID_VALUE;
    for (size_t z = 0; z < b->depth; z++) for (size_t y = 0; y < b->height; y++) {
        u32 status = copy_peer(b->ddev + (z * b->drows + y) * b->dpitch, to, b->sdev + (z * b->srows + y) * b->spitch, from, b->width, s);
        if (status) return status;
    }
    return OK;
}
EXPORT u32 cuMemcpy3DAsync_v2(const struct box *b, u64 s) { return b->to || b->from ? INVALID_VALUE : copy_box(b, current, current, s); }
EXPORT u32 cuMemcpy3DPeerAsync(const struct box *b, u64 s) { return copy_box(b, b->to, b->from, s); }
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

/* The module's text lists its kernels. FAKE_LOAD_MS: how long the compiler takes with one that says `.slow`. */
EXPORT u32 cuModuleLoadDataEx(char **module, const char *image, u32 n, const u32 *options, void **values) {
    MAY_HANG;
    if (strstr(image, ".broken")) {
        for (u32 i = 0; i < n; i++) if (options[i] == 5) snprintf(values[i], 64, "line 3: it is broken");
        return INVALID_PTX;
    }
    if (strstr(image, ".slow")) usleep(number_of("FAKE_LOAD_MS", 0) * 1000);
    *module = strdup(image);
    return OK;
}
EXPORT u32 cuModuleUnload(char *module) { free(module); return OK; }
EXPORT u32 cuModuleGetFunction(const char **f, const char *module, const char *name) {
    const char *names[] = {"set", "hold", "release", "peek", "farcall_check"};
    for (int i = 0; i < 5; i++) if (!strcmp(name, names[i]) && strstr(module, name)) { *f = names[i]; return OK; }
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
