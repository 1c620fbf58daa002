// A stand-in for the NVIDIA driver and for cuBLASLt, for tests: device memory is malloc's, and the "PTX" of a test names functions of the test's own process,
//     // kernel NAME POINTERS MAPS ADDRESS
// which are called as ADDRESS(block, arguments, scratch) for every block of a launch. Kernels of a graph run in the most adverse order that its
// dependencies allow (the latest added of those that are ready). Options: VERSION, DEVICES, MAJOR, MINOR, MEMORY (bytes), FAIL, HANG (a kernel's name).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 12080
#endif
#ifndef DEVICES
#define DEVICES 1
#endif
#ifndef MAJOR
#define MAJOR 9
#endif
#ifndef MINOR
#define MINOR 0
#endif
#ifndef MEMORY
#define MEMORY (1ull << 30)
#endif
#ifndef FAIL
#define FAIL ""
#endif
#ifndef HANG
#define HANG ""
#endif

typedef int R;
typedef uint64_t Ptr;
enum { OK, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, BAD_PTX = 218, NOT_FOUND = 500, ILLEGAL = 700 };
typedef void (*Code)(uint64_t, void **, void *);
typedef struct { char name[128]; int pointers, maps, shared, loaded; Code code; } Function;
typedef struct { int count; Function f[64]; } Module;
typedef struct { int trans[2]; } Operation;
typedef struct { int dtype, batch; uint64_t rows, cols; int64_t pitch, stride; } Layout;
typedef struct { Operation op; Layout a, b, d; float beta; Ptr at[3]; } Product;
struct Graph;
// A kernel, a product, or a graph of its own.
typedef struct { Function *f; unsigned blocks, threads, shared; void *args[64]; unsigned char maps[16][128]; Product *product; struct Graph *child;
                 int after[512], waits, done; } Node;
typedef struct Graph { int count; Node *n[512]; } Graph;
typedef struct { double at; } Event;

static uint64_t used;
static int broken;     // as on a device: once a kernel has failed, everything fails
static int hung;
static double clock_ms;
static int context, stream;
static Graph *capturing;
static _Thread_local void *current;

#define HERE if (current != &context) return 201

R cuInit(unsigned f) { return f ? INVALID : DEVICES ? OK : NO_DEVICE; }
R cuDriverGetVersion(int *v) { *v = VERSION; return OK; }
R cuGetErrorName(R r, const char **t) {
  *t = r == NO_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : r == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : r == BAD_PTX ? "CUDA_ERROR_INVALID_PTX"
     : r == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : r == ILLEGAL ? "CUDA_ERROR_ILLEGAL_ADDRESS" : r == INVALID ? "CUDA_ERROR_INVALID_VALUE" : 0;
  return *t ? OK : INVALID;
}
R cuGetErrorString(R r, const char **t) { *t = r == ILLEGAL ? "an illegal memory access was encountered" : "fake error"; return OK; }
R cuDeviceGetCount(int *n) { *n = DEVICES; return OK; }
R cuDeviceGet(int *d, int i) { *d = i + 40; return i < DEVICES ? OK : INVALID; }
R cuDeviceGetName(char *n, int len, int d) { snprintf(n, len, "Fake H%d", d + 60); return OK; }
R cuDeviceGetAttribute(int *v, int a, int d) {
  *v = a == 16 ? 132 : a == 75 ? MAJOR : a == 76 ? MINOR : a == 97 ? 232448 : -1;
  return *v < 0 || d < 40 ? INVALID : OK;
}
R cuDevicePrimaryCtxRetain(void **c, int d) { *c = &context; return d < 40 ? INVALID : OK; }
R cuDevicePrimaryCtxRelease_v2(int d) { return d < 40 ? INVALID : OK; }
R cuCtxSetCurrent(void *c) { current = c; return c == &context ? OK : INVALID; }
R cuMemGetInfo_v2(size_t *f, size_t *t) { HERE; *f = MEMORY - used; *t = MEMORY; return OK; }
R cuMemAlloc_v2(Ptr *p, size_t n) {
  HERE;
  if (!n) return INVALID;
  if (used + n > MEMORY) return NO_MEMORY;
  used += n;
  *p = (Ptr)aligned_alloc(256, (n + 511) / 256 * 256);
  memset((void *)*p, 0xa5, n);
  return OK;
}
R cuMemFree_v2(Ptr p) { HERE; free((void *)p); return OK; }
R cuMemAllocHost_v2(void **p, size_t n) { HERE; *p = malloc(n); return OK; }
R cuMemFreeHost(void *p) { HERE; free(p); return OK; }
R cuMemcpyHtoDAsync_v2(Ptr to, const void *from, size_t n, void *s) { HERE; memcpy((void *)to, from, n); return s == &stream ? OK : INVALID; }
R cuMemcpyDtoHAsync_v2(void *to, Ptr from, size_t n, void *s) { HERE; memcpy(to, (void *)from, n); return s == &stream ? OK : INVALID; }
R cuMemsetD8Async(Ptr to, unsigned char v, size_t n, void *s) { HERE; memset((void *)to, v, n); return s == &stream ? OK : INVALID; }
R cuStreamCreate(void **s, unsigned f) { HERE; *s = &stream; return f == 1 ? OK : INVALID; }
R cuStreamDestroy_v2(void *s) { HERE; return s == &stream ? OK : INVALID; }
R cuStreamSynchronize(void *s) { HERE; return broken ? broken : s == &stream ? OK : INVALID; }
R cuStreamQuery(void *s) { HERE; return broken ? broken : hung ? 600 : s == &stream ? OK : INVALID; }
R cuEventCreate(void **e, unsigned f) { HERE; *e = calloc(1, sizeof(Event)); return f ? INVALID : OK; }
R cuEventDestroy_v2(void *e) { HERE; free(e); return OK; }
R cuEventRecord(void *e, void *s) { HERE; ((Event *)e)->at = clock_ms; return s == &stream ? OK : INVALID; }
R cuEventElapsedTime(float *ms, void *a, void *b) { HERE; *ms = ((Event *)b)->at - ((Event *)a)->at; return OK; }

