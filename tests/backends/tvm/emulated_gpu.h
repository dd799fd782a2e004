// A GPU of one multiprocessor, in C++: runs the CUDA source that TVM wrote, thread by thread, on a CPU.
//
// Each thread of a block is a fiber that runs until it has to wait: at __syncthreads(), or at an instruction of the
// whole warp (ldmatrix, mma.sync, shuffles), which is done once all 32 threads are there. A thread that reads what another
// one has not written yet therefore reads old data, whichever of the two orders (WHET_ORDER) fibers run in; what
// cp.async copies arrives as late as it may, in cp.async.wait_group. Instructions are as the PTX ISA describes them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <type_traits>
#include <vector>
#include <ucontext.h>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(count)
#define __shared__ static
#define __align__(size) alignas(size)
#define __inline__ inline
typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
using std::isnan; using std::isinf; using std::isfinite;

// ---- half precision -------------------------------------------------------------------------------------------------
static inline float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023, bits;
  if (exponent == 31) bits = sign | 0x7f800000u | fraction << 13;
  else if (exponent) bits = sign | (exponent + 112) << 23 | fraction << 13;
  else {
    float value = std::ldexp((float)fraction, -24);
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  float size = std::fabs(value);
  if (size != size) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 0x1p-14f) return sign | (uint16_t)std::nearbyint(std::ldexp(size, 24));
  int exponent;
  float fraction = std::frexp(size, &exponent);
  uint32_t scaled = (uint32_t)std::nearbyint(std::ldexp(fraction, 11));
  return sign | (uint16_t)(((uint32_t)(exponent + 14) << 10) + scaled - 1024);
}
struct half {
  uint16_t bits;
  half() = default;
  half(float value) : bits(float_to_half(value)) {}
  half(double value) : bits(float_to_half((float)value)) {}
  half(int value) : bits(float_to_half((float)value)) {}
  operator float() const { return half_to_float(bits); }
};
typedef half __half;
static inline half __float2half_rn(float value) { return half(value); }
static inline half __float2half(float value) { return half(value); }
static inline float __half2float(half value) { return value; }

// ---- vectors --------------------------------------------------------------------------------------------------------
#define WHET_VECTORS(T, N)                                                                  \
  struct alignas(2 * sizeof(T)) N##2 { T x, y; };                                           \
  struct N##3 { T x, y, z; };                                                               \
  struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; };               \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; }                               \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
WHET_VECTORS(float, float) WHET_VECTORS(double, double) WHET_VECTORS(int, int) WHET_VECTORS(uint, uint)
WHET_VECTORS(signed char, char) WHET_VECTORS(uchar, uchar) WHET_VECTORS(short, short) WHET_VECTORS(ushort, ushort)
WHET_VECTORS(long long, longlong) WHET_VECTORS(unsigned long long, ulonglong) WHET_VECTORS(half, half)
typedef half2 __half2;
static inline half2 __halves2half2(half x, half y) { return {x, y}; }
static inline uint __pack_half2(half x, half y) { return (uint)y.bits << 16 | x.bits; }

