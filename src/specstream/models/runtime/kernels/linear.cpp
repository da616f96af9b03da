#include "blocks.h"

namespace {

// Weights of one byte come with a scale for each output.
template <class T, class W>
void linear(const T *x, const W *w, const float *scales, const T *b, T *y, long m, long n, long k, int threads) {
  using P = Product<W>;
  thread_local std::vector<char> memory, unit_memory;
  typename P::X *inputs = scratch<typename P::X>(memory, m * P::size(k));
  float *units = scratch<float>(unit_memory, m);
  for (long row = 0; row < m; row++) units[row] = P::prepare(x + row * k, k, inputs + row * P::size(k));
  Linear<W> p(inputs, w, n, k);
  Turns turns;
#pragma omp parallel num_threads(threads)
  multiply(p, m, turns, Output<T, W>{scales, units, b, nullptr, y, n});
}

// Rows of a matrix in blocks as numbers: what an embedding reads. Multiplied, rounded and added as the format says.
template <class T, class W> void rows(const W *w, const int64_t *of, T *y, long count, long k) {
  using P = Product<W>;
  for (long row = 0; row < count; row++) {
    const W *output = w + of[row] * P::units(k);
    for (long first = 0; first < k; first += PART) {
      Numbers shorts = unpacked(P::numbers(output + first / P::EACH, first % P::EACH / PART));
      int16_t numbers[PART];
      std::memcpy(numbers, shorts.of, sizeof numbers);
      for (long i = 0; i < PART && first + i < k; i++) {
        long group = (first + i) / 16, place = i % 16 / 2 * 8 + group % 4 * 2 + i % 2;
        narrow(numbers[place] * P::scale(output, group) + P::least(output, group, k), y + row * k + first + i);
      }
    }
  }
}

} // namespace

extern "C" void linear_bf16(const uint16_t *x, const uint16_t *w, const float *, const uint16_t *b, uint16_t *y, long m,
                            long n, long k, int threads) {
  linear(x, w, nullptr, b, y, m, n, k, threads);
}

extern "C" void linear_f32(const float *x, const float *w, const float *, const float *b, float *y, long m, long n, long k,
                           int threads) {
  linear(x, w, nullptr, b, y, m, n, k, threads);
}

extern "C" void linear_int8_bf16(const uint16_t *x, const int8_t *w, const float *scales, const uint16_t *b, uint16_t *y,
                                 long m, long n, long k, int threads) {
  linear(x, w, scales, b, y, m, n, k, threads);
}

extern "C" void linear_int8_f32(const float *x, const int8_t *w, const float *scales, const float *b, float *y, long m,
                                long n, long k, int threads) {
  linear(x, w, scales, b, y, m, n, k, threads);
}

extern "C" void linear_int4_bf16(const uint16_t *x, const Block4 *w, const float *, const uint16_t *b, uint16_t *y, long m,
                                 long n, long k, int threads) {
  linear(x, w, nullptr, b, y, m, n, k, threads);
}

extern "C" void linear_int4_f32(const float *x, const Block4 *w, const float *, const float *b, float *y, long m, long n,
                                long k, int threads) {
  linear(x, w, nullptr, b, y, m, n, k, threads);
}

// Weights in blocks, of the layout of that number.
#define BLOCKS(name, T)                                                                                                \
  extern "C" void linear_blocks_##name(const T *x, const void *w, int64_t layout, const T *b, T *y, long m, long n,   \
                                       long k, int threads) {                                                          \
    in_layout(layout, w, [&](auto *weights) { linear(x, weights, nullptr, b, y, m, n, k, threads); });                 \
  }                                                                                                                    \
  extern "C" void rows_blocks_##name(const void *w, int64_t layout, const int64_t *of, T *y, long count, long k) {    \
    in_layout(layout, w, [&](auto *weights) { rows(weights, of, y, count, k); });                                      \
  }
BLOCKS(bf16, uint16_t)
BLOCKS(f32, float)

// The level that the library was compiled for.
extern "C" const char *specstream_level() { return LEVEL; }