R cuModuleLoadDataEx(void **m, const void *image, unsigned n, int *names, void **values) {
  HERE;
  if (n != 2 || names[0] != 5 || names[1] != 6) return INVALID;
  if (strstr(image, "syntax error")) { snprintf(values[0], (size_t)values[1], "ptxas fake, line 3; fatal : Parsing error"); return BAD_PTX; }
  Module *made = calloc(1, sizeof(Module));
  for (const char *l = image; (l = strstr(l, "// kernel ")); l++) {
    Function *f = &made->f[made->count++];
    if (sscanf(l, "// kernel %127s %d %d %p", f->name, &f->pointers, &f->maps, (void **)&f->code) != 4) return BAD_PTX;
  }
  *m = made;
  return OK;
}
R cuModuleUnload(void *m) { HERE; free(m); return OK; }
R cuModuleGetFunction(void **f, void *m, const char *name) {
  HERE;
  Module *in = m;
  for (int i = 0; i < in->count; i++) if (!strcmp(in->f[i].name, name)) { *f = &in->f[i]; return OK; }
  return NOT_FOUND;
}
R cuFuncSetAttribute(void *f, int a, int v) { HERE; if (a != 8 || v > 232448) return INVALID; ((Function *)f)->shared = v; return OK; }
R cuFuncGetAttribute(int *v, int a, void *f) { HERE; (void)f; *v = 1024; return a ? INVALID : OK; }

static R node(Node *n, void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void **params) {
  Function *fn = f;
  if (!gx || gy != 1 || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1 || (shared > 49152 && shared > (unsigned)fn->shared)) return INVALID;
  n->f = fn, n->blocks = gx, n->threads = bx, n->shared = shared;
  for (int i = 0; i < fn->pointers; i++) n->args[i] = *(void **)params[i];
  for (int i = 0; i < fn->maps; i++) {
    if ((uintptr_t)params[fn->pointers + i] % 64) return INVALID;
    memcpy(n->maps[i], params[fn->pointers + i], 128);
    n->args[fn->pointers + i] = n->maps[i];
  }
  return OK;
}
static void run(Graph *g);
static void multiply(const Product *p);
static void execute(Node *n) {
  if (n->child) { run(n->child); return; }
  if (n->product) { multiply(n->product); return; }
  if (!strcmp(n->f->name, FAIL)) { broken = ILLEGAL; return; }
  if (!strcmp(n->f->name, HANG)) { hung = 1; return; }
  for (unsigned b = n->blocks; b-- > 0;) n->f->code(b, n->args, 0);
  clock_ms += 0.5;
}
static float element(const Layout *l, Ptr p, uint64_t at) {
  if (!l->dtype) return ((float *)p)[at];
  union { uint32_t i; float f; } x = {(uint32_t)((uint16_t *)p)[at] << 16};
  return x.f;
}
// Column-major: D = op(A) op(B) + beta D.
static void multiply(const Product *p) {
  for (int batch = 0; batch < p->d.batch; batch++)
    for (uint64_t i = 0; i < p->d.rows; i++)
      for (uint64_t j = 0; j < p->d.cols; j++) {
        uint64_t depth = p->op.trans[0] ? p->a.rows : p->a.cols, to = batch * p->d.stride + j * p->d.pitch + i;
        float sum = p->beta ? p->beta * element(&p->d, p->at[2], to) : 0;
        for (uint64_t k = 0; k < depth; k++) {
          uint64_t a = p->op.trans[0] ? i * p->a.pitch + k : k * p->a.pitch + i, b = p->op.trans[1] ? k * p->b.pitch + j : j * p->b.pitch + k;
          sum += element(&p->a, p->at[0], batch * p->a.stride + a) * element(&p->b, p->at[1], batch * p->b.stride + b);
        }
        if (!p->d.dtype) ((float *)p->at[2])[to] = sum;
        else { union { float f; uint32_t i; } x = {sum}; ((uint16_t *)p->at[2])[to] = (x.i + 0x7fff + (x.i >> 16 & 1)) >> 16; }
      }
  clock_ms += 0.5;
}
R cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s, void **params, void **extra) {
  HERE;
  Node n = {0};
  if (broken) return broken;
  R r = extra || s != &stream ? INVALID : node(&n, f, gx, gy, gz, bx, by, bz, shared, params);
  if (!r) execute(&n);
  return r;
}