template <class A, class B> static inline auto max(A a, B b) -> typename std::common_type<A, B>::type { return a > b || b != b ? a : b; }
template <class A, class B> static inline auto min(A a, B b) -> typename std::common_type<A, B>::type { return a < b || b != b ? a : b; }
static inline half max(half a, half b) { return (float)a > (float)b ? a : b; }
static inline half min(half a, half b) { return (float)a < (float)b ? a : b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
// glibc declares some of CUDA's names
#define __expf whet_expf
#define rsqrtf whet_rsqrtf
static inline float whet_expf(float x) { return std::exp(x); }
static inline float whet_rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
#define CUDART_INF_F HUGE_VALF
#define CUDART_NAN_F NAN

// ---- fibers ---------------------------------------------------------------------------------------------------------
struct Dim { unsigned x, y, z; };
static Dim threadIdx, blockIdx, blockDim, gridDim;

struct Copy { void* to; const void* from; int bytes; };
struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  Dim index;
  bool done;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
struct Barrier { unsigned waiting = 0, generation = 0; };
struct Warp { Barrier barrier; const void* given[32]; uint64_t value[32]; };

static std::vector<Thread> threads_;
static std::vector<Warp> warps_;
static Barrier block_;
static unsigned current_;
static ucontext_t scheduler_;
static std::function<void()> body_;

static unsigned alive() { unsigned n = 0; for (auto& t : threads_) n += !t.done; return n; }
static void pause_() { swapcontext(&threads_[current_].context, &scheduler_); }
// The last one to come does the work, then all go on.
static void meet(Barrier& barrier, unsigned count, const std::function<void()>& work = nullptr) {
  unsigned generation = barrier.generation;
  if (++barrier.waiting == count) {
    if (work) work();
    barrier.waiting = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) pause_();
}
static inline void __syncthreads() { meet(block_, (unsigned)threads_.size()); }
static inline unsigned lane_() { return current_ % 32; }
static inline Warp& warp_() { return warps_[current_ / 32]; }
static inline unsigned warp_size_() { unsigned first = current_ / 32 * 32, left = (unsigned)threads_.size() - first; return left < 32 ? left : 32; }
static inline void __syncwarp(unsigned = ~0u) { meet(warp_().barrier, warp_size_()); }
static inline unsigned __activemask() { return ~0u; }

template <class T> static T exchange(T value, unsigned source) {
  Warp& warp = warp_();
  std::memcpy(&warp.value[lane_()], &value, sizeof(T));
  meet(warp.barrier, warp_size_());
  T result;
  std::memcpy(&result, &warp.value[source < 32 ? source : lane_()], sizeof(T));
  meet(warp.barrier, warp_size_());
  return result;
}
template <class T> static T __shfl_down_sync(unsigned, T v, unsigned by, int width = 32) {
  unsigned lane = lane_();
  return exchange(v, lane % width + by < (unsigned)width ? lane + by : lane);
}
template <class T> static T __shfl_xor_sync(unsigned, T v, unsigned mask, int = 32) { return exchange(v, lane_() ^ mask); }
template <class T> static T __shfl_sync(unsigned, T v, unsigned from, int width = 32) { return exchange(v, lane_() / width * width + from % width); }

static void entry_() { body_(); threads_[current_].done = true; while (true) pause_(); }

template <class F> static void launch(F kernel, Dim grid, Dim block) {
  unsigned count = block.x * block.y * block.z;
  if (count > 1024 || !count) { std::fprintf(stderr, "%u threads in a block\n", count); std::abort(); }
  const char* order = std::getenv("WHET_ORDER");
  bool backwards = order && *order == '-';
  blockDim = block;
  gridDim = grid;
  body_ = kernel;
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
    blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    threads_.clear();
    threads_.resize(count);
    warps_.assign((count + 31) / 32, Warp());
    block_ = Barrier();
    for (unsigned t = 0; t < count; ++t) {
      Thread& thread = threads_[t];
      thread.stack.resize(128 * 1024);
      thread.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
      thread.done = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, entry_, 0);
    }
    unsigned idle = 0;
    while (unsigned left = alive()) {
      unsigned before = block_.generation;
      for (unsigned t = 0; t < count; ++t) {
        current_ = backwards ? count - 1 - t : t;
        if (threads_[current_].done) continue;
        threadIdx = threads_[current_].index;
        swapcontext(&scheduler_, &threads_[current_].context);
      }
      idle = left == alive() && before == block_.generation ? idle + 1 : 0;
      if (idle > 1000000) { std::fprintf(stderr, "threads wait for each other\n"); std::abort(); }
    }
  }
}

// ---- instructions ---------------------------------------------------------------------------------------------------
static inline const void* __cvta_generic_to_shared(const void* address) { return address; }

