// CUDA C on the host, for tests: g++ compiles a .cu file with this header in front of it and runs it, thread by thread.
//
// Every CUDA thread is a fibre (ucontext) with a stack of its own.  A fibre runs until it ends or waits: at
// __syncthreads() for its block, at __syncwarp(), a shuffle or a vote for its warp.  When no fibre can run, the scheduler
// releases the groups that have met; if none has, the kernel would hang on a GPU, and the launch ends with a text that
// says who waits where.  Blocks run one after another.  Fibres run in thread order, or in reverse order: results that
// differ between the two betray a missing barrier.  Shared memory starts as NaN in every block, and indices into
// arrays of known size are checked (g++ -fsanitize=bounds, whose handler is below).
#pragma once
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __constant__ static const
#define __shared__ static __attribute__((section("cuda_shared")))  // one block at a time: static is shared enough
extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));  // set by the linker
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
typedef dim3 uint3;
dim3 blockDim, gridDim;
uint3 threadIdx, blockIdx;
constexpr int warpSize = 32;

namespace cuda_on_host {

enum State { READY, AT_BLOCK, AT_WARP, ENDED };
struct Fibre {
    ucontext_t context;
    char* stack = nullptr;
    State state;
    unsigned mask;     // the lanes a thread AT_WARP waits for
    int line;          // where it waits
    long long slot;    // what it offers to the other lanes
};
constexpr int MOST = 1024, STACK = 256 << 10;
static Fibre fibres[MOST];
static ucontext_t scheduler;
static void (*body)(void**);
static void** body_arguments;
static char error[512];

inline int me() { return threadIdx.x; }

inline void to_scheduler() { swapcontext(&fibres[me()].context, &scheduler); }

inline void fail(const char* format, ...) {  // ends the launch; `error` is what run() returns
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    snprintf(error, sizeof error, "block %u, thread %u: %s", blockIdx.x, threadIdx.x, text);
    to_scheduler();
}

inline void wait(State state, unsigned mask, int line) {
    Fibre& f = fibres[me()];
    f.state = state, f.mask = mask, f.line = line;
    if (state == AT_WARP && !(mask >> me() % 32 & 1)) fail("line %d: the mask %#x lacks the calling lane", line, mask);
    to_scheduler();
}

inline void trampoline() {
    body(body_arguments);
    fibres[me()].state = ENDED;
    to_scheduler();
}

// Lanes of the warp of thread t, of those in `mask`, that have not ended, for the lanes that exist at all.
inline bool warp_has_met(int t) {
    for (int lane = 0, base = t / 32 * 32; lane < 32 && base + lane < int(blockDim.x); lane++) {
        const Fibre& f = fibres[base + lane];
        if (!(fibres[t].mask >> lane & 1) || f.state == ENDED) continue;
        if (f.state != AT_WARP || f.mask != fibres[t].mask || f.line != fibres[t].line) return false;
    }
    return true;
}

inline bool release() {  // lets go the threads that have met; false if there are none
    const int n = blockDim.x;
    static bool met[MOST];
    bool any = false, all = true;
    for (int t = 0; t < n; t++) any |= met[t] = fibres[t].state == AT_WARP && warp_has_met(t);
    for (int t = 0; t < n; t++) all &= fibres[t].state == AT_BLOCK && fibres[t].line == fibres[0].line;
    for (int t = 0; t < n; t++)
        if (met[t] || all) fibres[t].state = READY;
    return any || all;
}

inline void explain_deadlock() {
    int ended = 0, first = -1, last = -1;
    for (int t = 0; t < int(blockDim.x); t++) {
        if (fibres[t].state == ENDED) ended++;
        else first = first < 0 ? t : first, last = t;
    }
    const auto what = [](int t) { return fibres[t].state == AT_BLOCK ? "__syncthreads" : "a warp function"; };
    snprintf(error, sizeof error,
             "divergent barrier in block %u: thread %d waits at %s in line %d, thread %d at %s in line %d, "
             "and %d of %u threads have ended", blockIdx.x, first, what(first), fibres[first].line, last, what(last),
             fibres[last].line, ended, blockDim.x);
}

inline void run_block(bool reverse) {
    const int n = blockDim.x;
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    for (int t = 0; t < n; t++) {
        Fibre& f = fibres[t];
        if (!f.stack) f.stack = (char*)malloc(STACK);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack, f.context.uc_stack.ss_size = STACK, f.context.uc_link = nullptr;
        makecontext(&f.context, trampoline, 0);
        f.state = READY;
    }
    for (int left = n; left > 0;) {
        bool ran = false;
        for (int i = 0; i < n; i++) {
            const int t = reverse ? n - 1 - i : i;
            if (fibres[t].state != READY) continue;
            threadIdx.x = t, ran = true;
            swapcontext(&scheduler, &fibres[t].context);
            if (*error) return;
            left -= fibres[t].state == ENDED;
        }
        if (!ran && !release()) return explain_deadlock();
    }
}

inline const char* run(void (*f)(void**), void** arguments, int blocks, int threads, int reverse) {
    *error = 0;
    if (threads < 1 || threads > MOST || blocks < 1) return "the grid needs 1 block or more of 1 to 1024 threads";
    body = f, body_arguments = arguments;
    blockDim = {unsigned(threads)}, gridDim = {unsigned(blocks)}, threadIdx = blockIdx = {0, 0, 0};
    for (int b = 0; b < blocks && !*error; b++) {
        blockIdx.x = reverse ? blocks - 1 - b : b;
        run_block(reverse);
    }
    return error;
}

template <class T> T exchange(unsigned mask, T v, int source, int line) {  // v as offered by lane `source`
    static_assert(sizeof(T) <= sizeof(long long), "shuffles move up to 8 bytes");
    memcpy(&fibres[me()].slot, &v, sizeof v);
    wait(AT_WARP, mask, line);
    const int t = me() / 32 * 32 + source;
    if (!(mask >> source & 1) || t >= int(blockDim.x) || fibres[t].state == ENDED)
        fail("line %d: lane %d is read, which takes no part (mask %#x)", line, source, mask);
    memcpy(&v, &fibres[t].slot, sizeof v);
    wait(AT_WARP, mask, line);  // nobody offers anew before all have read
    return v;
}

inline unsigned vote(unsigned mask, bool predicate, int line) {
    fibres[me()].slot = predicate;
    wait(AT_WARP, mask, line);
    unsigned bits = 0;
    for (int lane = 0, base = me() / 32 * 32; lane < 32 && base + lane < int(blockDim.x); lane++)
        if (mask >> lane & 1 && fibres[base + lane].state != ENDED) bits |= unsigned(fibres[base + lane].slot) << lane;
    wait(AT_WARP, mask, line);
    return bits;
}

// Turns f(A...) into a function of an array of pointers to the arguments, and tells their types to Python.
template <class T> constexpr char letter() {
    using V = std::remove_cv_t<std::remove_pointer_t<T>>;
    constexpr char base = std::is_same_v<V, int> ? 'i' : std::is_same_v<V, REAL> ? 'r' : '?';
    if (base == '?' || !std::is_pointer_v<T>) return base == 'i' ? 'n' : '?';
    return std::is_const_v<std::remove_pointer_t<T>> ? base : base - 'a' + 'A';
}
template <auto function> struct Entry;
template <class... A, void (*function)(A...)> struct Entry<function> {
    static constexpr char types[] = {letter<A>()..., 0};
    template <int... I> static void call(void** a, std::integer_sequence<int, I...>) { function(*(A*)a[I]...); }
    static void call(void** a) { call(a, std::make_integer_sequence<int, sizeof...(A)>()); }
};
}  // namespace cuda_on_host