// The 128 bytes hold what was given, for kernels of tests: dtype, rank, swizzle, promotion (int32), address, dims[5], strides[4] (u64), tile[5] (u16).
R cuTensorMapEncodeTiled(void *map, int dtype, unsigned rank, void *address, const uint64_t *dims, const uint64_t *strides, const uint32_t *tile,
                         const uint32_t *steps, int interleave, int swizzle, int promotion, int fill) {
  HERE;
  if ((uintptr_t)map % 64 || !rank || rank > 5 || (uintptr_t)address % 16 || interleave || fill || (dtype != 7 && dtype != 9)) return INVALID;
  int32_t head[4] = {dtype, (int)rank, swizzle, promotion};
  uint64_t body[10] = {(uintptr_t)address};
  uint16_t box[5] = {0};
  for (unsigned i = 0; i < rank; i++) {
    if (!dims[i] || !tile[i] || tile[i] > 256 || steps[i] != 1 || (i && strides[i - 1] % 16)) return INVALID;
    body[1 + i] = dims[i], box[i] = tile[i];
    if (i) body[5 + i] = strides[i - 1];
  }
  memset(map, 0, 128);
  memcpy(map, head, 16), memcpy((char *)map + 16, body, 80), memcpy((char *)map + 96, box, 10);
  return OK;
}

typedef struct { void *f; unsigned gx, gy, gz, bx, by, bz, shared; void **params, **extra; void *kern, *ctx; } KernelNode;
R cuGraphCreate(void **g, unsigned f) { HERE; *g = calloc(1, sizeof(Graph)); return f ? INVALID : OK; }
R cuGraphDestroy(void *g) { HERE; (void)g; return OK; }
static R add(Graph *in, Node *n, void *const *after, size_t waits) {
  R r = in->count == 512 ? INVALID : OK;
  for (size_t i = 0; i < waits && !r; i++) {
    int at = 0;
    while (at < in->count && in->n[at] != after[i]) at++;
    if (at == in->count) r = INVALID;
    n->after[n->waits++] = at;
  }
  if (!r) in->n[in->count++] = n;
  return r;
}
R cuGraphAddKernelNode_v2(void **out, void *g, void *const *after, size_t waits, const KernelNode *k) {
  HERE;
  if (k->extra || k->kern || k->ctx) return INVALID;
  Node *n = *out = calloc(1, sizeof(Node));
  R r = node(n, k->f, k->gx, k->gy, k->gz, k->bx, k->by, k->bz, k->shared, k->params);
  return r ? r : add(g, n, after, waits);
}
R cuGraphAddChildGraphNode(void **out, void *g, void *const *after, size_t waits, void *child) {
  HERE;
  Node *n = *out = calloc(1, sizeof(Node));
  memcpy(n->child = malloc(sizeof(Graph)), child, sizeof(Graph));
  return add(g, n, after, waits);
}
R cuStreamBeginCapture_v2(void *s, int mode) { HERE; if (capturing || mode != 1) return INVALID; capturing = calloc(1, sizeof(Graph)); return s == &stream ? OK : INVALID; }
R cuStreamEndCapture(void *s, void **g) { HERE; *g = capturing; capturing = 0; return *g && s == &stream ? OK : INVALID; }
R cuGraphInstantiateWithFlags(void **e, void *g, uint64_t f) { HERE; *e = g; return f ? INVALID : OK; }
R cuGraphExecDestroy(void *e) { HERE; Graph *g = e; for (int i = 0; i < g->count; i++) free(g->n[i]); free(g); return OK; }
static void run(Graph *g) {
  for (int i = 0; i < g->count; i++) g->n[i]->done = 0;
  for (int left = g->count; left; left--)
    for (int i = g->count; i-- > 0;) {
      int ready = !g->n[i]->done;
      for (int w = 0; w < g->n[i]->waits; w++) ready &= g->n[g->n[i]->after[w]]->done;
      if (!ready) continue;
      execute(g->n[i]);
      g->n[i]->done = 1;
      break;
    }
}
R cuGraphLaunch(void *e, void *s) {
  HERE;
  if (broken) return broken;
  run(e);
  return s == &stream ? OK : INVALID;
}

