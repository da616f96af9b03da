// y[m][n] = sum_k x[m][k] * w[n][k] + b[n], for the few rows m of a decoding pass and weights as PyTorch keeps them.
//
// Three properties matter here. The weights are read once, in their own layout, whatever the number of rows, and the
// next ones are on their way while these are multiplied: a pass over five tokens costs about what one over a single
// token costs. No second copy of the weights is kept. And every output is summed in one fixed order, 16 partial sums over
// k and then a tree, whatever stands beside it: the bits of a row do not depend on the width of the pass.
#pragma once

#include "lanes.h"
#include <atomic>

namespace {

constexpr long STEP = 2 * LANES;         // elements of k that one step of a tile takes
constexpr long INPUT_BYTES = 32 << 10;   // of x that stay in the first cache while weights pass over them
constexpr long INPUT_STEPS = 768;        // elements of k at a time, where x is too long for that
constexpr long WEIGHT_BYTES = 128 << 10; // of w that stay in the second cache while all rows of x pass over them
constexpr long ROWS_AT_ONCE = 8;         // rows of x whose sums fit the registers

// Scratch that is kept from call to call, aligned to a cache line.
template <class T> T *scratch(std::vector<char> &memory, long count) {
  memory.resize(count * sizeof(T) + 64);
  return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

inline long padded(long count) { return (count + STEP - 1) / STEP * STEP; }

// Chunks of a matrix's outputs, handed to whichever thread asks next: cores are rarely equally fast.
struct Turns {
  std::atomic<long> next{0};
};

// How weights of type T meet their input: the input's own type X, the type of a partial sum, one step of the product.
// The two halves of a step are taken in the order that costs least, in the input and in the weights alike.
template <class T> struct Product {
  using X = float;
  using Sum = Floats;
  struct Step {
    Floats first, second;
  };
  static Step weights(const T *w) {
    Step step;
    load_step(w, step.first, step.second);
    return step;
  }
  static void add(Sum &sum, const X *x, const Step &w) {
    sum += load(x) * w.first;
    sum += load(x + LANES) * w.second;
  }
};

template <> struct Product<int8_t> {
  using X = int16_t;
  using Sum = Ints;
  using Step = Shorts;
  static Step weights(const int8_t *w) { return widen_step(w); }
  static void add(Sum &sum, const X *x, const Step &w) { sum = dot_pairs(sum, load_shorts(x), w); }
};

// An output from its partial sums. A fused multiplication, or not, must not be the compiler's choice: it would be made
// anew for every number of rows.
inline float finish(const Floats &sums, const float *, long, const float *, long, float bias) { return sum(sums) + bias; }
inline float finish(const Ints &sums, const float *scales, long column, const float *units, long row, float bias) {
  return std::fma(sum(__builtin_convertvector(sums, Floats)), scales[column] * units[row], bias);
}

template <class T> struct Linear {
  const typename Product<T>::X *x; // [rows][padded], padded with zeros to a multiple of STEP
  const T *w;                      // [n][k]
  long padded, n, k;
};

template <int M, int N, class T>
inline void tile(const Linear<T> &p, long row, long from, long begin, long end, long ahead,
                 typename Product<T>::Sum (&sums)[M][N]) {
  using P = Product<T>;
  const T *w = p.w + from * p.k;
  const T *next = w + ahead * p.k;
  const typename P::X *x = p.x + row * p.padded;
  for (long i = begin; i < end; i += STEP) {
    typename P::Step weights[N];
    for (int n = 0; n < N; n++) {
      weights[n] = P::weights(w + n * p.k + i);
      __builtin_prefetch(next + n * p.k + i, 0, 2);
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) P::add(sums[m][n], x + m * p.padded + i, weights[n]);
  }
}

// What is left of k behind the last whole step.
template <int M, int N, class T>
inline void tail(const Linear<T> &p, long row, long from, typename Product<T>::Sum (&sums)[M][N]) {
  using P = Product<T>;
  long whole = p.k / STEP * STEP;
  for (int n = 0; n < N; n++) {
    T rest[STEP] = {};
    std::memcpy(rest, p.w + (from + n) * p.k + whole, (p.k - whole) * sizeof(T));
    auto weights = P::weights(rest);
    for (int m = 0; m < M; m++) P::add(sums[m][n], p.x + (row + m) * p.padded + whole, weights);
  }
}

// M rows of x against the weights from..to, N of them at a time; what comes after them is fetched meanwhile.
template <int M, int N, class T, class Out>
long strip(const Linear<T> &p, long row, long from, long to, long ahead, const Out &out) {
  using Sum = typename Product<T>::Sum;
  long whole = p.k / STEP * STEP;
  long block = M * p.padded * long(sizeof(*p.x)) <= INPUT_BYTES ? p.padded : INPUT_STEPS;
  long last = from + (to - from) / N * N;
  thread_local std::vector<char> memory;
  Sum *partial = scratch<Sum>(memory, (last - from) * M);
  for (long begin = 0; begin < p.k; begin += block) {
    long end = begin + block < whole ? begin + block : whole;
    for (long n = from; n < last; n += N) {
      Sum sums[M][N];
      Sum *kept = partial + (n - from) * M;
      for (int i = 0; i < M * N; i++) sums[i / N][i % N] = begin ? kept[i] : Sum{};
      tile<M, N, T>(p, row, n, begin, end, ahead, sums);
      if (begin + block < p.k) {
        for (int i = 0; i < M * N; i++) kept[i] = sums[i / N][i % N];
        continue;
      }
      if (whole < p.k) tail<M, N, T>(p, row, n, sums);
      for (int m = 0; m < M; m++)
        for (int j = 0; j < N; j++) out(row + m, n + j, sums[m][j]);
    }
  }
  return last;
}

// N shrinks as M grows, so that the M * N sums stay in registers.
template <int M, int N, class T, class Out>
void tiles(const Linear<T> &p, long row, long from, long to, long ahead, const Out &out) {
  from = strip<M, N, T>(p, row, from, to, ahead, out);
  strip<M, 1, T>(p, row, from, to, ahead, out);
}

template <class T, class Out>
void some_rows(const Linear<T> &p, long count, long row, long from, long to, long ahead, const Out &out) {
  switch (count) {
  case 1: return tiles<1, 8, T>(p, row, from, to, ahead, out);
  case 2: return tiles<2, 8, T>(p, row, from, to, ahead, out);
  case 3: return tiles<3, 4, T>(p, row, from, to, ahead, out);
  case 4: return tiles<4, 4, T>(p, row, from, to, ahead, out);
  case 5: return tiles<5, 4, T>(p, row, from, to, ahead, out);
  case 6: return tiles<6, 2, T>(p, row, from, to, ahead, out);
  case 7: return tiles<7, 2, T>(p, row, from, to, ahead, out);
  default: return tiles<8, 2, T>(p, row, from, to, ahead, out);
  }
}

// To be called by every thread of a parallel region, with turns of their own for each product; the threads share the
// outputs, and out(m, n, partial sums) is called once for each.
template <class T, class Out> void multiply(const Linear<T> &p, long m, Turns &turns, const Out &out) {
  long threads = omp_get_num_threads();
  long fitting = WEIGHT_BYTES / (p.k * long(sizeof(T))), fair = p.n / (4 * threads);
  long chunk = (fitting < fair ? fitting : fair) / 8 * 8;
  chunk = chunk < 8 ? 8 : chunk;
  for (long from; (from = chunk * turns.next.fetch_add(1, std::memory_order_relaxed)) < p.n;) {
    long to = from + chunk < p.n ? from + chunk : p.n;
    // This thread's next turn comes when all the others had theirs. Behind the last there is nothing to fetch.
    long ahead = from + (threads + 1) * chunk <= p.n ? threads * chunk : 0;
    for (long row = 0; row < m; row += ROWS_AT_ONCE)
      some_rows(p, m - row < ROWS_AT_ONCE ? m - row : ROWS_AT_ONCE, row, from, to, row ? 0 : ahead, out);
  }
}

} // namespace