#define CUDA_ON_HOST_EXPORT extern "C" __attribute__((visibility("default"))) const char*
#define CUDA_ON_HOST(NAME)                                                                       \
    CUDA_ON_HOST_EXPORT host_##NAME(void** a, int blocks, int threads, int reverse) {            \
        return cuda_on_host::run(cuda_on_host::Entry<NAME>::call, a, blocks, threads, reverse);  \
    }                                                                                            \
    CUDA_ON_HOST_EXPORT types_##NAME() { return cuda_on_host::Entry<NAME>::types; }

// g++ calls this for an index outside an array of known size; it passes a record that begins with the place.
struct Place {
    const char* file;
    unsigned line, column;
};
extern "C" inline __attribute__((used)) void __ubsan_handle_out_of_bounds(Place* place, unsigned long index) {
    cuda_on_host::fail("%s:%u: index %ld is outside a local or shared array", place->file, place->line, long(index));
}

// The CUDA functions themselves.  A default argument __builtin_LINE() is the line of the caller.
#define LINE int line = __builtin_LINE()
inline void __syncthreads(LINE) { cuda_on_host::wait(cuda_on_host::AT_BLOCK, 0, line); }
inline void __syncwarp(unsigned mask = ~0u, LINE) { cuda_on_host::wait(cuda_on_host::AT_WARP, mask, line); }
inline unsigned __ballot_sync(unsigned mask, bool p, LINE) { return cuda_on_host::vote(mask, p, line); }
inline bool __any_sync(unsigned mask, bool p, LINE) { return cuda_on_host::vote(mask, p, line); }
inline bool __all_sync(unsigned mask, bool p, LINE) { return !cuda_on_host::vote(mask, !p, line); }
template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, LINE) {
    const int lane = threadIdx.x % 32;
    return cuda_on_host::exchange(mask, v, lane / width * width + source % width, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, int delta, int width = 32, LINE) {
    const int lane = threadIdx.x % 32;
    return cuda_on_host::exchange(mask, v, lane % width - delta >= 0 ? lane - delta : lane, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, int delta, int width = 32, LINE) {
    const int lane = threadIdx.x % 32;
    return cuda_on_host::exchange(mask, v, lane % width + delta < width ? lane + delta : lane, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, LINE) {
    const int lane = threadIdx.x % 32, source = lane ^ bits;
    return cuda_on_host::exchange(mask, v, source < lane / width * width + width ? source : lane, line);
}
#undef LINE

template <class T> T replaced(T* p, T v) { const T old = *p; *p = v; return old; }
template <class T> using same = std::common_type_t<T>;  // not deduced: the pointer decides the type
template <class T> T atomicAdd(T* p, same<T> v) { return replaced(p, T(*p + v)); }
template <class T> T atomicSub(T* p, same<T> v) { return replaced(p, T(*p - v)); }
template <class T> T atomicMin(T* p, same<T> v) { return replaced(p, v < *p ? v : *p); }
template <class T> T atomicMax(T* p, same<T> v) { return replaced(p, v > *p ? v : *p); }
template <class T> T atomicExch(T* p, same<T> v) { return replaced(p, v); }
template <class T> T atomicCAS(T* p, same<T> expected, same<T> v) { return replaced(p, *p == expected ? v : *p); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class T> T __ldg(const T* p) { return *p; }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class A, class B> std::common_type_t<A, B> min(A a, B b) {  // of a number and NaN, the number, as in CUDA
    return b < a || a != a ? b : a;
}
template <class A, class B> std::common_type_t<A, B> max(A a, B b) { return b > a || a != a ? b : a; }
template <class T> T rsqrt(T x) { return 1 / sqrt(x); }
template <class T> T rcbrt(T x) { return 1 / cbrt(x); }
template <class T> T sinpi(T x) { return sin(T(M_PI) * x); }
template <class T> T cospi(T x) { return cos(T(M_PI) * x); }
template <class T> void sincospi(T x, T* s, T* c) { *s = sinpi(x), *c = cospi(x); }
inline void sincos(float x, float* s, float* c) { *s = sin(x), *c = cos(x); }