// ---- cuBLASLt ----

R cublasLtCreate(void **h) { HERE; *h = &context; return OK; }
R cublasLtDestroy(void *h) { return h == &context ? OK : 7; }
R cublasLtMatmulDescCreate(void **o, int compute, int scale) { *o = calloc(1, sizeof(Operation)); return compute != 68 || scale ? 7 : OK; }
R cublasLtMatmulDescDestroy(void *o) { free(o); return OK; }
R cublasLtMatmulDescSetAttribute(void *o, int a, const void *v, size_t n) {
  if ((a != 3 && a != 4) || n != 4) return 7;
  ((Operation *)o)->trans[a - 3] = *(int *)v;
  return OK;
}
R cublasLtMatrixLayoutCreate(void **l, int dtype, uint64_t rows, uint64_t cols, int64_t pitch) {
  Layout *made = *l = calloc(1, sizeof(Layout));
  *made = (Layout){dtype, 1, rows, cols, pitch, 0};
  return (dtype && dtype != 14) || pitch < (int64_t)rows ? 7 : OK;
}
R cublasLtMatrixLayoutDestroy(void *l) { free(l); return OK; }
R cublasLtMatrixLayoutSetAttribute(void *l, int a, const void *v, size_t n) {
  if (a == 5 && n == 4) ((Layout *)l)->batch = *(int *)v;
  else if (a == 6 && n == 8) ((Layout *)l)->stride = *(int64_t *)v;
  else return 7;
  return OK;
}
R cublasLtMatmulPreferenceCreate(void **p) { *p = calloc(1, 8); return OK; }
R cublasLtMatmulPreferenceDestroy(void *p) { free(p); return OK; }
R cublasLtMatmulPreferenceSetAttribute(void *p, int a, const void *v, size_t n) {
  if (n != (a == 1 ? 8 : 4) || a < 1 || a > 8) return 7;
  if (a == 1) memcpy(p, v, 8);
  return OK;
}
typedef struct { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; } Choice;
// Wants a KB of workspace.
R cublasLtMatmulAlgoGetHeuristic(void *h, Operation *o, Layout *a, Layout *b, Layout *c, Layout *d, uint64_t *preference, int asked, Choice *out, int *found) {
  if (h != &context || asked < 1 || c != d) return 7;
  *found = *preference >= 1024;
  if (!*found) return 15;
  *out = (Choice){.algo = {42}, .workspace = 1024};
  return OK;
}
R cublasLtMatmul(void *h, Operation *o, const float *alpha, Ptr a, Layout *al, Ptr b, Layout *bl, const float *beta, Ptr c, Layout *cl, Ptr d, Layout *dl,
                 const uint64_t *algo, Ptr workspace, size_t bytes, void *s) {
  HERE;
  if (h != &context || *alpha != 1 || c != d || cl != dl || algo[0] != 42 || bytes < 1024 || s != &stream) return 7;
  uint64_t k = o->trans[0] ? al->rows : al->cols, m = o->trans[0] ? al->cols : al->rows, n = o->trans[1] ? bl->rows : bl->cols;
  if (k != (o->trans[1] ? bl->cols : bl->rows) || m != dl->rows || n != dl->cols || al->batch != dl->batch || bl->batch != dl->batch) return 7;
  memset((void *)workspace, 0xa5, 1024);
  Product *p = malloc(sizeof(Product));
  *p = (Product){*o, *al, *bl, *dl, *beta, {a, b, d}};
  if (!capturing) { multiply(p); free(p); return OK; }
  Node *node = calloc(1, sizeof(Node));
  node->product = p;
  return add(capturing, node, 0, 0) ? 14 : OK;
}
