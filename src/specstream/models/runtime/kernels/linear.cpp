#include "blocks.h"

namespace {

template <class T, class W> void linear(const T *x, const W *w, const T *b, T *y, long m, long n, long k, int threads) {
  using P = Product<W>;
  thread_local std::vector<char> memory;
  typename P::X *inputs = scratch<typename P::X>(memory, m * P::size(k));
  for (long row = 0; row < m; row++) P::prepare(x + row * k, k, inputs + row * P::size(k));
  Linear<W> p(inputs, w, n, k);
  Turns turns;
#pragma omp parallel num_threads(threads)
  multiply(p, m, turns, Output<T>{b, nullptr, y, n});
}

// Rows of a matrix in blocks as numbers: what an embedding reads. Multiplied, rounded and added as the format says.
template <class T, class W> void rows(const W *w, const int64_t *of, T *y, long count, long k) {
  using P = Product<W>;
  for (long row = 0; row < count; row++) {
    long lane = of[row] % TOGETHER;
    const W *output = w + of[row] / TOGETHER * P::units(k);
    for (long i = 0; i < k; i++) {
      const W &block = output[i / P::EACH];
      long at = i % P::EACH;
      int number = one(block.numbers, at, lane) - P::OFFSET;
      narrow(number * P::one_scale(block, at / P::SHARE, lane) + P::one_least(block, at / P::SHARE, lane), y + row * k + i);
    }
  }
}

} // namespace

extern "C" void linear_bf16(const uint16_t *x, const uint16_t *w, const uint16_t *b, uint16_t *y, long m, long n, long k,
                            int threads) {
  linear(x, w, b, y, m, n, k, threads);
}

extern "C" void linear_f32(const float *x, const float *w, const float *b, float *y, long m, long n, long k, int threads) {
  linear(x, w, b, y, m, n, k, threads);
}

// Weights in blocks, of the layout of that number.
#define BLOCKS(name, T)                                                                                                \
  extern "C" void linear_blocks_##name(const T *x, const void *w, int64_t layout, const T *b, T *y, long m, long n,   \
                                       long k, int threads) {                                                          \
    in_layout(layout, w, [&](auto *weights) { linear(x, weights, b, y, m, n, k, threads); });                 \
  }                                                                                                                    \
  extern "C" void rows_blocks_##name(const void *w, int64_t layout, const int64_t *of, T *y, long count, long k) {    \
    in_layout(layout, w, [&](auto *weights) { rows(weights, of, y, count, k); });                                      \
  }
BLOCKS(bf16, uint16_t)
BLOCKS(f32, float)

// The level that the library was compiled for.
extern "C" const char *specstream_level() { return LEVEL; }