static inline void check_aligned(const void* address, int bytes, const char* what) {
  if ((uintptr_t)address % bytes) { std::fprintf(stderr, "%s: an address is no multiple of %d\n", what, bytes); std::abort(); }
}
static inline void copy_async(void* to, const void* from, int bytes, bool there) {
  check_aligned(to, bytes, "cp.async");
  if (!there) { std::memset(to, 0, bytes); return; }
  check_aligned(from, bytes, "cp.async");
  threads_[current_].open.push_back({to, from, bytes});
}
static inline void commit_async() {
  Thread& thread = threads_[current_];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}
static inline void wait_async(unsigned left) {
  Thread& thread = threads_[current_];
  for (; thread.groups.size() > left; thread.groups.pop_front())
    for (auto& copy : thread.groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
}

struct Matrices { const void* row; uint32_t out[4]; };
// ldmatrix.x4: thread t points to row t % 8 of matrix t / 8, and gets two neighbours of row t / 4 of each matrix.
static inline void ldmatrix_x4(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, const void* row) {
  check_aligned(row, 16, "ldmatrix");
  Warp& warp = warp_();
  warp.given[lane_()] = row;
  meet(warp.barrier, 32);
  uint32_t* out[4] = {&r0, &r1, &r2, &r3};
  unsigned lane = lane_();
  for (int matrix = 0; matrix < 4; ++matrix)
    std::memcpy(out[matrix], (const char*)warp.given[8 * matrix + lane / 4] + 4 * (lane % 4), 4);
  meet(warp.barrier, 32);
}

template <class T> static double element(uint32_t reg, int at);
template <> double element<half>(uint32_t reg, int at) { return half_to_float((uint16_t)(reg >> 16 * at)); }
template <> double element<int8_t>(uint32_t reg, int at) { return (int8_t)(reg >> 8 * at); }
template <> double element<uint8_t>(uint32_t reg, int at) { return (uint8_t)(reg >> 8 * at); }
static inline double whole(float total) { return total; }
static inline float as_sum(double total, float) { return (float)total; }
static inline int as_sum(double total, int) { return (int)(uint32_t)(int64_t)total; }

struct Operands { uint32_t a[4], b[2]; };
// mma.sync.m{M}n8k{K}: `E` elements a register; the fragments are those of the PTX ISA's figures.
template <int M, int K, class A, class B, class C>
static inline void mma(C** sums, const uint32_t* a, const uint32_t* b) {
  const int E = sizeof(A) == 2 ? 2 : 4, rows = M / 8, halves = K / (4 * E);
  Operands own;
  for (int i = 0; i < rows * halves; ++i) own.a[i] = a[i];
  for (int i = 0; i < halves; ++i) own.b[i] = b[i];
  Warp& warp = warp_();
  warp.given[lane_()] = &own;
  meet(warp.barrier, 32);
  unsigned lane = lane_();
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < 2; ++j) {
      unsigned row = lane / 4, column = lane % 4 * 2 + j;
      double total = *sums[2 * i + j];
      for (int k = 0; k < K; ++k) {
        int half_of = k / (4 * E), quad = k % (4 * E) / E, at = k % E;
        auto* left = (const Operands*)warp.given[4 * row + quad];
        auto* right = (const Operands*)warp.given[4 * column + quad];
        total += element<A>(left->a[i + rows * half_of], at) * element<B>(right->b[half_of], at);
      }
      *sums[2 * i + j] = as_sum(total, C());
    }
  meet(warp.barrier, 32);
}
template <class A, class B> static inline int dp4a(const void* a, const void* b, int c) {
  check_aligned(a, 4, "dp4a");
  check_aligned(b, 4, "dp4a");
  for (int i = 0; i < 4; ++i) c += (int)((const A*)a)[i] * (int)((const B*)b)[i];
  return c;
}
